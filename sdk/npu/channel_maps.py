"""One matrix over the channels of a whole stream: in every weight that writes it, and back in every one that reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.graph import place_of
from edgekit.layered import LayeredModule, shape_of, stored
from edgekit.npu.channels import Stream
from edgekit.npu.products import Owners, channel_axis, product_of, set_constant, set_product


def named(node: Node) -> str:
    """An op in a message: "'add' at blocks.0 (vit.py:41)"."""
    if node.op == "call_module":
        return f"'{node.target}'"
    return "the model's input" if node.op == "placeholder" else f"'{op_name(node) or node.op}' at {place_of(node)}"


def why_not_write(model: LayeredModule, node: Node, axis: int, owners: Owners) -> str | None:
    """Why a stream's writer cannot take a matrix over its output channels; None: it can."""
    layer = model.layer_of(node)
    if isinstance(layer, nn.Embedding) or node.op == "get_attr":
        return owners.shared(node)
    if (product := product_of(layer)) is None:
        return f"{named(node)} writes into it"
    if len(product.weight) > 1:
        return f"{named(node)} writes into it in {len(product.weight)} groups"
    if channel_axis(layer, len(shape_of(node))) != axis:
        return f"{named(node)} has its own channels along another axis"
    return owners.shared(node)


def why_not_read(model: LayeredModule, tensor: Node, reader: Node, axis: int, owners: Owners) -> str | None:
    """Why a stream's reader cannot take a matrix over its input channels; None: it can."""
    if reader.op == "output":
        return "the model returns it"
    layer = model.layer_of(reader)
    if (product := product_of(layer)) is None:
        return f"{named(reader)} reads it"
    if len(product.weight) > 1:
        return f"{named(reader)} reads it in {len(product.weight)} groups"
    if channel_axis(layer, len(shape_of(tensor))) != axis:
        return f"{named(reader)} reads it along another axis"
    return owners.shared(reader)


def why_not_writes(model: LayeredModule, found: Stream, owners: Owners) -> str | None:
    """The first reason against one of a stream's writers."""
    reasons = (why_not_write(model, node, found.axis[node], owners) for node in found.writers)
    return next(filter(None, reasons), None)


def why_not_reads(model: LayeredModule, found: Stream, owners: Owners) -> str | None:
    """The first reason against one of a stream's readers."""
    reasons = (why_not_read(model, node, reader, found.axis[node], owners) for node, reader in found.readers)
    return next(filter(None, reasons), None)


def map_writers(model: LayeredModule, found: Stream, matrix: Tensor) -> None:
    """Let everything that writes the stream write `matrix @ y`; `[new channels, channels]`, float64."""
    for node in found.writers:
        layer = model.layer_of(node)
        if node.op == "get_attr":
            tensor = stored(model, str(node.target)).detach().double()
            set_constant(
                model, node, torch.tensordot(tensor, matrix, ([found.axis[node]], [1])).movedim(-1, found.axis[node])
            )
        elif isinstance(layer, nn.Embedding):
            layer.weight = nn.Parameter((layer.weight.double() @ matrix.T).to(layer.weight.dtype), requires_grad=False)
            layer.embedding_dim = len(matrix)
        elif layer and (product := product_of(layer)):
            set_product(layer, product.map_outputs(matrix))


def map_readers(model: LayeredModule, found: Stream, matrix: Tensor) -> None:
    """Let every product that reads the stream see `matrix @ x` in it; `[channels, new channels]`, float64."""
    for reader in {reader for _, reader in found.readers}:
        layer = model.layer_of(reader)
        if layer and (product := product_of(layer)):
            set_product(layer, product.map_inputs(matrix))
