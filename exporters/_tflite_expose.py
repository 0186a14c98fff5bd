"""A copy of a TFLite file that also returns what its modules returned in PyTorch.

The names of tensors lead back to the nodes of the trace. What a file no longer holds is not exposed: a BatchNorm's
input that was folded away, or in an int8 file the input of an activation that its convolution took over.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.exporters._tflite_conversion import TO_NCHW, TO_NHWC
from edgekit.exporting import ExportJob
from edgekit.runtimes._litert_delegation import origins
from edgekit.runtimes._litert_file import operators, parse_model
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from torch.fx import Node

PREFIX = "module:"  # no input or output of the model is called like this
ACTIVATIONS = ("relu", "relu6", "hardtanh", "clamp")  # what LiteRT fuses into the op before
SPATIAL = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "MAX_POOL_2D", "AVERAGE_POOL_2D", "RESIZE_BILINEAR",
           "RESIZE_NEAREST_NEIGHBOR", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE")  # fmt: skip


def with_module_outputs(job: ExportJob, content: bytes) -> tuple[bytes, Mapping[str, TensorSpec]]:
    """The changed file, and for each exposed module the tensor that now is an output, [N, C, H, W] as in PyTorch."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = parse_model(content)
    graph = model.subgraphs[0]
    made = _tensors_of_nodes(model, list(job.program.graph.nodes))
    turned = _channels_last(model)
    exposed: dict[str, TensorSpec] = {}
    for path, node in _results(list(job.program.graph.nodes)):
        value = node.meta["val"]
        if node not in made or not value.is_floating_point() or made[node] in graph.outputs:
            continue
        tensor = made[node]
        if value.dim() == 4 and tensor in turned:
            tensor = _add_transpose(model, tensor)
        spec = TensorSpec(name=PREFIX + path, dtype="float32", shape=tuple(_size(n) for n in value.shape))
        if [n for n in spec.shape if isinstance(n, int)] == [n for n in _shape(graph.tensors[tensor]) if n >= 0]:
            _add_output(model, tensor, spec.name)
            exposed[path] = spec
    for buffer in model.buffers:
        if buffer.data is not None:  # the packer copies arrays whole and anything else byte by byte
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)), exposed


def _results(nodes: list[Node]) -> Iterator[tuple[str, Node]]:
    """Every module with the one node whose value leaves it, in execution order."""
    leaving: dict[str, list[Node]] = {}
    for node in nodes:
        for path in _modules(node):
            if path and any(path not in _modules(user) for user in node.users):
                leaving.setdefault(path, []).append(node)
    alone = [(path, found[0]) for path, found in leaving.items() if len(found) == 1]
    order = {node: index for index, node in enumerate(nodes)}
    yield from sorted(alone, key=lambda pair: order[pair[1]])


def _modules(node: Node) -> set[str]:
    return {str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()}


def _tensors_of_nodes(model: Any, nodes: list[Node]) -> dict[Node, int]:
    """The tensor that holds each node's value. A node named again by a later op was fused into that op."""
    graph = model.subgraphs[0]
    made: dict[Node, int] = {}
    for _, operator in list(operators(model)):
        tags = origins(graph.tensors[operator.outputs[0]].name.decode())
        for index, _ in tags[:-1]:
            made.pop(nodes[index], None)
        if not tags:
            continue
        last = nodes[tags[-1][0]]
        made[last] = operator.outputs[0]
        if len(tags) > 1 and _is_fused(last, nodes[tags[-2][0]], operator, graph):
            made[nodes[tags[-2][0]]] = _without_activation(graph, operator)
    return made


def _is_fused(activation: Node, source: Node, operator: Any, graph: Any) -> bool:
    """Whether a float op computes `source` and then `activation`."""
    from ai_edge_litert.schema_py_generated import TensorType

    name = str(activation.target).removeprefix("aten.").partition(".")[0].rstrip("_")
    return (
        name in ACTIVATIONS
        and activation.args[0] is source
        and bool(getattr(operator.builtinOptions, "fusedActivationFunction", 0))
        and graph.tensors[operator.outputs[0]].type == TensorType.FLOAT32
    )


def _without_activation(graph: Any, operator: Any) -> int:
    """Compute an op a second time without its activation, and return the tensor."""
    twin, result = copy.deepcopy(operator), copy.deepcopy(graph.tensors[operator.outputs[0]])
    twin.builtinOptions.fusedActivationFunction = 0
    return _append(graph, twin, result, b"before activation")


def _add_transpose(model: Any, tensor: int) -> int:
    """Append the turn to [N, C, H, W] of a channels-last tensor."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    buffer, axes, code, turn = schema.BufferT(), schema.TensorT(), schema.OperatorCodeT(), schema.OperatorT()
    buffer.data = np.array(TO_NCHW, "<i4").view(np.uint8)
    axes.name, axes.shape, axes.type, axes.buffer = b"to_nchw", [4], schema.TensorType.INT32, len(model.buffers)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.TRANSPOSE
    code.version = 4  # the newest; runtimes pick the kernel by type
    turn.opcodeIndex, turn.inputs = len(model.operatorCodes), [tensor, len(graph.tensors)]
    model.buffers.append(buffer)
    graph.tensors.append(axes)
    model.operatorCodes.append(code)
    result = copy.deepcopy(graph.tensors[tensor])
    result.shape = [result.shape[axis] for axis in TO_NCHW]
    if result.shapeSignature is not None:
        result.shapeSignature = [result.shapeSignature[axis] for axis in TO_NCHW]
    return _append(graph, turn, result, b"turned")


def _append(graph: Any, operator: Any, result: Any, suffix: bytes) -> int:
    """Append an op that writes `result`, and return its tensor."""
    result.name = result.name + b" " + suffix
    result.buffer = 0
    operator.outputs = [len(graph.tensors)]
    graph.tensors.append(result)
    graph.operators.append(operator)
    return len(graph.tensors) - 1


def _add_output(model: Any, tensor: int, name: str) -> None:
    from ai_edge_litert.schema_py_generated import TensorMapT

    entry = TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), tensor
    model.signatureDefs[0].outputs.append(entry)
    outputs = list(model.subgraphs[0].outputs)
    model.subgraphs[0].outputs = outputs if tensor in outputs else [*outputs, tensor]


def _channels_last(model: Any) -> set[int]:
    """Four-dimensional tensors whose channels are last: from the ops that only know this layout, downwards."""
    graph = model.subgraphs[0]
    found: set[int] = set()
    for kind, operator in operators(model):
        if kind == "TRANSPOSE":
            axes = model.buffers[graph.tensors[operator.inputs[1]].buffer].data
            last = axes is not None and tuple(np.frombuffer(axes, "<i4")) == TO_NHWC
        else:
            last = kind in SPATIAL or any(index in found for index in operator.inputs)
        if last and kind != "RESHAPE":
            found.update(index for index in operator.outputs if len(_shape(graph.tensors[index])) == 4)
    return found


def _shape(tensor: Any) -> list[int]:
    found = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    return [] if found is None else [int(size) for size in found]


def _size(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)
