"""Which tensors of a traced model a quantised runtime rounds, and along which axis their channels lie."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Node

from edgekit.cost.kernels import FREE, LAYOUT, NORMS, PRODUCT_SHAPES
from edgekit.npu.numbers._replay import Replay

# What every integer kernel computes before it rounds: bounds, and norms that are folded into the weights.
FUSED = frozenset({"relu", "relu_", "relu6", "relu6_", "clamp", "clamp_", "hardtanh", "hardtanh_"}) | NORMS
SCALARS = {"mul", "div"}  # by a number: the product's own scale takes it
MOVES = (FREE | LAYOUT) - {"cat", "concat", "stack", "hstack", "vstack"} | {
    "getitem",
    "max_pool2d",
    "upsample_nearest2d",
}
CONVOLUTIONS = {f"conv{turned}{n}d" for turned in ("", "_transpose") for n in (1, 2, 3)}
# Product -> the argument that is its weight, and the axis of output channels there.
WEIGHT_OPERANDS = {"linear": (1, 0), "matmul": (1, -1), "bmm": (1, -1), "mm": (1, -1), "addmm": (2, -1),
                   "embedding": (0, 0), "convolution": (1, 0),
                   **{name: (1, 1 if "transpose" in name else 0) for name in CONVOLUTIONS}}  # fmt: skip
CHANNELS_FIRST = {"conv1d", "conv2d", "conv3d", "convolution", "batch_norm", "group_norm", "instance_norm"}


def weight_axes(replay: Replay) -> dict[Node, int]:
    """The nodes that hold a matrix or kernel, stored constants or layers, with the axis of their output channels."""
    found: dict[Node, int] = {}
    for node in replay.graph.nodes:
        name = replay.op(node)
        if name not in WEIGHT_OPERANDS:
            continue
        position, axis = WEIGHT_OPERANDS[name]
        if node.op == "call_module":
            found[node] = axis
            continue
        operand = node.args[position] if len(node.args) > position else None
        if isinstance(operand, Node) and operand.op == "get_attr" and operand.meta["val"].dim() > 1:
            found[operand] = axis
    return found


def rounded_nodes(replay: Replay, fused: Collection[str] = FUSED) -> list[Node]:
    """The nodes whose values lie on a grid of their own, in execution order.

    All float tensors, but: what only moves values keeps the grid of what it reads; what a product computes and one
    op of `fused` (or a factor) reads is not written anywhere; weights, biases and what norms add have grids of theirs.
    """
    weights = weight_axes(replay)
    return [
        node
        for node in replay.graph.nodes
        if node.op != "output"
        and _is_float(node)
        and not (node.op == "get_attr" and (node in weights or _is_parameter(replay, node)))
        and not _keeps_grid(replay, node)
        and not _is_inside(replay, node, fused)
    ]


def channel_axes(replay: Replay) -> dict[Node, int]:
    """The axis along which each float tensor's channels lie.

    Axis 1 behind convolutions, batch and group norms; the last behind linear layers, matrix products, layer norms and
    tables. Permutations and reshapes take it along, and other ops keep that of what they read first. Where nothing
    tells, axis 1 of tensors with four or more dimensions (N, C, H, W), else the last.
    """
    found: dict[Node, int] = {}
    for node in replay.graph.nodes:
        if node.op != "output" and _is_float(node) and (rank := node.meta["val"].dim()):
            found[node] = _channel_axis(replay, node, rank, found)
    return found


def _channel_axis(replay: Replay, node: Node, rank: int, known: dict[Node, int]) -> int:
    name = replay.op(node)
    if name in CHANNELS_FIRST or "conv_transpose" in name:
        return 1
    if name in WEIGHT_OPERANDS or name in ("layer_norm", "rms_norm"):
        return rank - 1
    source = next((each for each in node.all_input_nodes if each in known and each.op != "get_attr"), None)
    if source is None:
        return _usual_axis(rank)
    axis = known[source]
    before, after = list(source.meta["val"].shape), list(node.meta["val"].shape)
    if len(before) != rank or name in ("reshape", "view", "flatten"):
        return _reshaped_axis(axis, before, after)
    arguments: Any = node.args
    if name == "permute":
        return [int(each) % rank for each in arguments[1]].index(axis)
    if name == "transpose":
        one, other = (int(each) % rank for each in arguments[1:3])
        return {one: other, other: one}.get(axis, axis)
    return axis


def _usual_axis(rank: int) -> int:
    return 1 if rank >= 4 else rank - 1


def _reshaped_axis(axis: int, before: list[int], after: list[int]) -> int:
    """Where a step along the axis skips as many elements as before: heads split from channels keep the inner part."""
    step = math.prod(before[axis + 1 :])
    alike = [at for at, size in enumerate(after) if math.prod(after[at + 1 :]) == step]
    if math.prod(before) != math.prod(after) or not alike:
        return _usual_axis(len(after))
    return next((at for at in alike if after[at] > 1), alike[-1])


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _keeps_grid(replay: Replay, node: Node) -> bool:
    """Whether an op hands on values that already lie on a grid."""
    name = "getitem" if "getitem" in str(node.target) else replay.op(node)
    sources = node.all_input_nodes
    if name not in MOVES or not sources or (name == "getitem" and not _keeps_grid(replay, sources[0])):
        return False
    return name == "getitem" or any(_is_float(source) for source in sources)


def _is_inside(replay: Replay, node: Node, fused: Collection[str]) -> bool:
    """Whether the one op that reads this result of a product is computed along with it."""
    if len(node.users) != 1 or not _is_product(replay, node, fused):
        return False
    return _follows(replay, next(iter(node.users)), fused)


def _follows(replay: Replay, node: Node, fused: Collection[str]) -> bool:
    name = replay.op(node)
    return name in fused or (name in SCALARS and len(node.all_input_nodes) == 1)


def _is_product(replay: Replay, node: Node, fused: Collection[str]) -> bool:
    """Whether a node is a product, or what is computed along with one."""
    while replay.op(node) not in PRODUCT_SHAPES:
        if not _follows(replay, node, fused) or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return True


def _is_parameter(replay: Replay, node: Node) -> bool:
    """Whether ops read a constant as a bias or as what a norm adds, at the accumulator's precision."""
    takers = {replay.op(user) for user in node.users}
    return bool(takers) and takers <= PRODUCT_SHAPES.keys() | NORMS | {"layer_norm", "rms_norm", "group_norm",
                                                                       "native_layer_norm"}  # fmt: skip
