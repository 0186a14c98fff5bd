"""What the TFLite exporter reads from the files it writes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from edgekit.bundle import WeightPrecision
from edgekit.errors import UnsupportedModel
from edgekit.exporting import found_precision
from edgekit.quiet import quiet
from edgekit.runtimes._litert_delegation import WEIGHT_OPS, module_of
from edgekit.runtimes._litert_file import dtype_names, operators, parse_model
from edgekit.types import DType, Precision

DTYPES: dict[str, DType] = {"FLOAT32": "float32", "FLOAT16": "float16", "INT8": "int8", "UINT8": "uint8",
                            "INT16": "int16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}  # fmt: skip


def module(model: Any, kind: str, operator: Any) -> str | None:
    """The path of the PyTorch module that an operator came from."""
    tensors = model.subgraphs[0].tensors
    read, written = ([tensors[i].name.decode() for i in side if i >= 0] for side in (operator.inputs, operator.outputs))
    return module_of(kind, read, written)


def require_kernels(content: bytes, name: str) -> None:
    """Raise `UnsupportedModel` when LiteRT cannot run an op: the converter passes on what it could not lower."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # they would prepare all weights
    try:
        with quiet():
            Interpreter(model_content=content, experimental_op_resolver_type=plain)
    except (ValueError, RuntimeError) as error:
        missing = re.search(r"opcode '(\w+)'", str(error))
        if missing is None:
            raise UnsupportedModel(f"LiteRT cannot load what litert_torch made of '{name}': {error}") from error
        model = parse_model(content)
        kind = missing.group(1)
        modules = [found for this, op in operators(model) if this == kind and (found := module(model, this, op))]
        where = f" (in module '{modules[0]}')" if modules else ""
        raise UnsupportedModel(
            f"'{name}' needs {kind}{where}, for which LiteRT has no kernel: compute it another way, leave "
            "it out of the model, or take --format onnx"
        ) from error


def read_precision(path: Path, asked: Precision) -> WeightPrecision:
    """Bytes of constants by dtype, and how many weight-carrying ops read integer weights, from the file itself."""
    model, names = parse_model(path.read_bytes()), dtype_names()
    tensors = model.subgraphs[0].tensors
    constants = {i: names[t.type] for i, t in enumerate(tensors) if model.buffers[t.buffer].data is not None}
    sizes: Counter[str] = Counter()
    for buffer, name in {tensors[i].buffer: name for i, name in constants.items()}.items():
        sizes[DTYPES.get(name, name.lower())] += len(model.buffers[buffer].data)
    found = {operator.outputs[0]: constants[operator.inputs[0]] for kind, operator in operators(model)
             if kind == "DEQUANTIZE" and operator.inputs[0] in constants}  # fmt: skip
    quantized = floating = 0
    for kind, operator in operators(model):
        read = [(constants | found).get(i) for i in operator.inputs if i >= 0 and len(tensors[i].shape) > 1]
        if kind in WEIGHT_OPS and {"INT8", "INT4", "UINT8"} & set(read):
            quantized += 1
        elif kind in WEIGHT_OPS and {"FLOAT32", "FLOAT16"} & set(read):
            floating += 1
    return found_precision(asked, sizes, quantized, floating)
