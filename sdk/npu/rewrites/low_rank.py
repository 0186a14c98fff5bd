"""Tensors of many dimensions as tensors of few: window partitions, packed heads, masks for groups of windows.

Axes that an op treats alike are taken together; a permute of more groups than there may be dimensions becomes swaps of
two blocks after each other. Numbers stay where they are in memory but for what the op itself moves.
Source: qualcomm/ai-hub-models' patches of Segment Anything (windows in five dimensions, not six).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._movements import Shape, order_of
from edgekit.npu.rewrites._ops import arguments, is_pointwise, name_of, sizes
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "tensors of many dimensions in fewer"
EXACTNESS = "exact"
STAGE, RANK = "shapes", 8
MOST = 4  # dimensions where the rules name no limit
aten = torch.ops.aten
RESHAPES = ("reshape", "view", "unsqueeze", "squeeze", "flatten", "unflatten")
PERMUTES = ("permute", "transpose", "t", "mT")
ALONG = ("select", "slice", "unbind", "split", "split_with_sizes", "chunk", "cat", "softmax", "_softmax", "mean", "sum")
LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)  # layers over the last axis


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every op on tensors with more dimensions than the NPU takes."""
    most = rules.max_rank or MOST
    for node in [each for each in model.graph.nodes if _rank(each) > most]:
        if name_of(node) in RESHAPES or name_of(node) == "getitem" or node.op in ("placeholder", "output", "get_attr"):
            continue
        new = _lowered(model, node, most)
        if new is None:
            yield skipped(node, f"{name_of(node) or node.op} works on {_rank(node)} dimensions at once")
            continue
        _hand_over(model, node, new)
        yield done(node)
    _join_reshapes(model)
    model.tidy()


def _rank(node: Node) -> int:
    values = [each.meta.get("val") for each in (node, *node.all_input_nodes)]
    flat = [each for value in values for each in (value if isinstance(value, list | tuple) else (value,))]
    return max((each.dim() for each in flat if isinstance(each, Tensor)), default=0)


def _lowered(model: LayeredModule, node: Node, most: int) -> Node | None:
    """The same op in few dimensions; None where it cannot be."""
    if any(sizes(source) is None for source in node.all_input_nodes):
        return None
    name = name_of(node)
    if name in PERMUTES:
        return _permuted(model, node, most)
    if is_pointwise(node) or name in ("expand", "expand_as"):
        return _pointwise(model, node, most)
    if name in ALONG:
        return _along(model, node, most)
    if name == "matmul":
        return _product(model, node)
    if isinstance(model.layer_of(node), LAST):
        (source,) = node.all_input_nodes
        shape = sizes(source) or ()
        return model.call(str(node.target), model.get_submodule(str(node.target)),
                          _shaped(model, source, (math.prod(shape[:-1]), shape[-1]), node), at=node)  # fmt: skip
    return None


def _shaped(model: LayeredModule, source: Node, shape: Sequence[int], at: Node) -> Node:
    same = sizes(source) == tuple(shape)
    return source if same else model.op(aten.reshape.default, source, list(shape), at=at)


def _hand_over(model: LayeredModule, node: Node, new: Node) -> None:
    """Let users read the new results in the shapes of the old ones."""
    if isinstance(node.meta["val"], Tensor):
        node.replace_all_uses_with(_shaped(model, new, sizes(node) or (), node))
        return
    for user in list(node.users):  # getitem of one of several results
        (part,) = (each for each in new.users if each.args[1] == user.args[1])
        user.replace_all_uses_with(_shaped(model, part, sizes(user) or (), user))


def _permuted(model: LayeredModule, node: Node, most: int) -> Node:
    (source,) = node.all_input_nodes
    shape = sizes(source) or ()
    blocks = _blocks([axis for axis in order_of(node, len(shape)) if shape[axis] != 1], shape)
    now = sorted(blocks)
    lengths = {block: math.prod(shape[axis] for axis in range(block[0], block[1] + 1)) for block in blocks}
    if len(blocks) <= most:
        source = _shaped(model, source, [lengths[block] for block in now], node)
        return model.op(aten.permute.default, source, [now.index(block) for block in blocks], at=node)
    for place, block in enumerate(blocks):
        at = now.index(block)
        if at == place:
            continue
        parts = (now[:place], now[place:at], [block], now[at + 1 :])
        source = _shaped(model, source, [math.prod(lengths[each] for each in part) for part in parts], node)
        source = model.op(aten.permute.default, source, [0, 2, 1, 3], at=node)
        now = [*parts[0], block, *parts[1], *parts[3]]
    return source


def _blocks(order: list[int], shape: Shape) -> list[tuple[int, int]]:
    """First and last axis of every run of axes that stay beside each other."""
    blocks: list[tuple[int, int]] = []
    for axis in order:
        if blocks and axis > blocks[-1][1] and all(shape[between] == 1 for between in range(blocks[-1][1] + 1, axis)):
            blocks[-1] = (blocks[-1][0], axis)
        else:
            blocks.append((axis, axis))
    return blocks


