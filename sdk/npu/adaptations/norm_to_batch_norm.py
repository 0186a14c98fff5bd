"""Norms over a token's channels as BatchNorm with statistics of the data, which folds into the product beside it.

LayerNorm, RMSNorm and GroupNorm compute mean and spread of every input; here each channel has those of all tokens of
the samples, with the factor and shift that come nearest to the norm's own answers. Source: Yao et al., Leveraging Batch
Normalization for Vision Transformers (ICCVW 2021), which trains such models from the start.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.adaptation import Seen, Site
from edgekit.npu.blocks import block_around
from edgekit.npu.rules import NpuRules

TITLE, GROUP, RANK = "norms as BatchNorm with fixed statistics", "norm", 20
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
BATCH_NORMS: dict[int, type[BatchNorm]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
aten = torch.ops.aten


def sites(model: LayeredModule, rules: NpuRules) -> Iterator[Site]:
    """Every norm layer with weights."""
    for node in model.graph.nodes:
        layer = model.layer_of(node)
        if isinstance(layer, NORMS):
            yield Site(node=node, block=block_around(model, node), refused=_refusal(layer, len(shape_of(node))))


def apply(model: LayeredModule, site: Site, seen: Seen) -> None:
    """BatchNorm has the channels second, where all but GroupNorm have them last."""
    node = site.node
    (source,), layer, rank = node.all_input_nodes, model.layer_of(node), len(shape_of(node))
    turned = rank > 2 and not isinstance(layer, nn.GroupNorm)
    if turned:
        source = model.op(aten.permute.default, source, [0, rank - 1, *range(1, rank - 1)], at=node)
    given, wanted = (seen(each).flatten(0, 1) for each in (node.all_input_nodes[0], node))
    batch_norm = _fitted(given, wanted, -1 if turned or rank == 2 else 1, BATCH_NORMS[rank])
    found: Node = model.call(f"{node.target}_static", batch_norm, source, at=node)
    if turned:
        found = model.op(aten.permute.default, found, [0, *range(2, rank), 1], at=node)
    model.replace(node, found)


def _refusal(layer: nn.Module, rank: int) -> str | None:
    if rank not in BATCH_NORMS:
        return f"its input has {rank} dimensions"
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and len(layer.normalized_shape) > 1:
        return f"it normalises {len(layer.normalized_shape)} axes together"
    return None


def _fitted(given: Tensor, wanted: Tensor, axis: int, kind: type[BatchNorm]) -> nn.Module:
    """The BatchNorm that is nearest to the norm's answers in every channel, in the mean of squares."""
    ours, theirs = (each.movedim(axis, 0).flatten(1).double() for each in (given, wanted))
    mean, variance = ours.mean(1), ours.var(1, correction=0)
    shared = ((ours - mean[:, None]) * (theirs - theirs.mean(1, keepdim=True))).mean(1)
    layer = kind(len(ours)).eval().requires_grad_(False)
    state = {
        "running_mean": mean,
        "running_var": variance,
        "weight": shared / (variance + layer.eps).sqrt(),
        "bias": theirs.mean(1),
    }
    layer.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    layer.num_batches_tracked = None  # only training counts them
    return layer
