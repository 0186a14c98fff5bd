"""What a .pte file holds: the kernels its program calls, the graphs that XNNPACK gets, and the bytes of its weights.

ExecuTorch's own reader parses the program; the payload of an XNNPACK delegate is a flatbuffer behind a header (`XH00`
at byte 4, then its size in 2 bytes, offset and size of the flatbuffer in 4 bytes each), whose schema the package ships.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from edgekit.bundle import Delegation
from edgekit.types import DynamicDim, entry_points

XNNPACK = "XnnpackBackend"
METHOD = "forward"  # of a program that serves all sizes
INFINITE = re.compile(r":\s*(-?)inf\b")
HEADER_BYTES = 64  # at least the extended header of a program
LAYOUT_OPS = {"StaticTranspose", "_to_dim_order_copy", "_clone_dim_order", "permute_copy", "transpose_copy"}
WEIGHT_OPS = {"Conv2d", "ConvTranspose2d", "DepthwiseConv2d", "FullyConnected", "BatchMatrixMultiply"}
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "qint32": "int32", "qcint32": "int32",
          "qint8": "int8", "qcint8": "int8", "qdint8": "int8", "quint8": "uint8", "qcint4": "int4",
          "qbint4": "int4"}  # fmt: skip
SCALARS = {"FLOAT": ("float32", 4), "HALF": ("float16", 2), "DOUBLE": ("float64", 8), "LONG": ("int64", 8),
           "INT": ("int32", 4), "SHORT": ("int16", 2), "CHAR": ("int8", 1), "BYTE": ("uint8", 1), "BOOL": ("bool", 1),
           "BFLOAT16": ("bfloat16", 2)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DelegatedOp:
    """One node of a graph that XNNPACK runs."""

    type: str  # "Conv2d"
    handle: int  # of the traced node it came from
    dtypes: tuple[str, ...]  # of what it reads and writes, without constants
    weight: str | None  # dtype of its constant operand with two axes or more

    @property
    def in_float(self) -> bool:
        """Whether it computes on floats."""
        return all("float" in dtype for dtype in (*self.dtypes, self.weight or "float"))


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """One call of a portable kernel."""

    op: str  # "aten.embedding"
    weight: str | None  # as in `DelegatedOp`


@dataclass(frozen=True, kw_only=True)
class ProgramFile:
    """The content of one .pte file."""

    partitions: tuple[tuple[DelegatedOp, ...], ...]
    kernels: tuple[KernelCall, ...]
    weight_bytes: Mapping[str, int]  # dtype -> bytes

    def delegation(self) -> Delegation:
        """Ops by unit, as far as the file alone tells."""
        delegated = Counter(op.type for ops in self.partitions for op in ops)
        portable = Counter(call.op for call in self.kernels)
        copies = sum(count for op, count in (delegated + portable).items() if op.rpartition(".")[2] in LAYOUT_OPS)
        return Delegation(
            unit="xnnpack",
            units={u: dict(ops.most_common()) for u, ops in (("xnnpack", delegated), ("portable", portable)) if ops},
            partitions=len(self.partitions),
            layout_copies=copies,
        )


def read_file(path: Path, method: str = METHOD) -> ProgramFile:
    """Parse one method of a .pte file without reading its weights."""
    from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
    from executorch.exir._serialize._program import _get_extended_header

    with path.open("rb") as stream:
        header = _get_extended_header(stream.read(HEADER_BYTES))
        stream.seek(0)
        program = _flatbuffer_to_program(stream.read(header.program_size if header else -1))
        base = header.segment_base_offset if header else 0
        plan = next(plan for plan in program.execution_plan if plan.name == method)  # sorted by name in the file
        payloads = [_payload(stream, program, base, d) for d in plan.delegates if d.id == XNNPACK]
    sizes: Counter[str] = Counter()
    counted: set[str] = set()  # constants that partitions share
    partitions = tuple(_operations(_graph(payload), sizes, counted) for payload in payloads)
    return ProgramFile(partitions=partitions, kernels=_kernels(plan, sizes), weight_bytes=dict(sizes))


def first_method(dynamic: Sequence[DynamicDim]) -> str:
    """The method that a bundle's delegation tells of: that of the smallest listed size."""
    return next(iter(entry_points(dynamic)), METHOD)