def _pointwise(model: LayeredModule, node: Node, most: int) -> Node | None:
    result = sizes(node) or ()
    shapes = {
        source: (*[1] * (len(result) - len(sizes(source) or ())), *(sizes(source) or ()))
        for source in node.all_input_nodes
    }
    groups: list[list[int]] = []
    kinds: list[tuple[bool, ...]] = []
    for axis, length in enumerate(result):
        kind = tuple(shape[axis] == 1 for shape in shapes.values())
        if (length == 1 and groups) or (kinds and kinds[-1] == kind):
            groups[-1].append(axis)
        else:
            groups.append([axis])
            kinds.append(kind)
    if len(groups) > most:
        return None
    low = {s: _shaped(model, s, [math.prod(shape[a] for a in g) for g in groups], node) for s, shape in shapes.items()}
    if name_of(node) in ("expand", "expand_as"):
        (source,) = low.values()
        return model.op(aten.expand.default, source, [math.prod(result[a] for a in g) for g in groups], at=node)
    args = torch.fx.map_arg(node.args, lambda source: low[source])
    return model.op(node.target, *args, at=node, **node.kwargs)  # type: ignore[arg-type]


def _along(model: LayeredModule, node: Node, most: int) -> Node | None:
    """An op along one axis, with all before and all behind it taken together."""
    shape, given = sizes(node.all_input_nodes[0]) or (), arguments(node)
    named = given.get("dim", 0)
    axes = sorted(axis % len(shape) for axis in (named if isinstance(named, list | tuple) else [named]))
    if axes != list(range(axes[0], axes[-1] + 1)):
        return None

    def low(source: Node) -> Node:
        each = sizes(source) or ()
        parts = each[: axes[0]], each[axes[0] : axes[-1] + 1], each[axes[-1] + 1 :]
        return _shaped(model, source, [math.prod(part) for part in parts], node)

    args: list[Any] = list(torch.fx.map_arg(node.args, low))
    place = list(given).index("dim")
    args += [given[name] for name in list(given)[len(args) : place + 1]]
    args[place] = [1] if isinstance(named, list | tuple) else 1
    made = model.op(node.target, *args, at=node, **{k: v for k, v in node.kwargs.items() if k != "dim"})  # type: ignore[arg-type]
    if not isinstance(made.meta["val"], Tensor):
        for user in node.users:
            model.op(user.target, made, user.args[1], at=node, home=user)  # type: ignore[arg-type]
    return made


def _product(model: LayeredModule, node: Node) -> Node | None:
    one, other = (sizes(source) or () for source in node.args)  # type: ignore[arg-type]
    if one[:-2] != other[:-2]:
        return None
    count = math.prod(one[:-2])
    left, right = (_shaped(model, source, (count, *shape[-2:]), node)  # type: ignore[arg-type]
                   for source, shape in zip(node.args, (one, other), strict=True))  # fmt: skip
    return model.op(aten.matmul.default, left, right, at=node)


def _join_reshapes(model: LayeredModule) -> None:
    """A reshape of a reshape is one."""
    for node in list(model.graph.nodes):
        if name_of(node) not in RESHAPES or (shape := sizes(node)) is None:
            continue
        source = first = node.all_input_nodes[0]
        while name_of(source) in RESHAPES and sizes(source.all_input_nodes[0]) is not None:
            source = source.all_input_nodes[0]
        if source is not first:
            node.replace_all_uses_with(_shaped(model, source, shape, node))


class _Windows(nn.Module):
    """Tokens in windows, a mask for each group of windows, packed parts, and the way back."""

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.side, self.packed = side, nn.Linear(channels, 3 * 2 * channels)
        self.register_buffer("mask", torch.randn(4, 1, side * side, side * side))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        side = self.side
        split = x.reshape(batch, height // side, side, width // side, side, channels)
        windows = split.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, channels)
        q, k, v = (
            self.packed(windows).reshape(len(windows), side * side, 3, 2, channels).permute(2, 0, 3, 1, 4).unbind(0)
        )
        scores = q @ k.transpose(-2, -1)
        scores = scores.reshape(batch, 4, 2, side * side, side * side) + self.mask
        mixed = scores.softmax(-1).flatten(0, 1) @ v
        joined = mixed.mean(1).reshape(batch, height // side, width // side, side, side, channels)
        return torch.permute(joined, (0, 1, 3, 2, 4, 5)).reshape(x.shape)


@seeded
def example(seed: int) -> Example:
    """Attention in four windows of an image."""
    side, channels = size(1, 3), size(1, 4)
    return Example(_Windows(side, channels), {"x": torch.randn(size(1, 2), 2 * side, 2 * side, channels)})
