"""From what was measured on a device to a profile that says so."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np

from edgekit.bandwidth import Bandwidth, CopyRate
from edgekit.energy import NO_METER, Energy
from edgekit.intervals import Interval
from edgekit.measurement import HostState
from edgekit.profile import (
    MOST_FRACTION,
    Calibration,
    ComputeUnit,
    DeviceProfile,
    EfficiencyPoint,
    Memory,
    Number,
    OpClass,
    Power,
)
from edgekit.types import DType, Value

CACHE_SHARE = 0.75  # of a cache, the part that copies may take to be sure to fit
DIGITS = 4  # that a measured figure is written with
UNSTEADY = 0.1  # width of a time's interval, of the time, from which it is named
LEAST_BUSY = 0.1  # of a call's time, where the overheads seem to be more than the rest
Curve = dict[float, float]  # ops of one kernel -> operations per second


class Sample(Value, frozen=True, kw_only=True):
    """One chain of equal kernels, timed."""

    name: str
    dtype: DType
    op_class: OpClass
    ops: float  # of one kernel
    kernels: int
    call_s: float
    call_ci_s: Interval


class Observed(Value, frozen=True, kw_only=True):
    """Everything measured on one device in one run."""

    runtime: str
    runtime_version: str
    threads: int
    host: HostState
    bandwidth: Bandwidth
    energy: Energy = NO_METER  # of calls in a row of one model, and of the time around them
    chains: tuple[Sample, ...]  # of ops with next to nothing to compute
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...] = ()  # what could not be measured, and why

    @property
    def unsteady(self) -> tuple[str, ...]:
        """Models whose times did not settle before theirs was up, with the interval they were left at."""
        return tuple(
            f"{each.name}, {each.dtype}: {1e6 * found.low:.4g} to {1e6 * found.high:.4g} us"
            for each in (*self.chains, *self.samples)
            for found in [each.call_ci_s]
            if found.high - found.low > UNSTEADY * found.low
        )


def calibrated(device: DeviceProfile, unit: ComputeUnit, found: Observed) -> DeviceProfile:
    """A copy of the profile with what was observed; figures that nothing measured stay as they were."""
    date = datetime.now(UTC).date().isoformat()
    host = f"{found.host.cpu or found.host.machine}, {found.host.cores} cores"
    by = f"{found.runtime} {found.runtime_version}, {found.threads} thread(s)"
    key, source = f"calibrate-{found.runtime}", f"edgekit calibrate on {host}, {found.host.system}, {date}, {by}"
    op_s, call_s = overheads(found.chains)
    rates = kernel_rates(found.samples, op_s, call_s)
    peaks = {dtype: _peak(unit, dtype, curves, f"the fastest kernel: {by}", key) for dtype, curves in rates.items()}
    made = Calibration(
        runtime=found.runtime,
        runtime_version=found.runtime_version,
        unit=unit.name,
        host=host,
        date=date,
        threads=found.threads,
        efficiency={dtype: _fractions(curves, peaks[dtype].value) for dtype, curves in rates.items()},
        op_overhead_s=op_s,
        call_overhead_s=call_s,
        source=source,
    )
    changed = msgspec.structs.replace(unit, peak_ops_per_s={**unit.peak_ops_per_s, **peaks})
    return msgspec.structs.replace(
        device,
        unit=tuple(changed if each is unit else each for each in device.unit),
        memory=with_bandwidth(device.memory, found.bandwidth, key),
        power=_with_watts(device.power, found, key),
        calibration=(*(old for old in device.calibration if _stands(old, made, unit, peaks)), made),
        sources={**device.sources, key: source},
    )


def overheads(chains: Sequence[Sample]) -> tuple[float, float]:
    """Seconds of one more op and of one call: slope and intercept of times over lengths, neither below 0."""
    lengths, times = [chain.kernels for chain in chains], [chain.call_s for chain in chains]
    if len(set(lengths)) < 2:
        raise ValueError("overheads need chains of two lengths or more")
    slope, intercept = np.polyfit(lengths, times, 1)
    return max(0.0, _rounded(slope)), max(0.0, _rounded(intercept))


def kernel_rates(samples: Sequence[Sample], op_s: float, call_s: float) -> dict[DType, dict[OpClass, Curve]]:
    """Operations per second by dtype, class and ops of one kernel, with the overheads taken off."""
    rates: dict[DType, dict[OpClass, Curve]] = {}
    for sample in samples:
        busy_s = max(sample.call_s - call_s - op_s * sample.kernels, LEAST_BUSY * sample.call_s)
        curve = rates.setdefault(sample.dtype, {}).setdefault(sample.op_class, {})
        curve[sample.ops] = sample.ops * sample.kernels / busy_s
    return rates


def with_bandwidth(levels: tuple[Memory, ...], found: Bandwidth, source: str) -> tuple[Memory, ...]:
    """The levels with the rates of copies that fit them; caches that only the kernel names come before main memory."""
    *near, main = levels
    known = {level.name for level in levels}
    added = (
        Memory(
            name=name,
            kind="sram",
            size_bytes=Number(value=size, source=source, status="measured", note="as the kernel says"),
        )
        for name, size in found.caches.items()
        if name not in known
    )
    ordered = sorted((*near, *added), key=_size)
    caches = [level for level in ordered if level.unit is None and _size(level)]
    rated: list[Memory] = []
    for level in ordered:
        index = caches.index(level) if level in caches else None
        inner = _size(caches[index - 1]) if index else 0.0
        shared = index == len(caches) - 1  # by the cores, as the last cache mostly is
        rated.append(level if index is None else _rated(level, _fitting(found, level, inner, shared), found, source))
    largest = found.rates[-1]
    beyond = largest.working_set_bytes > (_size(caches[-1]) if caches else 0.0)
    return (*rated, _rated(main, largest if beyond else None, found, source))


def _size(level: Memory) -> float:
    number = level.size_bytes or level.usable_bytes
    return number.value if number else 0.0


def _fitting(found: Bandwidth, level: Memory, inner: float, shared: bool) -> CopyRate | None:
    """The largest copies that a cache holds and the one before it does not; None where no size was between."""
    parts = 1 if shared else found.threads
    sizes = [r for r in found.rates if inner < r.working_set_bytes / found.threads]
    fitting = [r for r in sizes if r.working_set_bytes / parts <= CACHE_SHARE * _size(level)]
    return fitting[-1] if fitting else None


def _rated(level: Memory, rate: CopyRate | None, found: Bandwidth, source: str) -> Memory:
    if rate is None:
        return level
    note = f"copies of {rate.working_set_bytes >> 10} KiB, {found.threads} thread(s), bytes read and written"
    return msgspec.structs.replace(level, sustained_bytes_per_s=_measured(rate.bytes_per_s, source, note))


def _with_watts(power: Power | None, found: Observed, source: str) -> Power | None:
    """Watts of the waiting and of the working machine; figures of another scope than the meter's go."""
    energy = found.energy
    if not (energy.idle_w and energy.gross_j and energy.window_s):
        return power
    seen = ", ".join(energy.covers)
    active_w = energy.gross_j * energy.iterations / energy.window_s
    note = f"meter {energy.meter} [{energy.provenance}]"
    return Power(
        scope=seen,
        idle_w=_measured(energy.idle_w, source, note),
        active_w=_measured(active_w, source, f"{note}, {found.threads} thread(s) at work"),
        active_threads=found.threads,
        budget_w=power.budget_w if power and power.scope == seen else None,
    )