def _payload(stream: IO[bytes], program: Any, base: int, delegate: Any) -> bytes:
    place = delegate.processed
    if place.location.name == "INLINE":
        return bytes(program.backend_delegate_data[place.index].data)
    segment = program.segments[place.index]
    stream.seek(base + segment.offset)
    return stream.read(segment.size)


def _graph(payload: bytes) -> dict[str, Any]:
    """The flatbuffer of an XNNPACK payload as plain data."""
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    offset, size = (int.from_bytes(payload[at : at + 4], "little") for at in (10, 14))
    with tempfile.TemporaryDirectory() as folder:
        schema, data = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_bytes())
        data.write_bytes(payload[offset : offset + size])
        _flatc_decompile(folder, str(schema), str(data), ["--raw-binary"])
        text = (Path(folder) / "graph.json").read_text(encoding="utf-8")
    graph: dict[str, Any] = json.loads(INFINITE.sub(r": \1Infinity", text))  # flatc's word for it is not JSON's
    return graph


def _operations(graph: dict[str, Any], sizes: Counter[str], counted: set[str]) -> tuple[DelegatedOp, ...]:
    """The nodes of one graph; adds its constants to `sizes`."""
    values = {}
    for value in graph["xvalues"]:
        quantised = value["xvalue_union"]
        tensor = quantised.get("tensor_value", quantised)
        dtype = tensor["datatype"].removeprefix("xnn_datatype_")
        values[tensor["id_out"]] = DTYPES.get(dtype, dtype), tensor["constant_buffer_idx"], len(tensor["dims"])
        _count(graph, tensor["constant_buffer_idx"], values[tensor["id_out"]][0], sizes, counted)
        _count(graph, quantised.get("quant_params", {}).get("scale_buffer_idx", 0), "float32", sizes, counted)
    found = []
    for node in graph["xnodes"]:
        ids = [v for key, v in node["xnode_union"].items() if key.endswith("_id") and v in values]
        constants = [values[i][0] for i in ids if values[i][1] and values[i][2] >= 2]
        found.append(
            DelegatedOp(
                type=node["xnode_union_type"].removeprefix("XNN"),
                handle=node["debug_handle"],
                dtypes=tuple(values[i][0] for i in ids if not values[i][1]),
                weight=constants[0] if constants else None,
            )
        )
    return tuple(found)


def _count(graph: dict[str, Any], index: int, dtype: str, sizes: Counter[str], counted: set[str]) -> None:
    if index:
        constant = graph["constant_data"][index]
        if not constant["named_key"] or constant["named_key"] not in counted:
            sizes[dtype] += constant["size"]
            counted.add(constant["named_key"])


def _kernels(plan: Any, sizes: Counter[str]) -> tuple[KernelCall, ...]:
    """The portable kernels in the order they run; adds their constants to `sizes`."""
    calls = []
    constants: dict[int, tuple[str, int]] = {}  # buffer -> dtype, bytes
    for instruction in (i.instr_args for chain in plan.chains for i in chain.instructions):
        if not hasattr(instruction, "op_index"):
            continue
        weight = None
        for tensor in (plan.values[index].val for index in instruction.args):
            if not getattr(tensor, "data_buffer_idx", 0) or tensor.allocation_info is not None:
                continue
            dtype, item_bytes = SCALARS[tensor.scalar_type.name]
            constants[tensor.data_buffer_idx] = dtype, math.prod(tensor.sizes) * item_bytes
            weight = weight or (dtype if len(tensor.sizes) >= 2 else None)
        name = plan.operators[instruction.op_index].name.replace("::", ".")
        calls.append(KernelCall(op=name, weight=weight))
    for dtype, size in constants.values():
        sizes[dtype] += size
    return tuple(calls)
