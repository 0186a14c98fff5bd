"""What the adaptations of attention share: where the weights of values are computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.graph import is_multiplied
from edgekit.layered import LayeredModule

FUSED = torch.ops.aten.scaled_dot_product_attention.default
SOFTMAX = ("softmax", "_softmax")


def attentions(model: LayeredModule) -> Iterator[Node]:
    """Fused attention, and softmaxes whose weights multiply values."""
    for node in model.graph.nodes:
        if node.op == "call_function" and (node.target is FUSED or (op_name(node) in SOFTMAX and is_multiplied(node))):
            yield node
