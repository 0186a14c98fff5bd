"""Where LiteRT ran each op, from the graph that the interpreter holds after it applied XNNPACK."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from edgekit.bundle import Delegation, Fallback
from edgekit.runtimes._litert_file import MOVES
from edgekit.types import Value

UNIT = "xnnpack"
DELEGATE = "DELEGATE"
WEIGHT_OPS = {"CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL",
              "EMBEDDING_LOOKUP", "GATHER", "UNIDIRECTIONAL_SEQUENCE_LSTM"}  # fmt: skip
BORDERS = {"QUANTIZE", "DEQUANTIZE"}  # between float and integer tensors, at home on both sides
# Op types with a kernel. Source: xnnpack_delegate.cc of LiteRT 2.3, the cases of `VisitNode`.
KERNELS = {
    "ABS", "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CEIL", "CONCATENATION", "CONV_2D", "COS", "DEPTHWISE_CONV_2D",
    "DEPTH_TO_SPACE", "DEQUANTIZE", "DIV", "ELU", "EXP", "EXPAND_DIMS", "FLOOR", "FULLY_CONNECTED", "GELU",
    "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "NEG", "PAD",
    "PRELU", "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR",
    "ROUND", "RSQRT", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQRT", "SQUARE", "SQUARED_DIFFERENCE",
    "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV",
}  # fmt: skip


class Node(Value, frozen=True, kw_only=True):
    """One op of the graph as it was written, before any delegate."""

    kind: str
    inputs: tuple[int, ...]  # tensors
    outputs: tuple[int, ...]


class Tensor(Value, frozen=True, kw_only=True):
    """What the interpreter says of a tensor."""

    name: str
    dtype: str
    dynamic: bool


def origins(tensor_name: str) -> list[tuple[int, str]]:
    """The nodes of the trace that a tensor's value is made of, with their modules, in execution order.

    Names are lists of `<module path>/<node index>`, each closed by a semicolon; fused ops have several.
    """
    return sorted((int(index), path) for path, index in re.findall(r"([^;]*)/(\d+)(?=;|$)", tensor_name))


def module_of(kind: str, read: list[str], written: list[str]) -> str | None:
    """The module an op came from, by the names of its tensors; None where that is the model itself.

    Weights tell it best: what an op writes may be called after an activation or a sum that was fused into it.
    """
    names = [*read[1:], *written] if kind in WEIGHT_OPS else [*written, *read]
    found = next((known for name in names if (known := origins(name))), [])
    return next((path for _, path in reversed(found) if path), None)


def delegated(interpreter: Any) -> Delegation:
    """Ops by unit and the reasons for those that XNNPACK left, after a first run."""
    details = interpreter._get_ops_details()  # the only place that shows the nodes a delegate replaced
    nodes = [Node(kind=d["op_name"], inputs=_indices(d["inputs"]), outputs=_indices(d["outputs"])) for d in details]
    tensors = {d["index"]: _tensor(d) for d in interpreter.get_tensor_details()}
    original = [node for node in nodes if node.kind != DELEGATE]
    partitions = [node for node in nodes if node.kind == DELEGATE]
    taken = {index for partition in partitions for index in _replaced(original, partition)}
    units: dict[str, Counter[str]] = {}
    for index, node in enumerate(original):
        units.setdefault(UNIT if index in taken else "builtin", Counter())[node.kind] += 1
    return Delegation(
        unit=UNIT,
        units={unit: dict(ops.most_common()) for unit, ops in units.items()},
        partitions=len(partitions),
        layout_copies=sum(node.kind in MOVES for node in original),
        float_islands=tuple(_float_islands(original, tensors)),
        fallbacks=tuple(
            Fallback(op=node.kind, where=_where(node, tensors), reason=_reason(node, tensors, bool(partitions)))
            for index, node in enumerate(original)
            if index not in taken
        ),
    )


def median_seconds(call: Callable[[], object], calls: int = 9) -> float:
    """The median over a few calls."""
    times = []
    for _ in range(calls):
        before = perf_counter()
        call()
        times.append(perf_counter() - before)
    return median(times)


def _indices(tensors: Any) -> tuple[int, ...]:
    return tuple(int(index) for index in tensors if index >= 0)


def _tensor(details: Any) -> Tensor:
    return Tensor(
        name=details["name"],
        dtype=np.dtype(details["dtype"]).name,
        dynamic=bool((details["shape_signature"] < 0).any()),
    )


def _replaced(original: list[Node], partition: Node) -> set[int]:
    """The nodes a delegate stands for: all that lead to what it writes, up to what it reads."""
    maker = {tensor: index for index, node in enumerate(original) for tensor in node.outputs}
    known, pending, found = set(partition.inputs), list(partition.outputs), set[int]()
    while pending:
        tensor = pending.pop()
        if tensor not in known and (index := maker.get(tensor)) is not None:
            found.add(index)
            pending.extend(original[index].inputs)
        known.add(tensor)
    return found


def _float_islands(original: list[Node], tensors: dict[int, Tensor]) -> list[str]:
    """Ops that read and write only float in a graph whose activations are integers elsewhere."""

    def dtypes(indices: Sequence[int]) -> set[str]:
        return {tensors[index].dtype for index in indices if index in tensors} - {"int32"}

    if not any({"int8", "uint8"} & dtypes(node.outputs) for node in original):
        return []
    floating = [n for n in original if dtypes(n.outputs) == {"float32"} == dtypes(n.inputs) and n.kind not in BORDERS]
    return [f"{node.kind} {_where(node, tensors)}" for node in floating]


def _where(node: Node, tensors: dict[int, Tensor]) -> str:
    read, written = ([tensors[i].name for i in side if i in tensors] for side in (node.inputs, node.outputs))
    return module_of(node.kind, read, written) or "forward"


def _reason(node: Node, tensors: dict[int, Tensor], partitioned: bool) -> str:
    touched = [tensors[index] for index in (*node.inputs, *node.outputs) if index in tensors]
    dtypes = sorted({tensor.dtype for tensor in touched})
    if node.kind not in KERNELS:
        return f"XNNPACK has no kernel for {node.kind}"
    if "int64" in dtypes or "float64" in dtypes:
        return f"XNNPACK takes no {'int64' if 'int64' in dtypes else 'float64'} tensors"
    if any(tensor.dynamic for tensor in touched):
        return "a tensor's size is only known at run time"
    if not partitioned:
        return "LiteRT was built without XNNPACK, or it took no op of this model"
    return f"XNNPACK did not take this {node.kind} on {' and '.join(dtypes)}"
