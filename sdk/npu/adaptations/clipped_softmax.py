"""Attention whose weights can be exactly 0 and 1, so that nothing has to grow for a head to say nothing.

clip((ZETA - GAMMA) softmax(x) + GAMMA, 0, 1). Outliers fall where a model is trained with it; in one that is trained
already it only makes room for that. Source: Bondarenko et al. (arXiv 2306.12929), equation 4, with their values for
BERT.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edgekit.layered import LayeredModule
from edgekit.npu.adaptation import Seen, Site
from edgekit.npu.adaptations._attention import FUSED, attentions
from edgekit.npu.blocks import block_around
from edgekit.npu.rules import NpuRules

TITLE, GROUP, RANK = "clipped softmax", "attention", 11
ZETA, GAMMA = 1.0, -0.03
aten = torch.ops.aten


def sites(model: LayeredModule, rules: NpuRules) -> Iterator[Site]:
    """Every attention; of a fused one the softmax cannot be reached."""
    for node in attentions(model):
        why = "fused attention hides its softmax: apply the rewrite attention_to_matmul first"
        yield Site(node=node, block=block_around(model, node), refused=why if node.target is FUSED else None)


def apply(model: LayeredModule, site: Site, seen: Seen) -> None:
    """Stretch the weights, and clip them."""
    weights = site.node
    stretched = model.op(aten.mul.Tensor, weights, ZETA - GAMMA, at=weights.next, home=weights)
    moved = model.op(aten.add.Tensor, stretched, GAMMA, at=stretched.next, home=weights)
    clipped = model.op(aten.clamp.default, moved, 0.0, 1.0, at=moved.next, home=weights)
    weights.replace_all_uses_with(clipped, delete_user_cb=lambda user: user is not stretched)
