"""Layers that multiply by a stored matrix, all in one form, and the algebra that rewrites do with them.

Linear layers, convolutions and transposed convolutions are `[groups, outputs, inputs, *window]` in float64: what a fold
rounds, it rounds once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd

from edgekit.layered import LayeredModule, keep, stored

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Product:
    """`weight [groups, outputs, inputs, *window]` and `bias [groups * outputs]`, float64; no bias is zeros."""

    weight: Tensor
    bias: Tensor

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.weight.shape[0] * self.weight.shape[1]

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.weight.shape[0] * self.weight.shape[2]

    def scale_outputs(self, factors: Tensor, shift: Tensor | float = 0.0) -> Product:
        """`factors * y + shift`; both `[outputs]`."""
        per_row = factors.reshape(*self.weight.shape[:2], *[1] * (self.weight.dim() - 2))
        return Product(self.weight * per_row, self.bias * factors + shift)

    def scale_inputs(self, factors: Tensor) -> Product:
        """What it makes of `factors * x`; `[inputs]`."""
        groups, _, inputs, *window = self.weight.shape
        return replace(self, weight=self.weight * factors.reshape(groups, 1, inputs, *[1] * len(window)))

    def shift_inputs(self, shift: Tensor) -> Product:
        """What it makes of `x + shift`, where no zeros are put around x; `[inputs]`."""
        summed = self.weight.flatten(3).sum(-1) if self.weight.dim() > 3 else self.weight
        extra = summed @ shift.reshape(summed.shape[0], summed.shape[2], 1)
        return replace(self, bias=self.bias + extra.flatten())

    def map_outputs(self, matrix: Tensor) -> Product:
        """`matrix @ y`, of a layer without groups."""
        return Product(torch.einsum("po,goi...->gpi...", matrix, self.weight), matrix @ self.bias)

    def map_inputs(self, matrix: Tensor) -> Product:
        """What it makes of `matrix @ x`, of a layer without groups."""
        return replace(self, weight=torch.einsum("goi...,ij->goj...", self.weight, matrix))

    def input_range(self) -> Tensor:
        """Largest magnitude of each input channel's weights, `[inputs]`."""
        return self.weight.abs().transpose(1, 2).flatten(2).amax(-1).flatten()

    def output_range(self) -> Tensor:
        """Largest magnitude of each output channel's weights, `[outputs]`."""
        return self.weight.abs().flatten(2).amax(-1).flatten()


def product_of(layer: nn.Module | None) -> Product | None:
    """A layer's weights; None for a layer that is no product."""
    if isinstance(layer, nn.Linear):
        weight = layer.weight.detach().double()[None]
    elif isinstance(layer, CONVOLUTIONS):
        weight = _in_groups(layer)
    elif isinstance(layer, TRANSPOSED):
        weight = _in_groups(layer).transpose(1, 2)
    else:
        return None
    bias = layer.bias.detach().double() if layer.bias is not None else weight.new_zeros(len(weight) * weight.shape[1])
    return Product(weight, bias)


def set_product(layer: nn.Module, product: Product) -> None:
    """Give a layer new weights, which may have more or fewer channels; a bias where it is not all zeros."""
    weight, like = product.weight, layer.weight
    assert isinstance(like, Tensor)
    flat = weight.transpose(1, 2).flatten(0, 1) if isinstance(layer, TRANSPOSED) else weight.flatten(0, 1)
    layer.weight = _parameter(flat, like)
    biased = layer._parameters.get("bias") is not None or bool(product.bias.any())
    layer.register_parameter("bias", _parameter(product.bias, like) if biased else None)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = product.inputs, product.outputs
    elif isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        layer.in_channels, layer.out_channels, layer.groups = product.inputs, product.outputs, len(weight)


def channel_axis(layer: nn.Module | None, rank: int) -> int:
    """Where a layer's channels lie in what it reads and writes, of tensors with `rank` dimensions."""
    return rank - 1 if isinstance(layer, nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm) else 1


def is_bordered(layer: nn.Module | None) -> bool:
    """Whether it puts zeros around what it reads."""
    if not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        return False
    if isinstance(layer, TRANSPOSED):
        return True  # each border's sum has fewer terms than the middle's
    return layer.padding == "same" if isinstance(layer.padding, str) else any(layer.padding)


class Owners:
    """Who reads each stored tensor of a model, as it is when this is made: what two ops read must stay as it is."""

    def __init__(self, model: LayeredModule) -> None:
        calls = [node for node in model.graph.nodes if node.op in ("call_module", "get_attr")]
        times = Counter(str(node.target) for node in calls if node.op == "call_module")
        readers: dict[int, list[Node]] = {}
        for node in calls:
            for tensor in _tensors(model, node):
                readers.setdefault(tensor.data_ptr(), []).append(node)
        self.reasons: dict[Node, str] = {}
        for node in calls:
            others = [each for tensor in _tensors(model, node) for each in readers[tensor.data_ptr()]]
            if times[str(node.target)] > 1:
                self.reasons[node] = f"'{node.target}' is called {times[str(node.target)]} times"
            elif other := next((each for each in others if each is not node), None):
                self.reasons[node] = f"the weights of '{node.target}' are also those of '{other.target}'"

    def shared(self, node: Node) -> str | None:
        """Why a layer's or a constant's tensors must stay as they are; None: only this op reads them."""
        return self.reasons.get(node)


def _tensors(model: LayeredModule, node: Node) -> list[Tensor]:
    layer = model.layer_of(node)
    if layer is None:
        return [stored(model, str(node.target))]
    return [each for each in (*layer.parameters(), *layer.buffers()) if each.numel()]


def _in_groups(layer: _ConvNd) -> Tensor:
    weight = layer.weight.detach().double()
    return weight.reshape(layer.groups, -1, *weight.shape[1:])


def _parameter(tensor: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.to(like.dtype).contiguous(), requires_grad=False)


def set_constant(model: LayeredModule, node: Node, tensor: Tensor) -> None:
    """Give a constant that an op reads other values, in the dtype it has."""
    old = stored(model, str(node.target))
    if isinstance(old, nn.Parameter):
        keep(model, str(node.target), _parameter(tensor, old))
    else:
        keep(model, str(node.target), tensor.to(old.dtype))
