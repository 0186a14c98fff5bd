"""Which rows of a layer make the queries, keys or values of each head, however they are packed and moved.

The ops between layer and product are run on the numbers 0, 1, 2, ...: where each number ends up tells the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._ops import MOVEMENTS, constant, name_of, sizes

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Heads:
    """Where the parts `[B, H, S, D]` of an attention product come from."""

    layer: Node  # call of a linear layer or a 1x1 convolution
    rows: Tensor  # [H, D] of the layer's weight
    batch_last: bool  # whether positions lie as [S, B], not as [B, S]
    scale: float  # that they are multiplied by on the way
    batch: int
    length: int

    def head(self, model: LayeredModule, index: int, role: str, *, at: Node) -> Node:
        """`[B, 1, S, D]` of one head, from a layer of its own; heads with the same rows share one."""
        rows = self.rows[index]
        first = next(i for i in range(len(self.rows)) if torch.equal(self.rows[i], rows))
        path, width = f"{self.layer.target}_{role}{first}", len(rows)
        layer = model.layer_of(self.layer)
        assert layer is not None
        made = model.call(path, _with_rows(layer, rows), self.layer.all_input_nodes[0], at=at, home=self.layer)
        if isinstance(layer, nn.Linear):
            shape = [self.length, self.batch, 1, width] if self.batch_last else [self.batch, 1, self.length, width]
            made = model.op(aten.reshape.default, made, shape, at=at)
            made = model.op(aten.permute.default, made, [1, 2, 0, 3], at=at) if self.batch_last else made
        else:
            made = model.op(aten.reshape.default, made, [self.batch, 1, width, self.length], at=at)
            made = model.op(aten.transpose.int, made, -2, -1, at=at)
        return made if self.scale == 1 else model.op(aten.mul.Tensor, made, self.scale, at=at)


def heads_of(model: LayeredModule, node: Node, *, turned: bool = False) -> Heads | str:
    """What a factor `[B, H, S, D]` (`turned`: `[B, H, D, S]`) is made of; else why that cannot be told."""
    path, scale = [node], 1.0
    while not isinstance(model.layer_of(path[-1]), nn.Linear | nn.Conv2d):
        step = path[-1]
        factor = _factor(step)
        if not step.all_input_nodes or (factor is None and name_of(step) not in MOVEMENTS):
            return f"between layer and product there is {name_of(step) or step.op} of '{step.name}'"
        scale *= factor or 1.0
        path.append(step.all_input_nodes[0])
    layer, shape = path[-1], sizes(path[-1])
    if shape is None or sizes(node) is None:
        return "its sizes are dynamic: fix them first with static_shapes"
    if isinstance(kind := model.layer_of(layer), nn.Conv2d) and (kind.groups > 1 or set(kind.kernel_size) != {1}):
        return "it comes from a convolution that is not 1x1"
    found = run_on_numbers(list(reversed(path[:-1])), layer, shape)
    return _read(layer, found.transpose(-1, -2) if turned else found, shape, scale, isinstance(kind, nn.Linear))


def _read(layer: Node, found: Tensor, shape: tuple[int, ...], scale: float, is_linear: bool) -> Heads | str:
    """Rows and positions from where the numbers ended up, `[B, H, S, D]`."""
    channels = shape[-1] if is_linear else shape[1]
    spread = 1 if is_linear else shape[2] * shape[3]  # numbers between two channels of one position
    if found.dim() == 3:  # heads of all samples in one axis: those of the first come again with every other
        rows = (found // spread % channels).flatten(1)
        found = found.reshape(int((rows == rows[0]).all(1).sum()), -1, *found.shape[1:])
    batch, _, length, _ = found.shape
    rows = found // spread % channels
    places = found // (spread * channels) * spread + found % spread
    if not (rows == rows[:1, :, :1]).all() or not (places == places[:, :1, :, :1]).all():
        return "its heads are mixed with the batch or with positions"
    order, counted = places[:, 0, :, 0], torch.arange(batch * length)
    if torch.equal(order, counted.reshape(batch, length)):
        return Heads(layer, rows[0, :, 0], False, scale, batch, length)
    if is_linear and torch.equal(order, counted.reshape(length, batch).T):
        return Heads(layer, rows[0, :, 0], True, scale, batch, length)
    return "its positions are in another order than those of its layer"


def run_on_numbers(path: list[Node], source: Node, shape: tuple[int, ...]) -> Tensor:
    """Where the elements of a tensor end up after ops that only move them."""
    values: dict[Node, Tensor] = {source: torch.arange(torch.Size(shape).numel()).reshape(shape)}
    for node in path:
        if _factor(node) is not None or name_of(node) in ("_to_copy", "to"):
            values[node] = values[node.all_input_nodes[0]]
        else:
            args = torch.fx.map_arg(node.args, values.__getitem__)
            values[node] = node.target(*args, **node.kwargs)  # type: ignore[operator]
    return values[path[-1]] if path else values[source]


def _factor(node: Node) -> float | None:
    """The number that a node multiplies by."""
    if name_of(node) not in ("mul", "div") or len(node.args) != 2 or not isinstance(by := node.args[1], int | float):
        return None
    return float(by) if name_of(node) == "mul" else 1 / by


def _with_rows(layer: nn.Module, rows: Tensor) -> nn.Module:
    """The layer with some of its outputs."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    bias = layer.bias is not None
    made: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        made = nn.Linear(layer.in_features, len(rows), bias=bias, device="meta")
    else:
        made = nn.Conv2d(layer.in_channels, len(rows), 1, bias=bias, device="meta")
    made.weight = nn.Parameter(layer.weight.detach()[rows], requires_grad=False)
    if bias:
        made.bias = nn.Parameter(layer.bias.detach()[rows], requires_grad=False)  # type: ignore[union-attr]
    return made.eval()


def of_head(model: LayeredModule, operand: Node, index: int, heads: int, batch: int, *, at: Node) -> Node:
    """The part of a mask that one head sees: the mask itself where all see the same."""
    shape = sizes(operand) or ()
    if len(shape) == 3 and batch > 1 and shape[0] == batch * heads:
        shape = (batch, heads, *shape[1:])
        operand = model.op(aten.reshape.default, operand, list(shape), at=at)
    if len(shape) < 3 or shape[-3] != heads or heads == 1:
        return operand
    if (tensor := constant(model, operand)) is not None:
        part = tensor.detach().narrow(-3, index, 1).clone()
        return model.weight(f"{operand.target}_head{index}", part, at=at)
    return model.op(aten.slice.Tensor, operand, len(shape) - 3, index, index + 1, at=at)
