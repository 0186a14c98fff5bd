"""What happens to an input before a model and to an output after it, as data that travels inside the bundle.

The same code prepares calibration samples on the workstation and photographs on the board, so the two cannot drift.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.errors import InvalidInput, ToolchainMissing
from edgekit.types import DynamicDim, Layout, TensorSpec, Value

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_ASPECT = 100  # resizing comes before the crop, so a thin image would grow without bound
Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]  # tensor name -> array
Assets = Mapping[str, bytes]  # file name -> content; the files a bundle carries beside the model


class ImagePreprocess(Value, frozen=True, kw_only=True, tag="image"):
    """Photograph -> float32 `[1, 3, H, W]` (or `[1, H, W, 3]`): resize, crop or pad, `(rgb / 255 - mean) / std`.

    `longest_side` keeps the whole photograph in the upper left corner and fills the rest with zeros, which come after
    `mean` and `std` as in transformers' SamImageProcessor; `valid_size` says how much of the input is photograph.
    """

    input: str
    height: int
    width: int
    resize: Literal["shorter_side", "stretch", "longest_side"] = "shorter_side"
    shorter_side: int | None = None  # pixels after resizing and before the crop; defaults to the crop's own size
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    layout: Layout = "NCHW"

    def __call__(self, source: str | Path | bytes | Array, assets: Assets) -> Arrays:
        """`source` is a path, the bytes of an image file, or a uint8 array `[H, W, 3]` or `[H, W]`."""
        pixels = np.asarray(self.frame(open_image(source)))  # uint8 [h, w, 3]
        planes = np.zeros((3, self.height, self.width), np.float32)
        for channel, plane in enumerate(planes):  # each for itself is eight times as fast as all of [h, w, 3]
            covered = plane[: pixels.shape[0], : pixels.shape[1]]  # all of it, but for `longest_side`
            covered[...] = pixels[..., channel]
            covered /= 255.0
            covered -= self.mean[channel]
            covered /= self.std[channel]
        normal = planes if self.layout == "NCHW" else planes.transpose(1, 2, 0)
        return {self.input: np.ascontiguousarray(normal[None])}

    def frame(self, image: Image) -> Image:
        """Resize, and crop to the model's input size where it is larger."""
        from PIL.Image import Resampling

        method = Resampling[self.interpolation.upper()]
        if self.resize == "stretch":
            return image.resize((self.width, self.height), method)
        if self.resize == "longest_side":
            height, width = self.valid_size(image.height, image.width)
            return image.resize((width, height), method)
        side = max(self.shorter_side or 0, self.height, self.width)
        scale = side / min(image.size)
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise InvalidInput(f"an image of {image.width} x {image.height} is too thin: crop it first")
        image = image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))), method)
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))

    def valid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the model's input that a photograph of this size covers; the rest is padding."""
        if self.resize != "longest_side":
            return self.height, self.width
        scale = min(self.height / height, self.width / width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


class TextPreprocess(Value, frozen=True, kw_only=True, tag="text"):
    """Text -> int64 `[1, L]` token ids (and mask), cut and padded to `length`."""

    tokenizer: str = "tokenizer.json"  # an asset in the `tokenizers` JSON format
    length: int
    input_ids: str = "input_ids"
    attention_mask: str | None = "attention_mask"
    token_type_ids: str | None = None
    pad_token_id: int = 0

    def __call__(self, source: str, assets: Assets) -> Arrays:
        """`source` is the text itself."""
        tokenizer = open_tokenizer(assets, self.tokenizer)
        tokenizer.enable_truncation(self.length)
        encoding = tokenizer.encode(source)
        arrays = {self.input_ids: self._padded(encoding.ids, self.pad_token_id)}
        if self.attention_mask:
            arrays[self.attention_mask] = self._padded([1] * len(encoding.ids), 0)
        if self.token_type_ids:
            arrays[self.token_type_ids] = self._padded(encoding.type_ids, 0)
        return arrays

    def _padded(self, ids: list[int], fill: int) -> Array:
        return np.array([ids + [fill] * (self.length - len(ids))], dtype=np.int64)


class ClassLabels(Value, frozen=True, kw_only=True, tag="labels"):
    """Logits `[1, C]` -> the most likely classes with their softmax probability."""

    output: str
    labels: str = "labels.txt"  # an asset: one label a line
    top: int = 5

    def __call__(self, outputs: Arrays, assets: Assets) -> dict[str, Any]:
        """The `top` classes, the likeliest first."""
        labels = asset_text(assets, self.labels).splitlines()
        probabilities = softmax(outputs[self.output].astype(np.float64))[0]
        if len(labels) < len(probabilities):
            raise InvalidInput(f"'{self.labels}' has {len(labels)} labels for {len(probabilities)} classes")
        order = np.argsort(-probabilities, kind="stable")[: self.top]
        return {"labels": [{"label": labels[i], "index": int(i), "p": float(probabilities[i])} for i in order]}


class Embedding(Value, frozen=True, kw_only=True, tag="embedding"):
    """A vector `[1, D]` that is compared with others by cosine."""

    output: str

    def __call__(self, outputs: Arrays, assets: Assets) -> dict[str, Any]:
        """The vector and its length."""
        vector = outputs[self.output][0].astype(np.float64)
        return {"norm": float(np.linalg.norm(vector)), "embedding": vector.tolist()}


Preprocess = ImagePreprocess | TextPreprocess
Postprocess = ClassLabels | Embedding


def softmax(logits: Array) -> Array:
    """Softmax over the last axis, in the input's dtype."""
    with np.errstate(over="ignore"):  # the largest floats differ by more than a float holds; exp of that is 0 as it is
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def open_tokenizer(assets: Assets, name: str) -> Any:
    """The `tokenizers.Tokenizer` of an asset; it neither cuts nor pads. Raises `InvalidInput`, `ToolchainMissing`."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ToolchainMissing("text input needs tokenizers: pip install 'edgekit[text]'") from error
    try:
        tokenizer = Tokenizer.from_str(asset_text(assets, name))
    except Exception as error:  # tokenizers raises plain `Exception`
        raise InvalidInput(f"'{name}' is not a readable tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def asset_text(assets: Assets, name: str) -> str:
    """The text of an asset. Raises `InvalidInput` where it is missing or no UTF-8."""
    try:
        return assets[name].decode()
    except KeyError as error:
        raise InvalidInput(f"the bundle carries no '{name}'") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"'{name}' is not UTF-8: {error}") from error


def open_image(source: str | Path | bytes | Array) -> Image:
    """An RGB image from a path, file bytes or a uint8 array. Raises `InvalidInput` for anything else."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ToolchainMissing("images need Pillow: pip install pillow") from error
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or not source.size
            or source.ndim not in (2, 3)
            or source.shape[2:] not in ((), (3,))
        ):
            raise InvalidInput(f"an image array must be uint8 [H, W, 3] or [H, W], not {source.dtype}{source.shape}")
        return Image.fromarray(source).convert("RGB")
    shown = "image bytes" if isinstance(source, bytes) else f"image '{source}'"
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("its pixels are floats without a range, so nothing says what white is: save it in 8 bits")
        if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")  # decoding happens here, so broken files fail here
    except FileNotFoundError as error:
        raise InvalidInput(f"{shown} does not exist") from error
    except Image.DecompressionBombError as error:
        raise InvalidInput(f"{shown} is too large to decode safely: {error}") from error
    except Exception as error:  # Pillow's decoders raise a dozen types for damaged files
        raise InvalidInput(f"{shown} is not a readable image: {error}") from error


