"""Is the compressed artifact faster than the same model in float? Measured on this machine, in turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from edgekit import isolation
from edgekit.benchmark import QUICK_ROUNDS, compare
from edgekit.bundle import MANIFEST, Bundle, Delegation, record_file
from edgekit.compression import Progress
from edgekit.exporting import ExportJob
from edgekit.measurement import AgainstFloat, Comparison, Measurement
from edgekit.types import Value

COSTLY_COPIES = 0.1  # of the time


def against_float(
    bundle: Bundle, job: ExportJob, options: Value, scratch: Path, progress: Progress
) -> tuple[Measurement, AgainstFloat]:
    """Export the job's model once more without quantisation into `scratch`, and time both in alternating rounds.

    The options stay, since both files take the same inputs; `export` ignores those that are for quantised files only.
    """
    progress("export the float model to compare with")
    plain = replace(job, precision="fp32", quantization=None, calibration=(), keep_intermediates=False)
    exported = isolation.export(bundle.artifact.format, plain, scratch, options, progress)
    artifact = msgspec.structs.replace(bundle.artifact, **record_file(scratch, exported.path))
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=(artifact,), assets=())
    (scratch / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    progress("measure on this machine, in turns with the float model")
    found = compare([Bundle(scratch, manifest), bundle], rounds=QUICK_ROUNDS, fresh=False)[0]
    return found.b, _verdict(found, bundle)


def _verdict(found: Comparison, bundle: Bundle) -> AgainstFloat:
    slower = found.ratio_ci.high >= 1
    return AgainstFloat(
        float_p50_s=found.a.latency.p50_s,
        ratio=found.ratio,
        ratio_ci=found.ratio_ci,
        reason=_why_not_faster(bundle.manifest.delegation, found.b) if slower else None,
    )


def _why_not_faster(delegation: Delegation | None, measured: Measurement) -> str:
    """What in the artifact costs the time, or that it must be the kernels."""
    found = []
    if delegation and delegation.fallbacks:
        found.append(f"{len(delegation.fallbacks)} ops fall back from {delegation.unit}")
    if delegation and delegation.float_islands:
        found.append(f"{len(delegation.float_islands)} ops compute in float between conversions")
    if delegation and (delegation.layout_copies_share or 0) > COSTLY_COPIES:
        found.append(f"{delegation.layout_copies_share:.0%} of the time goes into layout copies")
    cpu = measured.before.cpu or measured.before.machine
    return "; ".join(found) or f"{measured.runtime}'s kernels of this precision are no faster than float ones on {cpu}"
