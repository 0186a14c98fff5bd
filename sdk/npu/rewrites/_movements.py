"""Ops that only bring axes into another order, or add and drop axes of size 1: how they compose and are written.

A movement is a tuple: which axis of what it reads each axis of its result was, None for an axis of size 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._ops import arguments, name_of, sizes

aten = torch.ops.aten
Axes = tuple[int | None, ...]
Shape = tuple[int, ...]
IMAGE = 4  # axes of [B, C, 1, S]
TO_CHANNELS, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def movement(node: Node) -> Axes | None:
    """What a node moves; None where it does something else, or has dynamic sizes."""
    name = name_of(node)
    if name not in ("permute", "transpose", "t", "mT", "squeeze", "unsqueeze", "reshape", "view"):
        return None
    source = node.all_input_nodes[0]
    before, after = sizes(source), sizes(node)
    if before is None or after is None or math.prod(before) == 0:
        return None
    if name in ("permute", "transpose", "t", "mT"):
        order = order_of(node, len(before))
        return proper(tuple(order), before)
    return between(before, after)


def between(before: Shape, after: Shape) -> Axes | None:
    """The movement of a reshape; None where it joins or splits axes."""
    axes = [axis for axis, size in enumerate(before) if size != 1]
    if [before[axis] for axis in axes] != [size for size in after if size != 1]:
        return None
    left = iter(axes)
    return tuple(next(left) if size != 1 else None for size in after)


def order_of(node: Node, rank: int) -> list[int]:
    """Which axis of what it reads each axis of a permute's or a transpose's result was."""
    if name_of(node) == "permute":
        return [axis % rank for axis in arguments(node)["dims"]]
    order, given = list(range(rank)), arguments(node)
    one, other = (given["dim0"], given["dim1"]) if "dim0" in given else (-1, -2)
    order[one], order[other] = order[other], order[one]
    return order


def then(first: Axes, second: Axes) -> Axes:
    """One movement after another."""
    return tuple(None if axis is None else first[axis] for axis in second)


def inverse(axes: Axes, rank: int) -> Axes:
    """The way back to a tensor of `rank` axes."""
    where = {axis: at for at, axis in enumerate(axes) if axis is not None}
    return tuple(where.get(axis) for axis in range(rank))


def proper(axes: Axes, shape: Shape) -> Axes:
    """A movement as a tensor of this shape sees it: its axes of size 1 come from nowhere."""
    return tuple(axis if axis is None or shape[axis] != 1 else None for axis in axes)


def moved(shape: Shape, axes: Axes) -> Shape:
    """The shape after a movement."""
    return tuple(1 if axis is None else shape[axis] for axis in axes)


def is_costly(axes: Axes) -> bool:
    """Whether numbers go to another place in memory: axes of size 1 come and go for nothing."""
    kept = [axis for axis in axes if axis is not None]
    return kept != sorted(kept)


def root(node: Node) -> tuple[Node, Axes]:
    """Where a chain of movements that ends at a node begins, and all of them as one."""
    axes: Axes = tuple(range(len(sizes(node) or ())))
    while (last := movement(node)) is not None:
        axes = then(last, axes)
        node = node.all_input_nodes[0]
    return node, proper(axes, sizes(node) or ())


def ops_needed(axes: Axes, before: Shape) -> int:
    """How many ops a movement takes."""
    after = moved(before, axes)
    return 1 + (len(before) != len(after)) if is_costly(axes) else int(before != after)


def move(model: LayeredModule, source: Node, axes: Axes, *, at: Node) -> Node:
    """Write a movement with as few ops as there can be: at most one permute, and reshapes around it."""
    before = sizes(source) or ()
    after = moved(before, axes)
    if is_costly(axes):
        rank = max(len(before), len(after))
        extra = rank - len(before)
        wanted = [axis + extra if axis else axis for axis in _padded(axes, rank, None)]
        spare = iter([axis for axis in range(rank) if axis not in wanted])
        order = [next(spare) if axis is None else axis for axis in wanted]
        source = _reshaped(model, source, _padded(before, rank, 1), at)
        source = model.op(aten.permute.default, source, order, at=at)
    return _reshaped(model, source, after, at)


def _padded(values: tuple[Any, ...], rank: int, with_: int | None) -> tuple[Any, ...]:
    """As many more values after the first one as a rank asks for."""
    return (*values[:1], *[with_] * (rank - len(values)), *values[1:])


def _reshaped(model: LayeredModule, source: Node, shape: Shape, at: Node) -> Node:
    return source if sizes(source) == shape else model.op(aten.reshape.default, source, list(shape), at=at)


def channels_first(model: LayeredModule, tokens: Node, *, at: Node) -> Node:
    """`[B, S, C]` as `[B, C, 1, S]`, likewise `[B, C]` and `[B, H, W, C]`."""
    for _ in range(IMAGE - len(tokens.meta["val"].shape)):
        tokens = model.op(aten.unsqueeze.default, tokens, 1, at=at)
    return model.op(aten.permute.default, tokens, TO_CHANNELS, at=at)


def channels_last(model: LayeredModule, image: Node, rank: int, *, at: Node) -> Node:
    """The way back."""
    image = model.op(aten.permute.default, image, TO_LAST, at=at)
    for _ in range(IMAGE - rank):
        image = model.op(aten.squeeze.dim, image, 1, at=at)
    return image
