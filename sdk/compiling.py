"""The contract of a vendor's compiler: a module in `exporters/compilers/`; its file name is the compiler's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from edgekit.bundle import Compiled
from edgekit.profile import ComputeUnit

COMPILERS = "edgekit.exporters.compilers"


class DeviceCompiler(Protocol):
    """What a module in `exporters/compilers/` offers. The profile says what it reads, in which precision."""

    OPTIONS: dict[str, Any]  # of the exporter that writes what it reads, so that nothing is left to the host's CPU

    def compile(self, artifact: Path, unit: ComputeUnit, out: Path) -> Compiled:
        """Write what the unit runs into the folder `out`, with where each op went and what the compiler expects of it.

        Raises `ToolchainMissing` where the compiler is not installed, and `EdgekitError` with its words where it fails.
        """
