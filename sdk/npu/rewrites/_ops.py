"""What rewrites ask of the ops of a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.layered import LayeredModule, stored

# Ops that hand out the numbers they get, elsewhere or in another shape.
MOVEMENTS = {
    "_to_copy", "alias", "chunk", "clone", "contiguous", "detach", "dropout", "expand", "flatten", "getitem", "mT",
    "movedim", "narrow", "permute", "repeat", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "to", "transpose", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip

UNTAGGED = {"_to_copy", "hardswish", "where"}  # work element by element too, though torch does not mark them so


def calls(model: LayeredModule, *names: str) -> list[Node]:
    """The nodes that call one of these aten ops, in order."""
    return [node for node in model.graph.nodes if node.op == "call_function" and name_of(node) in names]


def name_of(node: Node) -> str:
    """The aten name of a node's op, without its overload: `conv2d`, `getitem`; empty for what is no op."""
    return op_name(node) if node.op == "call_function" and str(node.target).count(".") >= 2 else _python_name(node)


def _python_name(node: Node) -> str:
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def arguments(node: Node) -> Mapping[str, Any]:
    """An op's arguments under the names of its schema and in its order, with defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in schema}
    return given | {a.name: value for a, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)


def sizes(node: Node) -> tuple[int, ...] | None:
    """The sizes of a node's tensor; None where one is dynamic, or where it is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(value.shape)


def is_pointwise(node: Node) -> bool:
    """Whether each of its results depends on one element of each input."""
    tagged = node.op == "call_function" and torch.Tag.pointwise in getattr(node.target, "tags", ())
    return tagged or name_of(node) in UNTAGGED


def constant(model: LayeredModule, node: Any) -> Tensor | None:
    """The stored tensor that a node reads."""
    return stored(model, str(node.target)) if isinstance(node, Node) and node.op == "get_attr" else None


def grouped(shape: tuple[int, ...], *groups: tuple[int, int]) -> list[int]:
    """The sizes of spans of axes taken together: `grouped(shape, (0, 2), (2, 3))`."""
    return [math.prod(shape[first:end]) for first, end in groups]
