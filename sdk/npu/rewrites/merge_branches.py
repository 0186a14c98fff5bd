"""Parallel products of one input summed as one, and products after each other multiplied out.

A sum of convolutions is the convolution with the sum of their kernels: RepVGG's and RepViT's branches, with a batch
norm or nothing at all as a kernel of one in the middle, and a LoRA beside its linear layer. Two layers in a row become
one where a window is one and that takes no more products.
Source: Ding et al., RepVGG (arXiv 2101.03697), section 3.3; Hu et al., LoRA (arXiv 2106.09685), section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.products import Owners
from edgekit.npu.rewrites._branches import Branch, branches, summed, unchanged, why_not
from edgekit.npu.rewrites._examples import seeded, size, worn
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "parallel and consecutive products merged"
EXACTNESS = "exact"
STAGE, RANK = "folds", 3


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every sum of two products of one tensor, then every product of a product."""
    owners = Owners(model)
    for merge in (_sum, _chain):
        for node in list(model.graph.nodes):
            found = merge(model, node, owners)
            if isinstance(found, str):
                yield skipped(node, found)
            elif found:
                outcome = done(node)
                path = next(str(each.target) for each in found.nodes if model.layer_of(each) is found.like)
                model.replace(node, model.call(path, found.layer(), found.source, at=node))
                yield outcome


def _sum(model: LayeredModule, node: Node, owners: Owners) -> Branch | str | None:
    """One product for a sum; why there is none; None where it sums other things."""
    if node.op != "call_function" or op_name(node) != "add" or node.kwargs or len(node.all_input_nodes) != 2:
        return None
    one, other = node.all_input_nodes
    if not shape_of(one) == shape_of(other) == shape_of(node):
        return None
    reasons = list[str]()
    for first, second in _pairs(model, one, other):
        found = summed(first, second)
        reason = found if isinstance(found, str) else why_not(found, owners, node)
        if not reason:
            return found
        reasons.append(reason)
    return reasons[0] if reasons else None


def _pairs(model: LayeredModule, one: Node, other: Node) -> list[tuple[Branch, Branch]]:
    """Both sides as products of the same tensor, one of which may be that tensor."""
    ours, theirs = branches(model, one), branches(model, other)
    pairs = [(first, second) for first in ours for second in theirs if first.source is second.source]
    pairs += [(first, unchanged(other, first)) for first in ours if first.source is other]
    return pairs + [(unchanged(one, second), second) for second in theirs if second.source is one]


def _chain(model: LayeredModule, node: Node, owners: Owners) -> Branch | str | None:
    """One product for this and the one before it; why there is none; None where no product comes before it."""
    longer = [each for each in branches(model, node) if len(each.nodes) > 1] if model.layer_of(node) else []
    if not longer:
        return None
    found = longer[0]
    if found.product.weight.numel() > found.cost:
        return f"one layer would take {found.product.weight.numel()} products for each position, two take {found.cost}"
    return why_not(found, owners, node) or found


@seeded
def example(seed: int) -> Example:
    """RepVGG's branches, a LoRA, and chains of layers."""
    groups = size(1, 2)
    channels, other, bias = groups * size(1, 3), size(1, 5), bool(seed % 2)
    image = torch.randn(2, channels, 6, 5)
    if seed % 4 == 0:
        return Example(worn(_RepVgg(channels, groups, bias)), {"input": image})
    if seed % 4 == 1:
        return Example(_Lora(channels, other, rank=2), {"input": torch.randn(2, 3, channels)})
    if seed % 4 == 2:
        window = nn.Conv2d(channels, channels, 3, padding=size(0, 1), bias=bias)
        return Example(nn.Sequential(window, nn.Conv2d(channels, channels, 1)), {"input": image})
    chain = nn.Sequential(nn.Linear(channels, channels, bias=bias), nn.Linear(channels, 1))
    return Example(chain, {"input": torch.randn(4, channels)})


class _RepVgg(nn.Module):
    def __init__(self, channels: int, groups: int, bias: bool) -> None:
        super().__init__()
        self.window = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=bias)
        self.point = nn.Conv2d(channels, channels, 1, groups=groups)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(self.window(input) + self.point(input) + self.norm(input))


class _Lora(nn.Module):
    def __init__(self, inner: int, outer: int, rank: int) -> None:
        super().__init__()
        self.full, self.scale = nn.Linear(inner, outer), 0.5
        self.down, self.up = nn.Linear(inner, rank, bias=False), nn.Linear(rank, outer, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        answer: Tensor = self.full(input) + self.up(self.down(input)) * self.scale
        return answer
