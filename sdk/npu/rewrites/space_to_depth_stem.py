"""Strided convolutions of few channels as denser ones of many: every s x s block of pixels becomes channels.

An NPU fills 3 channels up to 16 or 32 and computes on what it filled in; 3x3 of stride 2 on RGB is 2x2 of stride 1 on
12 channels, and a patch embedding is a 1x1 convolution. The kernel is cut in the same blocks, and zeros make it whole.
Source: Qualcomm, QAIRT 2.39, HTP network design recommendations, "Use space-to-depth transformation where possible";
Ridnik et al., TResNet (arXiv 2003.13630), section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import SymInt, Tensor, nn
from torch.fx import Node
from torch.nn.functional import pad

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.products import Owners, Product, product_of, set_product
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "strided stems as convolutions over blocks of pixels"
EXACTNESS = "exact"
STAGE, RANK = "channels", 2
aten = torch.ops.aten
FEW = 4  # channels of an image: with more, an NPU has enough to fill a brick by itself


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every strided two-dimensional convolution of at most four channels."""
    owners = Owners(model)
    for node in list(model.graph.nodes):
        layer = model.layer_of(node)
        if not isinstance(layer, nn.Conv2d) or max(layer.stride) == 1 or layer.in_channels > FEW:
            continue
        if reason := _why_not(node, layer) or owners.shared(node):
            yield skipped(node, reason)
            continue
        outcome = done(node)
        _rewrite(model, node, layer)
        yield outcome


def _why_not(node: Node, layer: nn.Conv2d) -> str | None:
    if layer.groups > 1:
        return f"it has {layer.groups} groups"
    if any(step > 1 for step in layer.dilation):
        return "its window is dilated"
    if any(isinstance(each, SymInt) for each in node.all_input_nodes[0].meta["val"].shape[1:]):
        return "the sizes of its image are not fixed"
    return None


def _rewrite(model: LayeredModule, node: Node, layer: nn.Conv2d) -> None:
    """Window, border and image are brought to whole blocks; the border lies outside of the new convolution."""
    product = product_of(layer)
    assert product is not None
    rows, columns = _Axis(layer, node, 0), _Axis(layer, node, 1)
    image, border = node.all_input_nodes[0], (*columns.border, *rows.border)
    if any(border):
        image = model.op(aten.constant_pad_nd.default, image, border, at=node)
    image = _blocks(model, image, rows.step, columns.step, node)
    kernel = pad(product.weight[0], (0, columns.filled - columns.window, 0, rows.filled - rows.window))
    dense = nn.Conv2d(1, 1, (rows.blocks, columns.blocks), device="meta").eval()
    dense.weight, dense.bias = layer.weight, layer.bias
    set_product(dense, Product(_kernel_blocks(kernel, rows.step, columns.step)[None], product.bias))
    model.replace(node, model.call(str(node.target), dense, image, at=node))


class _Axis:
    """One side of the image: how many blocks the window spans, and the zeros (or the crop) before and after."""

    def __init__(self, layer: nn.Conv2d, node: Node, axis: int) -> None:
        length, outputs = shape_of(node.all_input_nodes[0])[2 + axis], shape_of(node)[2 + axis]
        self.window, self.step = layer.kernel_size[axis], layer.stride[axis]
        self.blocks = -(-self.window // self.step)
        before = 0 if isinstance(layer.padding, str) else layer.padding[axis]
        self.filled = self.blocks * self.step
        self.border = (before, (outputs - 1) * self.step + self.filled - length - before)


def _kernel_blocks(kernel: Tensor, high: int, wide: int) -> Tensor:
    """[O, C, h * high, w * wide] to [O, C * high * wide, h, w], in the order of `_blocks`."""
    outputs, channels, rows, columns = kernel.shape
    cut = kernel.reshape(outputs, channels, rows // high, high, columns // wide, wide)
    return cut.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def _blocks(model: LayeredModule, image: Node, high: int, wide: int, node: Node) -> Node:
    """[B, C, h * high, w * wide] to [B, C * high * wide, h, w], through tensors of four dimensions."""
    _, channels, rows, columns = shape_of(image)
    h, w = rows // high, columns // wide
    for shape, order in (((-1, high, w, wide), (0, 1, 3, 2)), ((-1, h, high * wide, w), (0, 2, 1, 3))):
        image = model.op(aten.reshape.default, image, shape, at=node)
        image = model.op(aten.permute.default, image, order, at=node)
    return model.op(aten.reshape.default, image, (-1, channels * high * wide, h, w), at=node)


@seeded
def example(seed: int) -> Example:
    """Stems of MobileNet and ResNet, patch embeddings, and windows and strides of any sizes."""
    channels, outer, bias = size(1, 4), size(1, 6), bool(seed % 2)
    image = torch.randn(size(1, 2), channels, size(9, 16), size(9, 16))
    if seed % 4 == 0:
        stem = nn.Conv2d(channels, outer, 3, stride=2, padding=1, bias=bias)
    elif seed % 4 == 1:
        stem = nn.Conv2d(channels, outer, 7, stride=2, padding=3, bias=bias)
    elif seed % 4 == 2:
        stem = nn.Conv2d(channels, outer, (patch := size(2, 5)), stride=patch, bias=bias)
    else:
        stride = (size(2, 4), size(1, 3))
        stem = nn.Conv2d(channels, outer, (size(1, 5), size(1, 5)), stride=stride, padding=(0, 0), bias=bias)
    return Example(nn.Sequential(stem, nn.ReLU()), {"input": image})
