"""Samples for calibration and verification: a folder of images, an .npz, or a set that ships with edgekit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgekit.errors import InvalidInput, unknown_name
from edgekit.processing import Array, Arrays, Assets, ImagePreprocess, Preprocess, TextPreprocess, open_image, read_npz
from edgekit.types import TensorSpec

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
T = TypeVar("T")
MOST_SAMPLES = 256  # more change no range and cost minutes; a larger folder is thinned evenly
FEW_SAMPLES = 32
RANDOM_SAMPLES = 8  # drawn where no real ones are given
VIEWS = 8  # crops taken of each shipped photograph: the whole, and seven random ones
# Ranges are set on textures and pictures without a subject that ImageNet names, and judged on photographs with one.
PHOTOS = {
    "photos": ("astronaut", "brick", "coins", "grass", "gravel", "hubble", "retina", "tissue"),
    "photos-heldout": ("camera", "chelsea", "coffee", "rocket"),
}
SENTENCES = ("sentences", "sentences-heldout")
BUILTIN = (*PHOTOS, *SENTENCES)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Model inputs, one dict of arrays per sample, each with a leading axis of 1."""

    origin: str
    samples: tuple[Arrays, ...]
    warnings: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of names, dtypes, shapes and bytes of all samples, in order."""
        return arrays_sha256(self.samples)

    def split(self, every: int = 4) -> tuple[Dataset, Dataset]:
        """Two disjoint parts: all but every `every`-th sample, and these."""
        kept = tuple(s for i, s in enumerate(self.samples) if (i + 1) % every)
        held = tuple(s for i, s in enumerate(self.samples) if not (i + 1) % every)
        return (
            Dataset(f"{self.origin} (all but every {every}th)", kept, self.warnings),
            Dataset(f"{self.origin} (every {every}th)", held, self.warnings),
        )


def load_dataset(text: str, inputs: tuple[TensorSpec, ...], preprocess: Preprocess | None, assets: Assets) -> Dataset:
    """`DIR_OF_IMAGES`, `file.npz` (one array per input, samples along axis 0) or `builtin:NAME`.

    Raises `InvalidInput` or `UnknownName`.
    """
    if text.startswith("builtin:"):
        return _checked(_builtin(text, preprocess, assets), inputs)
    path = Path(text)
    if path.suffix == ".npz":
        return _checked(_npz(path, inputs), inputs)
    if text and os.path.isdir(text):
        return _checked(_image_folder(path, preprocess, assets), inputs)
    raise InvalidInput(
        f"no samples at '{text}': give a folder of images, a file.npz, or builtin:NAME with {', '.join(BUILTIN)}"
    )


def arrays_sha256(samples: Sequence[Arrays]) -> str:
    """Hash of names, dtypes, shapes and bytes of samples, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        for name, array in sorted(sample.items()):
            digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def random_samples(example: Arrays) -> tuple[Arrays, ...]:
    """The example and inputs like it: normal floats of its mean and spread, integers among its values."""
    rng = np.random.default_rng(0)

    def draw(array: Array) -> Array:
        if array.dtype.kind in "iub":
            drawn = np.asarray(rng.choice(array.ravel(), array.shape))
        else:
            drawn = np.asarray(rng.standard_normal(array.shape) * (array.std() or 1.0) + array.mean())
        return drawn.astype(array.dtype)

    return (example, *({name: draw(array) for name, array in example.items()} for _ in range(RANDOM_SAMPLES)))


def photo_bytes(name: str) -> bytes:
    """The JPEG file of one shipped photograph."""
    return files("edgekit.data.photos").joinpath(f"{name}.jpg").read_bytes()


