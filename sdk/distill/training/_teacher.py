"""The teacher's encoder where it computes, and its outputs as they are kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from edgekit.distill.training.precision import TrainingPrecision, autocast

HALF_ERROR = 1e-3  # relative RMS: rounding to fp16 takes 3e-4, unless values leave its range


class Teacher:
    """An encoder with tensors by name on both sides; a copy of it, unless it computes where it is."""

    def __init__(self, encoder: nn.Module, device: torch.device, precision: TrainingPrecision) -> None:
        self._encoder = (encoder if device.type == "cpu" else copy.deepcopy(encoder).to(device)).eval()
        self.device, self._precision = device, precision

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Kept]:
        """The outputs for a batch of inputs."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in feeds.items()}
        with torch.no_grad(), autocast(self.device, self._precision):
            return {name: Kept(tensor.float()) for name, tensor in self._encoder(**moved).items()}


class Kept:
    """A batch of one output: fp16, or fp32 where an image's values lie beyond its range or lose precision in it."""

    def __init__(self, output: Tensor) -> None:
        self._wide, self._half = output, output.half()
        flat = output.flatten(1)
        error = (self._half.flatten(1).float() - flat).norm(dim=1)
        self._fits = error <= HALF_ERROR * flat.norm(dim=1)  # false for NaN, which Inf less a number becomes below

    @cached_property
    def finite(self) -> list[bool]:
        """Of each image, whether all of it is a number."""
        return list(self._wide.flatten(1).isfinite().all(1).tolist())

    @cached_property
    def _images(self) -> list[Tensor]:
        half = self._half.cpu()
        return [half[i : i + 1] if fits else self._wide[i : i + 1].cpu() for i, fits in enumerate(self._fits.tolist())]

    def image(self, index: int) -> Tensor:
        """One image's, on the CPU, with a leading axis of 1."""
        return self._images[index].clone()  # a view would hold the whole batch

    def batch(self) -> Tensor:
        """All images' in float32, with the values that are kept; a GPU goes on without waiting."""
        fits = self._fits.view([-1] + [1] * (self._wide.dim() - 1))
        return torch.where(fits, self._half.float(), self._wide)
