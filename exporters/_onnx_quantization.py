"""Realise a `Quantization` in an ONNX file with onnxruntime's tools: cast, dynamic int8, static int8 (QDQ)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compression import Progress, Quantization
from edgekit.errors import UnsupportedModel
from edgekit.exporters._onnx_file import module_of, save, toolchain
from edgekit.exporters._onnx_tables import quantize_tables, turn_matrices
from edgekit.exporting import ExportJob
from edgekit.processing import Arrays
from edgekit.quiet import quiet
from edgekit.ranges import zero_on_step
from edgekit.types import DType

if TYPE_CHECKING:
    import onnx

STATIC_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "AveragePool", "GlobalAveragePool", "MaxPool",
              "Concat", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Clip", "Relu", "ReduceMean",
              "Resize")  # fmt: skip
DYNAMIC_OPS = ("MatMul", "LSTM")  # lookups are ours: `_onnx_tables`


def quantize(job: ExportJob, source: Path, out: Path, large: bool, progress: Progress) -> None:
    """Write `source` to `out` with the numbers that were decided."""
    scheme = job.quantization
    if scheme is None:
        save(toolchain().load(source), out, large)
    elif scheme.scheme == "cast":
        progress("cast to float16")
        save(_cast(source), out, large)
    elif scheme.scheme == "dynamic":
        _quantize_dynamic(scheme, source, out, large, progress)
    else:
        _quantize_static(job, scheme, source, out, large, progress)


def _cast(source: Path) -> onnx.ModelProto:
    """The model in float16. Shapes are inferred before weights are loaded, since inference copies all it is given."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx = toolchain()
    proto = onnx.shape_inference.infer_shapes(onnx.load(source, load_external_data=False))
    onnx.load_external_data_for_model(proto, str(source.parent))
    with quiet():
        return convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=True)


def _quantize_dynamic(scheme: Quantization, source: Path, out: Path, large: bool, progress: Progress) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    progress("quantise weights")
    proto = toolchain().load(source)
    split_gemm(proto)
    turn_matrices(proto)
    kept = _float_nodes(proto, scheme)
    save(proto, source, large=True)
    del proto  # quantize_dynamic reads the file again
    with quiet():
        quantize_dynamic(
            source,
            out,
            op_types_to_quantize=list(DYNAMIC_OPS),
            weight_type=QuantType.QInt8,
            per_channel=scheme.per_channel,
            nodes_to_exclude=kept,
            use_external_data_format=large,
        )
    quantize_tables(out, kept, large)


def _quantize_static(
    job: ExportJob, scheme: Quantization, source: Path, out: Path, large: bool, progress: Progress
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if not job.calibration:
        raise UnsupportedModel("static quantisation without calibration samples")
    kept = _float_nodes(toolchain().load(source, load_external_data=False), scheme)
    progress(f"calibrate on {len(job.calibration)} samples")
    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    with quiet():
        quantize_static(
            source,
            out,
            _Reader(job.calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(STATIC_OPS),
            per_channel=scheme.per_channel,
            weight_type=types[scheme.weight_dtype],
            activation_type=types[scheme.activation_dtype],
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"TensorQuantOverrides": input_ranges(job.calibration, scheme.activation_dtype)},
            use_external_data_format=large,
        )
    proto = toolchain().load(out)
    _keep_answers_float(proto)
    save(proto, out, large)


def input_ranges(samples: tuple[Arrays, ...], dtype: DType) -> dict[str, list[dict[str, np.float32]]]:
    """Ranges of the float inputs that have zero inside, with zero on a step."""
    ranges = {}
    steps = np.iinfo(dtype).max - np.iinfo(dtype).min
    for name in samples[0]:
        low = min(float(sample[name].min()) for sample in samples)
        high = max(float(sample[name].max()) for sample in samples)
        if low < 0 < high and samples[0][name].dtype.kind == "f":
            low, high = zero_on_step(low, high, steps)
            ranges[name] = [{"rmin": np.float32(low), "rmax": np.float32(high)}]
    return ranges


def _float_nodes(proto: onnx.ModelProto, scheme: Quantization) -> list[str]:
    """Nodes of the modules that stay float, and the activations that read nothing else."""
    labelled = [(node, module_of(node)) for node in proto.graph.node]
    inside = [node for node, path in labelled if path is not None and scheme.stays_float(path)]
    kept = {name: node for node in inside for name in node.output}
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


def split_gemm(proto: onnx.ModelProto) -> None:
    """Gemm -> MatMul + Add, since onnxruntime has a dynamic int8 MatMul and no dynamic int8 Gemm.

    A weight that only such Gemms read is turned in place; a copy of all weights would be a large model's whole size.
    """
    onnx = toolchain()
    weights = {t.name: t for t in proto.graph.initializer}
    split = {n.output[0] for n in proto.graph.node if _is_plain_gemm(n) and n.input[1] in weights}
    others = {
        name
        for node in proto.graph.node
        for slot, name in enumerate(node.input)
        if node.output[0] not in split or slot != 1 or not _turns(node)
    }
    turned: dict[str, str] = {}  # weight -> the name of its transpose
    nodes = []
    for node in proto.graph.node:
        if node.output[0] not in split:
            nodes.append(node)
            continue
        matrix = node.input[1]
        if _turns(node):
            if matrix not in turned:
                turned[matrix] = _transpose(proto, weights[matrix], in_place=matrix not in others)
            matrix = turned[matrix]
        product = f"{node.output[0]}.product" if len(node.input) > 2 else node.output[0]
        made = [onnx.helper.make_node("MatMul", [node.input[0], matrix], [product], name=f"{node.name}.product")]
        if len(node.input) > 2:
            made.append(onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=node.name))
        for new in made:
            new.metadata_props.extend(node.metadata_props)
        nodes += made
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _is_plain_gemm(node: onnx.NodeProto) -> bool:
    """A Gemm that is `x @ w (+ b)` or `x @ w.T (+ b)`."""
    given = {a.name: a.i if a.name.startswith("trans") else a.f for a in node.attribute}
    factors = given.get("alpha", 1.0), given.get("beta", 1.0)
    return node.op_type == "Gemm" and not given.get("transA") and factors == (1.0, 1.0)


def _turns(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _transpose(proto: onnx.ModelProto, weight: onnx.TensorProto, in_place: bool) -> str:
    """Store the transpose of a weight, in its own place or beside it, and return its name."""
    onnx = toolchain()
    matrix = np.ascontiguousarray(onnx.numpy_helper.to_array(weight).T)
    if not in_place:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(matrix, f"{weight.name}.turned"))
        return f"{weight.name}.turned"
    weight.raw_data, weight.dims[:] = matrix.tobytes(), matrix.shape
    for value in proto.graph.value_info:
        if value.name == weight.name:  # its shape was that of the matrix before
            proto.graph.value_info.remove(value)
            break
    return str(weight.name)
