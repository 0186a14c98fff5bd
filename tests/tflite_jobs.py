"""Export jobs for the TFLite tests, and bundles around what they make."""

from __future__ import annotations

from pathlib import Path

from edgekit.bundle import SCHEMA_VERSION, Artifact, Bundle, Manifest, PlanRecord, record_file
from edgekit.compression import Quantization
from edgekit.exporters import tflite
from edgekit.exporting import ExportJob
from edgekit.graph import capture
from edgekit.model import Model
from edgekit.processing import Arrays
from edgekit.types import Precision

STATIC = Quantization(scheme="static", weight_dtype="int8", activation_dtype="int8")
DYNAMIC = Quantization(scheme="dynamic", weight_dtype="int8", activation_dtype="int8")
WEIGHT_ONLY = Quantization(scheme="weight_only", weight_dtype="int8", activation_dtype="float32")
PRECISIONS: dict[str, Precision] = {"static": "int8", "dynamic": "int8-dynamic", "weight_only": "int8-weight-only"}


def job_of(model: Model, scheme: Quantization | None = None, samples: tuple[Arrays, ...] = ()) -> ExportJob:
    """A job as the pipeline makes it."""
    return ExportJob(
        name=model.name,
        program=capture(model),
        inputs=model.inputs,
        outputs=model.outputs,
        precision=PRECISIONS[scheme.scheme] if scheme else "fp32",
        quantization=scheme,
        calibration=samples,
    )


def bundle_of(model: Model, job: ExportJob, out: Path, options: tflite.Options | None = None) -> Bundle:
    """The exported model with a manifest around it, not verified."""
    exported = tflite.export(job, out, options or tflite.Options(), lambda step: None)
    artifact = Artifact(format="tflite", runtime="litert", runtime_version_range=tflite.RUNTIME_VERSION_RANGE,
                        **record_file(out, exported.path))  # fmt: skip
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=model.name,
        source=model.source,
        device="raspberrypi5",
        plan=PlanRecord(device="raspberrypi5", format="tflite", precision=job.precision, passes=()),
        precision=exported.precision,
        inputs=exported.inputs or model.inputs,
        outputs=model.outputs,
        dynamic=model.dynamic,
        artifacts=(artifact,),
        created_utc="2026-01-01T00:00:00+00:00",
    )
    return Bundle(out, manifest)
