"""Which tensors of a graph share one set of channels, where those are written and who reads them.

A rewrite that scales, turns, centres or pads channels must do so in all of them. Ops that commute with what it does are
passed through; every other op is a reader, and stands in the way unless the rewrite knows how to change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.layered import shape_of

Sources = (
    Mapping[Node, int] | None
)  # inputs that have the channels, with their axis; None: the op is not passed through
Passage = Callable[[Node, int], Sources]  # of an op whose result has the channels at this axis


@dataclass(frozen=True, eq=False)
class Stream:
    """Tensors that share channels: everything written into it by `writers` is read by `readers`, and by nobody else."""

    axis: dict[Node, int]  # of every tensor, its axis of channels
    writers: tuple[Node, ...]
    readers: tuple[tuple[Node, Node], ...]  # a tensor and an op that reads it, which is not passed through

    @property
    def moves(self) -> tuple[Node, ...]:
        """The ops that are passed through."""
        return tuple(node for node in self.axis if node not in self.writers)


def stream(start: Node, axis: int, passage: Passage) -> Stream | None:
    """All tensors that share the channels of `start`; None where one tensor would have them along two axes."""
    found, writers, readers = {start: axis}, list[Node](), list[tuple[Node, Node]]()
    todo = [start]
    while todo:
        node = todo.pop()
        if (sources := passage(node, found[node])) is None:
            writers.append(node)
        joined = dict(sources or {})
        for user in node.users:
            if (place := _axis_after(user, node, found[node], passage)) is None:
                readers.append((node, user))
            else:
                joined[user] = place
        for each, place in joined.items():
            if each not in found:
                found[each] = place
                todo.append(each)
            elif found[each] != place:
                return None
    return Stream(axis=found, writers=tuple(writers), readers=tuple(readers))


def passage(table: Mapping[str, Callable[[Node, int], Sources]]) -> Passage:
    """Passes through the ops of a table, by their aten names."""

    def through(node: Node, axis: int) -> Sources:
        rule = table.get(op_name(node)) if node.op == "call_function" else None
        return rule(node, axis) if rule else None

    return through


def _axis_after(user: Node, node: Node, axis: int, passage: Passage) -> int | None:
    """Where the channels of `node` lie in what `user` makes of them."""
    if user.op == "output" or not hasattr(user.meta.get("val"), "shape"):
        return None
    places = range(len(shape_of(user)))
    return next((place for place in places if (passage(user, place) or {}).get(node) == axis), None)


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of an op, given by place or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _alike(node: Node, axis: int) -> Sources:
    """The result lies as its input does."""
    (source,) = node.all_input_nodes[:1]
    return {source: axis}


def _cast(node: Node, axis: int) -> Sources:
    """To another float dtype."""
    both = (node, _source(node))
    return {both[1]: axis} if all(each.meta["val"].is_floating_point() for each in both) else None


def _joined(node: Node, axis: int) -> Sources:
    """All inputs have the channels; a number or a tensor without them would be a shift of its own."""
    values = node.args[:2]
    own = _with_channels(node, axis)
    return own if all(isinstance(value, Node) and value in own for value in values) else None


def _scaled(node: Node, axis: int) -> Sources:
    """One factor has the channels; the other is the same for all of them. Of a quotient, only the first may."""
    return _if_one(node, _with_channels(node, axis))


def _times_constant(node: Node, axis: int) -> Sources:
    """As above, or the other factor is a constant for each channel."""
    own = _with_channels(node, axis)
    return _if_one(node, {source: place for source, place in own.items() if source.op != "get_attr"})


def _if_one(node: Node, live: Mapping[Node, int]) -> Sources:
    factors = [value for value in node.args[:2] if isinstance(value, Node) and value in live]  # a square has two
    return live if len(factors) == 1 and (op_name(node) != "div" or factors[0] is node.args[0]) else None


def _with_any(node: Node, axis: int) -> Sources:
    """Every input that has channels joins; what is the same for all of them stays outside."""
    return _with_channels(node, axis) or None


def _with_channels(node: Node, axis: int) -> dict[Node, int]:
    """The inputs that are not repeated along the channels."""
    rank, size = len(shape_of(node)), shape_of(node)[axis]
    places = {source: axis - rank + len(shape_of(source)) for source in node.all_input_nodes}
    return {source: place for source, place in places.items() if place >= 0 and shape_of(source)[place] == size}


def _permuted(node: Node, axis: int) -> Sources:
    order = argument(node, 1, "dims")
    return {_source(node): order[axis] % len(order)}


def _transposed(node: Node, axis: int) -> Sources:
    rank = len(shape_of(node))
    one, other = argument(node, 1, "dim0") % rank, argument(node, 2, "dim1") % rank
    return {_source(node): {one: other, other: one}.get(axis, axis)}


def _reshaped(node: Node, axis: int) -> Sources:
    """Where the channels stay an axis of their own, with as much before it."""
    before, after = shape_of(_source(node)), shape_of(node)
    kept = (math.prod(after[:axis]), after[axis])
    place = next((place for place in range(len(before)) if (math.prod(before[:place]), before[place]) == kept), None)
    return None if place is None else {_source(node): place}


def _concatenated(node: Node, axis: int) -> Sources:
    along = argument(node, 1, "dim", 0) % len(shape_of(node))
    return None if along == axis else dict.fromkeys(node.all_input_nodes, axis)


def _along_others(node: Node, axis: int) -> Sources:
    """Part of an axis, or its order, changes; which one is argument 1 or 2."""
    rank = len(shape_of(_source(node)))
    along = argument(node, 2, "dims", ()) if op_name(node) == "roll" else argument(node, 1, "dim", 0)
    changed = {each % rank for each in (along if isinstance(along, list | tuple) else [along])}
    return None if axis in changed or (op_name(node) == "roll" and not changed) else {_source(node): axis}


def _selected(node: Node, axis: int) -> Sources:
    gone = argument(node, 1, "dim") % len(shape_of(_source(node)))
    return {_source(node): axis + (axis >= gone)}


def _averaged(node: Node, axis: int) -> Sources:
    """A mean over other axes."""
    rank = len(shape_of(_source(node)))
    dims = argument(node, 1, "dim") or range(rank)
    gone = {dim % rank for dim in dims}
    keeps = bool(argument(node, 2, "keepdim", False))
    kept = [place for place in range(rank) if keeps or place not in gone]
    return None if kept[axis] in gone else {_source(node): kept[axis]}


def _windowed(node: Node, axis: int) -> Sources:
    """Pooling and resizing of images, each channel by itself."""
    batched = len(shape_of(node)) == (3 if "1d" in op_name(node) else 4)
    return {_source(node): axis} if batched and axis == 1 else None


def _bordered(node: Node, axis: int) -> Sources:
    """Zeros around other axes."""
    pads, rank = argument(node, 1, "pad"), len(shape_of(node))
    around = range(rank - len(pads) // 2, rank)
    return None if argument(node, 2, "value", 0) != 0 or axis in around else {_source(node): axis}


def _source(node: Node) -> Node:
    source = node.args[0]
    if not isinstance(source, Node):
        raise TypeError(f"{node.name} takes no tensor first")
    return source


# Moves of whole channels: they commute with whatever is done to each channel, shifts included.
MOVES: dict[str, Callable[[Node, int], Sources]] = {
    **dict.fromkeys(("to", "_to_copy"), _cast),
    **dict.fromkeys(("clone", "contiguous", "alias", "detach"), _alike),
    **dict.fromkeys(("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("slice", "index_select", "roll", "flip"), _along_others),
    "permute": _permuted,
    "transpose": _transposed,
    "select": _selected,
    "expand": _with_any,
    "mean": _averaged,
}
# Ops that commute with every linear map of the channels, such as a rotation.
LINEAR = MOVES | {
    **dict.fromkeys(("add", "sub"), _joined),
    **dict.fromkeys(("mul", "div"), _scaled),
    **dict.fromkeys(
        ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "upsample_nearest2d",
         "upsample_bilinear2d", "upsample_bicubic2d"), _windowed
    ),
    "cat": _concatenated,
    "constant_pad_nd": _bordered,
    "pad": _bordered,
    "neg": _alike,
}  # fmt: skip
# Ops that commute with a positive factor for each channel.
POSITIVE = LINEAR | {
    **dict.fromkeys(("mul", "div"), _times_constant),
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "abs"), _alike),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "adaptive_max_pool2d"), _windowed),
}
# Ops that treat each channel by itself and make something finite of zeros.
SEPARATE = POSITIVE | {
    **dict.fromkeys(("add", "sub", "mul", "maximum", "minimum"), _with_any),
    "div": _scaled,
    **dict.fromkeys(
        ("relu6", "hardtanh", "clamp", "gelu", "silu", "hardswish", "sigmoid", "hardsigmoid", "tanh", "elu", "mish",
         "softplus", "square", "sin", "cos", "erf", "exp"), _alike
    ),
}  # fmt: skip
