"""Embeddings in files, in memory and streamed are the same; builds go on after a kill, and bad ends are named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.distill.training._shards import Shards
from edgekit.distill.training.cache import Embeddings, Store, embeddings
from edgekit.distill.training.data import Images, from_samples
from edgekit.errors import CorruptWeights, InvalidInput, OutputExists, UnsupportedModel
from edgekit.processing import Arrays
from edgekit.tensorfile import TensorFile

SHA, OTHER = "a" * 64, "b" * 64


class Encoder(nn.Module):
    """Two levels; `gain` moves the second one out of fp16's range for bright images."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 3, 2, 1)
        self.gain, self.calls = gain, 0
        self.requires_grad_(False)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        self.calls += len(pixels)
        first = self.first(pixels)
        return {"high": first, "low": self.second(first.relu()) * self.gain}


def samples(count: int = 20, seed: int = 0) -> list[Arrays]:
    rng = np.random.default_rng(seed)
    return [{"pixels": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def build(store: Store, images: Images | None = None, encoder: nn.Module | None = None, sha: str = SHA) -> Embeddings:
    return embeddings(
        encoder or Encoder(), images or from_samples(samples()), store=store, teacher_sha256=sha, batch=4, workers=2
    )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


def test_files_and_memory_hold_the_same_bits_and_a_stream_gives_them_again(tmp_path: Path) -> None:
    images = from_samples(samples())
    stored, held, streamed = (build(store, images) for store in (tmp_path, "ram", "stream"))
    assert len(stored) == len(held) == len(streamed) == 20
    for i in range(20):
        assert same(stored[i], held[i])
        for name, tensor in streamed[i].items():  # alone, where the others were computed four at a time
            torch.testing.assert_close(tensor, held[i][name], rtol=2e-3, atol=1e-4)
    kept, again = held.batch([3, 1]), streamed.batch([3, 1])
    assert again is None
    assert kept is not None
    assert kept["low"].shape == (2, 4, 4, 4)
    for name, tensor in streamed.of(images.batch([3, 1])).items():
        torch.testing.assert_close(tensor, kept[name].float(), rtol=2e-3, atol=1e-4)
    with pytest.raises(NotImplementedError):
        held.of({})


def test_fp16_holds_what_the_teacher_said_to_its_precision(tmp_path: Path) -> None:
    images = from_samples(samples())
    stored, encoder = build(tmp_path, images), Encoder()
    for i in range(20):
        wanted = encoder(**images.batch([i]))
        for name, tensor in stored[i].items():
            assert tensor.dtype == torch.float16
            assert tensor.shape == wanted[name].shape
            assert float((tensor.float() - wanted[name]).norm() / wanted[name].norm()) < 5e-4


@pytest.mark.parametrize("gain", [1e6, 1e-7])
def test_what_fp16_cannot_hold_is_kept_in_fp32_and_named(tmp_path: Path, gain: float) -> None:
    images = from_samples(samples())
    for store in (tmp_path, "ram"):
        found = build(store, images, Encoder(gain))
        assert found.cost.wide == ("low",)
        assert {name: tensor.dtype for name, tensor in found[0].items()} == {
            "high": torch.float16,
            "low": torch.float32,
        }
        wanted = Encoder(gain)(**images.batch([0]))["low"]
        assert float((found[0]["low"] - wanted).norm() / wanted.norm()) < 1e-6
    assert torch.equal(build("stream", images, Encoder(gain))[0]["low"], Encoder(gain)(**images.batch([0]))["low"])


def test_one_bright_image_does_not_make_the_others_wide(tmp_path: Path) -> None:
    given = samples(8)
    given[5]["pixels"] *= 1e6
    found = build(tmp_path, from_samples(given))
    assert [found[i]["high"].dtype == torch.float32 for i in range(8)] == [i == 5 for i in range(8)]
    mixed = found.batch([4, 5])
    assert mixed is not None
    assert mixed["high"].dtype == torch.float32


def test_nothing_is_computed_twice_and_more_images_can_come(tmp_path: Path) -> None:
    encoder, given = Encoder(), samples()
    first = build(tmp_path, from_samples([*given[:10], given[0]]), encoder)
    assert (first.cost.images, encoder.calls) == (10, 10)  # the eleventh is the first again
    assert same(first[0], first[10])
    more = build(tmp_path, from_samples(given[::-1]), encoder)
    assert (more.cost.images, encoder.calls) == (10, 20)
    assert same(more[19], first[0])
    again = build(tmp_path, from_samples(given), encoder)
    assert (again.cost.images, again.cost.seconds, encoder.calls) == (0, 0.0, 20)
    assert again.cost.bytes == 20 * 2 * (8 * 8 * 8 + 4 * 4 * 4)


def test_another_teacher_or_preprocessing_meets_no_old_entry(tmp_path: Path) -> None:
    images = from_samples(samples(4))
    build(tmp_path, images)
    said: list[str] = []
    encoder = Encoder()
    embeddings(encoder, images, store=tmp_path, teacher_sha256=OTHER, progress=said.append)
    assert encoder.calls == 4
    assert "MB of another teacher or preprocessing too, not used: " + "a" * 32 in said[0]
    changed = Images(images.origin, images.keys, "c" * 64, images.valid, images.load)
    build(tmp_path, changed, encoder)
    assert encoder.calls == 8
    embeddings(encoder, images, store=tmp_path, teacher_sha256=SHA, precision="bf16")
    assert encoder.calls == 12
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4


def test_shards_are_safetensors_files_of_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.distill.training._shards.SHARD_BYTES", 5000)  # four images
    images = from_samples(samples(10))
    found = build(tmp_path, images)
    files = [TensorFile.open(path) for path in tmp_path.rglob("*.safetensors")]
    assert sorted(len(file.tensors) for file in files) == [4, 8, 8]  # two outputs of each image
    assert {entry.name for file in files for entry in file.tensors} == {
        f"{key}/{name}" for key in images.keys for name in ("high", "low")
    }
    assert same(found[9], build("ram", images)[9])
    assert not list(tmp_path.rglob("*.part"))


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import edgekit.distill.training._shards as shards
from test_distill_cache import Encoder, Path, build, from_samples, samples
shards.SHARD_BYTES = 5000
class Slow(Encoder):
    def forward(self, pixels):
        time.sleep(0.05)
        return super().forward(pixels)
build(Path(sys.argv[1]), from_samples(samples(400)), Slow())
"""


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    program = KILLED.format(tests=str(Path(__file__).parent))
    child = subprocess.Popen([sys.executable, "-P", "-c", program, str(tmp_path)])
    while len(list(tmp_path.rglob("*.safetensors"))) < 3:
        assert child.poll() is None
        time.sleep(0.01)
    with pytest.raises(OutputExists, match=r"another process is filling .*: wait for it or stop it"):
        build(tmp_path, from_samples(samples(400)))
    child.send_signal(signal.SIGKILL)
    child.wait()
    there = len(list(tmp_path.rglob("*.safetensors")))
    encoder, images = Encoder(), from_samples(samples(400))
    found = build(tmp_path, images, encoder)
    assert encoder.calls == 400 - 4 * there
    assert not list(tmp_path.rglob("*.part"))
    held = build("ram", images)
    assert all(same(found[i], held[i]) for i in range(400))


def test_a_full_disk_is_named_and_leaves_whole_shards_only(tmp_path: Path) -> None:
    """The file size limit of a child process stands for the end of the disk: writes fail half-way, as there."""
    program = (
        f"import resource, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_distill_cache import Path, build, from_samples, samples\n"
        "build(Path(sys.argv[1]), from_samples(samples(4)))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\n"
        "try: build(Path(sys.argv[1]), from_samples(samples(20)))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = [sys.executable, "-P", "-c", program, str(tmp_path)]
    result = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.stdout.startswith("InvalidInput the disk is full; shards that are whole stay in"), result.stdout
    assert "take the cache 'ram' or 'stream'" in result.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == ["", ".safetensors"]  # the lock, and the first four images
    assert build(tmp_path, from_samples(samples(20))).cost.images == 16


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.distill.training._shards.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InvalidInput, match=r"the embeddings take 0.0 MB and 0.0 MB are free at"):
        build(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors*"))
    monkeypatch.setattr("edgekit.distill.training.cache.available_memory_bytes", lambda: 1000)
    with pytest.raises(InvalidInput, match=r"MB of memory and 0.0 MB are free: keep them in a folder"):
        build("ram")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"cannot write '.*file/a+-\w+': Not a directory"):
        build(tmp_path / "file")


@pytest.mark.parametrize("store", ["ram", "files"])
def test_an_embedding_that_is_not_finite_is_named_with_its_image(tmp_path: Path, store: str) -> None:
    given = samples(6)
    given[3]["pixels"][0, 0, 0, 0] = np.inf
    with pytest.raises(UnsupportedModel, match=r"output 'high' is NaN or Inf for image 3 of 'arrays in memory' \(sha"):
        build(tmp_path if store == "files" else "ram", from_samples(given))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("damage", ["cut", "header", "dtype"])
def test_a_damaged_shard_is_named_with_what_to_do(tmp_path: Path, damage: str) -> None:
    build(tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[:-1], "header": b"\xff" * 20, "dtype": content.replace(b'"F16"', b'"I16"', 1)}[damage]
    )
    with pytest.raises(CorruptWeights, match=r"damaged cache: .*; delete '.*safetensors' and it is made again"):
        build(tmp_path)
    path.unlink()
    assert build(tmp_path).cost.images == 20


def test_training_mode_does_not_reach_the_teacher() -> None:
    class Noisy(Encoder):
        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            return {"high": nn.functional.dropout(pixels, 0.5, self.training)}

    images = from_samples(samples(4))
    found = build("ram", images, Noisy().train())
    assert torch.equal(found[2]["high"].float(), images.batch([2])["pixels"].half().float())


def test_threads_read_while_another_build_is_told_to_wait(tmp_path: Path) -> None:
    images = from_samples(samples())
    found = build(tmp_path, images)
    wrong: list[int] = []
    held = build("ram", images)

    def read() -> None:
        wrong.extend(i for i in range(20) if not same(found[i], held[i]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    with Shards(next(path for path in tmp_path.iterdir() if path.is_dir())).alone():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(OutputExists):
            build(tmp_path, images)
    assert wrong == []
