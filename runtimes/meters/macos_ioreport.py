"""Apple silicon: what macOS reckons of CPU, GPU, neural engine and memory, through the package zeus-apple-silicon.

Apple calls these figures estimates that are not for comparing devices.
Source: powermetrics(1); ml-energy/zeus-apple-silicon.
"""

from __future__ import annotations

import platform
import time
from typing import Any

from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, Snapshot, not_here, require
from edgekit.types import Value

DOMAINS = {"cpu": "cpu_total_mj", "gpu": "gpu_mj", "gpu sram": "gpu_sram_mj", "npu": "ane_mj", "dram": "dram_mj"}


class MacosIoreport(Value, frozen=True, kw_only=True):
    """All engines of the chip, added up."""

    @property
    def info(self) -> MeterInfo:
        """The chip and its memory."""
        return MeterInfo(
            id="macos_ioreport",
            provenance="estimated.platform",
            domains=tuple(DOMAINS),
            covers=("cpu", "gpu", "npu", "dram"),
            excludes=("display", "storage", "radios", "supply loss"),
            update_period_s=0.1,
            resolution_j=1e-3,
        )

    def available(self) -> Availability:
        """Whether this is a Mac with the package."""
        if platform.system() != "Darwin":
            return not_here("this is not macOS", "only Apple silicon has it")
        try:
            _monitor()
        except ImportError:
            return not_here("zeus-apple-silicon is not installed", "pip install zeus-apple-silicon")
        except Exception as error:  # the package raises its own types
            return not_here(f"zeus-apple-silicon says '{error}'", "it needs an Apple silicon Mac")
        return HERE_IT_IS

    def open(self) -> Counter:
        """Start counting."""
        require("macos_ioreport", self.available())
        return _Counter(self.info, _monitor())


class _Counter(Counter):
    def __init__(self, info: MeterInfo, monitor: Any) -> None:
        self._info, self._monitor = info, monitor

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        now, found = time.monotonic_ns(), self._monitor.get_cumulative_energy()
        return Snapshot(t_ns=now, joules={d: (getattr(found, field, 0) or 0) / 1e3 for d, field in DOMAINS.items()})


def _monitor() -> Any:
    from zeus_apple_silicon import AppleEnergyMonitor

    return AppleEnergyMonitor()


METER = MacosIoreport
