"""Tensors without dimensions as tensors of one element: NPUs' compilers ask every tensor for a shape.

Source: Vela 5.2.0, `vela --supported-ops-report`: "Input(s) must not be scalar" of the elementwise ops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._ops import constant, is_pointwise, name_of, sizes
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "tensors without dimensions given one"
EXACTNESS = "exact"
STAGE, RANK = "shapes", 10
aten = torch.ops.aten
REDUCTIONS = {"mean": aten.mean.dim, "sum": aten.sum.dim_IntList}


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Constants, sums and means over everything, and what is computed from them."""
    vectors: dict[Node, Node] = {}
    for node in list(model.graph.nodes):
        if sizes(node) == () and node.op != "placeholder":
            found = _vector(model, node, vectors)
            if found is None:
                yield skipped(node, f"{name_of(node) or node.op} gives no dimensions")
            else:
                vectors[node] = found
                yield done(node)
    for scalar, vector in vectors.items():
        for user in [each for each in scalar.users if each not in vectors]:
            _replace(model, user, scalar, vector)


def _vector(model: LayeredModule, node: Node, vectors: dict[Node, Node]) -> Node | None:
    """The node's value as a tensor of one element."""
    if (tensor := constant(model, node)) is not None:
        return model.weight(f"{node.target}_vector", tensor.detach().reshape(1), at=next(iter(node.users)))
    if name_of(node) in REDUCTIONS and len(node.args) == 1 and not node.kwargs:
        row = model.op(aten.reshape.default, node.args[0], [-1], at=node)
        return model.op(REDUCTIONS[name_of(node)], row, [0], True, at=node)
    if is_pointwise(node) and all(source in vectors for source in node.all_input_nodes):
        args = torch.fx.map_arg(node.args, vectors.__getitem__)
        return model.op(node.target, *args, at=node, **node.kwargs)  # type: ignore[arg-type]
    return None


def _replace(model: LayeredModule, user: Node, scalar: Node, vector: Node) -> None:
    """Let a reader take the tensor of one element; where it minds the dimension, behind a reshape."""
    before = user.meta.get("val")
    if is_pointwise(user) and isinstance(before, Tensor) and before.dim() > 0:
        args = torch.fx.map_arg(user.args, lambda source: vector if source is scalar else source)
        new = model.op(user.target, *args, at=user, **user.kwargs)  # type: ignore[arg-type]
        if new.meta["val"].dtype == before.dtype:
            user.replace_all_uses_with(new)
            return
    user.replace_input_with(scalar, model.op(aten.reshape.default, vector, [], at=user))


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x * x).mean()
        return x * self.scale / (mean + 1).sqrt(), mean


@seeded
def example(seed: int) -> Example:
    """A learnt factor, and a mean over everything that the model returns too."""
    return Example(_Scaled(), {"x": torch.randn(size(1, 4), size(1, 4))})
