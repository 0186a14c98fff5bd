"""What is read from TFLite files without running them, and the copies that are made of them.

LiteRT's schema, which all of it needs, comes with `ai_edge_litert` and not with `tflite_runtime`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MOVES = {"TRANSPOSE", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE"}  # layout copies: the same values in another order


def parse_model(content: bytes) -> Any:
    """The flatbuffer as objects of LiteRT's schema. Raises `ImportError` without `ai_edge_litert`."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.read_model_from_bytearray(content)


def operators(model: Any) -> Iterator[tuple[str, Any]]:
    """Op type and operator of the first graph, in execution order."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {code: name for name, code in vars(BuiltinOperator).items() if isinstance(code, int)}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    for operator in model.subgraphs[0].operators:
        yield names.get(codes[operator.opcodeIndex], "CUSTOM"), operator


def dtype_names() -> dict[int, str]:
    """Code of a tensor type -> its name in the schema."""
    from ai_edge_litert.schema_py_generated import TensorType

    return {code: name for name, code in vars(TensorType).items() if isinstance(code, int)}


def only_layout_copies(content: bytes) -> bytes:
    """The model without its other ops, so that what its layout copies take can be timed: no binding tells it."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = parse_model(content)
    graph = model.subgraphs[0]
    graph.operators = [operator for kind, operator in operators(model) if kind in MOVES]
    read = dict.fromkeys(index for operator in graph.operators for index in operator.inputs if index >= 0)
    written = dict.fromkeys(index for operator in graph.operators for index in operator.outputs)
    stored = {index for index in read if model.buffers[graph.tensors[index].buffer].data is not None}
    graph.inputs = [index for index in read if index not in stored and index not in written]
    graph.outputs = list(written)
    needed = {graph.tensors[index].buffer for index in stored}
    for index, buffer in enumerate(model.buffers):
        if index not in needed:
            buffer.data = None
    model.subgraphs, model.signatureDefs = [graph], []
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
