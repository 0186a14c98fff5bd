"""Small models that compilers of device vendors are tried with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.compiling import CompileJob
from edgekit.compression import CompressedModel
from edgekit.exporting import ExportJob
from edgekit.graph import capture
from edgekit.model import Model
from edgekit.profile import find_device
from edgekit.source import load
from edgekit.types import Precision


class Pooled(nn.Module):
    """A classifier of ops that every Ethos-U has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.pool(self.body(pixels)).flatten(1))


class Wavy(nn.Module):
    """A convolution, an op that no Ethos-U has, and another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.second(torch.cos(self.first(pixels)))


class Ranked(nn.Module):
    """A convolution, an op that ExecuTorch's Arm backend does not take, and another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.second(torch.topk(self.first(pixels), 16, dim=1).values)


def made(kind: type[nn.Module], samples: Path) -> Model:
    torch.manual_seed(0)
    return replace(load(kind().eval(), torch.randn(1, 3, 32, 32)), calibration=str(samples), evaluation=str(samples))


def job_of(folder: Path, device: str, precision: Precision = "int8", model: Model | None = None) -> CompileJob:
    """A job whose artifact was not written yet, for the first unit of a device."""
    found = model or load(Pooled().eval(), torch.randn(1, 3, 32, 32))
    export = ExportJob.of(CompressedModel(model=found), capture(found), precision)
    unit = find_device(device).main_unit
    return CompileJob(export=export, artifact=folder / "model.tflite", unit=unit, samples=())
