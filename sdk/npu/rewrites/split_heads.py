"""Attention head by head: each has layers of its own for queries, keys and values, and products of its own.

Tensors keep one head and so stay small enough for an NPU's memory; packed projections come apart on the way.
Source: Apple's ml-ane-transformers, principle 2; ExecuTorch's Qualcomm backend, `ConvertMhaToSha`, and
qualcomm/ai-hub-models' SplitHeadSAMDecoderAttention do the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._heads import Heads, heads_of, of_head, run_on_numbers
from edgekit.npu.rewrites._ops import MOVEMENTS, calls, is_pointwise, name_of, sizes
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "attention head by head"
EXACTNESS = "exact"
STAGE, RANK = "layers", 0  # while projections are linear layers still
aten = torch.ops.aten
PRODUCTS = ("matmul", "bmm")


@dataclass(frozen=True, eq=False)
class _Attention:
    """Two products with a softmax between them; `steps` lead from the first product to the softmax, which is last."""

    steps: list[Node]
    out: Node
    queries: Heads
    keys: Heads
    values: Heads

    @property
    def heads(self) -> int:
        """How many."""
        return len(self.queries.rows)


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every softmax over the last axis between two products of several heads."""
    for node in calls(model, "softmax", "_softmax"):
        outs = [user for user in node.users if name_of(user) in PRODUCTS and user.args[0] is node]
        if not outs:
            continue
        found = _attention(model, node, outs[0])
        if isinstance(found, str):
            yield skipped(node, found)
        elif found.heads > 1:
            _split(model, found)
            yield done(node)
    model.tidy()


def _attention(model: LayeredModule, softmax: Node, out: Node) -> _Attention | str:
    if len(softmax.users) > 1:
        return "its weights are read elsewhere too"
    steps = [softmax]
    while name_of(steps[0]) not in PRODUCTS:
        before = [each for each in steps[0].all_input_nodes if sizes(each) == sizes(softmax)]
        if not before or not (steps[0] is softmax or is_pointwise(steps[0])) or len(before[0].users) > 1:
            return f"its scores come from {name_of(steps[0]) or steps[0].op}, not from one product"
        steps.insert(0, before[0])
    parts = {
        "queries": heads_of(model, _operand(steps[0], 0)),
        "keys": heads_of(model, _operand(steps[0], 1), turned=True),
        "values": heads_of(model, _operand(out, 1)),
    }
    for role, part in parts.items():
        if isinstance(part, str):
            return f"its {role}: {part}"
    return _Attention(steps, out, **parts)  # type: ignore[arg-type]


def _operand(node: Node, at: int) -> Node:
    operand = node.args[at]
    assert isinstance(operand, Node)
    return operand


def _split(model: LayeredModule, found: _Attention) -> None:
    at = found.out
    results = [_head(model, found, index, at) for index in range(found.heads)]
    joined, end = _joined_channels(found)
    if joined is None:
        whole = model.op(aten.cat.default, results, 1, at=at)
        shape = list(sizes(at) or ())
        at.replace_all_uses_with(model.op(aten.reshape.default, whole, shape, at=at))
        return
    whole = model.op(aten.cat.default, results, -1, at=at)  # [B, 1, S, H * D]
    if end:
        whole = model.op(aten.permute.default, whole, [2, 0, 1, 3], at=at)
    joined.replace_all_uses_with(model.op(aten.reshape.default, whole, list(sizes(joined) or ()), at=at))


def _head(model: LayeredModule, found: _Attention, index: int, at: Node) -> Node:
    query = found.queries.head(model, index, "q", at=at)
    key = model.op(aten.transpose.int, found.keys.head(model, index, "k", at=at), -2, -1, at=at)
    value = found.values.head(model, index, "v", at=at)
    last = model.op(aten.matmul.default, query, key, at=at)

    def part(operand: Node) -> Node:
        return of_head(model, operand, index, found.heads, found.queries.batch, at=at)

    for before, step in zip(found.steps, found.steps[1:], strict=False):
        args: list[Any] = [part(each) if isinstance(each, Node) and each is not before else each for each in step.args]
        args = [last if each is before else each for each in args]
        last = model.op(step.target, *_over_last(step, args), at=at, home=step, **step.kwargs)  # type: ignore[arg-type]
    return model.op(aten.matmul.default, last, value, at=at)


def _over_last(step: Node, args: list[Any]) -> list[Any]:
    """A softmax names its axis from the front; there are four axes now."""
    return [args[0], -1, *args[2:]] if name_of(step) in ("softmax", "_softmax") else args


def _joined_channels(found: _Attention) -> tuple[Node | None, bool]:
    """Where the heads' results lie side by side as channels again; True: with positions before the batch."""
    shape, heads, batch, length = sizes(found.out) or (), found.heads, found.queries.batch, found.queries.length
    width = shape[-1]
    numbers = torch.arange(batch * heads * length * width).reshape(batch, heads, length, width)
    wanted = numbers.permute(0, 2, 1, 3).reshape(batch, length, heads * width)
    path: list[Node] = []
    node = found.out
    while len(node.users) == 1 and name_of(user := next(iter(node.users))) in MOVEMENTS:
        path.append(user)
        node = user
        if (sizes(node) or (0,))[-1] == heads * width:
            there = run_on_numbers(path, found.out, shape).reshape(-1, heads * width)
            for turned in (False, True):
                if torch.equal(there, (wanted.transpose(0, 1) if turned else wanted).reshape(-1, heads * width)):
                    return node, turned
    return None, False


class _SelfAttention(nn.Module):
    """Projections apart or packed in three ways; masks of none, all heads alike, and each its own."""

    def __init__(self, heads: int, width: int, packing: int, mask: Tensor | None) -> None:
        super().__init__()
        self.heads, self.width, self.packing = heads, width, packing
        channels = heads * width
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels, bias=False)
        self.register_buffer("mask", mask)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, length, _ = x.shape
        packed = self.qkv(x)
        if self.packing == 0:
            return tuple(packed.reshape(batch, length, 3, self.heads, self.width).permute(2, 0, 3, 1, 4))
        if self.packing == 1:
            return tuple(packed.reshape(batch, length, self.heads, 3 * self.width).transpose(1, 2).chunk(3, -1))
        return tuple(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in packed.chunk(3, -1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._parts(x)
        scores = (q * self.width**-0.5) @ k.transpose(-2, -1)
        weights = (scores if self.mask is None else scores + self.mask).softmax(-1)
        joined = (weights @ v).transpose(1, 2).flatten(2)
        return self.out(joined)  # type: ignore[no-any-return]


@seeded
def example(seed: int) -> Example:
    """Self-attention of several heads over sequences of one or several samples."""
    heads, width, batch, length = size(2, 4), size(1, 4), size(1, 2), size(1, 5)
    mask = [None, torch.randn(length, length), torch.randn(1, heads, length, length)][seed % 3]
    module = _SelfAttention(heads, width, seed // 3 % 3, mask)
    return Example(module, {"x": torch.randn(batch, length, heads * width)})
