"""Images to learn from: keys of content, masks of padding, and every bad file named before work begins."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.distill.training.data import from_samples, open_images
from edgekit.errors import InvalidInput, UnknownName
from edgekit.processing import ImagePreprocess, image_size, open_image
from edgekit.types import TensorSpec

PADDED = ImagePreprocess(input="pixels", height=16, width=16, resize="longest_side")
SPEC = (TensorSpec(name="pixels", dtype="float32", shape=(1, 3, 16, 16), layout="NCHW"),)


def write(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_folder_gives_prepared_arrays_under_the_hash_of_each_file(tmp_path: Path) -> None:
    files = [write(tmp_path / "b.png", 20, 40), write(tmp_path / "sub" / "a.jpg", 32, 16, 1)]
    images = open_images(str(tmp_path), SPEC, PADDED, {})
    assert len(images) == 2
    assert images.keys == tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    for index, file in enumerate(files):
        assert np.array_equal(images[index]["pixels"], PADDED(file, {})["pixels"])
    batch = images.batch([1, 0])["pixels"]
    assert batch.shape == (2, 3, 16, 16)
    assert torch.equal(batch[1:], torch.from_numpy(images[0]["pixels"]))


def test_the_mask_covers_what_preprocessing_did_not_pad(tmp_path: Path) -> None:
    for name, height, width in (("a.png", 20, 40), ("b.png", 40, 10), ("c.png", 9, 9)):
        write(tmp_path / name, height, width)
    images = open_images(str(tmp_path), SPEC, PADDED, {})
    wide, tall, square = (images.valid[i] for i in range(3))
    assert wide is not None
    assert tall is not None
    assert square is None  # all of it is image
    assert wide[:8].all()
    assert not wide[8:].any()
    assert tall[:, :4].all()
    assert not tall[:, 4:].any()
    assert np.array_equal(images[0]["pixels"][0, :, 8:], np.zeros((3, 8, 16)))
    valid = images.valid_batch([0, 2])
    assert valid is not None
    assert valid[1].all()
    assert torch.equal(valid[0], torch.from_numpy(wide))
    assert images.valid_batch([2]) is None


def test_a_photograph_that_the_camera_turned_has_its_mask_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    content = (tmp_path / "turned.jpg").read_bytes()
    assert image_size(content) == (40, 20) == (open_image(content).height, open_image(content).width)
    mask = open_images(str(tmp_path), SPEC, PADDED, {}).valid[0]
    assert mask is not None
    assert mask[:, :8].all()
    assert not mask[:, 8:].any()


def test_another_preprocessing_has_another_hash_and_another_name_has_the_same_key(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 20, 40)
    one = open_images(str(tmp_path), SPEC, PADDED, {})
    (tmp_path / "a.png").rename(tmp_path / "z.png")
    other = open_images(str(tmp_path), SPEC, ImagePreprocess(input="pixels", height=16, width=16), {})
    assert one.keys == other.keys
    assert one.preprocess_sha256 != other.preprocess_sha256
    assert other.valid[0] is None


def test_arrays_in_memory_and_in_a_file_have_the_keys_of_their_bytes(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", pixels=rows)
    stored = open_images(str(tmp_path / "rows.npz"), SPEC, None, {})
    held = from_samples([{"pixels": rows[i : i + 1]} for i in range(300)])
    assert len(stored) == 300  # all of them, not what calibration would take
    assert stored.keys == held.keys
    assert len(set(held.keys)) == 300
    assert np.array_equal(stored[299]["pixels"], rows[299:])
    assert stored.valid_batch([0, 1]) is None


def test_the_shipped_photographs_can_be_learnt_from() -> None:
    images = open_images("builtin:photos-heldout", SPEC, PADDED, {})
    assert len(images) == 32
    assert images[0]["pixels"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not a readable image"), (b"GIF89a", "not a readable image"), (b"text in a .png", "not a readable image")],
)
def test_a_file_that_is_no_image_is_named_before_anything_is_computed(
    tmp_path: Path, content: bytes, said: str
) -> None:
    write(tmp_path / "a.png", 20, 40)
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"broken.png' cannot be learnt from: .*{said}.*repair it or take it out"):
        open_images(str(tmp_path), SPEC, PADDED, {})


def test_an_image_that_ends_too_early_is_named_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 20, 40)
    whole = write(tmp_path / "b.jpg", 50, 40).read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    images = open_images(str(tmp_path), SPEC, PADDED, {})
    with pytest.raises(InvalidInput, match=r"b.jpg' is not a readable image"):
        images.batch([0, 1])


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 300.5, np.float32)).save(tmp_path / "floats.tiff")
    with pytest.raises(InvalidInput, match=r"floats.tiff' is not a readable image: .*save it in 8 bits"):
        open_images(str(tmp_path), SPEC, PADDED, {})


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode in ("CMYK", "I;16") else "png"
    Image.new(mode, (20, 30)).save(tmp_path / f"a.{suffix}")
    assert open_images(str(tmp_path), SPEC, PADDED, {})[0]["pixels"].shape == (1, 3, 16, 16)


def test_what_cannot_be_opened_says_what_can(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no images"):
        open_images(str(tmp_path), SPEC, PADDED, {})
    with pytest.raises(InvalidInput, match=r"no images at .*give a folder of images, a file.npz, or builtin:NAME"):
        open_images(str(tmp_path / "nowhere"), SPEC, PADDED, {})
    with pytest.raises(InvalidInput, match="no images at ''"):
        open_images("", SPEC, PADDED, {})
    with pytest.raises(UnknownName, match="Did you mean 'photos'"):
        open_images("builtin:photo", SPEC, PADDED, {})
    write(tmp_path / "a.png", 20, 40)
    with pytest.raises(InvalidInput, match=r"no image preprocessing: give a file\.npz"):
        open_images(str(tmp_path), SPEC, None, {})
    small = ImagePreprocess(input="pixels", height=8, width=8)
    with pytest.raises(InvalidInput, match=r"a.png': input 'pixels' has shape \[1, 3, 8, 8\], the model takes"):
        open_images(str(tmp_path), SPEC, small, {})
    np.savez(tmp_path / "nan.npz", pixels=np.full((2, 3, 16, 16), np.nan, np.float32))
    with pytest.raises(InvalidInput, match=r"sample 0 of .*nan.npz': input 'pixels' holds NaN"):
        open_images(str(tmp_path / "nan.npz"), SPEC, None, {})
    with pytest.raises(InvalidInput, match="there is no sample to learn from"):
        from_samples([])


def test_sizes_come_from_headers() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (300, 200)).save(stream, "jpeg")
    assert image_size(stream.getvalue()[:700]) == (200, 300)
