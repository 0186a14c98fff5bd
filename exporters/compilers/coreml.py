"""Apple's coremltools, for the Neural Engine and the other units of Apple's chips: PyTorch's graph in, .mlpackage out.

Only macOS and iOS run the package, and they choose the unit of each op when an app loads it. Here it is read back:
inputs, outputs, weights and ops must be what was asked for. Computing in float16 is judged by the artifact beside it.
Source: coremltools 9, Model.proto, FeatureTypes.proto and MIL.proto.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from edgekit.bundle import Compiled, CompiledCheck
from edgekit.compiling import CompileJob, CompileResult, listed
from edgekit.compression import Progress
from edgekit.errors import EdgekitError, ToolchainMissing, UnsupportedModel, reason_of
from edgekit.exporting import ExportJob
from edgekit.quiet import quiet
from edgekit.toolchains import require
from edgekit.types import Precision, TensorSpec

PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")
OPTIONS: dict[str, Any] = {}
ENVIRONMENT = None
PACKAGE = "model.mlpackage"
TARGET = "iOS17"
FEATURES = {"float32": "FLOAT32", "float64": "FLOAT32", "int32": "INT32", "int64": "INT32"}  # as Core ML takes them
STORED = {"FLOAT16": 2, "FLOAT32": 4}  # bytes of a weight
WANTED = {"fp16": "FLOAT16", "fp32": "FLOAT32"}
DEBUG = "executorch_debug_handle_mapping.json"  # which coremltools leaves beside what belongs to the package


def missing() -> str | None:
    """Why it cannot run here. See `edgekit.compiling.DeviceCompiler`."""
    try:
        require(("coremltools",), "compiler 'coreml'")
    except ToolchainMissing as error:
        return str(error)
    return None


def compile(job: CompileJob, out: Path, progress: Progress) -> CompileResult:
    """Convert, write the package, and read it back. See `edgekit.compiling.DeviceCompiler`."""
    job.require_fixed_sizes("coremltools")
    progress("convert with coremltools")
    with quiet():
        _convert(job.export).save(str(out / PACKAGE))
    (out / PACKAGE / DEBUG).unlink(missing_ok=True)
    said = read_back(out / PACKAGE, job.export)
    compiled = Compiled(
        path=PACKAGE,
        bytes=sum(path.stat().st_size for path in (out / PACKAGE).rglob("*") if path.is_file()),
        compiler="coreml",
        version=version("coremltools"),
        precision=job.export.precision,
        target={"minimum_deployment_target": TARGET},
        delegation=None,
        estimate=None,
        check=CompiledCheck(
            by=None,
            covers=f"read back from the package: {said}",
            excludes="what it answers, since only macOS and iOS run it, and which unit runs each op: Core ML chooses "
            "when an app loads it",
        ),
    )
    return CompileResult(compiled=compiled)


def _convert(job: ExportJob) -> Any:
    """The converted model. Raises `UnsupportedModel` with coremltools' reason."""
    import coremltools as ct

    for spec in (*job.inputs, *job.outputs):
        if spec.dtype not in FEATURES:
            raise UnsupportedModel(f"'{spec.name}' is {spec.dtype}, and Core ML takes float32 and int32: cast it")
    outputs = [
        ct.TensorType(name=spec.name, dtype=np.float32 if spec.dtype.startswith("float") else np.int32)
        for spec in job.outputs
    ]
    try:
        return ct.convert(
            _decomposed(job.program),
            convert_to="mlprogram",
            outputs=outputs,
            minimum_deployment_target=ct.target[TARGET],
            compute_precision=ct.precision.FLOAT32 if job.precision == "fp32" else ct.precision.FLOAT16,
            skip_model_load=True,  # there is nothing here that could load it
        )
    except Exception as error:  # coremltools raises Python's types and its own
        raise UnsupportedModel(f"coremltools cannot convert '{job.name}': {reason_of(error)}") from error


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program in the ATen dialect that coremltools reads."""
    with torch.no_grad():
        found: ExportedProgram = program.run_decompositions({})
    return found


def read_back(package: Path, job: ExportJob) -> str:
    """What a package holds, in words.

    Raises `EdgekitError` where it cannot be read, or where it is not what was asked for.
    """
    import coremltools as ct

    try:
        spec = ct.utils.load_spec(str(package))
        blocks = [block for f in spec.mlProgram.functions.values() for block in f.block_specializations.values()]
    except Exception as error:  # protobuf's, coremltools' and Python's types
        raise EdgekitError(f"'{package}' is not a Core ML package: {reason_of(error)}") from error
    for side, features, specs in (
        ("input", spec.description.input, job.inputs),
        ("output", spec.description.output, job.outputs),
    ):
        found = {feature.name: _feature(feature) for feature in features}
        wanted = {each.name: _wanted(each) for each in specs}
        if found != wanted:
            raise EdgekitError(f"'{package}' has {side}s {found}, and the model has {wanted}: please report it")
    ops = Counter(op.type for block in blocks for op in block.operations if op.type != "const")
    sizes = _weight_bytes(op for block in blocks for op in block.operations)
    if not ops or WANTED[job.precision] not in sizes:
        raise EdgekitError(
            f"'{package}' holds {sum(ops.values())} ops and weights {', '.join(sizes) or 'of no kind'}, where "
            f"{job.precision} was asked for: please report it"
        )
    weights = ", ".join(f"{dtype.lower()} {size / 1e6:.2f} MB" for dtype, size in sizes.items())
    return f"inputs and outputs as the model's, weights {weights}, {sum(ops.values())} ops ({listed(ops)})"


def _wanted(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    return FEATURES[spec.dtype], tuple(int(size) for size in spec.shape)


def _feature(feature: Any) -> tuple[str, tuple[int, ...]]:
    """The dtype and shape of an input or output."""
    from coremltools.proto import FeatureTypes_pb2

    array = feature.type.multiArrayType
    return FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Name(array.dataType), tuple(array.shape)


def _weight_bytes(ops: Iterator[Any]) -> dict[str, int]:
    """Bytes of the values that lie in the package's weight file, by dtype."""
    from coremltools.proto import MIL_pb2

    found: Counter[str] = Counter()
    for op in ops:
        values = [*op.attributes.values()]
        values += [each.value for given in op.inputs.values() for each in given.arguments]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                kind = value.type.tensorType
                dtype = MIL_pb2.DataType.Name(kind.dataType)
                found[dtype] += STORED.get(dtype, 0) * prod(size.constant.size for size in kind.dimensions)
    return dict(found)
