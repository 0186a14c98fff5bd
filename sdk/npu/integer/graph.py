"""A TFLite file as plain values: tensors with their grids, and ops in execution order."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import InvalidInput, ToolchainMissing, UnsupportedModel
from edgekit.processing import Array
from edgekit.runtimes._litert_delegation import module_of
from edgekit.runtimes._litert_file import dtype_names, operators, parse_model

DTYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8, "UINT8": np.uint8, "INT16": np.int16,
          "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file. Values are `(step - zero_point) * scale`; weights have a scale for each channel."""

    index: int
    name: str
    dtype: str  # "int8", or what the file calls a type that numpy has not
    shape: tuple[int, ...]
    scales: tuple[float, ...]  # float32 values; empty: no grid
    zero_points: tuple[int, ...]
    axis: int  # of the channels that have scales of their own
    constant: Array | None

    @property
    def scale(self) -> float:
        """The one scale."""
        return self.scales[0]

    @property
    def zero(self) -> int:
        """The one zero point."""
        return self.zero_points[0]


@dataclass(frozen=True, eq=False)
class Op:
    """One operator."""

    kind: str  # "CONV_2D"
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any  # of LiteRT's schema
    module: str | None  # path of the PyTorch module that it came from

    def read(self, position: int) -> Tensor:
        """An input that must be there. Raises `InvalidInput` where the file leaves it out."""
        if (tensor := self.inputs[position]) is None:
            raise InvalidInput(f"{self.where} has no input {position}")
        return tensor

    @property
    def where(self) -> str:
        """The op and its module, for people."""
        return f"{self.kind} in module '{self.module}'" if self.module else self.kind


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """What a file holds."""

    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def read_graph(content: bytes) -> IntegerGraph:
    """Parse a file. Raises `InvalidInput` for what is none, `UnsupportedModel` for several graphs or open sizes."""
    try:
        model = parse_model(content)
        graph = model.subgraphs[0]
        names = dtype_names()
        tensors = tuple(_tensor(index, model, each, names[each.type]) for index, each in enumerate(graph.tensors))
        ops = tuple(_op(kind, each, tensors) for kind, each in operators(model))
        inputs, outputs = (tuple(tensors[i] for i in each) for each in (graph.inputs, graph.outputs))
    except ImportError as error:
        raise ToolchainMissing("reading a TFLite file needs ai_edge_litert: pip install 'edgekit[litert]'") from error
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise InvalidInput(f"not a TFLite file that can be read: {error}") from error
    if len(model.subgraphs) > 1:
        raise UnsupportedModel("the file holds several graphs (listed sizes, or branches): export it with one size")
    return IntegerGraph(tensors, ops, inputs, outputs)


def _tensor(index: int, model: Any, tensor: Any, kind: str) -> Tensor:
    grid = tensor.quantization
    scales = () if grid is None or grid.scale is None else tuple(map(float, grid.scale))
    zeros = () if grid is None or grid.zeroPoint is None else tuple(map(int, grid.zeroPoint))
    shape = tuple(map(int, tensor.shape if tensor.shape is not None else ()))
    signature = tensor.shapeSignature if tensor.shapeSignature is not None else ()
    if any(size < 0 for size in (*shape, *signature)):
        raise UnsupportedModel(f"tensor '{tensor.name.decode()}' has a size that is open: export without --dynamic")
    data = model.buffers[tensor.buffer].data
    return Tensor(
        index=index,
        name=tensor.name.decode(errors="replace"),
        dtype=np.dtype(DTYPES[kind]).name if kind in DTYPES else kind.lower(),
        shape=shape,
        scales=scales,
        zero_points=zeros or (0,) * len(scales),
        axis=0 if grid is None else int(grid.quantizedDimension),
        constant=None if data is None or kind not in DTYPES else _array(data, DTYPES[kind], shape),
    )


def _array(data: Any, dtype: type[np.generic], shape: tuple[int, ...]) -> Array:
    content = data.tobytes() if isinstance(data, np.ndarray) else bytes(data)
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)


def _op(kind: str, operator: Any, tensors: tuple[Tensor, ...]) -> Op:
    read = tuple(None if i < 0 else tensors[i] for i in operator.inputs)
    written = tuple(tensors[i] for i in operator.outputs)
    module = module_of(kind, [each.name for each in read if each], [each.name for each in written])
    return Op(kind, read, written, operator.builtinOptions, module)
