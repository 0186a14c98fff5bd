"""Layers that students share."""

from __future__ import annotations

import copy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgekit.compression import is_below


@runtime_checkable
class Fusible(Protocol):
    """A module with a cheaper form that gives the same answers in evaluation mode."""

    def fused(self) -> nn.Module:
        """That form."""


class ConvNorm(nn.Module):
    """A convolution that keeps the size (divided by `stride`), a BatchNorm, and an activation."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.activation = activation or nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] to [B, out, ceil(H / stride), ceil(W / stride)]."""
        activated: Tensor = self.activation(self.norm(self.conv(image)))
        return activated

    def folded(self) -> nn.Conv2d:
        """The convolution with the norm in its weights, without the activation."""
        conv: nn.Conv2d = fuse_conv_bn_eval(self.conv, self.norm)
        return conv

    def fused(self) -> nn.Module:
        """The folded convolution with the activation."""
        if isinstance(self.activation, nn.Identity):
            return self.folded()
        return nn.Sequential(self.folded(), self.activation)


class Patches(nn.Module):
    """The first convolution where the stride is odd: it takes patches side by side and drops an incomplete last one."""

    def __init__(self, channels: int, out: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.body = ConvNorm(channels, out, stride, stride, activation=activation)
        self.body.conv.padding = (0, 0)

    def forward(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] to [B, out, H // stride, W // stride]."""
        patches: Tensor = self.body(image)
        return patches


def stem(channels: int, out: int, stride: int, activation: nn.Module) -> nn.Module:
    """The first convolution, of stride 1 or 2 or of an odd patch."""
    if stride > 2:
        return Patches(channels, out, stride, activation)
    return ConvNorm(channels, out, 3, stride, activation=activation)


def multiple_of(step: int, channels: float) -> int:
    """The channels rounded to a multiple, at least one of it."""
    return step * max(1, round(channels / step))


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The map at a size that is known when the model is made; nothing is done where it has that already."""
    return image if tuple(image.shape[2:]) == size else F.interpolate(image, size, mode="bilinear")


def fused(student: nn.Module) -> nn.Module:
    """A copy in evaluation mode with BatchNorms folded and branches merged: the same answers from fewer ops."""
    whole = copy.deepcopy(student).eval()
    done: list[str] = []
    with torch.no_grad():
        for path, module in list(whole.named_modules()):
            if not path and isinstance(module, Fusible):
                return module.fused().eval()
            if isinstance(module, Fusible) and not is_below(path, done):
                whole.set_submodule(path, module.fused())
                done.append(path)
    return whole.eval()
