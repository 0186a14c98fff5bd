"""The contract of a vendor's compiler: a module in `exporters/compilers/`; its file name is the compiler's name.

A compiler runs in a process of its own (`edgekit.isolation`), with the packages of its environment in front where it
has one (`edgekit.environments`). What it makes does not run here: it says how far that was checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekit.bundle import Compiled
from edgekit.compression import Progress
from edgekit.errors import UnsupportedModel
from edgekit.exporting import ExportJob
from edgekit.processing import Arrays
from edgekit.profile import ComputeUnit
from edgekit.types import Precision

COMPILERS = "edgekit.exporters.compilers"


@dataclass(frozen=True, eq=False, kw_only=True)
class CompileJob:
    """What a compiler is given: what the exporter wrote, and what it was written from."""

    export: ExportJob  # the traced program with its float weights, and the calibration samples
    artifact: Path
    unit: ComputeUnit  # of the device profile
    samples: tuple[Arrays, ...]  # real inputs in the model's own layout, to check with

    def require_fixed_sizes(self, compiler: str) -> None:
        """Raise `UnsupportedModel` for a model whose sizes are not all fixed."""
        if self.export.dynamic:
            names = ", ".join(f"--dynamic {dim.axis_name}" for dim in self.export.dynamic)
            raise UnsupportedModel(f"{compiler} compiles fixed sizes only: export '{self.export.name}' without {names}")


@dataclass(frozen=True, eq=False, kw_only=True)
class CompileResult:
    """What a compiler made, and what stood in for the device answered to each sample; None where nothing could."""

    compiled: Compiled  # `check.parity` is filled in by who asked, from the answers
    answers: tuple[Arrays, ...] | None = None


class DeviceCompiler(Protocol):
    """What a module in `exporters/compilers/` offers. The profile names it and says which format goes in."""

    PRECISIONS: tuple[Precision, ...]  # of the artifact that it takes
    OPTIONS: dict[str, Any]  # of the exporter that writes the artifact, so that the compiler can read it
    ENVIRONMENT: (
        str | None
    )  # name of the set of packages (`edgekit.environments`) it needs in front of the installed packages

    def missing(self) -> str | None:
        """Why it cannot run here, with the command that changes this; None where it can."""

    def compile(self, job: CompileJob, out: Path, progress: Progress) -> CompileResult:
        """Write what the unit runs into the folder `out`, with where each op went and what the compiler expects of it.

        Raises `ToolchainMissing` where the compiler is not installed, `UnsupportedModel` that names what it cannot
        take, and `EdgekitError` with its words where it fails.
        """


def named(outputs: list[Any], job: ExportJob) -> Arrays:
    """Answers under the names of the model's outputs."""
    return dict(zip((spec.name for spec in job.outputs), outputs, strict=True))


def listed(counts: Mapping[str, int]) -> str:
    """`50 conv, 33 clip`, the most frequent first."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1]))