def sentences(name: str) -> list[str]:
    """The shipped sentences of one set."""
    return files("edgekit.data").joinpath(f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _builtin(text: str, preprocess: Preprocess | None, assets: Assets) -> Dataset:
    name = text.removeprefix("builtin:")
    if name not in BUILTIN:
        raise unknown_name("built-in set of samples", name, BUILTIN)
    if name in PHOTOS:
        if not isinstance(preprocess, ImagePreprocess):
            raise InvalidInput(
                f"'{text}' holds photographs, and this model has no image preprocessing: give a file.npz"
            )
        rng = np.random.default_rng(0)
        views = [view for photo in PHOTOS[name] for view in _views(photo_bytes(photo), rng)]
        return Dataset(text, tuple(preprocess(view, assets) for view in views))
    if not isinstance(preprocess, TextPreprocess):
        raise InvalidInput(f"'{text}' holds sentences, and this model has no tokenizer: give a file.npz")
    return Dataset(text, tuple(preprocess(line, assets) for line in sentences(name)))


def _views(photo: bytes, rng: np.random.Generator) -> Sequence[Array]:
    """The whole photograph, then random squares of it with 35 to 100 % of its shorter side."""
    image = open_image(photo)
    views = [np.asarray(image)]
    for _ in range(VIEWS - 1):
        side = rng.uniform(0.35, 1.0) * min(image.size)
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        views.append(np.asarray(image.crop((round(left), round(top), round(left + side), round(top + side)))))
    return views


def image_files(path: Path, preprocess: Preprocess | None) -> tuple[list[Path], ImagePreprocess]:
    """All images below a folder, in the order of their names, and the preprocessing that they need.

    Raises `InvalidInput` where there are none, or the model takes no images.
    """
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InvalidInput(f"folder '{path}' holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if not isinstance(preprocess, ImagePreprocess):
        raise InvalidInput(f"'{path}' holds images, and this model has no image preprocessing: give a file.npz instead")
    return found, preprocess


def npz_rows(path: Path, inputs: tuple[TensorSpec, ...]) -> Arrays:
    """An array for each input, samples along axis 0. Raises `InvalidInput` for other names or lengths that differ."""
    arrays = read_npz(path)
    wanted = [spec.name for spec in inputs]
    if sorted(arrays) != sorted(wanted):
        raise InvalidInput(f"'{path}' holds {', '.join(arrays) or 'nothing'}; it must hold {', '.join(wanted)}")
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise InvalidInput(
            f"'{path}' must hold the same number of samples along axis 0 of every array, found {lengths}"
        )
    return arrays


def _image_folder(path: Path, preprocess: Preprocess | None, assets: Assets) -> Dataset:
    found, prepare = image_files(path, preprocess)
    chosen, warnings = _thin(found)
    return Dataset(str(path), tuple(prepare(p, assets) for p in chosen), warnings)


def _npz(path: Path, inputs: tuple[TensorSpec, ...]) -> Dataset:
    arrays = npz_rows(path, inputs)
    rows, warnings = _thin(list(range(len(next(iter(arrays.values()))))))
    return Dataset(str(path), tuple({n: a[i : i + 1] for n, a in arrays.items()} for i in rows), warnings)


def _thin(items: list[T]) -> tuple[list[T], tuple[str, ...]]:
    if len(items) <= MOST_SAMPLES:
        return items, ()
    indices = np.linspace(0, len(items) - 1, MOST_SAMPLES).round().astype(int)
    return [items[i] for i in indices], (f"{MOST_SAMPLES} of {len(items)} samples are used, evenly spaced",)


def _checked(dataset: Dataset, inputs: tuple[TensorSpec, ...]) -> Dataset:
    for index, sample in enumerate(dataset.samples):
        check_sample(sample, inputs, f"sample {index} of '{dataset.origin}'")
    return dataset


def check_sample(sample: Arrays, inputs: tuple[TensorSpec, ...], shown: str) -> None:
    """Raise `InvalidInput` unless a sample has every input with its dtype and shape, without NaN."""
    for spec in inputs:
        array = sample.get(spec.name)
        if array is None:
            raise InvalidInput(f"{shown} gives {', '.join(sample)}, and the model takes '{spec.name}'")
        sizes = zip(spec.shape[1:], array.shape[1:], strict=False)
        if array.ndim != len(spec.shape) or any(isinstance(w, int) and w != g for w, g in sizes):
            raise InvalidInput(
                f"{shown}: input '{spec.name}' has shape {list(array.shape)}, the model takes {list(spec.shape)}"
            )
        if array.dtype.name != spec.dtype:
            raise InvalidInput(f"{shown}: input '{spec.name}' is {array.dtype}, not {spec.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInput(f"{shown}: input '{spec.name}' holds NaN or Inf")
