"""The mean over an image's or a sequence's positions as average pooling over all of it.

NPUs pool over rows and columns of channels; a mean over the innermost axis, which is channels to them, is no pooling
("Unsupported depth-reduction" of Vela).
Source: Vela 5.2.0, `vela --supported-ops-report`, AVERAGE_POOL_2D and MEAN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._ops import arguments, calls, sizes
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "means over positions as average pooling"
EXACTNESS = "exact"
STAGE, RANK = "shapes", 9
aten = torch.ops.aten
# Axes of the positions -> how channels come before them.
TO_CHANNELS: dict[tuple[int, ...], tuple[int, ...]] = {(2, 3): (0, 1, 2, 3), (1, 2): (0, 3, 1, 2)}


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Means over both axes of an image `[B, C, H, W]` or `[B, H, W, C]`, or over one of `[B, S, C]` or `[B, C, S]`."""
    for node in calls(model, "mean", "adaptive_avg_pool2d"):
        shape, axes = sizes(node.all_input_nodes[0]), _axes(node)
        if shape is None:
            yield skipped(node, "its sizes are dynamic")
        elif axes is None:
            yield skipped(node, "it is no mean over all positions of an image or a sequence")
        elif torch.is_floating_point(node.meta["val"]):
            node.replace_all_uses_with(_pooled(model, node, axes))
            yield done(node)


def _axes(node: Node) -> tuple[int, ...] | None:
    """The axes of positions that a node takes the mean of; None where it does something else."""
    given, rank = arguments(node), len(node.all_input_nodes[0].meta["val"].shape)
    if "output_size" in given:
        return (2, 3) if rank == 4 and list(given["output_size"]) == [1, 1] else None
    axes = tuple(sorted(axis % rank for axis in given.get("dim") or ()))
    wanted = {3: ((1,), (2,)), 4: tuple(TO_CHANNELS)}.get(rank, ())
    return axes if axes in wanted and given.get("dtype") is None else None


def _pooled(model: LayeredModule, node: Node, axes: tuple[int, ...]) -> Node:
    image = node.all_input_nodes[0]
    if len(axes) == 1:  # a sequence is an image of one row
        image = model.op(aten.unsqueeze.default, image, axes[0], at=node)
        axes = (axes[0], axes[0] + 1)
    if TO_CHANNELS[axes] != (0, 1, 2, 3):
        image = model.op(aten.permute.default, image, list(TO_CHANNELS[axes]), at=node)
    window = list(image.meta["val"].shape[2:])
    pooled = model.op(aten.avg_pool2d.default, image, window, at=node)
    result = list(sizes(node) or ())
    return (
        pooled if list(pooled.meta["val"].shape) == result else model.op(aten.reshape.default, pooled, result, at=node)
    )


class _Mean(nn.Module):
    def __init__(self, axes: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.axes, self.keepdim = axes, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).mean(self.axes, keepdim=self.keepdim)


@seeded
def example(seed: int) -> Example:
    """Means over images and sequences with channels first and last, and adaptive pooling."""
    shape = [size(1, 3), size(1, 5), size(1, 5), size(1, 5)]
    axes = [(2, 3), (1, 2), (-1, -2), (1,), (2,)][seed % 5]
    if seed % 11 == 10:
        return Example(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), {"input": torch.randn(shape)})
    return Example(_Mean(axes, bool(seed % 2)), {"x": torch.randn(shape[: 2 + len(axes)])})
