"""Linear layers as 1x1 convolutions over [B, C, 1, S]: what NPUs run on their convolution engine.

The same products in the same order: `weight[:, :, None, None]`.
Source: Apple, Deploying Transformers on the Apple Neural Engine (ml-ane-transformers), principle 1; ExecuTorch's
Qualcomm backend does the same in `ConvertLinearToConv2d`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.fx import Node

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "linear layers as 1x1 convolutions"
EXACTNESS = "exact"
STAGE, RANK = "layers", 1
aten = torch.ops.aten
TO_CHANNELS, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every linear layer whose input has two to four dimensions."""
    calls = [node for node in model.graph.nodes if isinstance(model.layer_of(node), nn.Linear)]
    convolutions = {path: _convolution(model.get_submodule(path)) for path in {str(node.target) for node in calls}}
    for node in calls:
        rank = len(shape_of(node))
        if not 2 <= rank <= 4:
            convolutions.pop(str(node.target), None)  # all calls of a layer, or none
            yield skipped(node, f"its input has {rank} dimensions")
    for node in calls:
        if layer := convolutions.get(str(node.target)):
            _rewrite(model, node, layer)
            yield done(node)


def _rewrite(model: LayeredModule, node: Node, layer: nn.Conv2d) -> None:
    """[B, S, C] goes through [B, 1, S, C] to [B, C, 1, S], and back."""
    (image,), lacking = node.all_input_nodes, 4 - len(shape_of(node))
    for _ in range(lacking):
        image = model.op(aten.unsqueeze.default, image, 1, at=node)
    image = model.op(aten.permute.default, image, TO_CHANNELS, at=node)
    image = model.call(str(node.target), layer, image, at=node)
    image = model.op(aten.permute.default, image, TO_LAST, at=node)
    for _ in range(lacking):
        image = model.op(aten.squeeze.dim, image, 1, at=node)
    node.replace_all_uses_with(image)


def _convolution(linear: nn.Module) -> nn.Conv2d:
    assert isinstance(linear, nn.Linear)
    bias = linear.bias is not None
    layer = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=bias, device="meta").eval()
    layer.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False)
    if bias:
        layer.bias = linear.bias
    return layer


def example(seed: int) -> Example:
    """Linear layers over vectors, sequences and images, one of them twice."""
    generator = torch.Generator().manual_seed(seed)
    batch, length, inner, outer = (int(torch.randint(1, 9, (), generator=generator)) for _ in range(4))
    leading = [(batch,), (batch, length), (batch, length, 3)][seed % 3]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(inner, outer, bias=bool(seed % 2)), nn.ReLU(), nn.Linear(outer, outer))
        body.append(body[-1])
    return Example(body, {"input": torch.randn(*leading, inner, generator=generator)})
