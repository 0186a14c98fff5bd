"""Permutes between blocks cancelled: a stream of tokens stays `[B, C, 1, S]` where its layers want it so.

Movements of axes pass ops that do not mind the order: element by element, sums over named axes, joins. A part of the
graph between movements takes the order in which the fewest of them are left.
Source: Apple, Deploying Transformers on the Apple Neural Engine, principles 1 and 3 (no copies between layers).
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
from edgekit.npu.rewrites._movements import (
    Axes,
    Shape,
    inverse,
    is_costly,
    move,
    moved,
    movement,
    ops_needed,
    proper,
    root,
    then,
)
from edgekit.npu.rewrites._ops import arguments, constant, is_pointwise, name_of, sizes
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "permutes between layers cancelled"
EXACTNESS = "exact"
STAGE, RANK = "layers", 9
aten = torch.ops.aten
ALONG = ("softmax", "_softmax", "cat", "slice", "mean", "sum", "amax", "amin")  # ops that name an axis
REDUCTIONS = ("mean", "sum", "amax", "amin")
MOST_ROUNDS = 8  # each lets permutes go that the one before brought together


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Chains of movements become one each; then parts between them change their order where that saves permutes."""
    yield from _fuse(model)
    kept: dict[str, Outcome] = {}
    for _ in range(MOST_ROUNDS):
        acted = False
        for part in _parts(model):
            best = max(part.orders(), key=part.saving, default=None)
            if best is None:
                continue
            if part.saving(best) > 0:
                yield done(part.first)
                part.reorder(model, best)
                acted = True
            else:
                kept[part.first.name] = skipped(part.first, "as many permutes would come as would go")
        if not acted:
            break
        yield from _fuse(model)
    yield from kept.values()


def _fuse(model: LayeredModule) -> Iterator[Outcome]:
    """Movements after each other as the fewest ops that do the same."""
    for node in list(model.graph.nodes):
        if movement(node) is None or all(movement(user) is not None for user in node.users):
            continue
        source, axes = root(node)
        chain = _chain(node, source)
        if len(chain) > ops_needed(axes, sizes(source) or ()):
            node.replace_all_uses_with(move(model, source, axes, at=node))
            if sum(is_costly(movement(each) or ()) for each in chain) > is_costly(axes):
                yield done(node)
    model.tidy()


def _chain(node: Node, source: Node) -> list[Node]:
    found = []
    while node is not source:
        found.append(node)
        node = node.all_input_nodes[0]
    return found


