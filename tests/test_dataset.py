"""Samples come from images, arrays or the shipped sets, and each bad one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.dataset import PHOTOS, Dataset, load_dataset, photo_bytes, sentences
from edgekit.errors import InvalidInput, UnknownName
from edgekit.processing import ImagePreprocess, TextPreprocess
from edgekit.types import TensorSpec

PIXELS = (TensorSpec(name="pixels", dtype="float32", shape=(1, 3, 8, 8)),)
IMAGES = ImagePreprocess(input="pixels", height=8, width=8)
TOKENS = (
    TensorSpec(name="input_ids", dtype="int64", shape=(1, 6)),
    TensorSpec(name="attention_mask", dtype="int64", shape=(1, 6)),
)
TEXT = TextPreprocess(length=6)
PAIR = (
    TensorSpec(name="x", dtype="float32", shape=(1, 4)),
    TensorSpec(name="ids", dtype="int64", shape=("batch", "seq")),
)


def pair(count: int = 3) -> dict[str, Any]:
    return {"x": np.arange(count * 4, dtype=np.float32).reshape(count, 4), "ids": np.ones((count, 7), np.int64)}


def draw(path: Path, shade: int, size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)
    return path


@pytest.fixture(scope="module")
def words() -> dict[str, bytes]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 1, "the": 2, "a": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return {"tokenizer.json": tokenizer.to_str().encode()}


def test_a_folder_is_read_with_its_subfolders_in_order(tmp_path: Path) -> None:
    for shade, name in enumerate(["a.png", "b/c.JPG", "b/d/e.bmp", "f.webp", "g.tiff", "h.jpeg"]):
        draw(tmp_path / name, 40 * shade)
    (tmp_path / "notes.txt").write_text("no image")
    data = load_dataset(str(tmp_path), PIXELS, IMAGES, {})
    reds = [float(sample["pixels"][0, 0].mean()) * 255 for sample in data.samples]
    assert reds == pytest.approx([0, 40, 80, 120, 160, 200], abs=4)
    assert (data.origin, data.warnings) == (str(tmp_path), ())
    assert data.samples[0]["pixels"].shape == (1, 3, 8, 8)


def test_a_large_folder_is_thinned_evenly_and_says_so(tmp_path: Path) -> None:
    for index in range(300):
        Image.new("L", (1, 1), index % 256).save(tmp_path / f"{index:03}.bmp")
    data = load_dataset(str(tmp_path), PIXELS, IMAGES, {})
    assert len(data.samples) == 256
    assert data.warnings == ("256 of 300 samples are used, evenly spaced",)
    assert float(data.samples[-1]["pixels"].max()) * 255 == pytest.approx(299 % 256)


def test_a_large_npz_is_thinned_evenly_and_keeps_its_ends(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **pair(1000))
    data = load_dataset(str(tmp_path / "d.npz"), PAIR, None, {})
    firsts = [float(sample["x"][0, 0]) / 4 for sample in data.samples]
    assert (len(firsts), firsts[0], firsts[-1], len(data.warnings)) == (256, 0, 999, 1)
    assert set(np.diff(firsts)) <= {3, 4}


@pytest.mark.parametrize("damage", ["text", "empty", "cut"])
def test_an_unreadable_image_is_named(tmp_path: Path, damage: str) -> None:
    draw(tmp_path / "good.png", 9)
    whole = draw(tmp_path / "bad.png", 9, (200, 200)).read_bytes()
    content = {"text": b"no image", "empty": b"", "cut": whole[: len(whole) // 2]}[damage]
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"image '.*bad.png' is not a readable image"):
        load_dataset(str(tmp_path), PIXELS, IMAGES, {})


def test_an_empty_folder_is_refused_with_the_suffixes(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"holds no images \(.bmp, .jpeg, .jpg, .png"):
        load_dataset(str(tmp_path), PIXELS, IMAGES, {})


@pytest.mark.parametrize("preprocess", [None, TEXT])
def test_images_for_a_model_without_image_preprocessing_are_refused(tmp_path: Path, preprocess: Any) -> None:
    draw(tmp_path / "a.png", 1)
    with pytest.raises(InvalidInput, match=r"holds images, and this model has no image preprocessing: give a file.npz"):
        load_dataset(str(tmp_path), PIXELS, preprocess, {})


@pytest.mark.parametrize("text", ["", "nowhere", "samples.npy", "photos", "a\0b", "x" * 5000])
def test_samples_that_are_nowhere_are_answered_with_the_forms(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"no samples at.*folder of images, a file.npz, or builtin:NAME with photos"):
        load_dataset(text, PIXELS, IMAGES, {})


def test_an_npz_gives_one_sample_a_row_with_free_dynamic_sizes(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", **pair())
    data = load_dataset(str(tmp_path / "d.npz"), PAIR, None, {})
    assert [sample["x"].tolist() for sample in data.samples] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9, 10, 11]]]
    assert all(sample["ids"].shape == (1, 7) for sample in data.samples)


BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "missing name": ({"x": pair()["x"]}, "holds x; it must hold x, ids"),
    "wrong name": ({"x": pair()["x"], "id": pair()["ids"]}, "holds x, id; it must hold x, ids"),
    "extra name": (pair() | {"y": np.ones(3)}, "holds x, ids, y; it must hold x, ids"),
    "nothing": ({}, "holds nothing; it must hold x, ids"),
    "wrong size": (pair() | {"x": np.zeros((3, 5), np.float32)}, r"sample 0.*'x' has shape \[1, 5\].*takes \[1, 4\]"),
    "wrong rank": (pair() | {"x": np.zeros((3, 4, 1), np.float32)}, r"'x' has shape \[1, 4, 1\]"),
    "wrong dtype": (pair() | {"x": np.zeros((3, 4))}, "sample 0.*'x' is float64, not float32"),
    "unequal": (pair() | {"ids": np.ones((2, 7), np.int64)}, r"same number of samples.*found \{'x': 3, 'ids': 2\}"),
    "no samples": (pair(0), r"same number of samples.*found \{'x': 0, 'ids': 0\}"),
    "scalars": ({"x": np.float32(1), "ids": np.int64(1)}, "same number of samples"),
    "NaN": (pair() | {"x": np.array([[1] * 4, [np.nan] * 4, [1] * 4], np.float32)}, "sample 1.*'x' holds NaN or Inf"),
    "Inf": (pair() | {"x": np.array([[1] * 4, [1] * 4, [-np.inf] * 4], np.float32)}, "sample 2.*'x' holds NaN or Inf"),
    "objects": (pair() | {"x": np.array([{}, {}, {}], dtype=object)}, "not an .npz of plain arrays"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_bad_npz_is_refused_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    arrays, said = BAD_NPZ[case]
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InvalidInput, match=said):
        load_dataset(str(tmp_path / "d.npz"), PAIR, None, {})


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "npy"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **pair())
    np.save(tmp_path / "one.npy", np.ones(3))
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"1,2,3", "cut": whole[:-40], "npy": (tmp_path / "one.npy").read_bytes()}[damage]
    )
    with pytest.raises(InvalidInput, match=r"d.npz' is not an .npz of plain arrays"):
        load_dataset(str(path), PAIR, None, {})


def test_a_missing_npz_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no file '.*gone.npz'"):
        load_dataset(f"{tmp_path}/gone.npz", PAIR, None, {})


def test_calibration_and_evaluation_photographs_are_disjoint() -> None:
    names = PHOTOS["photos"], PHOTOS["photos-heldout"]
    assert all(names)
    assert not set(names[0]) & set(names[1])
    assert len({photo_bytes(name) for group in names for name in group}) == len(names[0]) + len(names[1])
    first, second = (load_dataset(f"builtin:{name}", PIXELS, IMAGES, {}) for name in ("photos", "photos-heldout"))
    seen = {sample["pixels"].tobytes() for sample in first.samples}
    assert len(first.samples) == 8 * len(names[0])
    assert not seen & {sample["pixels"].tobytes() for sample in second.samples}
    assert load_dataset("builtin:photos", PIXELS, IMAGES, {}).sha256 == first.sha256


def test_calibration_and_evaluation_sentences_are_disjoint(words: dict[str, bytes]) -> None:
    first, second = sentences("sentences"), sentences("sentences-heldout")
    assert min(len(first), len(second)) >= 16
    assert len(set(first) | set(second)) == len(first) + len(second)
    assert all(line.strip() for line in first + second)
    data = load_dataset("builtin:sentences", TOKENS, TEXT, words)
    assert len(data.samples) == len(first)
    assert data.samples[0]["input_ids"].shape == (1, 6)


def test_an_unknown_set_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'photo-heldout'. Did you mean 'photos-heldout'\?.*sentences"):
        load_dataset("builtin:photo-heldout", PIXELS, IMAGES, {})


@pytest.mark.parametrize("name", ["photos", "photos-heldout"])
def test_photographs_for_a_model_of_text_are_refused(name: str, words: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInput, match=rf"'builtin:{name}' holds photographs.*give a file.npz"):
        load_dataset(f"builtin:{name}", TOKENS, TEXT, words)


@pytest.mark.parametrize("name", ["sentences", "sentences-heldout"])
def test_sentences_for_a_model_of_images_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"'builtin:{name}' holds sentences.*no tokenizer: give a file.npz"):
        load_dataset(f"builtin:{name}", PIXELS, IMAGES, {})


def test_the_hash_tells_content_names_and_order_but_not_the_place() -> None:
    samples = tuple({"x": np.full((1, 2), value, np.float32)} for value in range(4))
    base = Dataset("here", samples).sha256
    assert Dataset("there", tuple(dict(s) for s in samples), ("warned",)).sha256 == base
    others = [
        samples[::-1],
        samples[:3],
        tuple({"y": s["x"]} for s in samples),
        tuple({"x": s["x"].astype(np.float64)} for s in samples),
        tuple({"x": s["x"].reshape(2, 1)} for s in samples),
        (*samples[:3], {"x": np.array([[3, np.nextafter(np.float32(3), np.float32(4))]], np.float32)}),
    ]
    assert len({base, *(Dataset("here", tuple(other)).sha256 for other in others)}) == len(others) + 1


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9, 64])
@pytest.mark.parametrize("every", [2, 4])
def test_a_split_is_disjoint_and_complete(count: int, every: int) -> None:
    data = Dataset("here", tuple({"x": np.array([index])} for index in range(count)), ("warned",))
    kept, held = data.split(every)
    parts = [[int(sample["x"][0]) for sample in part.samples] for part in (kept, held)]
    assert sorted(parts[0] + parts[1]) == list(range(count))
    assert parts[1] == list(range(every - 1, count, every))
    assert kept.warnings == held.warnings == ("warned",)
    assert kept.origin != held.origin
