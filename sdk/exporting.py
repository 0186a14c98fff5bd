"""The contract of an exporter: a module in `exporters/`; its file name is the format's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit.bundle import WeightPrecision
from edgekit.compression import CompressedModel, Progress
from edgekit.profile import DeviceProfile
from edgekit.types import Precision, TensorSpec, Value

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Refusal(Value, frozen=True, kw_only=True):
    """Something in a model that a format cannot take: where, why, and what to do."""

    where: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote into the folder it was given."""

    path: str  # the model file, relative to the folder
    external_data: tuple[str, ...]
    precision: WeightPrecision


class Exporter(Protocol):
    """What a module in `exporters/` offers. Its toolchain is imported inside `export` only."""

    RUNTIME: str  # the runtime that verifies what it writes
    RUNTIME_VERSION_RANGE: str
    DISTRIBUTIONS: tuple[str, ...]  # packages whose versions the manifest records
    Options: type[Value]

    def reject(self, model: CompressedModel, device: DeviceProfile) -> list[Refusal]:
        """What this format cannot express, before any work."""

    def export(
        self,
        model: CompressedModel,
        program: ExportedProgram,
        precision: Precision,
        out: Path,
        options: Value,
        progress: Progress,
    ) -> Exported:
        """Write the model into `out`. Raises `UnsupportedModel`, `ToolchainMissing`."""

    def expose(self, artifact: Path, out: Path) -> Mapping[str, TensorSpec]:
        """Write a copy of the artifact at `out` that also returns module outputs: module path -> its tensor."""
