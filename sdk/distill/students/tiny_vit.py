"""A convolution stem and stage, then attention within windows: nearest to a ViT teacher, and the hardest for NPUs.

Windows are split by reshapes of rank 4, and queries, keys and values have a layer each: more compilers take that than
one packed layer. Source: TinyViT (arXiv 2207.10666), section 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.distill.architecture import layers
from edgekit.distill.architecture.geometry import Size
from edgekit.distill.architecture.layers import ConvNorm, multiple_of
from edgekit.distill.architecture.pyramid import Design

MULTIPLE = 8
HEAD = 16  # channels of a head, or half as many where they do not divide the width
RATIOS = (1.5, 6.0)
LARGEST_WINDOW = 8
WINDOWS = (8, 7, 6, 5)  # for larger maps; the one that needs the least padding


def stem(channels: int, out: int, stride: int) -> nn.Module:
    """A plain convolution."""
    return layers.stem(channels, out, stride, nn.GELU())


def stage(channels: int, design: Design, index: int, stride: int, size: Size) -> nn.Module:
    """Inverted bottlenecks in the first of several stages, windows in the others."""
    out, depth = design.widths[index + 1], design.depths[index]
    merge = nn.Sequential(
        ConvNorm(channels, out, activation=nn.GELU()),
        ConvNorm(out, out, 3, stride, out, activation=nn.GELU()),
        ConvNorm(out, out),
    )
    convolutional = index == 0 and len(design.depths) > 1
    blocks = [Bottleneck(out, design.ratio) if convolutional else Block(out, size, design.ratio) for _ in range(depth)]
    return nn.Sequential(merge, *blocks)


class Bottleneck(nn.Module):
    """Expand, depthwise 3x3, project, beside an identity."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        inner = multiple_of(MULTIPLE, ratio * channels)
        self.body = nn.Sequential(
            ConvNorm(channels, inner, activation=nn.GELU()),
            ConvNorm(inner, inner, 3, groups=inner, activation=nn.GELU()),
            ConvNorm(inner, channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] to the same."""
        change: Tensor = self.body(image)
        return F.gelu(image + change)


class Block(nn.Module):
    """Attention within windows, a depthwise convolution across their borders, and two linear layers."""

    def __init__(self, channels: int, size: Size, ratio: float) -> None:
        super().__init__()
        inner = multiple_of(MULTIPLE, ratio * channels)
        self.attention = WindowAttention(channels, size)
        self.local = ConvNorm(channels, channels, 3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, inner), nn.GELU(), nn.Linear(inner, channels))

    def forward(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] to the same."""
        places = image.permute(0, 2, 3, 1)
        places = self.local((places + self.attention(places)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        mixed: Tensor = places + self.mlp(self.norm(places))
        return mixed.permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Attention among the places of a window, with a learned bias for each offset between two of them."""

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.size = size
        self.window = window_of(size[0]), window_of(size[1])
        self.head = HEAD if channels % HEAD == 0 else HEAD // 2
        self.heads = channels // self.head
        self.norm = nn.LayerNorm(channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        height, width = self.window
        self.offset_bias = nn.Parameter(torch.zeros(self.heads, height * width))
        self.register_buffer("offsets", _offsets(height, width), persistent=False)

    def forward(self, places: Tensor) -> Tensor:
        """[B, H, W, channels] to the same."""
        (height, width), (high, wide) = self.size, self.window
        channels = places.shape[3]
        padded = F.pad(self.norm(places), (0, 0, 0, -width % wide, 0, -height % high))
        rows, columns = padded.shape[1] // high, padded.shape[2] // wide
        # [B * rows, high, columns, wide * C] to [B * rows, columns, high, wide * C]: rank 4, not 6
        split = padded.reshape(-1, high, columns, wide * channels).transpose(1, 2).reshape(-1, high * wide, channels)
        joined = self._attend(split).reshape(-1, columns, high, wide * channels).transpose(1, 2)
        return joined.reshape(-1, rows * high, columns * wide, channels)[:, :height, :width]

    def _attend(self, tokens: Tensor) -> Tensor:
        """[windows, T, channels] to the same."""
        _, count, channels = tokens.shape
        query, key, value = (
            layer(tokens).reshape(-1, count, self.heads, self.head).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        bias = self.offset_bias[:, self.get_buffer("offsets")].reshape(self.heads, count, count)
        weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(self.head) + bias, -1)
        answer: Tensor = self.out((weights @ value).transpose(1, 2).reshape(-1, count, channels))
        return answer


def window_of(side: int) -> int:
    """The side of a window on a map of that side."""
    return side if side <= LARGEST_WINDOW else min(WINDOWS, key=lambda window: -side % window)


def _offsets(height: int, width: int) -> Tensor:
    """[T * T]: which bias two places of a window share, by how far apart they are along each axis."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    apart = [(axis.flatten()[:, None] - axis.flatten()[None]).abs() for axis in (y, x)]
    return (apart[0] * width + apart[1]).flatten()
