"""A factor and a shift for each channel, as batch norms and the ends of norms are, folded into the products around."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.channel_maps import named
from edgekit.npu.channels import MOVES, passage, stream
from edgekit.npu.products import Owners, channel_axis, is_bordered, product_of, set_product

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, eq=False)
class Affine:
    """`factors * x + shift`, float64 `[channels]`."""

    factors: Tensor
    shift: Tensor


def of_batch_norm(layer: nn.Module) -> Affine | None:
    """`gamma / sqrt(var + eps)` and `beta - mean * factors`; None where statistics are not stored.

    Source: Jacob et al. (arXiv 1712.05877), section 3.2, equation 14.
    """
    if not isinstance(layer, BATCH_NORMS) or layer.running_mean is None or layer.running_var is None:
        return None
    factors = torch.rsqrt(layer.running_var.double() + layer.eps)
    if layer.weight is not None:
        factors = factors * layer.weight.detach().double()
    shift = -layer.running_mean.double() * factors
    return Affine(factors, shift if layer.bias is None else shift + layer.bias.detach().double())


def fold_into_readers(model: LayeredModule, node: Node, axis: int, affine: Affine, owners: Owners,
                      kinds: tuple[type[nn.Module], ...] = (nn.Module,)) -> str | None:  # fmt: skip
    """Let the products of some kinds that read `node` compute with what it reads itself; else why that is not possible.

    `W (factors * x + shift) + b = (W * factors) x + (b + W shift)`; the node stays, for the caller to take out.
    """
    found = stream(node, axis, passage(MOVES))
    if found is None or not found.readers:
        return "nothing reads it along one axis"
    for tensor, reader in found.readers:
        if reason := _why_not(model, reader, len(shape_of(tensor)), found.axis[tensor], affine, owners, kinds):
            return reason
    for reader in {reader for _, reader in found.readers}:
        layer = model.layer_of(reader)
        if layer and (product := product_of(layer)):
            set_product(layer, product.shift_inputs(affine.shift).scale_inputs(affine.factors))
    return None


def _why_not(model: LayeredModule, reader: Node, rank: int, axis: int, affine: Affine, owners: Owners,
             kinds: tuple[type[nn.Module], ...]) -> str | None:  # fmt: skip
    if reader.op == "output":
        return "the model returns it"
    layer = model.layer_of(reader)
    if product_of(layer) is None or not isinstance(layer, kinds):
        return f"{named(reader)} reads it"
    if channel_axis(layer, rank) != axis:
        return f"{named(reader)} reads it along another axis"
    if is_bordered(layer) and bool(affine.shift.any()):
        return f"{named(reader)} puts zeros around it, which would have to become -shift / factor of each channel"
    return owners.shared(reader)
