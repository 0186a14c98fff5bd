"""Channels filled up with zeros to the multiple that the NPU computes anyway.

A product gets rows of zeros, what reads it columns of zeros; everything between treats each channel by itself. Where
all channels meet (a norm or a softmax over them), more of them change the result, and the place is left alone.
Source: Qualcomm, AI Engine Direct guidelines (80-63442-10), channels in groups of 32; Arm, Vela 5.2.0,
`architecture_features.py`, bricks of 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.layered import LayeredModule, shape_of, stored
from edgekit.npu.channel_maps import map_readers, map_writers, named, why_not_reads, why_not_writes
from edgekit.npu.channels import SEPARATE, Passage, Sources, Stream, argument, passage, stream
from edgekit.npu.products import Owners, Product, channel_axis, product_of, set_constant, set_product
from edgekit.npu.rewrites._affine import BATCH_NORMS
from edgekit.npu.rewrites._examples import seeded, size, worn
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "channels filled up to the NPU's multiple"
EXACTNESS = "exact"
STAGE, RANK = "channels", 1
SIZED = ("reshape", "view", "_unsafe_view", "expand")  # ops that name the sizes of their result


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every product whose output channels are no multiple of the NPU's, with all that its channels pass."""
    multiple = rules.channel_multiple.get(rules.dtypes[0], 1)
    owners, seen = Owners(model), set[Node]()
    for node in list(model.graph.nodes):
        layer = model.layer_of(node)
        if (product := product_of(layer)) is None or node in seen or product.outputs % multiple == 0:
            continue
        found = stream(node, channel_axis(layer, len(shape_of(node))), _by_channel(model))
        seen.update(found.writers if found else ())
        if reason := _why_not(model, found, owners):
            yield skipped(node, f"{product.outputs} channels: {reason}")
            continue
        assert found is not None
        _pad(model, found, product.outputs, product.outputs + -product.outputs % multiple)
        yield done(node)


def _by_channel(model: LayeredModule) -> Passage:
    """Ops that treat each channel by itself: depthwise convolutions and batch norms too."""
    separate = passage(SEPARATE)

    def through(node: Node, axis: int) -> Sources:
        if _is_by_channel(model.layer_of(node)):
            return {node.all_input_nodes[0]: 1} if axis == 1 else None
        slopes_elsewhere = op_name(node) == "prelu" and axis != 1 and node.args[1].meta["val"].numel() > 1  # type: ignore[union-attr]
        return None if slopes_elsewhere else separate(node, axis)

    return through


def _is_by_channel(layer: nn.Module | None) -> bool:
    product = product_of(layer)
    depthwise = product is not None and product.weight.shape[1:3] == (1, 1) and len(product.weight) > 1
    return depthwise or isinstance(layer, BATCH_NORMS)


def _why_not(model: LayeredModule, found: Stream | None, owners: Owners) -> str | None:
    if found is None:
        return "they lie along two axes behind it"
    if reason := why_not_writes(model, found, owners) or why_not_reads(model, found, owners):
        return reason
    layers = [node for node in found.moves if node.op == "call_module"]
    slopes = _slopes(found)
    if other := next((user for slope in slopes for user in slope.users if user not in found.axis), None):
        return f"{named(other)} reads the slopes of an activation of theirs"
    return next(filter(None, map(owners.shared, (*layers, *slopes))), None)


def _slopes(found: Stream) -> list[Node]:
    """One slope for each channel, of the activations that are passed."""
    given = (node.args[1] for node in found.moves if op_name(node) == "prelu" and node.op == "call_function")
    return list(dict.fromkeys(each for each in given if isinstance(each, Node) and shape_of(each) != (1,)))


def _pad(model: LayeredModule, found: Stream, channels: int, more: int) -> None:
    """Rows of zeros in all that writes, columns of zeros in all that reads, and sizes to match between."""
    matrix = torch.eye(more, channels, dtype=torch.float64)
    map_writers(model, found, matrix)
    map_readers(model, found, matrix.T)
    for node in found.moves:
        layer = model.layer_of(node)
        if layer is not None:
            _pad_layer(layer, more - channels)
        elif op_name(node) in SIZED:
            sizes = list(argument(node, 1, "size"))
            sizes[found.axis[node]] = more if sizes[found.axis[node]] == channels else sizes[found.axis[node]]
            node.args = (node.args[0], sizes, *node.args[2:])
    for slope in _slopes(found):
        set_constant(model, slope, _longer(stored(model, str(slope.target)).detach(), more - channels))
    model.refresh()


def _pad_layer(layer: nn.Module, extra: int) -> None:
    """A depthwise convolution or a batch norm with more channels, which make zeros of zeros."""
    if product := product_of(layer):
        weight = torch.cat([product.weight, product.weight.new_zeros(extra, *product.weight.shape[1:])])
        set_product(layer, Product(weight, _longer(product.bias, extra)))
        return
    for name, fill in (("weight", 0.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        if (old := getattr(layer, name)) is not None:
            longer = _longer(old.detach(), extra, fill)
            setattr(layer, name, nn.Parameter(longer, requires_grad=False) if isinstance(old, nn.Parameter) else longer)
    layer.num_features += extra  # type: ignore[operator, assignment]


def _longer(vector: Tensor, extra: int, fill: float = 0.0) -> Tensor:
    return torch.cat([vector, vector.new_full((extra,), fill)])


@seeded
def example(seed: int) -> Example:
    """An inverted residual with squeeze-and-excitation, or a linear chain; widths that are no multiple of anything."""
    inner, middle, outer = size(1, 9), size(17, 30), size(1, 5)
    activation = (nn.ReLU6(), nn.PReLU(middle), nn.GELU(), nn.Hardswish(), nn.Sigmoid())[seed % 5]
    if seed % 3 == 0:
        chain = nn.Sequential(nn.Linear(inner, middle), nn.GELU(), nn.Linear(middle, outer))
        return Example(chain, {"input": torch.randn(2, 3, inner)})
    body = worn(_Inverted(inner, middle, outer, activation))
    return Example(body, {"input": torch.randn(1, inner, 6, 5)})


class _Inverted(nn.Module):
    def __init__(self, inner: int, middle: int, outer: int, activation: nn.Module) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inner, middle, 1), nn.BatchNorm2d(middle), activation)
        self.depthwise = nn.Conv2d(middle, middle, 3, padding=1, groups=middle)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(middle, 3, 1), nn.ReLU(), nn.Conv2d(3, middle, 1))
        self.project = nn.Conv2d(middle, outer, 1)

    def forward(self, input: Tensor) -> Tensor:
        wide = self.depthwise(self.expand(input))
        narrow: Tensor = self.project(wide * self.gate(wide).sigmoid())
        return narrow
