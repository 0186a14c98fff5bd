"""`roll` as two slices joined the other way round: what shifted windows (Swin) need.

Source: ExecuTorch's Qualcomm backend, `DecomposeRoll`.
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

TITLE = "rolled tensors as slices joined the other way round"
EXACTNESS = "bit-equal"
STAGE, RANK = "shapes", 6
aten = torch.ops.aten


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every `roll` of fixed sizes."""
    for node in calls(model, "roll"):
        (source,), given, shape = node.all_input_nodes, arguments(node), sizes(node)
        if shape is None:
            yield skipped(node, "its sizes are dynamic")
            continue
        rolled = source
        if not given["dims"]:  # all elements in one row
            rolled = _roll(model, model.op(aten.reshape.default, source, [-1], at=node), given["shifts"][0], 0, node)
            rolled = model.op(aten.reshape.default, rolled, list(shape), at=node)
        for shift, axis in zip(given["shifts"], given["dims"], strict=False):
            rolled = _roll(model, rolled, shift, axis, node)
        node.replace_all_uses_with(rolled)
        yield done(node)


def _roll(model: LayeredModule, source: Node, shift: int, axis: int, at: Node) -> Node:
    length = source.meta["val"].shape[axis]
    first = length - shift % length
    if first == length:
        return source
    tail = model.op(aten.slice.Tensor, source, axis, first, length, at=at)
    head = model.op(aten.slice.Tensor, source, axis, 0, first, at=at)
    return model.op(aten.cat.default, [tail, head], axis, at=at)


class _Rolled(nn.Module):
    def __init__(self, shifts: tuple[int, ...], dims: tuple[int, ...]) -> None:
        super().__init__()
        self.shifts, self.dims = shifts, dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x.relu(), self.shifts, self.dims)


@seeded
def example(seed: int) -> Example:
    """Images rolled along one axis, two axes, or as one row."""
    dims = [(1,), (1, 2), (-1, 0), ()][seed % 4]
    shifts = tuple(size(-7, 7) for _ in dims) or (size(1, 9),)
    return Example(_Rolled(shifts, dims), {"x": torch.randn(size(1, 3), size(2, 6), size(2, 6))})
