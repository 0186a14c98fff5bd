"""TFLite through litert_torch, quantised by ai-edge-quantizer.

Every tensor is called after the module and the traced node it came from, in place of the trace's own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgekit.compression import Progress
from edgekit.exporters._tflite_conversion import convert, file_inputs, toolchain
from edgekit.exporters._tflite_expose import with_module_outputs
from edgekit.exporters._tflite_file import read_precision
from edgekit.exporters._tflite_quantization import quantize
from edgekit.exporters._tflite_support import op_verdicts
from edgekit.exporting import Exported, ExportJob, OpSupport, Refusal
from edgekit.types import Precision, TensorSpec, Value

RUNTIME = "litert"
RUNTIME_VERSION_RANGE = "ai-edge-litert>=2.1,<3"
DISTRIBUTIONS = ("torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")
REPRO = "import litert_torch\n\nlitert_torch.convert(program.module(), *program.example_inputs)"
PRECISIONS: tuple[Precision, ...] = ("fp32", "lossless", "int8", "int8-dynamic", "int8-weight-only")
FILE = "model.tflite"


class Options(Value, frozen=True, kw_only=True):
    """Choices of the TFLite exporter."""

    layout: Literal["NCHW", "NHWC"] = "NCHW"  # of four-dimensional inputs; cameras and Android deliver NHWC
    integer_io: bool = False  # int8 inputs and outputs in an int8 file, for hardware without float; no part of floats


def reject(job: ExportJob, options: Options) -> list[Refusal]:
    """Options that this job cannot follow; TFLite itself takes every dtype and shape a `Model` can have."""
    refused = []
    if options.layout == "NHWC" and {"tokens", "position", "key_0"} <= {spec.name for spec in job.inputs}:
        reason = "a language model takes no images, and its four-dimensional inputs are its cache"
        refused.append(Refusal(where="layout=NHWC", reason=reason, fix="leave the option out"))
    if options.integer_io and (job.quantization is None or job.quantization.scheme != "static"):
        reason = f"only static int8 has integers for inputs and outputs, and this is {job.precision}"
        refused.append(Refusal(where="integer_io", reason=reason, fix="take --precision int8, or leave the option out"))
    return refused


def support(job: ExportJob) -> list[OpSupport]:
    """What becomes of every op, from the converter's tables and what LiteRT was seen to do."""
    return op_verdicts(job)


def export(job: ExportJob, out: Path, options: Options, progress: Progress) -> Exported:
    """Convert, quantise as decided, and read back what the file holds."""
    progress("convert to TFLite")
    inputs = file_inputs(job, options.layout)
    model = convert(job, options.layout)
    kept = (_keep(model, out),) if job.keep_intermediates else ()
    (out / FILE).write_bytes(quantize(job, inputs, model, options.integer_io, progress))
    return Exported(
        path=FILE,
        precision=read_precision(out / FILE, job.precision),
        inputs=inputs if inputs != job.inputs else None,
        intermediates=kept,
    )


def expose(job: ExportJob, artifact: Path, out: Path, options: Options) -> Mapping[str, TensorSpec]:
    """Write a copy of `artifact` at `out` that also returns what modules returned, dequantised by the runtime."""
    toolchain()
    content, exposed = with_module_outputs(job, artifact.read_bytes())
    out.write_bytes(content)
    return exposed


def _keep(model: bytes, out: Path) -> str:
    """The float model before quantisation, as one more file of the bundle."""
    kept = "intermediates/float.tflite"
    (out / kept).parent.mkdir()
    (out / kept).write_bytes(model)
    return kept
