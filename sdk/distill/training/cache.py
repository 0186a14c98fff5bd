"""What the teacher says of every image, computed once: in files, in memory, or again whenever it is asked for.

In files it lies under `STORE/<teacher>-<preprocessing>/`, two hashes, so that another teacher or preprocessing never
meets old entries; `_shards` says what is in there. All three stores give the same numbers.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from edgekit.compression import Progress, silent
from edgekit.distill.training._shards import Shards, outputs_bytes, read_tensor
from edgekit.distill.training._teacher import Kept, Teacher
from edgekit.distill.training.data import Images
from edgekit.distill.training.feeding import loaded_ahead
from edgekit.distill.training.parallel import Processes, processes
from edgekit.distill.training.precision import TrainingPrecision
from edgekit.errors import InvalidInput, UnsupportedModel
from edgekit.host import available_memory_bytes
from edgekit.types import Value

Store = Literal["ram", "stream"] | Path
HASH_LETTERS = 32  # of each sha256, in a folder's name


class CacheCost(Value, frozen=True, kw_only=True):
    """What it took to fill a cache in this call."""

    images: int = 0  # that the teacher was run on; 0 where everything was there
    seconds: float = 0.0
    bytes: int = 0  # of all embeddings that are held, those of earlier calls too
    wide: tuple[str, ...] = ()  # outputs that fp16 cannot hold, of some image at least: they are kept in fp32


class Embeddings(ABC):
    """The teacher's outputs by the number of an image: tensors by name with a leading axis of 1, fp16 or fp32."""

    teacher_sha256: str
    cost = CacheCost()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> dict[str, Tensor] | None:
        """Embeddings joined along axis 0, on the CPU; None where only the inputs can tell (`of`)."""

    @abstractmethod
    def of(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's outputs for a batch of inputs, where `batch` gave None."""


class _Held(Embeddings):
    """In memory or in files: `read` gives the tensors of a key."""

    def __init__(self, keys: tuple[str, ...], read: Callable[[str], dict[str, Tensor]], cost: CacheCost) -> None:
        self._keys, self._read, self.cost = keys, read, cost

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._read(self._keys[index])

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        found = [self[index] for index in indices]
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    def of(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError("these embeddings are held: `batch` gives them")


class _Streamed(Embeddings):
    def __init__(self, teacher: Teacher, images: Images) -> None:
        self._teacher, self._images = teacher, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: kept.image(0) for name, kept in self._teacher(self._images.batch([index])).items()}

    def batch(self, indices: Sequence[int]) -> None:
        return None

    def of(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: kept.batch() for name, kept in self._teacher(feeds).items()}


def embeddings(
    encoder: nn.Module,
    images: Images,
    *,
    store: Store,
    teacher_sha256: str,
    device: str | torch.device = "cpu",
    precision: TrainingPrecision = "fp32",
    batch: int = 8,
    workers: int = 0,
    progress: Progress = silent,
) -> Embeddings:
    """Run the teacher's encoder on every image that the store does not hold yet.

    `encoder(**inputs)` gives its outputs by name. Of the processes that `torchrun` started, each computes a part of
    what goes to files, and all of what goes to memory. Raises `UnsupportedModel` where an embedding is not finite,
    `InvalidInput` where disk or memory do not suffice (what is finished stays), `OutputExists` while another build
    writes there, `CorruptWeights`.
    """
    group = processes(device)
    teacher = Teacher(encoder, group.device, precision)
    build = _Build(teacher, images, batch, workers, progress if group.is_first else silent)
    if store == "stream":
        found: Embeddings = _Streamed(teacher, images)
    elif isinstance(store, Path):
        key = f"{teacher_sha256[:HASH_LETTERS]}-{images.preprocess_sha256[:HASH_LETTERS]}"
        shards = Shards(store / (key if precision == "fp32" else f"{key}-{precision}"))
        found = _in_files(build, shards, group)
    else:
        found = _in_memory(build)
    found.teacher_sha256 = teacher_sha256
    return found


class _Build:
    """One call that fills a store."""

    def __init__(self, teacher: Teacher, images: Images, batch: int, workers: int, progress: Progress) -> None:
        self.images, self.progress = images, progress
        self._teacher, self._batch, self._workers = teacher, batch, workers
        self._start, self._done = time.perf_counter(), 0
        self.number_of: dict[str, int] = {}
        for number, key in enumerate(images.keys):
            self.number_of.setdefault(key, number)  # equal images are computed once

    def run(self, keys: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """The outputs of every key in turn, on the CPU as they are to be kept."""
        parts = [keys[i : i + self._batch] for i in range(0, len(keys), self._batch)]
        numbers = [[self.number_of[key] for key in part] for part in parts]
        for part, feeds in zip(parts, loaded_ahead(numbers, self._load, self._workers), strict=True):
            outputs = self._teacher(feeds)
            for row, key in enumerate(part):
                yield {name: self._checked(name, kept, row, key) for name, kept in outputs.items()}
            self._done += len(part)
            rate = self._done / (time.perf_counter() - self._start)
            left = (len(keys) - self._done) / rate
            self.progress(f"teacher: {self._done} of {len(keys)} images, {rate:.1f} images/s, {left:.0f} s to go")

    def _load(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return self.images.batch(numbers, pinned=self._teacher.device.type == "cuda")

    def _checked(self, name: str, kept: Kept, row: int, key: str) -> Tensor:
        if not kept.finite[row]:
            raise UnsupportedModel(
                f"the teacher's output '{name}' is NaN or Inf for image {self.number_of[key]} of "
                f"'{self.images.origin}' (sha256 {key[:12]}): take it out, or compute the teacher in fp32"
            )
        return kept.image(row)

    def cost(self, stored: int, wide: set[str]) -> CacheCost:
        """What this call took."""
        seconds = time.perf_counter() - self._start if self._done else 0.0
        return CacheCost(images=self._done, seconds=seconds, bytes=stored, wide=tuple(sorted(wide)))


def _in_memory(build: _Build) -> Embeddings:
    held: dict[str, dict[str, Tensor]] = {}
    keys = list(build.number_of)
    for key, outputs in zip(keys, build.run(keys), strict=True):
        if not held:
            need, free = outputs_bytes(outputs) * len(keys), available_memory_bytes()
            if free is not None and need > free:
                raise InvalidInput(
                    f"the embeddings take {need / 1e6:.1f} MB of memory and {free / 1e6:.1f} MB are free: "
                    "keep them in a folder, or compute them again each time with 'stream'"
                )
        held[key] = outputs
    wide = {name for outputs in held.values() for name, tensor in outputs.items() if tensor.dtype != torch.float16}
    return _Held(build.images.keys, held.__getitem__, build.cost(sum(map(outputs_bytes, held.values())), wide))


def _in_files(build: _Build, shards: Shards, group: Processes) -> Embeddings:
    with shards.alone() if group.is_first else nullcontext():
        group.wait()  # for the first one, which has cleaned up
        if others := shards.others() if group.is_first else None:
            build.progress(others)
        there = shards.index()
        mine = group.part([key for key in build.number_of if key not in there])
        group.wait()  # for all to have seen the same
        shards.write(mine, build.run(mine))
        group.wait()
    index = shards.index()
    used = [(name, entry) for key in build.number_of for name, (_, entry) in index[key].items()]
    wide = {name for name, entry in used if entry.dtype != "F16"}

    def read(key: str) -> dict[str, Tensor]:
        return {name: read_tensor(file, entry) for name, (file, entry) in index[key].items()}

    return _Held(build.images.keys, read, build.cost(sum(entry.bytes for _, entry in used), wide))
