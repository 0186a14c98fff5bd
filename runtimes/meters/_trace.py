"""Power over time as a logger recorded it, and the marker that ties its clock to ours."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import InvalidInput
from edgekit.runtimes.meters._columns import columns, watts

Floats = NDArray[np.float64]
CODE = (1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1)  # Barker's of length 13: shifted against itself it nearly vanishes
CHIP_S = 0.25
COARSE_STEPS, STEPS = 10, 50  # of a chip: to which the marker is looked for, and then placed
LEAST_CORRELATION = 0.7


@dataclass(frozen=True)
class Trace:
    """Watts at ascending seconds of the logger's clock; straight lines between."""

    times_s: Floats
    watts: Floats

    @property
    def period_s(self) -> float:
        """The usual time between two samples."""
        return float(np.median(np.diff(self.times_s)))

    def joules(self, at_s: Floats) -> Floats:
        """Energy from the first sample to each of these times, which lie within the trace."""
        steps = np.diff(self.times_s)
        until = np.concatenate(([0.0], np.cumsum(steps * (self.watts[1:] + self.watts[:-1]) / 2)))
        left = np.clip(np.searchsorted(self.times_s, at_s, side="right") - 1, 0, len(steps) - 1)
        rest = at_s - self.times_s[left]
        slope = (self.watts[left + 1] - self.watts[left]) / steps[left]
        return np.asarray(until[left] + rest * (self.watts[left] + slope * rest / 2))


def load(path: Path, volts: float | None = None) -> Trace:
    """A CSV export: names with units in the first line, then numbers. Raises `InvalidInput`."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            header, more = file.readline(), file.readline()
        mark = max(",;\t", key=header.count)
        where = columns(header.split(mark), str(path), volts)
        if "time" not in where:
            raise InvalidInput(f"'{path}' has no column of time with its unit, as in time (s) or Timestamp(ms)")
        if not more.strip():
            raise InvalidInput(f"'{path}' has no rows under the names of its columns")
        used = sorted({column.index for column in where.values()})
        table = np.loadtxt(path, delimiter=mark, skiprows=1, usecols=used, ndmin=2, comments=None, encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:  # of numpy; a file that is not UTF-8 too
        raise InvalidInput(f"'{path}' is not a table of numbers under its first line: {error}") from error
    rows = dict(zip(used, table.T, strict=True))
    times = rows[where["time"].index] * where["time"].scale
    power = np.asarray(watts(rows, where, volts), dtype=np.float64)
    if len(times) < 2 or not np.isfinite(table).all() or (np.diff(times) <= 0).any():
        raise InvalidInput(f"'{path}' needs two rows or more, of finite numbers, at times that only grow")
    return Trace(times, power)


def send_marker() -> int:
    """Load every core in the pattern of `CODE`; returns the monotonic nanosecond at which it began."""
    start = time.monotonic_ns()
    for number, chip in enumerate(CODE):
        until = start + round((number + 1) * CHIP_S * 1e9)
        if chip:
            threads = [threading.Thread(target=_burn, args=(until,)) for _ in range(os.cpu_count() or 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        time.sleep(max(0, until - time.monotonic_ns()) / 1e9)
    return start


def find_marker(trace: Trace) -> float | None:
    """When the last marker of a trace began, on the logger's clock; None where none is plain to see."""
    if trace.period_s > CHIP_S / 2:
        return None
    coarse = max(CHIP_S / COARSE_STEPS, trace.period_s)  # averages noise away
    begins, fit = _correlation(trace, float(trace.times_s[0]), float(trace.times_s[-1]), coarse)
    high = np.flatnonzero(fit >= max(LEAST_CORRELATION, 0.9 * fit.max(initial=0)))
    if not len(high):
        return None
    last = high[high > high[-1] - CHIP_S / coarse]  # of the last peak
    near = float(begins[last[np.argmax(fit[last])]])
    start, end = max(near - coarse, float(trace.times_s[0])), near + coarse + len(CODE) * CHIP_S
    begins, fit = _correlation(trace, start, min(end, float(trace.times_s[-1])), max(CHIP_S / STEPS, trace.period_s))
    return float(begins[np.argmax(fit)]) if len(fit) else near


def _correlation(trace: Trace, start: float, end: float, step: float) -> tuple[Floats, Floats]:
    """Times at which a marker could begin, and how well it fits there: 1 for one without noise."""
    grid = np.arange(start, end, step)
    power, chip = np.diff(trace.joules(grid)) / step, CHIP_S / step
    width = round(len(CODE) * chip)
    if len(power) < width:
        return np.empty(0), np.empty(0)
    template = np.array([CODE[min(int(k / chip), len(CODE) - 1)] for k in range(width)], dtype=np.float64)
    template -= template.mean()
    power = power - power.mean()
    mean, square = (np.convolve(values, np.full(width, 1 / width), "valid") for values in (power, power**2))
    spread = np.sqrt(np.maximum(square - mean**2, 1e-24)) * width * template.std()
    return grid[: len(mean)], np.correlate(power, template, "valid") / spread


def _burn(until_ns: int) -> None:
    block = bytes(1 << 20)
    while time.monotonic_ns() < until_ns:
        hashlib.sha256(block)  # lets go of the interpreter's lock
