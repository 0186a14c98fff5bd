"""What would become of a model in a format, before converting: every op, its source line, and the fix.

Export errors come back through the same mapping (`explained`).
"""

from __future__ import annotations

from edgekit import isolation, registry
from edgekit.compression import CompressedModel, Progress, silent
from edgekit.errors import EdgekitError, UnsupportedModel
from edgekit.exporting import Exporter, ExportJob, OpSupport
from edgekit.graph import capture
from edgekit.model import Model
from edgekit.planning import EXPORTERS
from edgekit.types import Value

SHOWN = 3  # ops in an error message


class Analysis(Value, frozen=True, kw_only=True):
    """What a format makes of a model; `error` says why it could not be traced at all."""

    format: str
    ops: tuple[OpSupport, ...]
    error: str | None = None

    @property
    def converts(self) -> bool:
        """Whether nothing stands in the way."""
        return self.error is None and all(op.verdict != "needs a rewrite" for op in self.ops)


def analyze(model: Model, format: str, *, progress: Progress = silent) -> Analysis:
    """Ask the format's exporter about every op. Raises `UnknownName`; other trouble is the analysis's `error`."""
    exporter: Exporter = registry.load(EXPORTERS, format)
    try:
        progress("trace the model")
        job = ExportJob.of(CompressedModel(model=model), capture(model), "fp32")
    except UnsupportedModel as error:
        return Analysis(format=format, ops=(), error=str(error))
    refused = "; ".join(map(str, exporter.reject(job, exporter.Options())))
    try:
        return Analysis(format=format, ops=tuple(isolation.support(format, job, progress)), error=refused or None)
    except EdgekitError as error:  # one format's toolchain must not hide what the others say
        return Analysis(format=format, ops=(), error=str(error))


def explained(error: UnsupportedModel, format: str, job: ExportJob, progress: Progress) -> UnsupportedModel:
    """The export error with the ops that need a rewrite and their source lines, where the exporter knows them."""
    progress("look for what stands in the way")
    try:
        ops = isolation.support(format, job, progress)
    except EdgekitError:  # the first error is the one to show
        return error
    blocking = [op for op in ops if op.verdict == "needs a rewrite"][:SHOWN]
    if not blocking:
        return error
    where = "; ".join(f"{op.op} in {op.place}: {op.fix}" for op in blocking)
    return UnsupportedModel(
        f"{error}. Needs a rewrite: {where}. See all with: edgekit analyze --format {format}; "
        "cut the smallest part that fails out with its --save-repro"
    )