@dataclass(frozen=True, eq=False)
class _Part:
    """Ops that any order of axes suits, joined by what they hand each other. An order is a movement from this one."""

    nodes: dict[Node, None]

    @property
    def first(self) -> Node:
        """Its first op."""
        return next(iter(self.nodes))

    @property
    def rank(self) -> int:
        """Of all tensors in it; what it reads may have fewer axes."""
        return len(sizes(self.first) or ())

    def entries(self) -> list[Node]:
        """What it reads from outside, each once; constants turn for nothing."""
        read = {source: None for node in self.nodes for source in node.all_input_nodes}
        return [each for each in read if each not in self.nodes and each.op != "get_attr"]

    def exits(self) -> list[tuple[Node, Node]]:
        """What it hands on, with who reads it."""
        return [(node, user) for node in self.nodes for user in node.users if user not in self.nodes]

    def orders(self) -> list[Axes]:
        """Those that its neighbours have."""
        found: dict[Axes, None] = {}
        for entry in self.entries():
            source, arriving = root(entry)
            if is_costly(arriving) and len(arriving) == self.rank:
                found[inverse(arriving, len(sizes(source) or ()))] = None
        for node in self.nodes:
            for leaving in self._leaving(node):
                if is_costly(leaving):
                    found[leaving] = None
        return [order for order in found if self._fits(order)]

    def _fits(self, order: Axes) -> bool:
        """Whether every axis that it has no place for is of size 1 throughout."""
        lacking = set(range(self.rank)) - set(order)
        shapes = [self._shape(node) for node in (*self.nodes, *self.entries())]
        return all(shape[axis] == 1 for shape in shapes for axis in lacking)

    def _shape(self, node: Node) -> Shape:
        """Sizes of all axes of something it reads."""
        shape = sizes(node) or ()
        return (*[1] * (self.rank - len(shape)), *shape)

    def saving(self, order: Axes) -> int:
        """Permutes that go, less those that come."""
        saved = 0
        for entry in self.entries():
            source, arriving = root(entry)
            goes = is_costly(arriving) and all(user in self.nodes for user in entry.users)
            whole = (*[None] * (self.rank - len(arriving)), *arriving)
            saved += goes - is_costly(proper(then(whole, order), sizes(source) or ()))
        for node in self.nodes:
            turned, back = moved(self._shape(node), order), inverse(order, self.rank)
            for leaving in self._leaving(node):
                saved += is_costly(leaving) - is_costly(proper(then(back, leaving), turned))
        return saved

    def _leaving(self, node: Node) -> set[Axes]:
        """The movements to what reads a result outside, each once."""
        here: Axes = tuple(range(self.rank))
        found = set[Axes]()
        pending = [(user, here) for user in node.users if user not in self.nodes]
        while pending:
            user, axes = pending.pop()
            if (step := movement(user)) is None:
                found.add(axes)
            else:
                pending += [(each, then(axes, step)) for each in user.users]
        return found

    def reorder(self, model: LayeredModule, order: Axes) -> None:
        """Turn what comes in, let every op work in the other order, and turn back what goes out."""
        exits, turned = self.exits(), dict[Node, Node]()
        for node in self.nodes:
            turned[node] = self._turned(model, node, order, turned)
        for node, user in exits:
            back = proper(inverse(order, self.rank), sizes(turned[node]) or ())
            user.replace_input_with(node, move(model, turned[node], back, at=user))
        model.tidy()

    def _turned(self, model: LayeredModule, node: Node, order: Axes, turned: dict[Node, Node]) -> Node:
        def operand(source: Node) -> Node:
            if source not in turned:
                turned[source] = self._entered(model, source, order, node)
            return turned[source]

        args: tuple[Any, ...] = torch.fx.map_arg(node.args, operand)
        if name_of(node) in ALONG:
            given = arguments(node)["dim"]
            axes = [_place(order, axis % self.rank) for axis in (given if isinstance(given, list | tuple) else [given])]
            args = (args[0], axes if isinstance(given, list | tuple) else axes[0], *args[2:])
        return model.op(node.target, *args, at=node, **node.kwargs)  # type: ignore[arg-type]

    def _entered(self, model: LayeredModule, source: Node, order: Axes, at: Node) -> Node:
        shape = self._shape(source)
        if (tensor := constant(model, source)) is None:
            if sizes(source) != shape:
                source = model.op(aten.reshape.default, source, list(shape), at=at)
            return move(model, source, proper(order, shape), at=at)
        kept = [axis for axis in order if axis is not None]
        there = [*kept, *[axis for axis in range(self.rank) if axis not in kept]]
        whole = tensor.detach().reshape(shape).permute(there).reshape(moved(shape, order)).contiguous()
        return model.weight(f"{source.target}_turned", nn.Parameter(whole, requires_grad=False), at=at)


def _place(order: Axes, axis: int) -> int:
    """Where an axis is after a movement; one of size 1 may be any that came from nowhere."""
    return order.index(axis) if axis in order else order.index(None)


def _parts(model: LayeredModule) -> list[_Part]:
    part_of: dict[Node, dict[Node, None]] = {}
    for node in model.graph.nodes:
        if not _is_carrier(node):
            continue
        joined: dict[Node, None] = {}
        rank = len(sizes(node) or ())
        for source in node.all_input_nodes:
            if source in part_of and len(sizes(source) or ()) == rank:
                joined |= part_of[source]
        joined[node] = None
        for each in joined:
            part_of[each] = joined
    order = {node: at for at, node in enumerate(model.graph.nodes)}
    distinct = {id(part): part for part in part_of.values()}.values()
    return [_Part(dict.fromkeys(sorted(part, key=order.__getitem__))) for part in distinct]


def _is_carrier(node: Node) -> bool:
    """Whether an op does the same in every order of axes, but for the number of the axis that it works along."""
    if node.op != "call_function" or not sizes(node) or movement(node) is not None:
        return False
    if any(sizes(source) is None for source in node.all_input_nodes):
        return False
    name = name_of(node)
    if name in REDUCTIONS:
        return bool(arguments(node).get("keepdim")) and "dim" in arguments(node)
    if name == "cat":
        return len({len(sizes(source) or ()) for source in node.all_input_nodes}) == 1
    return name in ALONG or is_pointwise(node)


class _Blocks(nn.Module):
    """Tokens through 1x1 convolutions with permutes around each, a residual, a norm by hand, and a join."""

    def __init__(self, channels: int, joined: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.scale, self.joined = nn.Parameter(torch.randn(channels)), joined

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x.unsqueeze(1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).squeeze(1)
            x = torch.relu(x + (y - y.mean(-1, keepdim=True)) * self.scale)
        return torch.cat([x, x.softmax(1)], -1) if self.joined else x


@seeded
def example(seed: int) -> Example:
    """Blocks over sequences of one or several samples."""
    batch, length, channels = size(1, 2), size(1, 6), size(2, 6)
    return Example(_Blocks(channels, bool(seed % 2)), {"x": torch.randn(batch, length + 1, channels)})
