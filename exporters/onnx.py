"""ONNX through torch.onnx (dynamo), quantised by onnxruntime's own tools.

Every node keeps the path of the PyTorch module it came from in its metadata (`edgekit.module`), and nothing else of the
trace: no source paths of the machine that exported.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import WeightPrecision
from edgekit.compression import CompressedModel, Progress, Quantization
from edgekit.errors import ToolchainMissing, UnsupportedModel
from edgekit.exporting import Exported, Refusal
from edgekit.processing import Arrays
from edgekit.profile import DeviceProfile
from edgekit.quiet import quiet
from edgekit.types import DType, Precision, TensorSpec, Value

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

RUNTIME = "onnxruntime"
RUNTIME_VERSION_RANGE = "onnxruntime>=1.20"
DISTRIBUTIONS = ("torch", "onnx", "onnxscript", "onnxruntime")
MODULE = "edgekit.module"  # metadata key of a node
FILE = "model.onnx"
DATA = "model.onnx.data"
STATIC_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "AveragePool", "GlobalAveragePool", "MaxPool",
              "Concat", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Clip", "Relu", "ReduceMean",
              "Resize")  # fmt: skip
DYNAMIC_OPS = ("MatMul", "Gather", "LSTM")
WEIGHT_OPS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Gather", "LSTM", "GRU"}
INTEGER_OPS = {"MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "QLinearConv", "QLinearMatMul"}


class Options(Value, frozen=True, kw_only=True):
    """Choices of the ONNX exporter."""

    opset: int = 20  # the newest that onnxruntime 1.20 runs whole
    external_data_bytes: int = 1 << 30  # protobuf ends at 2 GiB; larger weights go into model.onnx.data


def reject(model: CompressedModel, device: DeviceProfile) -> list[Refusal]:
    """ONNX takes every dtype and shape a `Model` can have."""
    return []


def export(
    model: CompressedModel,
    program: ExportedProgram,
    precision: Precision,
    out: Path,
    options: Options,
    progress: Progress,
) -> Exported:
    """Convert, tag nodes with their modules, quantise as decided, and read back what the file holds."""
    onnx = _toolchain()
    progress("convert to ONNX")
    proto = _convert(model, program, options)
    _tag_modules(proto)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        source = Path(scratch) / FILE
        large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > options.external_data_bytes
        onnx.save(proto, source, save_as_external_data=large, location=DATA)
        del proto
        _quantize(model, source, out / FILE, large, progress)
    external = (DATA,) if (out / DATA).exists() else ()
    return Exported(FILE, external, read_precision(out / FILE, precision))


def expose(artifact: Path, out: Path) -> Mapping[str, TensorSpec]:
    """Add the output of every module as a graph output of a copy; the last node of a module writes its output."""
    onnx = _toolchain()
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


def read_precision(path: Path, asked: Precision) -> WeightPrecision:
    """Weight bytes by dtype, and how many weight-carrying ops compute in 8 bits, read from the file itself."""
    onnx = _toolchain()
    graph = onnx.load(path, load_external_data=False).graph
    names = {t.name: onnx.helper.tensor_dtype_to_np_dtype(t.data_type) for t in graph.initializer}
    sizes: Counter[str] = Counter()
    for tensor in graph.initializer:
        sizes[names[tensor.name].name] += int(np.prod(tensor.dims)) * names[tensor.name].itemsize
    from_integers = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in names}
    quantized = floating = 0
    for node in graph.node:
        if node.op_type in INTEGER_OPS or (
            node.op_type in WEIGHT_OPS and any(source in from_integers for source in node.input)
        ):
            quantized += 1
        elif node.op_type in WEIGHT_OPS and any(source in names and names[source].kind == "f" for source in node.input):
            floating += 1
    if asked.startswith("int8") and not quantized:
        raise UnsupportedModel(
            f"{asked} was asked for, and not one op of this model could be quantised; its weights stay "
            f"{', '.join(sizes)}: take --precision fp32, or fp16 for a smaller file"
        )
    return WeightPrecision(name=asked, weight_bytes=dict(sizes), quantized_ops=quantized, float_ops=floating)


def _toolchain() -> Any:
    try:
        import onnx
        import onnx.shape_inference
        import onnxscript  # noqa: F401  torch.onnx needs it and says so less clearly
    except ImportError as error:
        raise ToolchainMissing(f"exporter 'onnx' needs {error.name}: pip install 'edgekit[onnx]'") from error
    return onnx


def _convert(model: CompressedModel, program: ExportedProgram, options: Options) -> onnx.ModelProto:
    import torch

    try:
        with quiet():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                external_data=False,
                opset_version=options.opset,
                verbose=False,
            )
    except Exception as error:  # torch.onnx wraps its reasons in several types
        reason = str(error.__cause__ or error).strip().splitlines()
        raise UnsupportedModel(
            f"torch.onnx cannot convert '{model.model.name}': {reason[0] if reason else type(error).__name__}"
        ) from error
    if converted is None:
        raise UnsupportedModel(f"torch.onnx returned nothing for '{model.model.name}'")
    proto: onnx.ModelProto = converted.model_proto
    _rename(proto, [spec.name for spec in model.model.inputs], [spec.name for spec in model.model.outputs])
    return proto


def _rename(proto: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> None:
    """Give the graph's inputs and outputs the model's names, and move inner values that hold these out of the way.

    An output that is an input, or the same value as another output, gets an Identity: names must be unique.
    """
    onnx = _toolchain()
    graph = proto.graph
    if len(graph.input) != len(inputs) or len(graph.output) != len(outputs):
        raise UnsupportedModel(
            f"the converted graph has {len(graph.input)} inputs and {len(graph.output)} outputs, the model "
            f"{len(inputs)} and {len(outputs)}: return every tensor once, and use every input"
        )
    taken = {value.name for value in graph.input}
    for value in graph.output:
        if value.name in taken:
            source = value.name
            value.name = f"{source}.identity{len(graph.node)}"
            graph.node.append(onnx.helper.make_node("Identity", [source], [value.name], name=value.name))
        taken.add(value.name)
    wanted = {**{v.name: n for v, n in zip(graph.input, inputs, strict=True)}}
    wanted |= {v.name: n for v, n in zip(graph.output, outputs, strict=True)}
    inner = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    renamed = {name: f"{name}.inner" for name in inner if name in wanted.values()} | wanted
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.name = renamed.get(item.name, item.name)


def _tag_modules(proto: onnx.ModelProto) -> None:
    """Keep the module path of each node and drop the rest of the trace."""
    for node in proto.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), None)
        del node.metadata_props[:]
        if scopes is not None:
            path = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
            node.metadata_props.add(key=MODULE, value=path[-2] if len(path) > 1 else "")
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    del proto.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""


def _quantize(model: CompressedModel, source: Path, out: Path, large: bool, progress: Progress) -> None:
    scheme = model.quantization
    if scheme is None:
        _save(_toolchain().load(source), out, large)
    elif scheme.scheme == "cast":
        progress("cast to float16")
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with quiet():
            _save(convert_float_to_float16(_toolchain().load(source), keep_io_types=True), out, large)
    elif scheme.scheme == "dynamic":
        _quantize_dynamic(scheme, source, out, large, progress)
    else:
        _quantize_static(model, scheme, source, out, large, progress)


def _quantize_dynamic(scheme: Quantization, source: Path, out: Path, large: bool, progress: Progress) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    progress("quantise weights")
    proto = _toolchain().load(source)
    _split_gemm(proto)
    _save(proto, source, large)
    with quiet():
        quantize_dynamic(
            source,
            out,
            op_types_to_quantize=list(DYNAMIC_OPS),
            weight_type=QuantType.QInt8,
            per_channel=scheme.per_channel,
            use_external_data_format=large,
        )


def _quantize_static(
    model: CompressedModel, scheme: Quantization, source: Path, out: Path, large: bool, progress: Progress
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if model.calibration is None:
        raise UnsupportedModel("static quantisation without calibration samples")
    kept = _float_nodes(_toolchain().load(source), scheme.keep_float)
    progress(f"calibrate on {len(model.calibration.samples)} samples")
    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    with quiet():
        quantize_static(
            source,
            out,
            _Reader(model.calibration.samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(STATIC_OPS),
            per_channel=scheme.per_channel,
            weight_type=types[scheme.weight_dtype],
            activation_type=types[scheme.activation_dtype],
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"TensorQuantOverrides": _input_ranges(model.calibration.samples, scheme.activation_dtype)},
            use_external_data_format=large,
        )
    proto = _toolchain().load(out)
    _keep_answers_float(proto)
    _save(proto, out, large)


def _input_ranges(samples: tuple[Arrays, ...], dtype: DType) -> dict[str, list[dict[str, np.float32]]]:
    """Ranges of float inputs widened until zero falls on a step, instead of rounding the zero point.

    Pixels in [-1, 1] have their zero between two of 256 steps; rounding it would put every pixel half a step off.
    """
    ranges = {}
    steps = np.iinfo(dtype).max - np.iinfo(dtype).min
    for name in samples[0]:
        low = min(float(sample[name].min()) for sample in samples)
        high = max(float(sample[name].max()) for sample in samples)
        below = int(-low / (high - low) * steps) if low < 0 < high and samples[0][name].dtype.kind == "f" else 0
        if below:
            ranges[name] = [{"rmin": np.float32(low), "rmax": np.float32(low - low / below * steps)}]
    return ranges


def _float_nodes(proto: onnx.ModelProto, modules: tuple[str, ...]) -> list[str]:
    """Nodes of the modules that stay float, and the activations that read nothing else."""
    kept = {name: node for node in proto.graph.node if _module(node) in modules for name in node.output}
    for node in proto.graph.node:
        if node.op_type in ("Clip", "Relu") and node.input[0] in kept:
            kept[node.output[0]] = node
    return [node.name for node in kept.values()]


def _keep_answers_float(proto: onnx.ModelProto) -> None:
    """Drop the last rounding of matrix products that are outputs: nobody computes on it, and it blurs the answer.

    Convolutions keep theirs, since onnxruntime has no integer convolution with a float result.
    """
    makers = {name: node for node in proto.graph.node for name in node.output}
    for output in proto.graph.output:
        dequantize = makers.get(output.name)
        if dequantize is None or (quantize := makers.get(dequantize.input[0])) is None:
            continue
        product = makers.get(quantize.input[0])
        if product is None or quantize.op_type != "QuantizeLinear" or product.op_type not in ("Gemm", "MatMul"):
            continue
        if sum(product.output[0] in node.input for node in proto.graph.node) == 1:
            product.output[0] = output.name
            proto.graph.node.remove(dequantize)
            proto.graph.node.remove(quantize)


class _Reader:
    """onnxruntime's way to ask for calibration samples."""

    def __init__(self, samples: tuple[Arrays, ...]) -> None:
        self._left = iter(samples)

    def get_next(self) -> Arrays | None:
        return next(self._left, None)

    def __iter__(self) -> Iterator[Arrays]:
        return self._left


