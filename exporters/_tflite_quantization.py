"""Realise a `Quantization` in a float flatbuffer with ai-edge-quantizer: static, dynamic and weight-only int8."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compression import Progress, Quantization
from edgekit.cost.kernels import op_name
from edgekit.errors import UnsupportedModel
from edgekit.exporters._tflite_conversion import TO_NHWC
from edgekit.exporters._tflite_file import module
from edgekit.exporting import ExportJob
from edgekit.graph import place_of
from edgekit.processing import Array, Arrays
from edgekit.quiet import quiet
from edgekit.ranges import zero_on_step
from edgekit.runtimes._litert_delegation import origins
from edgekit.runtimes._litert_file import operators, parse_model
from edgekit.runtimes.litert import SIGNATURE
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from ai_edge_quantizer.recipe_manager import RecipeManager

FURTHEST = 1e30  # LiteRT multiplies steps by 2^31 in float32; where that overflows, it ends the process
ACTIVATIONS = ("RELU", "RELU6", "LOGISTIC", "TANH", "HARD_SWISH", "MAXIMUM", "MINIMUM")


def quantize(
    job: ExportJob, inputs: tuple[TensorSpec, ...], model: bytes, integer_io: bool, progress: Progress
) -> bytes:
    """The model with the numbers that were decided. `inputs` are those of the file."""
    scheme = job.quantization
    if scheme is None:
        return model
    from ai_edge_quantizer.quantizer import Quantizer

    recipe = _recipe(scheme, model, integer_io)
    ranges = _calibrate(job, inputs, model, recipe, progress) if scheme.scheme == "static" else None
    progress("quantise weights")
    try:
        with quiet():
            quantizer = Quantizer(model, recipe.get_quantization_recipe())
            made = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except Exception as error:  # the quantizer raises what its numpy code raises
        raise UnsupportedModel(f"ai-edge-quantizer cannot quantise '{job.name}': {error}") from error
    return bytes(made.quantized_model)


def _recipe(scheme: Quantization, model: bytes, integer_io: bool) -> RecipeManager:
    """Which op gets which numbers. Later entries win; ops are found by the names of the tensors they write."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    grain = QuantGranularity.CHANNELWISE if scheme.per_channel else QuantGranularity.TENSORWISE
    every, product = TFLOperationName.ALL_SUPPORTED, TFLOperationName.FULLY_CONNECTED
    if scheme.scheme == "static":
        recipe.add_static_config(".*", every, 8, 8, grain)
        if not integer_io:
            recipe.add_quantization_config(".*", TFLOperationName.INPUT, None, AlgorithmName.NO_QUANTIZE)
            recipe.add_quantization_config(".*", TFLOperationName.OUTPUT, None, AlgorithmName.NO_QUANTIZE)
            # Nobody computes on an answer, so its rounding would only blur it: these products write float.
            for scope in _answers(model):
                recipe.add_dynamic_config(scope, product, 8, grain)
    elif scheme.scheme == "dynamic":
        for operation in (product, TFLOperationName.EMBEDDING_LOOKUP, TFLOperationName.BATCH_MATMUL):
            recipe.add_dynamic_config(".*", operation, 8, grain)
        for scope in _products_of_a_constant(model):
            recipe.add_quantization_config(scope, TFLOperationName.BATCH_MATMUL, None, AlgorithmName.NO_QUANTIZE)
    else:
        recipe.add_weight_only_config(".*", every, 8, grain)
    for scope in _kept(model, scheme):
        recipe.add_quantization_config(scope, every, None, AlgorithmName.NO_QUANTIZE)
    return recipe


def _calibrate(
    job: ExportJob, inputs: tuple[TensorSpec, ...], model: bytes, recipe: RecipeManager, progress: Progress
) -> dict[str, dict[str, Array]]:
    """Least and greatest value of every tensor over the samples, with the inputs' ranges widened.

    The quantizer's own moving average forgets: on efficientnet_lite0 it costs 5 dB.
    """
    from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    if not job.calibration:
        raise UnsupportedModel("static quantisation without calibration samples")
    progress(f"calibrate on {len(job.calibration)} samples")
    samples = [_as_file_takes(sample, inputs) for sample in job.calibration]
    with quiet():
        calibrator = Calibrator(model, 1, CalibrationMode.CALIBRATION_PROFILER_BASED, min_max_update)
        calibrator.calibrate({SIGNATURE: samples}, recipe)
    # Scalars: of a range [1] the quantizer makes a scale of one rank too many for stored tensors that share it.
    ranges: dict[str, dict[str, Array]] = {
        name: {end: value.reshape(()) for end, value in found.items()}
        for name, found in calibrator.get_model_qsvs().items()
    }
    for name in _input_tensors(model):
        if name in ranges:
            ranges[name] = widen(ranges[name])
    ranges |= _without_infinite_borders(model, ranges)
    if far := [name for name, ends in ranges.items() if not max(-ends["min"], ends["max"]) < FURTHEST]:
        raise UnsupportedModel(_too_far(job, {name: ranges[name] for name in far}))
    return ranges


