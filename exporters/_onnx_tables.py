"""Embedding tables in int8: a scale for every row, and one copy for a table that is also the output layer.

onnxruntime's own tool gives a whole table one scale, which a few rare tokens set, and leaves a shared table's product
in float. One copy makes Gemma 3 270M 271 MB instead of 438.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.exporters._onnx_file import save, toolchain
from edgekit.processing import Array

if TYPE_CHECKING:
    import onnx

TURNED = ".turned"  # after the name of a weight: its transpose


def turn_matrices(proto: onnx.ModelProto) -> None:
    """Store the transpose of each weight that the graph turns before a product: only constants are quantised.

    A language model's output layer reads the embedding table turned; the table itself stays as the lookup reads it.
    """
    onnx, graph = toolchain(), proto.graph
    weights = {t.name: t for t in graph.initializer}
    turns = [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in weights]
    turned = {n.output[0]: n for n in turns if len(weights[n.input[0]].dims) == 2}
    for product in [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in turned]:
        name = turned[product.input[1]].input[0]
        if f"{name}{TURNED}" not in weights:
            matrix = np.ascontiguousarray(onnx.numpy_helper.to_array(weights[name]).T)
            weights[f"{name}{TURNED}"] = onnx.numpy_helper.from_array(matrix, f"{name}{TURNED}")
            graph.initializer.append(weights[f"{name}{TURNED}"])
        product.input[1] = f"{name}{TURNED}"
    _drop_unused(proto, list(turned.values()))


def quantize_tables(path: Path, kept: list[str], large: bool) -> None:
    """Replace the float tables of the file's lookups by int8 rows with a scale each; `kept` are nodes that stay."""
    proto = toolchain().load(path)
    graph = proto.graph
    weights = {t.name: t for t in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.input, *graph.value_info)}
    lookups = [n for n in graph.node if n.op_type == "Gather" and n.name not in kept and _is_table(n, weights)]
    for lookup in lookups:
        codes = weights.get(f"{lookup.input[0]}{TURNED}_quantized")
        if codes is not None and lookup.input[1] in ranks:
            made = _lookup_in_columns(lookup, ranks[lookup.input[1]])
        else:
            made = _lookup_in_rows(proto, lookup, weights[lookup.input[0]])
        place = list(graph.node).index(lookup)
        for node in made:
            node.metadata_props.extend(lookup.metadata_props)
        graph.node.remove(lookup)
        for offset, node in enumerate(made):
            graph.node.insert(place + offset, node)
    if not lookups:
        return
    _drop_unused(proto, [])
    save(proto, path, large)


def _is_table(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    table = weights.get(node.input[0])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return table is not None and axis == 0 and len(table.dims) == 2 and table.data_type == table.FLOAT


def _lookup_in_rows(proto: onnx.ModelProto, lookup: onnx.NodeProto, table: onnx.TensorProto) -> list[onnx.NodeProto]:
    """int8 rows, times their scales."""
    onnx = toolchain()
    codes, scales = _rows(onnx.numpy_helper.to_array(table))
    names = f"{table.name}_rows", f"{table.name}_scales"
    known = {t.name for t in proto.graph.initializer}
    for name, array in zip(names, (codes, scales), strict=True):
        if name not in known:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    found, ids, make = lookup.output[0], lookup.input[1], onnx.helper.make_node
    return [
        make("Gather", [names[0], ids], [f"{found}.codes"], name=f"{lookup.name}.codes"),
        make("Gather", [names[1], ids], [f"{found}.scales"], name=f"{lookup.name}.scales"),
        *_scaled(lookup, f"{found}.codes", f"{found}.scales"),
    ]


def _lookup_in_columns(lookup: onnx.NodeProto, rank: int) -> list[onnx.NodeProto]:
    """The columns of the output layer's int8 matrix, turned back into rows; `rank` is that of the ids."""
    make = toolchain().helper.make_node
    found, (table, ids) = lookup.output[0], lookup.input
    stored, last_axis = f"{table}{TURNED}", toolchain().helper.make_tensor("", 7, [1], [-1])
    return [
        make("Gather", [f"{stored}_quantized", ids], [f"{found}.columns"], axis=1, name=f"{lookup.name}.columns"),
        make("Transpose", [f"{found}.columns"], [f"{found}.codes"], perm=[*range(1, rank + 1), 0],
             name=f"{lookup.name}.codes"),
        make("Gather", [f"{stored}_scale", ids], [f"{found}.flat"], name=f"{lookup.name}.flat"),
        make("Constant", [], [f"{found}.axis"], value=last_axis, name=f"{lookup.name}.axis"),
        make("Unsqueeze", [f"{found}.flat", f"{found}.axis"], [f"{found}.scales"], name=f"{lookup.name}.scales"),
        *_scaled(lookup, f"{found}.codes", f"{found}.scales"),
    ]  # fmt: skip


def _scaled(lookup: onnx.NodeProto, codes: str, scales: str) -> list[onnx.NodeProto]:
    make = toolchain().helper.make_node
    found = lookup.output[0]
    return [
        make("Cast", [codes], [f"{found}.float"], to=1, name=f"{lookup.name}.float"),
        make("Mul", [f"{found}.float", scales], [found], name=lookup.name),
    ]


def _rows(table: Array) -> tuple[Array, Array]:
    """int8 `[V, D]` and a float scale `[V, 1]` for each row; rows of zeros have the scale 1."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(table / scales).astype(np.int8), scales


def _drop_unused(proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Remove those of `nodes`, and all weights, that nothing reads."""
    read = _read_in(proto.graph)
    for node in nodes:
        if node.output[0] not in read:
            proto.graph.node.remove(node)
    read = _read_in(proto.graph)
    for tensor in [t for t in proto.graph.initializer if t.name not in read]:
        proto.graph.initializer.remove(tensor)


def _read_in(graph: onnx.GraphProto) -> set[str]:
    """Names that a graph's nodes and outputs read, those of the bodies of branches and loops too."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                names |= _read_in(body)
    return names
