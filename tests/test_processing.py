"""Images, text and answers against references in float64; hostile files end in one kind of error."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import InvalidInput
from edgekit.processing import (
    Array,
    ClassLabels,
    Embedding,
    ImagePreprocess,
    TextPreprocess,
    check_arrays,
    open_image,
    softmax,
)
from edgekit.types import DTYPES, TensorSpec

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
METHODS = ("nearest", "bilinear", "bicubic", "lanczos")
FORMATS = ("png", "jpeg", "gif", "bmp", "webp", "tiff", "avif", "dds")


def noise(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stored(image: Any, form: str = "png", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def kernel(method: str) -> tuple[float, Callable[[Array], Array]]:
    """Support and shape of the filter, from their definitions: triangle, Keys' cubic with a = -1/2, Lanczos 3."""
    if method == "bilinear":
        return 1.0, lambda x: np.maximum(0, 1 - np.abs(x))
    if method == "bicubic":
        near, far = lambda x: 1.5 * x**3 - 2.5 * x**2 + 1, lambda x: -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return 2.0, lambda x: np.where(abs(x) < 1, near(abs(x)), np.where(abs(x) < 2, far(abs(x)), 0))
    return 3.0, lambda x: np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def resized(pixels: Array, size: int, method: str, axis: int) -> Array:
    """One axis of an antialiased resize, in float64, clipped to the range of a byte as images are between passes."""
    source = np.moveaxis(pixels.astype(np.float64), axis, 0)
    support, shape = kernel(method)
    scale = len(source) / size
    centers, places = (np.arange(size) + 0.5) * scale, np.arange(len(source)) + 0.5
    distance = (places[None] - centers[:, None]) / max(scale, 1)
    weights = np.where(np.abs(distance) < support, shape(distance), 0)
    out = np.tensordot(weights / weights.sum(1, keepdims=True), source, 1)
    return np.clip(np.moveaxis(out, 0, axis), 0, 255)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("resize", "size"),
    [(r, (n, n)) for r in ("shorter_side", "stretch") for n in (1, 7, 32)]
    + [("stretch", (5, 9)), ("stretch", (32, 17))],
)
def test_an_image_of_the_models_size_is_only_normalised(
    layout: Any, method: Any, resize: Any, size: tuple[int, int]
) -> None:
    pixels = noise(*size)
    step = ImagePreprocess(
        input="x", height=size[0], width=size[1], resize=resize, interpolation=method, mean=MEAN, std=STD, layout=layout
    )
    expected = ((pixels.astype(np.float64) / 255 - MEAN) / STD)[None]
    got = step(pixels, {})["x"]
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, expected.transpose(0, 3, 1, 2) if layout == "NCHW" else expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (9, 5), (23, 31), (60, 17)])
def test_stretching_agrees_with_the_filters_definition(method: Any, height: int, width: int) -> None:
    pixels = noise(24, 30)
    step = ImagePreprocess(input="x", height=height, width=width, resize="stretch", interpolation=method, layout="NHWC")
    got = step(pixels, {})["x"][0] * 255.0
    rows_last = resized(resized(pixels, width, method, 1), height, method, 0)
    rows_first = resized(resized(pixels, height, method, 0), width, method, 1)  # Pillow takes the cheaper order
    assert rows_last.std() > 5
    assert min(np.abs(got - rows_last).max(), np.abs(got - rows_first).max()) < 1.5  # each pass rounds to a byte


def test_nearest_repeats_pixels() -> None:
    pixels = noise(3, 4)
    step = ImagePreprocess(input="x", height=9, width=8, resize="stretch", interpolation="nearest", layout="NHWC")
    np.testing.assert_array_equal(np.rint(step(pixels, {})["x"][0] * 255), pixels.repeat(3, 0).repeat(2, 1))


@given(height=st.integers(1, 24), width=st.integers(1, 24), data=st.data())
@settings(deadline=None)
def test_the_crop_is_the_centre(height: int, width: int, data: st.DataObject) -> None:
    pixels, side = noise(height, width), min(height, width)
    rows, columns = data.draw(st.integers(1, side)), data.draw(st.integers(1, side))
    step = ImagePreprocess(input="x", height=rows, width=columns, shorter_side=side, layout="NHWC")
    top, left = (height - rows) // 2, (width - columns) // 2
    crop = pixels[top : top + rows, left : left + columns]
    np.testing.assert_array_equal(np.rint(step(pixels, {})["x"][0] * 255), crop)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 20), st.integers(1, 20), st.sampled_from(METHODS))
