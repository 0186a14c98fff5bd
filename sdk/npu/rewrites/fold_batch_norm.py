"""Batch norms folded into the product before them, or into linear layers behind: no op is left of them.

`w' = w * gamma / sqrt(var + eps)`, `b' = (b - mean) * gamma / sqrt(var + eps) + beta` for each output channel.
Source: Jacob et al. (arXiv 1712.05877), section 3.2, equation 14.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.channel_maps import named
from edgekit.npu.channels import MOVES, passage, stream
from edgekit.npu.products import Owners, channel_axis, product_of, set_product
from edgekit.npu.rewrites._affine import Affine, fold_into_readers, of_batch_norm
from edgekit.npu.rewrites._examples import seeded, size, worn
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "batch norms folded into the products before them"
EXACTNESS = "exact"
STAGE, RANK = "folds", 1


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every batch norm with stored statistics."""
    owners = Owners(model)
    for node in list(model.graph.nodes):
        layer = model.layer_of(node)
        if layer is None or (affine := of_batch_norm(layer)) is None:
            continue
        reason = owners.shared(node) or _fold_back(model, node, affine, owners)
        if reason and not owners.shared(node):
            forward = fold_into_readers(model, node, 1, affine, owners, kinds=(nn.Linear,))
            reason = reason if forward else None
        if reason:
            yield skipped(node, reason)
            continue
        outcome = done(node)
        model.replace(node, node.all_input_nodes[0])
        yield outcome


def _fold_back(model: LayeredModule, node: Node, affine: Affine, owners: Owners) -> str | None:
    """Let the product before the norm write what the norm makes of it; else why that is not possible."""
    found = stream(node.all_input_nodes[0], 1, passage(MOVES))
    if found is None:
        return "it normalises more than one axis of its input"
    (writer, *_) = found.writers
    layer = model.layer_of(writer)
    if (product := product_of(layer)) is None or layer is None:
        return f"{named(writer)} comes before it, which has no weights to fold it into"
    if other := next((reader for _, reader in found.readers if reader is not node), None):
        return f"{named(other)} reads what it normalises too"
    if channel_axis(layer, len(writer.meta["val"].shape)) != found.axis[writer]:
        return f"{named(writer)} has its own channels along another axis"
    if reason := owners.shared(writer):
        return reason
    set_product(layer, product.scale_outputs(affine.factors, affine.shift))
    return None


@seeded
def example(seed: int) -> Example:
    """Convolutions of one to three dimensions, transposed ones, and linear layers before and behind."""
    groups, spatial = size(1, 3), size(1, 3)
    inner, outer = groups * size(1, 3), groups * size(1, 3)
    bias = bool(seed % 2)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[spatial - 1]
    image = torch.randn(2, inner, *[5, 6, 7][:spatial])
    if seed % 4 == 0:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
        layer: nn.Module = kind(inner, outer, size(1, 3), padding=size(0, 2), groups=groups, bias=bias)
        return Example(worn(nn.Sequential(layer, norm(outer), nn.ReLU())), {"input": image})
    if seed % 4 == 1:
        turned = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial - 1]
        layer = turned(inner, outer, size(1, 3), stride=size(1, 2), groups=groups, bias=bias)
        return Example(worn(nn.Sequential(layer, norm(outer), nn.ReLU())), {"input": image})
    linear, flat = nn.Linear(inner, outer, bias=bias), torch.randn(size(1, 5), inner)
    if seed % 4 == 2:
        return Example(worn(nn.Sequential(linear, nn.BatchNorm1d(outer))), {"input": flat})
    return Example(worn(nn.Sequential(nn.Tanh(), nn.BatchNorm1d(inner), linear)), {"input": flat})
