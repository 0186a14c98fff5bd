"""Folders of weights for the tests of compress, decompress and verify, and runs that stop half-way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from edgekit import compress_weights
from edgekit.lossless_folder import MANIFEST, LosslessManifest, TensorRecord


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    """bf16 weights of realistic spread."""
    return (0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(torch.bfloat16)


def special() -> dict[str, torch.Tensor]:
    """All that is hard to keep: every bf16 pattern, NaN payloads among normal weights, other dtypes, no elements."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    rare = weights(64, 256, seed=1)
    rare.view(torch.uint16)[0, :8] = torch.tensor([0x7F80, 0xFF80, 0x7FC1, 0xFF81, 0x8000, 0, 1, 0x8001]).to(
        torch.uint16
    )
    return {
        "patterns": patterns,
        "rare": rare,
        "odd": weights(3, 5, 1001, seed=2),
        "vector": weights(5000, seed=3),
        "float": weights(70, 70, seed=6).float(),
        "ids": torch.arange(5000),
        "empty": torch.empty(0, 7, dtype=torch.bfloat16),
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "mask": torch.ones(3, dtype=torch.bool),
        "clash": weights(64, 256, seed=4),
        "clash.lo": torch.zeros(2),
        "clash.sm": torch.zeros(2),
        "norm": torch.ones(16, dtype=torch.bfloat16),
        "norm2": torch.ones(16, dtype=torch.bfloat16),
        "twin": weights(256, 256, seed=5),
        "twin2": weights(256, 256, seed=5),
        "twin_flat": weights(256, 256, seed=5).reshape(-1),
    }


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def flip(path: Path, at: int) -> None:
    """Turn one bit of a byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def records(manifest: LosslessManifest) -> dict[str, TensorRecord]:
    return {tensor.name: tensor for file in manifest.files for tensor in file.tensors}


class Stopped(Exception):
    """Stands for whatever stops a run."""


def stop_before_the_proof(step: str) -> None:
    if step.startswith("verify"):
        raise Stopped


def begun(source: Path, out: Path, lines: int | None = None, codec: str = "auto") -> Path:
    """What a run leaves that was stopped: before the proof, or when its journal had so many lines."""
    with pytest.raises(Stopped):
        compress_weights(source, out, codec, progress=stop_before_the_proof)
    journal = out.with_name(out.name + ".partial") / "lossless.journal"
    if lines is not None:
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines]))
    assert not out.exists()
    return journal.parent


def same_but_the_time(folder: Path, other: Path) -> bool:
    found = [{**contents(path), MANIFEST: ""} for path in (folder, other)]
    manifests = [json.loads((path / MANIFEST).read_bytes()) | {"created_utc": ""} for path in (folder, other)]
    return found[0] == found[1] and manifests[0] == manifests[1]
