"""Dynamic sizes fixed: one sample a call, and every other size as in the example.

A size decides memory and tiles when an NPU's compiler runs, so it cannot change later. A model for several sizes is
rewritten once for each. A resize of the input belongs before the model, where it may have any size.
Source: onnxruntime, QNN execution provider ("does not support models with dynamic shapes"); Vela 5.2.0 ("tensors must
have static shapes", "batch size must be 1").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.graph import hinted
from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._ops import name_of
from edgekit.npu.rewriting import Example, Outcome, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "dynamic sizes fixed"
EXACTNESS = "exact"
STAGE, RANK = "shapes", 0  # first: other rewrites match fixed sizes
RESIZES = ("upsample", "_upsample", "interpolate")


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """All inputs with dynamic sizes at once. Resizes that come first are named: nothing exact takes them out."""
    inputs = model.graph.find_nodes(op="placeholder")
    for node in inputs:
        for user in node.users:
            if name_of(user).startswith(RESIZES):
                yield skipped(user, "it resizes the input: leave it out of the model and resize before it")
    sizes = _sizes(inputs)
    if not sizes:
        return
    for node in inputs:
        value = node.meta["val"]
        if _is_dynamic(value):
            with value.fake_mode:
                node.meta["val"] = torch.empty([_fixed(each, sizes) for each in value.shape], dtype=value.dtype)
            yield Outcome(place=f"input {node.name}, {list(node.meta['val'].shape)}")
    _fix_numbers(model, sizes)
    model.refresh()


def _sizes(inputs: list[Node]) -> dict[Any, int]:
    """Symbol -> the number that takes its place."""
    found: dict[Any, int] = {}
    for node in inputs:
        for axis, each in enumerate(node.meta["val"].shape):
            if isinstance(each, torch.SymInt):
                found[each.node.expr] = 1 if axis == 0 else hinted(each)
    return {symbol: number for symbol, number in found.items() if symbol.is_Symbol}


def _is_dynamic(value: Tensor) -> bool:
    return any(isinstance(each, torch.SymInt) for each in value.shape)


def _fixed(value: Any, sizes: dict[Any, int]) -> int:
    """A size in numbers."""
    return int(value.node.expr.subs(sizes)) if isinstance(value, torch.SymInt) else int(value)


def _fix_numbers(model: LayeredModule, sizes: dict[Any, int]) -> None:
    """Numbers that were computed from sizes become numbers, and checks of sizes go."""
    numbers: dict[Node, int] = {}
    for node in list(model.graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function":
            continue
        if isinstance(value, torch.SymInt):
            numbers[node] = _fixed(value, sizes)
        elif name_of(node) in ("_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size") or isinstance(
            value, torch.SymBool
        ):
            numbers[node] = 1
        elif any(source in numbers for source in node.all_input_nodes):
            node.args = torch.fx.map_arg(node.args, lambda source: numbers.get(source, source))
            node.kwargs = torch.fx.map_arg(node.kwargs, lambda source: numbers.get(source, source))
    for node in reversed(numbers):
        model.graph.erase_node(node)


class _Tokens(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        split = self.heads(x).reshape(batch, length, 2, -1).transpose(1, 2)
        return torch.softmax(split.flatten(0, 1), -1).reshape(batch, -1) * length


@seeded
def example(seed: int) -> Example:
    """Tokens whose batch, length or both are dynamic."""
    names = (("batch",), ("x.1",), ("batch", "x.1"))[seed % 3]
    tokens = torch.randn(size(2, 4), size(3, 6), size(1, 4))
    return Example(_Tokens(tokens.shape[-1]), {"x": tokens}, dynamic=tuple(f"{name}=1:16" for name in names))
