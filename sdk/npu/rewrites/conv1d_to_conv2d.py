"""Convolutions over sequences as convolutions over images of one row, depthwise ones too.

The same products in the same order: `weight[:, :, None]`.
Source: ExecuTorch's Qualcomm backend, `ConvertConv1dToConv2d`; Vela 5.2.0 and RKNN have two-dimensional kernels only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "one-dimensional convolutions as two-dimensional ones"
EXACTNESS = "exact"
STAGE, RANK = "layers", 2
aten = torch.ops.aten
ROWS = 2  # axis of the one row


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every one-dimensional convolution, transposed ones too, whose border is zeros."""
    calls = [node for node in model.graph.nodes if isinstance(model.layer_of(node), nn.Conv1d | nn.ConvTranspose1d)]
    layers = {str(node.target): model.get_submodule(str(node.target)) for node in calls}
    for node in calls:
        layer = layers[str(node.target)]
        assert isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
        if layer.padding_mode != "zeros":
            yield skipped(node, f"its border is filled by '{layer.padding_mode}'")
        elif len(shape_of(node)) != 3:
            yield skipped(node, "it has no batch")
        else:
            image = model.op(aten.unsqueeze.default, node.args[0], ROWS, at=node)
            image = model.call(str(node.target), _over_images(layer), image, at=node)
            node.replace_all_uses_with(model.op(aten.squeeze.dim, image, ROWS, at=node))
            yield done(node)


def _over_images(layer: nn.Conv1d | nn.ConvTranspose1d) -> nn.Module:
    padding = (0, *layer.padding)
    kind, options = nn.Conv2d, {}
    if isinstance(layer, nn.ConvTranspose1d):
        kind, options = nn.ConvTranspose2d, {"output_padding": (0, *layer.output_padding)}  # type: ignore[assignment]
    made = kind(
        layer.in_channels, layer.out_channels, (1, *layer.kernel_size), stride=(1, *layer.stride), padding=padding,  # type: ignore[arg-type]
        dilation=(1, *layer.dilation), groups=layer.groups, bias=layer.bias is not None, device="meta", **options,  # type: ignore[arg-type]
    ).eval()  # fmt: skip
    made.weight = nn.Parameter(layer.weight.detach().unsqueeze(ROWS), requires_grad=False)
    if layer.bias is not None:
        made.bias = layer.bias
    return made


@seeded
def example(seed: int) -> Example:
    """Plain, depthwise, strided, dilated and transposed convolutions over sequences."""
    channels, kernel = size(1, 6), size(1, 4)
    if seed % 3 == 2:
        layer: nn.Module = nn.ConvTranspose1d(
            channels, size(1, 6), kernel, stride=size(1, 3), padding=size(0, 1) % kernel
        )
    elif seed % 3:
        layer = nn.Conv1d(channels, channels, kernel, padding="same", groups=channels, bias=bool(seed % 2))
    else:
        layer = nn.Conv1d(channels, size(1, 6), kernel, stride=size(1, 3), padding=size(0, 2), dilation=size(1, 2))
    return Example(nn.Sequential(layer, nn.ReLU()), {"input": torch.randn(size(1, 3), channels, size(8, 12))})
