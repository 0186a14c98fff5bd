"""Loud channels of a norm made quieter, and the columns that read them louder.

`s_j = max|X_j|^a / max|W_j|^(1 - a)` for channel j, with a = 1/2; the norm's factors and shifts become `gamma / s` and
`beta / s`, the columns `W_j s_j`. What a norm writes has unit variance before its factors, so `|beta_j| + 3 |gamma_j|`
is where three standard deviations of channel j end: no samples are needed. Maxima that were measured go in as `maxima`.
Source: SmoothQuant (arXiv 2211.10438), equations 3 and 4; Nagel et al. (arXiv 1906.04721), section 4.2.1, for ranges
that are read off a norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.channel_maps import named
from edgekit.npu.channels import POSITIVE, Stream, passage, stream
from edgekit.npu.norms import Norm, norm_of, set_affine
from edgekit.npu.products import Owners, Product, channel_axis, product_of, set_product
from edgekit.npu.rewrites._examples import seeded, size, worn
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "outlier channels of norms moved into the weights behind them"
EXACTNESS = "exact"
STAGE, RANK = "ranges", 1
STRENGTH, DEVIATIONS, LEAST = 0.5, 3.0, 1e-5


def apply(model: LayeredModule, rules: NpuRules, maxima: Mapping[str, Tensor] | None = None) -> Iterator[Outcome]:
    """Every norm with factors that only products read. `maxima`: of some norms, by path, `max|X_j|` as measured."""
    owners = Owners(model)
    for node in list(model.graph.nodes):
        norm = norm_of(model, node)
        if norm is None or norm.weight is None:
            continue
        found = stream(node, len(shape_of(node)) - 1, passage(POSITIVE))
        reason = _why_not(model, node, found, owners) if found else "its channels lie along two axes behind it"
        if reason or found is None:
            yield skipped(node, reason or "")
            continue
        measured = (maxima or {}).get(str(node.target))
        _smooth(model, node, norm, found, _usual_maxima(norm) if measured is None else measured.double())
        yield done(node)


def _why_not(model: LayeredModule, node: Node, found: Stream, owners: Owners) -> str | None:
    if other := next((writer for writer in found.writers if writer is not node), None):
        return f"{named(other)} joins it"
    for tensor, reader in found.readers:
        if reader.op == "output":
            return "the model returns it"
        layer = model.layer_of(reader)
        if product_of(layer) is None or channel_axis(layer, len(shape_of(tensor))) != found.axis[tensor]:
            return f"{named(reader)} reads it"
        if reason := owners.shared(reader):
            return reason
    return owners.shared(node)


def _smooth(model: LayeredModule, node: Node, norm: Norm, found: Stream, maxima: Tensor) -> None:
    layers = {layer for _, reader in found.readers if (layer := model.layer_of(reader))}
    products = {layer: product for layer in layers if (product := product_of(layer))}
    factors = _factors(maxima, list(products.values()))
    weight, bias = (None if each is None else each.detach().double() / factors for each in (norm.weight, norm.bias))
    set_affine(model.get_submodule(str(node.target)), weight, bias)
    for layer, product in products.items():
        set_product(layer, product.scale_inputs(factors))


def _usual_maxima(norm: Norm) -> Tensor:
    """`|beta| + 3 |gamma|`."""
    assert norm.weight is not None
    spread = DEVIATIONS * norm.weight.detach().double().abs()
    return spread if norm.bias is None else spread + norm.bias.detach().double().abs()


def _factors(maxima: Tensor, readers: list[Product]) -> Tensor:
    """Equation 4; nothing that is zero scales anything."""
    columns = torch.stack([reader.input_range() for reader in readers]).amax(0)
    return (maxima.clamp(min=LEAST) ** STRENGTH / columns.clamp(min=LEAST) ** (1 - STRENGTH)).clamp(min=LEAST)


@seeded
def example(seed: int) -> Example:
    """Norms with an outlier channel before linear layers or convolutions."""
    channels, length = size(2, 9), size(1, 6)
    norm: nn.Module = nn.RMSNorm(channels) if seed % 3 == 0 else nn.LayerNorm(channels, bias=seed % 3 == 1)
    body = worn(nn.Sequential(norm, nn.ReLU() if seed % 2 else nn.Identity(), nn.Linear(channels, size(1, 8))))
    with torch.no_grad():
        norm.get_parameter("weight")[size(0, channels - 1)] *= 300
    return Example(body, {"input": torch.randn(2, length, channels)})
