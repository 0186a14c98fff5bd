"""A gated short convolution in the place of attention: no softmax, and a state that does not grow with the context.

The convolution begins with random weights and learns all it knows in the repair, so it needs more samples and steps
than other adaptations. Where tokens saw what came after them, it does too. Source: LFM2 (arXiv 2511.23404).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Node

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.adaptation import Seen, Site
from edgekit.npu.adaptations._attention import attentions
from edgekit.npu.blocks import Block, paths_around, results, sources
from edgekit.npu.gated_conv import KERNEL, GatedConv
from edgekit.npu.rules import NpuRules

TITLE, GROUP, RANK = "gated short convolution for attention", "attention", 10
aten = torch.ops.aten


def sites(model: LayeredModule, rules: NpuRules) -> Iterator[Site]:
    """The innermost module around every attention that takes tokens [B, S, width] and returns such ones."""
    found = set()
    for node in attentions(model):
        block = next((path for path in paths_around(node) if _ends(model, path)), None)
        if block is None:
            yield Site(node=node, block="", refused="no module around it takes and returns tokens [B, S, width]")
        elif block not in found:
            found.add(block)
            yield Site(node=node, block=block)


def apply(model: LayeredModule, site: Site, seen: Seen) -> None:
    """Build the layer of the tokens' width, and let the rest read what it gives."""
    ends = _ends(model, site.block)
    assert ends is not None
    tokens, result = ends
    ahead = 0 if _is_causal(model, site.block, seen) else KERNEL // 2
    layer = _open_layer(shape_of(tokens)[2], ahead)
    model.replace(result, _written_out(model, layer, f"{site.block}.mixer".lstrip("."), tokens, result))


def _open_layer(width: int, ahead: int) -> GatedConv:
    """A layer with random weights whose gates are open: biases of 1 let it begin as a convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = GatedConv(width, ahead=ahead, bias=True).requires_grad_(False).eval()
    if layer.in_proj.bias is not None:
        layer.in_proj.bias[: 2 * width] = 1.0
    return layer


def _ends(model: LayeredModule, path: str) -> tuple[Node, Node] | None:
    """The tokens that come in and those that go out, where a module has one of each and they have one shape."""
    outer = results(model, path)
    if len(outer) != 1 or len(shape_of(outer[0])) != 3:
        return None
    inner = [node for node in sources(model, path) if _alike(node, outer[0])]
    return (inner[0], outer[0]) if len(inner) == 1 else None


def _alike(one: Node, other: Node) -> bool:
    return shape_of(one) == shape_of(other) and bool(one.meta["val"].is_floating_point())


def _is_causal(model: LayeredModule, path: str, seen: Seen) -> bool:
    """Whether a change of the last token changes no other one."""
    ends = _ends(model, path)
    assert ends is not None
    feeds = {node.name: seen(node)[:1] for node in sources(model, path)}
    other = dict(feeds)
    other[ends[0].name] = feeds[ends[0].name].clone()
    other[ends[0].name][..., -1, :] += 1
    block = Block(model, path)
    with torch.no_grad():
        one, two = (block(**given)["output_0"][..., :-1, :] for given in (feeds, other))
    return torch.equal(one, two)


def _written_out(model: LayeredModule, layer: GatedConv, path: str, tokens: Node, at: Node) -> Node:
    """The ops of `GatedConv.forward`, with its layers below `path`."""
    hidden = model.op(aten.unsqueeze.default, model.op(aten.permute.default, tokens, [0, 2, 1], at=at), 2, at=at)
    projected = model.call(f"{path}.in_proj", layer.in_proj, hidden, at=at)
    gate_in, gate_out, x = (
        model.op(aten.slice.Tensor, projected, 1, part * layer.width, (part + 1) * layer.width, at=at)
        for part in range(3)
    )
    gated = model.op(aten.mul.Tensor, gate_in, x, at=at)
    seen = model.op(aten.constant_pad_nd.default, gated, [layer.kernel - 1 - layer.ahead, layer.ahead], at=at)
    mixed = model.op(aten.mul.Tensor, gate_out, model.call(f"{path}.conv", layer.conv, seen, at=at), at=at)
    hidden = model.call(f"{path}.out_proj", layer.out_proj, mixed, at=at)
    return model.op(aten.permute.default, model.op(aten.squeeze.dim, hidden, 2, at=at), [0, 2, 1], at=at)
