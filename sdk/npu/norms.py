"""Norms over the last axis, stored ones and those without weights, in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.layered import LayeredModule
from edgekit.npu.channels import argument


@dataclass(frozen=True, eq=False)
class Norm:
    """What a norm divides by, and what it does to each channel afterwards; `[channels]`."""

    kind: Literal["layer_norm", "rms_norm"]  # the first subtracts the mean of all channels before
    input: Node
    channels: int
    eps: float | None  # None: the dtype's own
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether it treats all channels alike."""
        return self.weight is None and self.bias is None


def norm_of(model: LayeredModule, node: Node) -> Norm | None:
    """The norm that a node computes over the last axis alone."""
    if not node.all_input_nodes:
        return None
    source, layer, name = node.all_input_nodes[0], model.layer_of(node), op_name(node)
    if isinstance(layer, nn.LayerNorm) and len(shape := tuple(layer.normalized_shape)) == 1:
        return Norm("layer_norm", source, shape[0], layer.eps, layer.weight, layer.bias)
    if isinstance(layer, nn.RMSNorm) and len(shape := tuple(layer.normalized_shape)) == 1:
        return Norm("rms_norm", source, shape[0], layer.eps, layer.weight)
    if node.op != "call_function" or name not in ("layer_norm", "rms_norm") or len(node.all_input_nodes) != 1:
        return None
    if len(shape := argument(node, 1, "normalized_shape")) != 1:
        return None
    if name == "layer_norm":
        return Norm("layer_norm", source, shape[0], argument(node, 4, "eps", 1e-5))
    return Norm("rms_norm", source, shape[0], argument(node, 3, "eps"))


def set_affine(layer: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
    """Give a norm's layer other weights, float64, which are stored in the dtype of those it had."""
    for name, value in (("weight", weight), ("bias", bias)):
        if (old := getattr(layer, name, None)) is not None:
            new = None if value is None else nn.Parameter(value.to(old.dtype), requires_grad=False)
            setattr(layer, name, new)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        layer.elementwise_affine = weight is not None


def without_mean(model: LayeredModule, node: Node, norm: Norm) -> None:
    """Put an RMSNorm in the place of a LayerNorm: the same where the mean of its input is zero."""
    if node.op == "call_function":
        model.replace(
            node, model.op(torch.ops.aten.rms_norm.default, norm.input, [norm.channels], None, norm.eps, at=node)
        )
        return
    layer = nn.RMSNorm(norm.channels, eps=norm.eps, elementwise_affine=norm.weight is not None, device="meta").eval()
    if norm.weight is not None:
        layer.weight = nn.Parameter(norm.weight, requires_grad=False)
    path = str(node.target)
    new = model.call(path, layer, norm.input, at=node)
    if norm.bias is not None:
        bias = model.weight(f"{path}.shift", norm.bias.detach(), at=node)
        new = model.op(torch.ops.aten.add.Tensor, new, bias, at=node)
    model.replace(node, new)
