"""The ops of a traced program as plain data, which rules are asked about."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch.fx import Node

from edgekit.cost.kernels import CONVOLUTIONS, TRANSPOSED, is_product, made, op_name
from edgekit.graph import hinted
from edgekit.npu.auditing.far_numbers import FarNumber
from edgekit.npu.measures import OpCall, Operand

IMAGE_MAKERS = CONVOLUTIONS | TRANSPOSED | {
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d",
}  # fmt: skip
CLAMPING = {"add", "sub", "mul", "div", "rsub", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d"}
BROADCASTING = {"add", "sub", "mul", "div", "rsub", "maximum", "eq", "ne", "gt", "lt", "where", "__and__"}


def call_of(node: Node, live: Container[Node], far: FarNumber | None = None) -> OpCall:
    """One op with its arguments under the names of its schema. `live` holds what depends on the model's inputs."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    arguments = {each.name: given.get(each.name, each.default_value) for each in schema}
    sources = [each for each in node.all_input_nodes if each in live]
    return OpCall(
        op=plain_name(node),
        arguments={name: _value(value, live) for name, value in arguments.items()},
        outputs=tuple(_operand(tensor) for tensor in made(node)),
        taken_in=len(sources) == 1 and len(sources[0].users) == 1 and _takes_in(sources[0]),
        on_image=any(_is_image(each) for each in sources),
        spread_on=all(op_name(user).removesuffix("_") in BROADCASTING for user in node.users),
        far=far,
        varies=any(isinstance(size, torch.SymInt) for each in (node, *sources) for t in made(each) for size in t.shape),
    )


def plain_name(node: Node) -> str:
    """`relu` for `aten.relu.default` and for `aten.relu_.default`, which writes in place."""
    name = op_name(node)
    return name if name.startswith("_") else name.removesuffix("_")


def _value(value: Any, live: Container[Node]) -> Any:
    if isinstance(value, Node):
        found = made(value)
        return _operand(found[0], constant=value not in live) if found else _plain(value.meta.get("val"))
    if isinstance(value, list | tuple):
        return tuple(_value(each, live) for each in value)
    return _plain(value)


def _plain(value: Any) -> Any:
    return hinted(value) if isinstance(value, torch.SymInt) else value


def _operand(tensor: torch.Tensor, constant: bool = False) -> Operand:
    shape = tuple(hinted(size) for size in tensor.shape)
    return Operand(shape=shape, dtype=str(tensor.dtype).removeprefix("torch."), constant=constant)


def _takes_in(node: Node) -> bool:
    """Whether runtimes have a form of an op with a clamp behind it."""
    return is_product(node) or plain_name(node) in CLAMPING


def _is_image(node: Node) -> bool:
    """Whether a tensor is what a convolution, a pool or a resize made, but for ops that go element by element."""
    while node.op == "call_function" and made(node) and len(made(node)[0].shape) == 4:
        if op_name(node) in IMAGE_MAKERS:
            return True
        if torch.Tag.pointwise not in getattr(node.target, "tags", ()) and op_name(node) != "batch_norm":
            return False
        node = node.all_input_nodes[0]
    return False
