"""RepViT-style blocks: parallel depthwise branches while training, one depthwise convolution when fused.

Without the squeeze-and-excite of every second block, which needs a mean over the whole map at each of them.
Source: RepViT (arXiv 2307.09283), section 3; RepVGG (arXiv 2101.03697) for merging branches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgekit.distill.architecture import layers
from edgekit.distill.architecture.geometry import Size
from edgekit.distill.architecture.layers import ConvNorm, multiple_of
from edgekit.distill.architecture.pyramid import Design

MULTIPLE = 8
RATIOS = (1.0, 6.0)


def stem(channels: int, out: int, stride: int) -> nn.Module:
    """A plain convolution."""
    return layers.stem(channels, out, stride, nn.GELU())


def stage(channels: int, design: Design, index: int, stride: int, size: Size) -> nn.Module:
    """Depthwise and pointwise convolutions that change size and width, then blocks."""
    out, ratio = design.widths[index + 1], design.ratio
    change = nn.Sequential(ConvNorm(channels, channels, 3, stride, channels), ConvNorm(channels, out))
    blocks = [nn.Sequential(Branches(out), ChannelMixer(out, ratio)) for _ in range(design.depths[index])]
    return nn.Sequential(change, ChannelMixer(out, ratio), *blocks)


class ChannelMixer(nn.Module):
    """Two pointwise convolutions around a GELU, beside an identity."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        inner = multiple_of(MULTIPLE, ratio * channels)
        self.expand = ConvNorm(channels, inner, activation=nn.GELU())
        self.project = ConvNorm(inner, channels)

    def forward(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] to the same."""
        change: Tensor = self.project(self.expand(image))
        return image + change


class Branches(nn.Module):
    """The token mixer: depthwise 3x3, depthwise 1x1 and identity, summed and normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = ConvNorm(channels, channels, 3, groups=channels)
        self.narrow = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] to the same."""
        mixed: Tensor = self.norm(self.wide(image) + self.narrow(image) + image)
        return mixed

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """One depthwise 3x3: the narrow kernel and the identity are numbers in the middle of the wide one."""
        wide = self.wide.folded()
        wide.weight += F.pad(self.narrow.weight + 1, (1, 1, 1, 1))
        merged: nn.Module = fuse_conv_bn_eval(wide, self.norm)
        return merged
