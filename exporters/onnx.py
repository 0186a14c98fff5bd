"""ONNX through torch.onnx (dynamo), quantised by onnxruntime's own tools.

Every node keeps the path of the PyTorch module it came from in its metadata (`edgekit.module`), and nothing else of the
trace: no source paths of the machine that exported.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle import WeightPrecision
from edgekit.compression import Progress
from edgekit.errors import UnsupportedModel
from edgekit.exporters._onnx_file import DATA, FILE, module_of, rename_ends, save, tag_modules, toolchain
from edgekit.exporters._onnx_quantization import quantize
from edgekit.exporting import Complaint, Exported, ExportJob, OpSupport, Refusal, found_precision, op_support
from edgekit.quiet import quiet
from edgekit.types import DType, Precision, TensorSpec, Value

if TYPE_CHECKING:
    import onnx
    from torch.fx import Node

RUNTIME = "onnxruntime"
RUNTIME_VERSION_RANGE = "onnxruntime>=1.20,<2"
DISTRIBUTIONS = ("torch", "onnx", "onnxscript", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("fp32", "lossless", "fp16", "int8", "int8-dynamic")
REPRO = "torch.onnx.export(program, dynamo=True)"
WEIGHT_OPS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Gather", "LSTM", "GRU"}
INTEGER_OPS = {"MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "QLinearConv", "QLinearMatMul"}


class Options(Value, frozen=True, kw_only=True):
    """Choices of the ONNX exporter."""

    opset: int = 20  # the newest that onnxruntime 1.20 runs whole
    external_data_bytes: int = 1 << 30  # protobuf ends at 2 GiB; larger weights go into model.onnx.data


def reject(job: ExportJob, options: Options) -> list[Refusal]:
    """ONNX takes every dtype and shape a `Model` can have, but weights beside the file are found only beside it."""
    weights = sum({t.data_ptr(): t.nbytes for t in job.program.state_dict.values()}.values())
    if job.precision != "lossless" or weights <= options.external_data_bytes:
        return []
    reason = (
        f"{weights / 1e6:.0f} MB of weights are above external_data_bytes={options.external_data_bytes}, so they go "
        "into a second file, and lossless packs only one"
    )
    fix = "take --format executorch or tflite, or --option onnx.external_data_bytes=2000000000 where that is enough"
    return [Refusal(where="weights", reason=reason, fix=fix)]


def support(job: ExportJob) -> list[OpSupport]:
    """Ops that torch.onnx has functions for convert; what its decompositions leave over needs a rewrite."""
    toolchain()
    with quiet():
        from torch.onnx._internal.exporter import _decomp, _registration

        known = _registration.ONNXRegistry.from_torchlib()
        kept = set(_decomp.get_onnx_implemented_overloads(known))
        lowered = job.program.run_decompositions(_decomp.create_onnx_friendly_decomposition_table(kept))

    def complain(node: Node) -> Complaint | None:
        if known.is_registered(node.target):  # type: ignore[arg-type]
            return None
        return Complaint(verdict="needs a rewrite", reason="torch.onnx has no function for it")

    return op_support(job.program, lowered, complain)


def export(job: ExportJob, out: Path, options: Options, progress: Progress) -> Exported:
    """Convert, tag nodes with their modules, quantise as decided, and read back what the file holds."""
    progress("convert to ONNX")
    proto = _convert(job, options)
    tag_modules(proto)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        source = Path(scratch) / FILE
        weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
        large = weights > options.external_data_bytes and job.precision != "lossless"
        save(proto, source, large=True)  # so that graphs are read without their weights where these are not needed
        del proto
        quantize(job, source, out / FILE, large, progress)
        kept = (_keep(source, out),) if job.keep_intermediates else ()
    external = (DATA,) if (out / DATA).exists() else ()
    precision = read_precision(out / FILE, job.precision)
    return Exported(path=FILE, external_data=external, precision=precision, intermediates=kept)


def expose(job: ExportJob, artifact: Path, out: Path, options: Options) -> Mapping[str, TensorSpec]:
    """Add the output of every module as a graph output of a copy; the last node of a module writes its output."""
    onnx = toolchain()
    proto = onnx.load(artifact)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(artifact, load_external_data=False))
    types = {v.name: v for v in inferred.graph.value_info}
    taken = {v.name for v in proto.graph.output}
    exposed: dict[str, TensorSpec] = {}
    for module, value in _module_outputs(proto).items():
        if value in taken or value not in types:
            continue
        info = types[value]
        if info.type.tensor_type.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            continue
        proto.graph.output.append(info)
        taken.add(value)
        dtype: DType = "float32" if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT else "float16"
        exposed[module] = TensorSpec(name=value, dtype=dtype, shape=_dims(info))
    onnx.save(proto, out, save_as_external_data=(artifact.parent / DATA).exists(), location=DATA)
    return exposed


def _keep(source: Path, out: Path) -> str:
    """The float graph before quantisation, as one more file of the bundle."""
    kept = "intermediates/float.onnx"
    (out / kept).parent.mkdir()
    toolchain().save(toolchain().load(source), out / kept)
    return kept


def read_precision(path: Path, asked: Precision) -> WeightPrecision:
    """Weight bytes by dtype, and how many weight-carrying ops compute in 8 bits, read from the file itself."""
    onnx = toolchain()
    graph = onnx.load(path, load_external_data=False).graph
    names = {t.name: onnx.helper.tensor_dtype_to_np_dtype(t.data_type) for t in graph.initializer}
    sizes: Counter[str] = Counter()
    for tensor in graph.initializer:
        sizes[names[tensor.name].name] += int(np.prod(tensor.dims)) * names[tensor.name].itemsize
    from_integers = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in names}
    scales = {t.name for t in graph.initializer if len(t.dims) < 2 or t.dims[-1] == 1}  # of a table's rows
    quantized = floating = 0
    for node in graph.node:
        lookup = node.op_type == "Gather"
        if lookup and node.input[0] in scales:
            continue
        if (
            node.op_type in INTEGER_OPS
            or (lookup and names.get(node.input[0]) == np.int8)
            or (node.op_type in WEIGHT_OPS and any(source in from_integers for source in node.input))
        ):
            quantized += 1
        elif node.op_type in WEIGHT_OPS and any(source in names and names[source].kind == "f" for source in node.input):
            floating += 1
    return found_precision(asked, sizes, quantized, floating, instead="fp32, or fp16 for a smaller file")


def _convert(job: ExportJob, options: Options) -> onnx.ModelProto:
    import torch

    try:
        with quiet():
            converted = torch.onnx.export(
                job.program,
                dynamo=True,
                external_data=False,
                opset_version=options.opset,
                verbose=False,
            )
    except Exception as error:  # torch.onnx wraps its reasons in several types
        reason = str(error.__cause__ or error).replace(" See the stack trace for more information.", "").splitlines()
        raise UnsupportedModel(
            f"torch.onnx cannot convert '{job.name}': {reason[0] if reason else type(error).__name__}"
        ) from error
    if converted is None:
        raise UnsupportedModel(f"torch.onnx returned nothing for '{job.name}'")
    proto: onnx.ModelProto = converted.model_proto
    rename_ends(proto, [spec.name for spec in job.inputs], [spec.name for spec in job.outputs])
    return proto


def _module_outputs(proto: onnx.ModelProto) -> dict[str, str]:
    """Module path -> the value its last node writes, in execution order; a parent's output is its last child's."""
    last: dict[str, str] = {}
    for node in proto.graph.node:
        path = module_of(node)
        if path and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            last.pop(path, None)
            last[path] = node.output[0]
    return last


def _dims(info: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(
        d.dim_param or "?" if d.HasField("dim_param") else d.dim_value for d in info.type.tensor_type.shape.dim
    )