def image_size(content: bytes) -> tuple[int, int]:
    """Height and width of an image file as `open_image` gives it.

    Only the header is read, of a PNG all of it: its orientation may come last. Raises `InvalidInput`
    for what is no image.
    """
    try:
        from PIL import ExifTags, Image
    except ImportError as error:
        raise ToolchainMissing("images need Pillow: pip install pillow") from error
    try:
        image = Image.open(io.BytesIO(content))
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)  # by a quarter
    except Exception as error:  # Pillow's readers raise a dozen types for damaged files
        raise InvalidInput(f"it is not a readable image: {error}") from error
    return (image.width, image.height) if turned else (image.height, image.width)


def read_npz(path: Path) -> Arrays:
    """All arrays of an .npz; never unpickles. Raises `InvalidInput` for a missing or damaged file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise InvalidInput(f"no file '{path}'") from error
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types for damaged archives
        raise InvalidInput(f"'{path}' is not an .npz of plain arrays: {error}") from error


def relaid(feeds: Arrays, given: tuple[TensorSpec, ...], wanted: tuple[TensorSpec, ...]) -> Arrays:
    """Feeds in the layout of `given` as an artifact with the layout of `wanted` takes them: NCHW <-> NHWC."""
    turned = dict(feeds)
    for one, other in zip(given, wanted, strict=True):
        if one.shape != other.shape and other.layout == "NHWC":
            turned[one.name] = np.ascontiguousarray(np.moveaxis(feeds[one.name], 1, -1))
    return turned


def logits_output(postprocess: Postprocess | None) -> str | None:
    """The output whose argmax is the answer, where a model is a classifier."""
    return postprocess.output if isinstance(postprocess, ClassLabels) else None


def check_arrays(
    arrays: Mapping[str, Array], specs: tuple[TensorSpec, ...], dynamic: tuple[DynamicDim, ...] = ()
) -> None:
    """Raise `InvalidInput` unless `arrays` has just the named tensors with fitting dtypes, shapes and dynamic sizes."""
    wanted = {spec.name: spec for spec in specs}
    if arrays.keys() != wanted.keys():
        raise InvalidInput(f"inputs must be {', '.join(map(str, specs))}; got {', '.join(map(str, arrays)) or 'none'}")
    for name, array in arrays.items():
        spec = wanted[name]
        if not isinstance(array, np.ndarray):
            raise InvalidInput(f"input '{name}' must be a numpy array, not {type(array).__name__}")
        if array.dtype.name != spec.dtype or not array.dtype.isnative:
            raise InvalidInput(f"input '{name}' must be {spec.dtype}, not {array.dtype}: use .astype('{spec.dtype}')")
        fits = array.ndim == len(spec.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise InvalidInput(f"input '{name}' must have shape {list(spec.shape)}, not {list(array.shape)}")
        for dim in dynamic:
            sizes = [got for want, got in zip(spec.shape, array.shape, strict=True) if want == dim.axis_name]
            if any(not dim.allows(size) for size in sizes):
                raise InvalidInput(f"input '{name}' has {dim.axis_name} = {sizes[0]}; this bundle takes {dim}")
