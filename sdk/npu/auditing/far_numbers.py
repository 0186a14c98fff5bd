"""Tensors that hold numbers as far from zero as minus infinity: masks, and logits that a mask was added to.

One grid of integers spans all numbers of a tensor, so a mask of -3.4e38 leaves no step for the logits beside it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.cost.kernels import VIEWS, made, op_name
from edgekit.graph import source_line

FAR = 1e8  # above it, a number stands for infinity
FILLS = ("masked_fill", "where")
MOVES = frozenset(("to", "_to_copy", "permute", "transpose", "expand", "slice", "select", *VIEWS))
MAKES = frozenset((*FILLS, "mul", "full", "new_full", "full_like", "scalar_tensor"))  # from a number they are given
KEEPS = frozenset((*FILLS, *MOVES, "mul", "add", "sub", "triu", "tril", "clone", "contiguous", "cat"))


@dataclass(frozen=True)
class FarNumber:
    """The largest number that a tensor is known to hold, the op that brought it in, and whether inputs say where."""

    size: float
    origin: str  # "where (model.py:41)"
    varies: bool


def far_numbers(program: ExportedProgram, live: Container[Node]) -> Mapping[Node, FarNumber]:
    """The tensors with numbers beyond `FAR`. What a fill reads shares its grid, so its producer counts too."""
    found = dict[Node, FarNumber]()
    for node in program.graph.nodes:
        if far := _stored(program, node) if node.op == "placeholder" else _computed(node, found, live):
            found[node] = far
    for node in reversed(list(found)):
        if op_name(node) in FILLS and node in live:
            _spread(node, found, live)
    return found


def met_by(step: Sequence[Node], found: Mapping[Node, FarNumber]) -> FarNumber | None:
    """The largest far number that ops compute with. Those that only put numbers somewhere need no step between."""
    computing = [node for node in step if op_name(node).removesuffix("_") not in (*FILLS, *MOVES)]
    met = [found[each] for node in computing for each in (node, *node.all_input_nodes) if each in found]
    return max(met, key=lambda each: each.size, default=None)


def is_far(value: object) -> TypeGuard[float]:
    """Whether a plain number stands for infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > FAR


def _computed(node: Node, found: Mapping[Node, FarNumber], live: Container[Node]) -> FarNumber | None:
    if node.op != "call_function" or not _is_real(node):
        return None
    name = op_name(node).removesuffix("_")
    given = [abs(each) for each in (*node.args, *node.kwargs.values()) if is_far(each)] if name in MAKES else []
    if given:
        return FarNumber(max(given), f"{name} ({source_line(node)})", node in live)
    read = [found[each] for each in node.all_input_nodes if each in found] if name in KEEPS else []
    return max(read, key=lambda each: each.size, default=None)


def _stored(program: ExportedProgram, node: Node) -> FarNumber | None:
    """Of a buffer or a constant; weights are not looked through."""
    signature = program.graph_signature
    name = signature.inputs_to_buffers.get(node.name) or signature.inputs_to_lifted_tensor_constants.get(node.name)
    tensor = None if name is None else program.state_dict.get(name, program.constants.get(name))
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or not tensor.numel():
        return None
    size = float(tensor.detach().abs().max())
    return FarNumber(size, f"'{name}'", False) if size > FAR else None


def _spread(fill: Node, found: dict[Node, FarNumber], live: Container[Node]) -> None:
    """To what a fill reads, through ops that only move it, up to the op that computes it."""
    todo = list(fill.all_input_nodes)
    while todo:
        node = todo.pop()
        if node in live and node not in found and node.op == "call_function" and _is_real(node):
            found[node] = found[fill]
            if op_name(node) in MOVES:
                todo += node.all_input_nodes


def _is_real(node: Node) -> bool:
    tensors = made(node)
    return bool(tensors) and tensors[0].is_floating_point()
