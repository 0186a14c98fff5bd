"""No meter: energy stays unknown, and says that this was chosen."""

from __future__ import annotations

import time

from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, Snapshot
from edgekit.types import Value


class Null(Value, frozen=True, kw_only=True):
    """Measures nothing; for trying out what surrounds a measurement."""

    @property
    def info(self) -> MeterInfo:
        """Nothing."""
        return MeterInfo(
            id="null", provenance="unavailable", domains=(), covers=(), excludes=(), update_period_s=0.01,
            resolution_j=1e-9,
        )  # fmt: skip

    def available(self) -> Availability:
        """Always, when asked for by name."""
        return HERE_IT_IS

    def open(self) -> Counter:
        """A counter that never moves."""
        return _Counter()


class _Counter(Counter):
    @property
    def info(self) -> MeterInfo:
        return Null().info

    def read(self) -> Snapshot:
        return Snapshot(t_ns=time.monotonic_ns(), joules={})


METER = Null
