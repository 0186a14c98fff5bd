"""Ops that return what they get: expanding to the same shape, casts to the same dtype, dropout, adding zeros.

An NPU's compiler counts them as ops, and some hand them to the CPU.
Source: ExecuTorch's Qualcomm backend removes them too, in `RemoveRedundancy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._ops import constant, name_of
from edgekit.npu.rewriting import Example, Outcome, done

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "ops that change nothing taken out"
EXACTNESS = "bit-equal"
STAGE, RANK = "shapes", 2
COPIES = {  # that move no number to another place where shape and dtype stay
    "_to_copy", "alias", "clone", "contiguous", "detach", "dropout", "expand", "expand_as", "flatten", "repeat",
    "reshape", "slice", "squeeze", "to", "unsqueeze", "view",
}  # fmt: skip
NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every op whose result is one of its inputs."""
    for node in list(model.graph.nodes):
        if (same := _same(model, node)) is not None:
            node.replace_all_uses_with(same)
            yield done(node)


def _same(model: LayeredModule, node: Node) -> Node | None:
    """The input that a node returns as it is."""
    name = name_of(node)
    first = node.args[0] if node.args else None
    if not isinstance(first, Node) or not node.users:
        return None
    if name in NEUTRAL and len(node.args) == 2 and not node.kwargs:
        changes = not _is(model, node.args[1], NEUTRAL[name])
    else:
        changes = name not in COPIES
    return None if changes or _form(first) != _form(node) else first


def _is(model: LayeredModule, value: Any, number: int) -> bool:
    tensor = constant(model, value)
    return bool((tensor == number).all()) if tensor is not None else isinstance(value, int | float) and value == number


def _form(node: Node) -> tuple[str, ...]:
    """Dtype and sizes, those of dynamic dimensions by their symbols."""
    value = node.meta.get("val")
    return (str(value.dtype), *map(str, value.shape)) if isinstance(value, Tensor) else ()


class _Idle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(1, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.add(torch.relu(x.expand(x.shape)) * 1.0, self.get_buffer("zeros"))
        return torch.tanh(y.reshape(y.shape)) + 0.0


@seeded
def example(seed: int) -> Example:
    """A function of x with four ops that change nothing."""
    rows, channels = size(1, 5), size(1, 9)
    return Example(_Idle(channels), {"x": torch.randn(rows, channels)})