def _split_gemm(proto: onnx.ModelProto) -> None:
    """Gemm -> MatMul + Add, since onnxruntime has a dynamic int8 MatMul and no dynamic int8 Gemm."""
    onnx = _toolchain()
    weights = {t.name: t for t in proto.graph.initializer}
    nodes = []
    for node in proto.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        plain = not attributes.get("transA") and attributes.get("alpha", 1.0) == 1.0 == attributes.get("beta", 1.0)
        if node.op_type != "Gemm" or not plain or node.input[1] not in weights:
            nodes.append(node)
            continue
        weight = onnx.numpy_helper.to_array(weights[node.input[1]])
        name = f"{node.input[1]}.matmul"
        if name not in weights:
            turned = np.ascontiguousarray(weight.T if attributes.get("transB") else weight)
            weights[name] = onnx.numpy_helper.from_array(turned, name)
            proto.graph.initializer.append(weights[name])
        product = f"{node.output[0]}.matmul" if len(node.input) > 2 else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], name], [product], name=f"{node.name}.matmul"))
        if len(node.input) > 2:
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=node.name))
        for made in nodes[-(len(node.input) - 1) :]:
            made.metadata_props.extend(node.metadata_props)
    used = {source for node in nodes for source in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(kept)


def _module_outputs(proto: onnx.ModelProto) -> dict[str, str]:
    """Module path -> the value its last node writes, in execution order; a parent's output is its last child's."""
    last: dict[str, str] = {}
    for node in proto.graph.node:
        path = _module(node)
        if path and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            last.pop(path, None)
            last[path] = node.output[0]
    return last


def _module(node: onnx.NodeProto) -> str | None:
    return next((p.value for p in node.metadata_props if p.key == MODULE), None)


def _dims(info: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(
        d.dim_param or "?" if d.HasField("dim_param") else d.dim_value for d in info.type.tensor_type.shape.dim
    )


def _save(proto: onnx.ModelProto, path: Path, large: bool) -> None:
    _toolchain().save(proto, path, save_as_external_data=large, location=DATA)