def _too_far(job: ExportJob, ranges: dict[str, dict[str, Array]]) -> str:
    """What to say of tensors whose ranges have no steps that 8 bits can count; the first of the trace is named."""
    nodes = list(job.program.graph.nodes)
    made = {index: name for name in ranges for index, _ in origins(name)[-1:]}
    name = made[min(made)] if made else next(iter(ranges))
    place = f"'{op_name(nodes[min(made)])}' at {place_of(nodes[min(made)])}" if made else f"tensor '{name}'"
    low, high = (float(ranges[name][end]) for end in ("min", "max"))
    return (
        f"'{job.name}' cannot be int8: {place} gives numbers from {low:.2g} to {high:.2g}, and 255 steps between leave "
        "none for the others. Where a mask stands for minus infinity, -255 does the same behind a softmax: `edgekit "
        "analyze --fix --allow finite_input_masks`, for a device with an NPU, writes the model so. Or take --precision "
        "int8-dynamic, which leaves activations in float"
    )


def _without_infinite_borders(model: bytes, ranges: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    """The ranges of images with a border of -inf, which a maximum never takes: those of the images before."""
    parsed = parse_model(model)
    tensors = parsed.subgraphs[0].tensors
    bordered = [operator for kind, operator in operators(parsed) if kind == "PADV2"]
    names = {tensors[each.outputs[0]].name.decode(): tensors[each.inputs[0]].name.decode() for each in bordered}
    return {
        name: ranges[before]
        for name, before in names.items()
        if name in ranges and before in ranges and np.isneginf(ranges[name]["min"]).any()
    }


def widen(found: dict[str, Array]) -> dict[str, Array]:
    """An input's range [min, max] with zero on one of 256 steps."""
    low, high = zero_on_step(float(found["min"].min()), float(found["max"].max()))
    return {"min": np.full_like(found["min"], low), "max": np.full_like(found["max"], high)}


def _as_file_takes(sample: Arrays, inputs: tuple[TensorSpec, ...]) -> Arrays:
    """A sample in the layouts and dtypes of the file."""
    narrow = {"int64": np.int32, "float64": np.float32}
    turned = {s.name: sample[s.name].transpose(TO_NHWC) if s.layout == "NHWC" else sample[s.name] for s in inputs}
    return {n: np.ascontiguousarray(a, narrow.get(a.dtype.name, a.dtype)) for n, a in turned.items()}


def _input_tensors(model: bytes) -> list[str]:
    graph = parse_model(model).subgraphs[0]
    return [graph.tensors[index].name.decode() for index in graph.inputs]


def _answers(model: bytes) -> list[str]:
    """Scopes of the matrix products whose result is an output of the model."""
    parsed = parse_model(model)
    outputs = set(parsed.subgraphs[0].outputs)
    return [
        _scope(parsed, operator)
        for kind, operator in operators(parsed)
        if kind == "FULLY_CONNECTED" and operator.outputs[0] in outputs
    ]


def _products_of_a_constant(model: bytes) -> Iterator[str]:
    """Scopes of the products whose left side is stored: as int8 the kernel would read its bytes as floats."""
    parsed = parse_model(model)
    graph = parsed.subgraphs[0]
    for kind, operator in operators(parsed):
        if kind == "BATCH_MATMUL" and parsed.buffers[graph.tensors[operator.inputs[0]].buffer].data is not None:
            yield _scope(parsed, operator)


def _kept(model: bytes, scheme: Quantization) -> Iterator[str]:
    """Scopes of the ops of the modules that stay float, and of the activations that read nothing else."""
    parsed = parse_model(model)
    written: set[int] = set()
    for kind, operator in operators(parsed):
        follows = kind in ACTIVATIONS and operator.inputs[0] in written
        if follows or scheme.stays_float(module(parsed, kind, operator) or ""):
            written.update(operator.outputs)
            yield _scope(parsed, operator)


def _scope(parsed: Any, operator: Any) -> str:
    """A pattern that matches this op only: the quantizer knows ops by the tensors they write."""
    names = [parsed.subgraphs[0].tensors[index].name.decode() for index in operator.outputs]
    return f"^{re.escape(';'.join(names) + ';')}$"