def _peak(unit: ComputeUnit, dtype: DType, curves: dict[OpClass, Curve], note: str, source: str) -> Number:
    """The unit's rate in the profile, or the best one measured where none is known or kernels went far beyond it."""
    best = max(rate for curve in curves.values() for rate in curve.values())
    known = unit.peak_ops_per_s.get(dtype)
    return known if known and best <= MOST_FRACTION * known.value else _measured(best, source, note)


def _fractions(curves: dict[OpClass, Curve], peak: float) -> dict[OpClass, tuple[EfficiencyPoint, ...]]:
    return {
        op_class: tuple(EfficiencyPoint(ops=ops, fraction=_rounded(rate / peak)) for ops, rate in sorted(curve.items()))
        for op_class, curve in curves.items()
    }


def _stands(old: Calibration, new: Calibration, unit: ComputeUnit, peaks: dict[DType, Number]) -> bool:
    """Whether an earlier calibration stays: another unit's, or another way to run with fractions of the same peaks."""
    if old.unit != new.unit:
        return True
    same_peaks = all(peaks.get(dtype, peak) == peak for dtype, peak in unit.peak_ops_per_s.items())
    return same_peaks and (old.runtime, old.threads) != (new.runtime, new.threads)


def _measured(value: float, source: str, note: str) -> Number:
    return Number(value=_rounded(value), source=source, status="measured", note=note)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
