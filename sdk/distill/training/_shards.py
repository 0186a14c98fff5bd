"""Embeddings in files: `FOLDER/<hash of the images>.safetensors`, with the tensors `<sha256 of an image>/<output>`.

A shard is its own index and appears when it is whole. So a build that was killed goes on where it was, more images can
come later, and several processes can write into one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import CorruptWeights, EdgekitError, InvalidInput, OutputExists
from edgekit.folder import FULL
from edgekit.tensorfile import TensorEntry, TensorFile, TensorWriter, header_room

SHARD_BYTES = 64 << 20  # what a kill can lose
SUFFIX, PART = ".safetensors", ".part"
NAME_LETTERS = 32
STORED = {torch.float16: "F16", torch.float32: "F32"}
DTYPES = {name: np.dtype(f"<f{dtype.itemsize}") for dtype, name in STORED.items()}
Outputs = Mapping[str, Tensor]  # of one image


@dataclass(frozen=True)
class Shards:
    """The shards of one teacher and one preprocessing."""

    folder: Path

    def index(self) -> dict[str, dict[str, tuple[TensorFile, TensorEntry]]]:
        """Image -> output -> where it lies. Raises `CorruptWeights` that names the shard to delete."""
        found: dict[str, dict[str, tuple[TensorFile, TensorEntry]]] = {}
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                file = TensorFile.open(path)
                for entry in file.tensors:
                    key, _, name = entry.name.partition("/")
                    if entry.dtype not in DTYPES:
                        raise CorruptWeights(f"tensor '{entry.name}' is {entry.dtype}, which no cache holds")
                    found.setdefault(key, {})[name] = (file, entry)
            except CorruptWeights as error:
                raise CorruptWeights(f"damaged cache: {error}; delete '{path}' and it is made again") from error
        return found

    def write(self, keys: Sequence[str], outputs: Iterator[Outputs]) -> None:
        """Write the outputs of every key, in this order; as many images in a shard as the first one's size allows."""
        with self.write_errors():
            at, ahead = 0, next(outputs, None)
            while ahead is not None:
                size = outputs_bytes(ahead)
                if at == 0:
                    self._check_room(size * len(keys))
                names = keys[at : at + max(1, SHARD_BYTES // size)]
                ahead = self._write_shard(names, ahead, outputs)
                at += len(names)

    def _write_shard(self, keys: Sequence[str], first: Outputs, others: Iterator[Outputs]) -> Outputs | None:
        """Returns the outputs that come after the shard's."""
        path = self.folder / f"{hashlib.sha256(''.join(keys).encode()).hexdigest()[:NAME_LETTERS]}{SUFFIX}"
        part = path.with_name(path.name + PART)
        room = header_room((f"{key}/{name}", tensor.dim()) for key in keys for name, tensor in first.items())
        ahead: Outputs | None = first
        try:
            with TensorWriter(part, room) as writer:
                for key in keys:
                    for name, tensor in (ahead or {}).items():
                        writer.write(f"{key}/{name}", STORED[tensor.dtype], tuple(tensor.shape), tensor.numpy())
                    ahead = next(others, None)
                writer.finish()
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return ahead

    def _check_room(self, need: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise InvalidInput(
                f"the embeddings take {need / 1e6:.1f} MB and {free / 1e6:.1f} MB are free at '{self.folder}': "
                "make room, or take the cache 'ram' or 'stream'"
            )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder's lock; what a killed build left unfinished goes. Raises `OutputExists` where it is held."""
        with self.write_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputExists(f"another process is filling '{self.folder}': wait for it or stop it") from error
            for left in self.folder.glob(f"*{PART}"):
                left.unlink()
            yield

    def others(self) -> str | None:
        """A sentence about what the store holds of other teachers and preprocessings, None where it holds none."""
        store = self.folder.parent
        found = [path for path in sorted(store.iterdir()) if path != self.folder and any(path.glob(f"*{SUFFIX}"))]
        if not found:
            return None
        size = sum(file.stat().st_size for folder in found for file in folder.glob(f"*{SUFFIX}"))
        names = ", ".join(folder.name for folder in found)
        return f"'{store}' holds {size / 1e6:.1f} MB of another teacher or preprocessing too, not used: {names}"

    @contextlib.contextmanager
    def write_errors(self) -> Iterator[None]:
        """Turn what the system says while shards are written into errors with a sentence."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise InvalidInput(
                    f"the disk is full; shards that are whole stay in '{self.folder}', and a later run goes on from "
                    "them: make room, or take the cache 'ram' or 'stream'"
                ) from error
            raise EdgekitError(f"cannot write '{self.folder}': {error.strerror or error}") from error


def read_tensor(file: TensorFile, entry: TensorEntry) -> Tensor:
    """A copy of one tensor."""
    array = file.read(entry).view(DTYPES[entry.dtype]).reshape(entry.shape)
    return torch.from_numpy(array.copy())  # the map is read-only, and torch has no such tensors


def outputs_bytes(outputs: Outputs) -> int:
    """Size of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in outputs.values())
