"""ExecuTorch for CPUs: `torch.export`, quantised for XNNPACK, partitioned, memory-planned.

The file calls XNNPACK for everything it has kernels for, and ExecuTorch's portable kernels for the rest: slow, single
threaded C++ loops, so every op that falls back is named in `Exported.delegation` with the line it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.bundle import WeightPrecision
from edgekit.compression import Progress, silent
from edgekit.exporting import Exported, ExportJob, OpSupport, Refusal, found_precision
from edgekit.quiet import quiet
from edgekit.runtimes._executorch_file import WEIGHT_OPS, ProgramFile, first_method, read_file
from edgekit.types import Precision, TensorSpec, Value

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from edgekit.exporters._executorch_lowering import Lowered

RUNTIME = "executorch"
RUNTIME_VERSION_RANGE = "executorch>=1.5,<2"
DISTRIBUTIONS = ("torch", "torchao", "executorch")
PRECISIONS: tuple[Precision, ...] = ("fp32", "lossless", "int8", "int8-dynamic", "w4a8")
REPRO = """from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()"""
FILE = "model.pte"
ETRECORD = "model.etrecord"
NARROW = ("int4", "int8", "uint8")
SUPPORTED_DTYPES = ("float32", "float64", "int64", "int32", "uint8", "int8", "bool")


class Options(Value, frozen=True, kw_only=True):
    """Choices of the ExecuTorch exporter."""

    float_answers: bool = True  # last linear layers return floats from int8 weights instead of a rounded tensor


def reject(job: ExportJob, options: Options) -> list[Refusal]:
    """Complex and half inputs have no place in this runtime's binding."""
    return [
        Refusal(where=spec.name, reason=f"ExecuTorch takes no {spec.dtype} tensors", fix="cast it to float32")
        for spec in (*job.inputs, *job.outputs)
        if spec.dtype not in SUPPORTED_DTYPES
    ]


def support(job: ExportJob) -> list[OpSupport]:
    """Ops that XNNPACK takes convert; those that portable kernels run fall back; the others need a rewrite."""
    from edgekit.exporters._executorch_lowering import check_toolchain
    from edgekit.exporters._executorch_support import op_verdicts

    check_toolchain()
    return op_verdicts(job)


def export(job: ExportJob, out: Path, options: Options, progress: Progress) -> Exported:
    """Quantise as decided, lower, write `model.pte`, and read back what it holds."""
    from edgekit.exporters import _executorch_graph, _executorch_lowering
    from edgekit.exporters._executorch_delegation import delegation

    _executorch_lowering.check_toolchain()
    module = _executorch_graph.editable(job.program)
    lowered = _build(job, module, options, progress)
    _write(lowered, out / FILE)
    if job.keep_intermediates:
        with quiet():
            lowered.executorch.get_etrecord().save(str(out / ETRECORD))
    file = read_file(out / FILE, first_method(job.dynamic))
    scheme = job.quantization.scheme if job.quantization else None
    return Exported(
        path=FILE,
        precision=read_precision(file, job.precision),
        delegation=delegation(file, lowered.origins, lowered.fallbacks, scheme),
        intermediates=(ETRECORD,) if job.keep_intermediates else (),
    )


def expose(job: ExportJob, artifact: Path, out: Path, options: Options) -> Mapping[str, TensorSpec]:
    """Build `artifact` again with the outputs of modules after its own: module path -> tensor.

    Where a clamp is computed together with the op before it, only the clamp's module has an output to show.
    """
    from edgekit.exporters import _executorch_graph

    module = _executorch_graph.editable(job.program)
    nodes = _module_outputs(module, fused=job.quantization is not None)
    _executorch_graph.add_outputs(module, list(nodes.values()))
    specs = {path: _spec(path, node) for path, node in nodes.items()}
    _write(_build(job, module, options, silent), out)
    return specs


def read_precision(file: ProgramFile, asked: Precision) -> WeightPrecision:
    """Weight bytes by dtype, and how many ops with weights compute in 8 bits or fewer, as the file has them."""
    weights = [op.weight for ops in file.partitions for op in ops if op.type in WEIGHT_OPS and op.weight]
    weights += [call.weight for call in file.kernels if call.weight]
    quantized = sum(dtype in NARROW for dtype in weights)
    floating = sum("float" in dtype for dtype in weights)
    return found_precision(asked, file.weight_bytes, quantized, floating)


def _build(job: ExportJob, module: GraphModule, options: Options, progress: Progress) -> Lowered:
    from edgekit.exporters._executorch_graph import trace_again
    from edgekit.exporters._executorch_lowering import lower
    from edgekit.exporters._executorch_quantization import quantize

    quantized = quantize(module, job, options.float_answers, progress)
    progress("lower to ExecuTorch")
    return lower(trace_again(quantized, job), job.name, job.keep_intermediates)


def _write(lowered: Lowered, path: Path) -> None:
    with path.open("wb") as stream:
        lowered.executorch.write_to_file(stream)


def _module_outputs(module: GraphModule, fused: bool) -> dict[str, Node]:
    """Module path -> the node that computes its output last, in execution order.

    Not an op whose batch norm will be folded into it, nor in a quantised model an op that has a clamp fused.
    """
    from edgekit.exporters._executorch_graph import NORMS, PRODUCTS, fused_clamp, is_float, only_reader
    from edgekit.graph import module_path

    last: dict[str, Node] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and (path := module_path(node)):
            last.pop(path, None)
            last[path] = node
    returned = set(module.graph.output_node().all_input_nodes)

    def is_hidden(node: Node) -> bool:
        reader = only_reader(node)
        normed = reader is not None and reader.target in NORMS and node.target in PRODUCTS
        return node in returned or not is_float(node) or normed or (fused and fused_clamp(node) is not None)

    return {path: node for path, node in last.items() if not is_hidden(node)}


def _spec(path: str, node: Node) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in node.meta["val"].shape)
    return TensorSpec(name=f"{path}.output", dtype="float32", shape=shape)
