"""`repeat_interleave` as a tile of three dimensions: repeated heads, nearest-neighbour rows.

Source: qualcomm/ai-hub-models' patches of Segment Anything, which replace it for the rank that it passes through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._ops import arguments, calls, grouped, sizes
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "repeated elements as a tile of three dimensions"
EXACTNESS = "bit-equal"
STAGE, RANK = "shapes", 4
aten = torch.ops.aten


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every `repeat_interleave` by one number."""
    for node in calls(model, "repeat_interleave"):
        source, given = node.all_input_nodes[0], arguments(node)
        shape, result = sizes(source), sizes(node)
        if not isinstance(given["repeats"], int) or shape is None or result is None:
            yield skipped(node, "it repeats by a tensor, or sizes are dynamic")
            continue
        axis = len(shape) - 1 if given["dim"] is None else given["dim"] % len(shape)
        rows, after = grouped(shape, (0, axis + 1), (axis + 1, len(shape)))
        tiled = model.op(aten.reshape.default, source, [rows, 1, after], at=node)
        tiled = model.op(aten.repeat.default, tiled, [1, given["repeats"], 1], at=node)
        node.replace_all_uses_with(model.op(aten.reshape.default, tiled, list(result), at=node))
        yield done(node)


class _Repeated(nn.Module):
    def __init__(self, repeats: int, dim: int | None) -> None:
        super().__init__()
        self.repeats, self.dim = repeats, dim

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().repeat_interleave(self.repeats, self.dim)


@seeded
def example(seed: int) -> Example:
    """Tensors repeated along an axis, or as one row."""
    dim = [None, 0, 1, -1][seed % 4]
    return Example(_Repeated(size(2, 4), dim), {"x": torch.randn(size(1, 3), size(1, 5), size(1, 5))})