@settings(deadline=None)
def test_any_image_fits_any_model(height: int, width: int, rows: int, columns: int, method: Any) -> None:
    for resize in ("shorter_side", "stretch"):
        step = ImagePreprocess(input="x", height=rows, width=columns, resize=resize, interpolation=method)
        got = step(np.full((height, width, 3), 200, np.uint8), {})["x"]
        assert got.shape == (1, 3, rows, columns)
        np.testing.assert_allclose(got, 200 / 255, atol=1e-6)  # an even image stays even: nothing from outside it


def test_a_hair_thin_image_needs_no_gigabytes() -> None:
    code = """
import resource, sys, numpy as np
from edgekit.errors import InvalidInput
from edgekit.processing import ImagePreprocess
pixels = np.zeros((1, 60_000, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    print(ImagePreprocess(input="x", height=224, width=224)(pixels, {})["x"].shape)
except InvalidInput as error:
    print(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_every_kind_of_png_and_tiff_becomes_rgb(mode: str) -> None:
    gray = np.array([[0, 255, 0], [255, 255, 0]] if mode == "1" else [[0, 60, 120], [180, 240, 255]], np.uint8)
    rgb = Image.fromarray(gray).convert("RGB")
    if mode == "I;16":  # 16 bits a pixel
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        image = rgb.quantize(8) if mode == "P" else rgb.convert(mode)
    got = np.asarray(open_image(stored(image, "tiff" if mode == "CMYK" else "png")))
    np.testing.assert_allclose(got, np.asarray(rgb), atol=1)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_says(turn: int) -> None:
    pixels, exif = noise(2, 3), Image.Exif()
    exif[0x0112] = turn
    upright = [
        pixels, pixels[:, ::-1], np.rot90(pixels, 2), pixels[::-1], pixels.swapaxes(0, 1), np.rot90(pixels, -1),
        np.rot90(pixels, 2).swapaxes(0, 1), np.rot90(pixels),
    ][turn - 1]  # fmt: skip
    got = np.asarray(open_image(stored(Image.fromarray(pixels), exif=exif)))
    np.testing.assert_array_equal(got, upright)


@pytest.mark.parametrize("given_as", [str, Path, Path.read_bytes])
def test_a_path_and_its_bytes_are_the_same_image(tmp_path: Path, given_as: Any) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(stored(Image.fromarray(noise(4, 5))))
    np.testing.assert_array_equal(np.asarray(open_image(given_as(path))), noise(4, 5))


def test_a_missing_image_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"'no/such\.jpg' does not exist"):
        open_image("no/such.jpg")


@pytest.mark.parametrize("content", [b"", b"just a text, not a photograph\n", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"photo\.jpg' is not a readable image"):
        open_image(path)
    with pytest.raises(InvalidInput, match="image bytes is not a readable image"):
        open_image(content)


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a readable image"):
        open_image(tmp_path)


def test_an_image_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = bytearray(stored(Image.new("RGB", (8, 8)), "bmp"))
    bomb[18:26] = (20_000).to_bytes(4, "little") * 2
    with pytest.raises(InvalidInput, match="too large to decode safely"):
        open_image(bytes(bomb))


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_file_of_any_format_is_refused_or_read(form: str) -> None:
    rng, whole = np.random.default_rng(0), stored(Image.fromarray(noise(16, 16)), form)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 300), rng.integers(1, 5)):
            damaged[place] = rng.integers(0, 256)
        try:
            open_image(bytes(damaged[: rng.integers(0, 2 * len(whole))]))
        except InvalidInput:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("shape", [(4,), (2, 2, 5), (2, 2, 1), (2, 2, 2), (2, 2, 3, 1), (0, 4, 3), (4, 0), ()])
def test_an_array_that_is_no_image_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"uint8 \[H, W, 3\] or \[H, W\], not uint8"):
        ImagePreprocess(input="x", height=2, width=2)(np.zeros(shape, np.uint8), {})


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint16"])
def test_an_array_of_other_numbers_than_bytes_is_refused(dtype: str) -> None:
    with pytest.raises(InvalidInput, match=f"must be uint8 .* not {dtype}"):
        open_image(np.zeros((2, 2, 3), dtype))


X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))


def test_arrays_that_fit_are_accepted() -> None:
    for batch in (1, 2, 7):
        check_arrays({"x": np.zeros((batch, 3), np.float32)}, (X,))
    for dtype in (d for d in DTYPES if d != "bfloat16"):
        check_arrays({"y": np.zeros((), dtype)}, (TensorSpec(name="y", dtype=dtype, shape=()),))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"inputs must be x: float32\[batch, 3\]; got none"),
        ({"y": np.zeros(3)}, r"inputs must be x: .*; got y"),
        ({"x": np.zeros((1, 3), np.float32), "y": np.zeros(3)}, "got x, y"),
        ({"x": [[0.0, 0.0, 0.0]]}, "'x' must be a numpy array, not list"),
        ({"x": np.zeros((1, 3))}, r"'x' must be float32, not float64: use \.astype\('float32'\)"),
        ({"x": np.zeros((1, 3), ">f4")}, r"'x' must be float32, not >f4: use \.astype\('float32'\)"),
        ({"x": np.zeros((1, 4), np.float32)}, r"'x' must have shape \['batch', 3\], not \[1, 4\]"),
        ({"x": np.zeros(3, np.float32)}, r"must have shape \['batch', 3\], not \[3\]"),
        ({"x": np.zeros((1, 1, 3), np.float32)}, r"not \[1, 1, 3\]"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_arrays(arrays, (X,))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_softmax_agrees_with_extended_precision_for_large_values(logits: list[float]) -> None:
    wide = np.array(logits, np.longdouble)
    expected = np.exp(wide - wide.max()) / np.exp(wide - wide.max()).sum()
    np.testing.assert_allclose(softmax(np.array(logits)), expected.astype(np.float64), rtol=1e-12, atol=1e-300)
    single = softmax(np.array([logits], np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single[0], expected.astype(np.float64), atol=1e-6)


def test_softmax_of_the_largest_floats_is_finite() -> None:
    top = np.finfo(np.float32).max
    np.testing.assert_array_equal(softmax(np.array([[top, -top], [top, top]], np.float32)), [[1, 0], [0.5, 0.5]])


def test_labels_come_likeliest_first_and_ties_in_order() -> None:
    answer = ClassLabels(output="y", top=3)(
        {"y": np.log([[1.0, 4.0, 1.0, 2.0]])}, {"labels.txt": "a\nb\nc\nñ\n".encode()}
    )
    assert [(x["label"], x["index"]) for x in answer["labels"]] == [("b", 1), ("ñ", 3), ("a", 0)]
    many = ClassLabels(output="y")({"y": np.zeros((1, 300))}, {"labels.txt": b"same\n" * 300})
    assert [x["index"] for x in many["labels"]] == [0, 1, 2, 3, 4]
    assert [x["p"] for x in answer["labels"]] == pytest.approx([0.5, 0.25, 0.125], rel=1e-12)


@pytest.mark.parametrize("assets", [{}, {"labels.txt": b"only one"}, {"labels.txt": b"\xff\xfe"}])
def test_labels_that_do_not_fit_the_model_are_named(assets: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInput, match=r"labels\.txt"):
        ClassLabels(output="y", top=2)({"y": np.zeros((1, 4))}, assets)


def test_an_embedding_comes_with_its_length() -> None:
    answer = Embedding(output="y")({"y": np.array([[3.0, 4.0]], np.float32)}, {})
    assert answer == {"norm": 5.0, "embedding": [3.0, 4.0]}


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    """Words `w0` to `w9` are 10 to 19; every text is wrapped in [CLS] = 1 and [SEP] = 2."""
    package = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2} | {f"w{i}": 10 + i for i in range(10)}
    made = package.Tokenizer(WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.enable_padding(length=99)  # a tokenizer's own settings must not leak
    made.enable_truncation(4)
    return made.to_str().encode()


@pytest.mark.parametrize("length", range(3, 12))
@pytest.mark.parametrize("words", range(11))
def test_text_is_cut_padded_and_masked(tokenizer: bytes, length: int, words: int) -> None:
    step = TextPreprocess(length=length, token_type_ids="token_type_ids", pad_token_id=7)
    arrays = step(" ".join(f"w{i % 10}" for i in range(words)), {"tokenizer.json": tokenizer})
    kept = [1, *[10 + i % 10 for i in range(words)][: length - 2], 2]
    padding = length - len(kept)
    assert arrays["input_ids"].tolist() == [kept + [7] * padding]
    assert arrays["attention_mask"].tolist() == [[1] * len(kept) + [0] * padding]
    assert arrays["token_type_ids"].tolist() == [[0] * length]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


def test_only_the_named_tensors_are_made(tokenizer: bytes) -> None:
    step = TextPreprocess(length=8, input_ids="ids", attention_mask=None)
    assert step("w1 unknown", {"tokenizer.json": tokenizer})["ids"][0, :4].tolist() == [1, 11, 0, 2]
    assert step("", {"tokenizer.json": tokenizer}).keys() == {"ids"}


@pytest.mark.parametrize("assets", [{}, {"tokenizer.json": b"{}"}, {"tokenizer.json": b"\xff"}])
def test_a_tokenizer_that_is_missing_or_damaged_is_named(tokenizer: bytes, assets: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInput, match=r"tokenizer\.json"):
        TextPreprocess(length=8)("w1", assets)
