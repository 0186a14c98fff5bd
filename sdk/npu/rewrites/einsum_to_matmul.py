"""`einsum` of two tensors as one matrix product with permutes and reshapes around it.

Source: ExecuTorch's Qualcomm backend, `DecomposeEinsum`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
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

TITLE = "einsum as matrix products"
EXACTNESS = "exact"
STAGE, RANK = "shapes", 5
aten = torch.ops.aten


@dataclass(frozen=True)
class _Labels:
    """The letters of `left,right->result`, in groups."""

    left: str
    right: str
    result: str

    @property
    def batch(self) -> str:
        """In all three."""
        return "".join(each for each in self.left if each in self.right and each in self.result)

    @property
    def summed(self) -> str:
        """In both factors only."""
        return "".join(each for each in self.left if each in self.right and each not in self.result)

    @property
    def rows(self) -> str:
        """In the left factor and the result."""
        return "".join(each for each in self.left if each not in self.right)

    @property
    def columns(self) -> str:
        """In the right factor and the result."""
        return "".join(each for each in self.right if each not in self.left)


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every einsum of two tensors without repeated letters or an ellipsis."""
    for node in calls(model, "einsum"):
        given = arguments(node)
        labels = _labels(given["equation"])
        if isinstance(labels, str):
            yield skipped(node, labels)
        elif any(sizes(tensor) is None for tensor in given["tensors"]):
            yield skipped(node, "its sizes are dynamic: fix them first with static_shapes")
        else:
            node.replace_all_uses_with(_product(model, node, labels, *given["tensors"]))
            yield done(node)


def _labels(equation: str) -> _Labels | str:
    """The letters; else why they make no single product."""
    factors, arrow, result = equation.replace(" ", "").partition("->")
    parts = factors.split(",")
    if not arrow or "." in equation:
        return f"'{equation}' leaves letters out: write them all, with '->'"
    if len(parts) != 2:
        return f"'{equation}' is of {len(parts)} tensors, and a matrix product has two factors"
    if any(len(set(part)) != len(part) for part in (*parts, result)):
        return f"'{equation}' repeats a letter, which takes a diagonal"
    found = _Labels(parts[0], parts[1], result)
    if set(found.rows + found.columns) - set(result):
        return f"'{equation}' sums over a letter of one tensor only: sum before the product"
    return found


def _product(model: LayeredModule, node: Node, labels: _Labels, left: Node, right: Node) -> Node:
    length = dict(zip(labels.left + labels.right, (*(sizes(left) or ()), *(sizes(right) or ())), strict=True))

    def count(letters: str) -> int:
        return math.prod(length[each] for each in letters)

    def arranged(factor: Node, now: str, first: str, second: str) -> Node:
        wanted = labels.batch + first + second
        if wanted != now:
            factor = model.op(aten.permute.default, factor, [now.index(each) for each in wanted], at=node)
        return model.op(aten.reshape.default, factor, [count(labels.batch), count(first), count(second)], at=node)

    one = arranged(left, labels.left, labels.rows, labels.summed)
    other = arranged(right, labels.right, labels.summed, labels.columns)
    made = model.op(aten.matmul.default, one, other, at=node)
    order = labels.batch + labels.rows + labels.columns
    made = model.op(aten.reshape.default, made, [length[each] for each in order], at=node)
    if order == labels.result:
        return made
    return model.op(aten.permute.default, made, [order.index(each) for each in labels.result], at=node)


class _Einsum(nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum(self.equation, x.tanh(), y)


@seeded
def example(seed: int) -> Example:
    """Products of attention, relative positions, outer products and plain matrices."""
    equation = ("bchq,bkhc->bkhq", "bhwc,hkc->bhwk", "ij,jk->ki", "bi,bj->bij", "abc,abc->a", "bkhq,bchk->bchq")[
        seed % 6
    ]
    length = {letter: size(1, 5) for letter in equation if letter.isalpha()}
    left, right = ([length[each] for each in part] for part in equation.partition("->")[0].split(","))
    return Example(_Einsum(equation), {"x": torch.randn(left), "y": torch.randn(right)})
