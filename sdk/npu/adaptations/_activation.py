"""What the adaptations of activations share: where they act, and factors that go into the layers around."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.fx import Node

from edgekit.compression import WeightLayer, is_below
from edgekit.cost.kernels import op_name
from edgekit.graph import module_path
from edgekit.layered import LayeredModule
from edgekit.npu.adaptation import Site
from edgekit.npu.blocks import block_around
from edgekit.npu.channels import MOVES
from edgekit.npu.products import Owners

aten = torch.ops.aten
GELU, SILU = aten.gelu.default, aten.silu.default


def sites_of(model: LayeredModule, target: Callable[..., object]) -> Iterator[Site]:
    """Every call of one op, each with the module around it that can make up for the difference."""
    for node in model.graph.find_nodes(op="call_function", target=target):
        yield Site(node=node, block=block_around(model, node))


def scale_before(model: LayeredModule, site: Site, factor: float) -> Node:
    """What the site's op reads, times `factor`: in the layer that computes it for this op alone, or else as an op."""
    source = node = site.node.all_input_nodes[0]
    while op_name(node) in MOVES and len(node.users) == 1:
        node = node.all_input_nodes[0]
    layer = _own_layer(model, node, site.block)
    if layer is None or len(node.users) > 1:
        return model.op(aten.mul.Tensor, source, factor, at=site.node)
    with torch.no_grad():
        layer.weight.mul_(factor)
        if layer.bias is not None:
            layer.bias.mul_(factor)
    return source


def scale_after(model: LayeredModule, node: Node, factor: float, block: str) -> None:
    """The same for all that read `node`: in the weights, where all are layers of the block, or else as an op."""
    found = [_own_layer(model, user, block) for user in _readers(node)]
    layers = [layer for layer in found if layer is not None]
    if len(layers) == len(found):
        with torch.no_grad():
            for layer in layers:
                layer.weight.mul_(factor)
    else:
        scaled = model.op(aten.mul.Tensor, node, factor, at=node.next, home=node)
        node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


def _readers(node: Node) -> Iterator[Node]:
    """What computes with a node's numbers, behind ops that only move them."""
    for user in node.users:
        if op_name(user) in MOVES:
            yield from _readers(user)
        else:
            yield user


def _own_layer(model: LayeredModule, node: Node, block: str) -> WeightLayer | None:
    """The layer of the block that a node calls, where nothing else reads its weights."""
    layer = model.layer_of(node)
    inside = not block or is_below(module_path(node), [block])
    return layer if inside and isinstance(layer, WeightLayer) and not Owners(model).shared(node) else None
