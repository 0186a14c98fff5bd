"""Tensors as one product of another: what is summed or multiplied out, and where that is exact."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.functional import pad

from edgekit.cost.kernels import op_name
from edgekit.layered import LayeredModule
from edgekit.npu.channel_maps import named
from edgekit.npu.products import CONVOLUTIONS, Owners, Product, product_of, set_product
from edgekit.npu.rewrites._affine import of_batch_norm


@dataclass(frozen=True, eq=False)
class Branch:
    """`product` of `source`, with the window's steps as in `like`; without `like`, a factor for each channel."""

    source: Node
    product: Product
    like: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | None
    nodes: tuple[Node, ...] = ()  # what it takes the place of, the last first
    cost: int = 0  # stored weights of these: as many products for each position

    def layer(self) -> nn.Module:
        """A layer that computes it."""
        layer = copy.copy(self.like)
        assert layer is not None
        layer._parameters = dict(layer._parameters)
        set_product(layer, self.product)
        if isinstance(layer, CONVOLUTIONS):
            layer.kernel_size = tuple(self.product.weight.shape[3:])
        return layer


def branches(model: LayeredModule, node: Node) -> list[Branch]:
    """The node as a product of what comes before it, of what comes before that, and so on."""
    name = op_name(node) if node.op == "call_function" else ""
    if name in ("mul", "div") and isinstance(node.args[0], Node) and isinstance(factor := node.args[1], int | float):
        by = torch.tensor(factor if name == "mul" else 1 / factor, dtype=torch.float64)
        inside = branches(model, node.args[0])
        return [replace(each, product=_scaled(each.product, by), nodes=(node, *each.nodes)) for each in inside]
    layer = model.layer_of(node)
    if layer is not None and (affine := of_batch_norm(layer)):
        factors = Product(affine.factors[:, None, None], affine.shift)
        return [Branch(node.all_input_nodes[0], factors, None, (node,))]
    if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)) or (product := product_of(layer)) is None:
        return []
    last = Branch(node.all_input_nodes[0], product, layer, (node,), product.weight.numel())
    return [last, *(found for first in branches(model, last.source) if (found := after(first, last)))]


def unchanged(source: Node, beside: Branch) -> Branch:
    """A tensor as a product of itself, with as many channels as another product of it takes."""
    ones = torch.ones(beside.product.inputs, dtype=torch.float64)
    return Branch(source, Product(ones[:, None, None], torch.zeros_like(ones)), None)


def after(first: Branch, last: Branch) -> Branch | None:
    """One product for two after each other; None where a window or a border would see other values."""
    if first.like is None or last.like is None or len(first.product.weight) * len(last.product.weight) > 1:
        return None
    if type(first.like) is not type(last.like):
        return None
    nodes, cost = (*last.nodes, *first.nodes), first.cost + last.cost
    if _is_pointwise(first.like) and not (_pads(last.like) and first.product.bias.any()):
        matrix = first.product.weight[0].flatten(1)
        product = last.product.shift_inputs(first.product.bias).map_inputs(matrix)
        return replace(last, source=first.source, product=product, nodes=nodes, cost=cost)
    if _is_pointwise(last.like):
        product = first.product.map_outputs(last.product.weight[0].flatten(1))
        product = replace(product, bias=product.bias + last.product.bias)
        return replace(first, product=product, nodes=nodes, cost=cost)
    return None


def summed(one: Branch, other: Branch) -> Branch | str:
    """One product for the sum of two of the same tensor; else why there is none."""
    small, large = sorted((one, other), key=lambda each: each.product.weight.numel() if each.like else 0)
    if large.like is None:
        return "neither branch is a product"
    if small.like is None:
        small = _as_product(small, large) or small
    if small.like is None or type(small.like) is not type(large.like):
        return "its branches differ in kind or in channels"
    if small.product.weight.shape[:3] != large.product.weight.shape[:3]:
        return "its branches differ in groups or in channels"
    weight = _placed(small, large)
    if weight is None:
        return "the windows of its branches do not lie within each other, step for step"
    product = Product(large.product.weight + weight, large.product.bias + small.product.bias)
    if product.weight.numel() > one.cost + other.cost:
        return f"one layer would take {product.weight.numel()} products for each position, its branches take " \
               f"{one.cost + other.cost}"  # fmt: skip
    return replace(large, product=product, nodes=(*one.nodes, *other.nodes), cost=product.weight.numel())


def why_not(branch: Branch, owners: Owners, result: Node) -> str | None:
    """What else reads a part of a branch, or its weights; `result` is the op that the branch takes the place of."""
    for node in branch.nodes:
        others = (user for user in node.users if user not in branch.nodes and user is not result)
        if node is not result and (other := next(others, None)):
            return f"{named(other)} reads what {named(node)} computes"
        if reason := owners.shared(node):
            return reason
    return None


def _scaled(product: Product, factor: Tensor) -> Product:
    return Product(product.weight * factor, product.bias * factor)


def _steps(layer: Any, name: str) -> tuple[int, ...]:
    """A convolution's sizes along each axis; of a linear layer none."""
    if isinstance(layer, nn.Linear):
        return ()
    value = getattr(layer, name)
    if isinstance(value, str):  # "same" or "valid"
        reach = [(window - 1) * spread for window, spread in zip(layer.kernel_size, layer.dilation, strict=True)]
        value = [each // 2 for each in reach] if value == "same" else [0] * len(reach)
    return tuple(value)


def _pads(layer: Any) -> bool:
    return any(_steps(layer, "padding"))


def _is_pointwise(layer: Any) -> bool:
    return all(size == 1 for name in ("kernel_size", "stride") for size in _steps(layer, name)) and not _pads(layer)


def _as_product(plain: Branch, large: Branch) -> Branch | None:
    """A factor for each channel as a window of one over the same groups."""
    groups, outputs, inputs, *window = large.product.weight.shape
    factors = plain.product.weight.flatten()
    if outputs != inputs or len(factors) != groups * outputs or any(step != 1 for step in _steps(large.like, "stride")):
        return None
    weight = torch.diag_embed(factors.reshape(groups, outputs)).reshape(groups, outputs, inputs, *[1] * len(window))
    like = copy.copy(large.like)
    if isinstance(like, CONVOLUTIONS):
        like.kernel_size, like.padding = (1,) * len(window), (0,) * len(window)
    return replace(plain, product=replace(plain.product, weight=weight), like=like)


def _placed(small: Branch, large: Branch) -> Tensor | None:
    """The smaller window with zeros around, where it lies in the larger one."""
    if _steps(small.like, "stride") != _steps(large.like, "stride"):
        return None
    borders: list[int] = []
    sizes = zip(small.product.weight.shape[3:], large.product.weight.shape[3:], _steps(small.like, "padding"),
                _steps(large.like, "padding"), _steps(small.like, "dilation"), _steps(large.like, "dilation"),
                strict=True)  # fmt: skip
    for ours, theirs, our_border, their_border, our_step, step in sizes:
        before, left = divmod(their_border - our_border, step)
        behind = theirs - ours - before
        if left or before < 0 or behind < 0 or (ours > 1 and our_step != step):
            return None
        borders = [before, behind, *borders]
    return pad(small.product.weight, borders)
