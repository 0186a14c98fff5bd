"""The frame of every student: a stem, stages that get smaller, and a head for each output of the site."""

from __future__ import annotations

from typing import Annotated, Protocol

import msgspec
import torch
from torch import Tensor, nn

from edgekit.distill.architecture.geometry import Geometry, Level, Size
from edgekit.distill.architecture.layers import resized
from edgekit.types import Value

Channels = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Depth = Annotated[int, msgspec.Meta(ge=1, le=256)]


class Design(Value, frozen=True, kw_only=True):
    """The sizes of a student."""

    widths: tuple[Channels, ...]  # of the stem and of every stage
    depths: tuple[Depth, ...]  # blocks of every stage
    ratio: Annotated[float, msgspec.Meta(ge=0.25, le=16)]  # channels inside of a block over those between blocks


class Parts(Protocol):
    """What a file in `sdk/distill/students/` defines."""

    MULTIPLE: int  # of all widths
    RATIOS: tuple[float, float]  # least and most that a search may choose

    def stem(self, channels: int, out: int, stride: int) -> nn.Module:
        """[B, channels, H, W] to [B, out, H / stride, W / stride]."""

    def stage(self, channels: int, design: Design, index: int, stride: int, size: Size) -> nn.Module:
        """Stage `index`: [B, channels, ...] to [B, design.widths[index + 1], *size]."""


class Pyramid(nn.Module):
    """A student. Takes the site's image [B, C, H, W] by name; returns its outputs by name, batch B."""

    def __init__(self, geometry: Geometry, design: Design, parts: Parts, heads: list[nn.Module]) -> None:
        super().__init__()
        self.geometry = geometry
        self.stem = parts.stem(geometry.channels, design.widths[0], geometry.stem.stride)
        self.stages = nn.ModuleList(
            parts.stage(design.widths[index], design, index, step.stride, step.size)
            for index, step in enumerate(geometry.stages)
        )
        self.heads = nn.ModuleList(heads)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Call the stem, the stages and the heads."""
        maps = [self.stem(inputs[self.geometry.image])]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        levels = self.geometry.levels
        return {
            level.name: head(maps[1 + self.geometry.stage_of(level)])
            for level, head in zip(levels, self.heads, strict=True)
        }


class Head(nn.Module):
    """The last layer: from a stage's channels to the form of one output."""

    def __init__(self, channels: int, level: Level) -> None:
        super().__init__()
        self.level = level
        self.whole = level.prefix if level.form == "tokens" else int(level.form == "vector")  # read from all places
        if level.size:
            self.places = nn.Conv2d(channels, level.channels, 1)
        if self.whole:
            self.mean = nn.Linear(channels, self.whole * level.channels)

    def forward(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] to the output's shape."""
        level = self.level
        if level.form == "vector":
            return self._from_mean(image).squeeze(1)
        if level.size is None:
            return self._from_mean(image)
        places = resized(self.places(image), level.size)
        if level.form == "map":
            return places
        if level.form == "channels_last":
            return places.permute(0, 2, 3, 1).contiguous()
        tokens = places.flatten(2).transpose(1, 2)
        return torch.cat((self._from_mean(image), tokens), 1) if self.whole else tokens.contiguous()

    def _from_mean(self, image: Tensor) -> Tensor:
        return self.mean(image.mean((2, 3))).unflatten(1, (self.whole, self.level.channels))  # type: ignore[no-any-return]
