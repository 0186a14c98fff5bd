"""Squeeze-and-excite with the gate that the data has on average: a factor for each channel, and no global pooling.

Only where the pooling is more than the NPU's rules allow, since it costs accuracy. Source: Arm's Vela for the limit
(a mean over at most 4096 places); MobileNetV3 (arXiv 1905.02244) for the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.adaptation import Seen, Site
from edgekit.npu.blocks import block_around
from edgekit.npu.rules import NpuRules

TITLE, GROUP, RANK = "squeeze-and-excite with a fixed gate", "pooling", 30
POOLINGS = ("mean", "adaptive_avg_pool2d", "avg_pool2d")
FURTHEST = 12  # ops from a gate back to the image that it gates
aten = torch.ops.aten


def sites(model: LayeredModule, rules: NpuRules) -> Iterator[Site]:
    """Every product of an image [B, C, H, W] with a gate [B, C, 1, 1] that is made of it."""
    for node in model.graph.find_nodes(op="call_function", target=aten.mul.Tensor):
        found = _image_and_gate(node)
        if found and _comes_from(found[1], found[0], FURTHEST):
            places = math.prod(shape_of(found[0])[2:])
            limit = _limit(rules)
            fits = f"its pooling over {places} places is within the {limit:g} of {rules.title}"
            yield Site(node=node, block=block_around(model, node), refused=fits if places <= limit else None)


def apply(model: LayeredModule, site: Site, seen: Seen) -> None:
    """The mean gate over all samples, as a weight that the repair can change."""
    node, found = site.node, _image_and_gate(site.node)
    assert found is not None
    image, gate = found
    fixed = nn.Parameter(seen(gate).mean(0), requires_grad=False)
    weight = model.weight(f"{site.block}.{node.name}_gate".lstrip("."), fixed, at=node)
    model.replace(node, model.op(aten.mul.Tensor, image, weight, at=node))


def _image_and_gate(node: Node) -> tuple[Node, Node] | None:
    if len(node.all_input_nodes) != 2:
        return None
    one, other = node.all_input_nodes
    for image, gate in ((one, other), (other, one)):
        sizes = shape_of(image)
        if len(sizes) == 4 and math.prod(sizes[2:]) > 1 and shape_of(gate) == (*sizes[:2], 1, 1):
            return image, gate
    return None


def _comes_from(node: Node, image: Node, steps: int) -> bool:
    """Whether a gate is computed from a pooling of the image alone."""
    if op_name(node) in POOLINGS and image in node.all_input_nodes:
        return True
    return steps > 0 and any(_comes_from(source, image, steps - 1) for source in node.all_input_nodes)


def _limit(rules: NpuRules) -> float:
    """Places that one mean may be made of; 0 where no rule speaks of it: then only the user's word brings it here."""
    return max((rule.limits["reduced"][1] for rule in rules.of_op("mean") if "reduced" in rule.limits), default=0.0)
