"""Layer norms over the last axis spelled out over channels, `[B, C, 1, S]`: how the Apple Neural Engine runs them.

mean and variance over axis 1, then `(x - mean) * rsqrt(variance + eps) * weight + bias` with weights `[1, C, 1, 1]`.
Other NPUs have a fused op and want the opposite: `layer_norm_fused`.
Source: apple/ml-ane-transformers, `layer_norm.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.fx import Node

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._movements import channels_first, channels_last
from edgekit.npu.rewrites._ops import arguments, name_of
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "layer norms over channels, spelled out"
EXACTNESS = "exact"
STAGE, RANK = "layers", 4
aten = torch.ops.aten


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every layer norm over the last axis of two to four."""
    for node in list(model.graph.nodes):
        layer = _layer(model, node)
        if layer is None:
            continue
        rank = len(shape_of(node))
        if len(layer.normalized_shape) != 1:
            yield skipped(node, f"it is over {len(layer.normalized_shape)} axes")
        elif not 2 <= rank <= 4:
            yield skipped(node, f"its input has {rank} dimensions")
        else:
            image = channels_first(model, node.all_input_nodes[0], at=node)
            node.replace_all_uses_with(channels_last(model, _normed(model, node, layer, image), rank, at=node))
            yield done(node)


def _layer(model: LayeredModule, node: Node) -> nn.LayerNorm | None:
    """The layer norm that a node computes; one without weights is an op, not a layer."""
    layer = model.layer_of(node)
    if name_of(node) == "layer_norm" and len(node.all_input_nodes) == 1:
        given = arguments(node)
        return nn.LayerNorm(given["normalized_shape"], eps=given["eps"], elementwise_affine=False)
    return layer if isinstance(layer, nn.LayerNorm) else None


def _normed(model: LayeredModule, node: Node, layer: nn.LayerNorm, image: Node) -> Node:
    mean = model.op(aten.mean.dim, image, [1], True, at=node)
    centred = model.op(aten.sub.Tensor, image, mean, at=node)
    squared = model.op(aten.mul.Tensor, centred, centred, at=node)
    variance = model.op(aten.mean.dim, squared, [1], True, at=node)
    inverse = model.op(aten.rsqrt.default, model.op(aten.add.Tensor, variance, layer.eps, at=node), at=node)
    result = model.op(aten.mul.Tensor, centred, inverse, at=node)
    for name, op in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
        if (stored := getattr(layer, name)) is not None:
            tensor = nn.Parameter(stored.detach().reshape(1, -1, 1, 1), requires_grad=False)
            result = model.op(op, result, model.weight(f"{node.target}_channels.{name}", tensor, at=node), at=node)
    return result


@seeded
def example(seed: int) -> Example:
    """Norms of vectors, sequences and images, with and without weights."""
    channels = size(2, 9)
    norm = nn.LayerNorm(channels, eps=[1e-5, 1e-3][seed % 2], elementwise_affine=bool(seed % 4), bias=bool(seed % 3))
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    shape = [size(1, 3), size(1, 4), size(1, 4)][: seed % 3 + 1]
    return Example(nn.Sequential(nn.Tanh(), norm, nn.ReLU()), {"input": torch.randn(*shape, channels) * 3})
