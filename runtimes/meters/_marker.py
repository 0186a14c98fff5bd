"""Patterns of load that tie a logger's clock to ours: one before the work and one after it.

Two of them also tell how fast the logger's clock runs, and that nothing between is missing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from edgekit.energy import Load
from edgekit.runtimes.meters._trace import Floats, Trace

CODE = ((5, 2), (2, 1), (1, 1), (1, 0))  # chips of load and of rest: Barker's code of length 13
CHIP_S = 0.25
COARSE_STEPS, STEPS = 10, 50  # of a chip: to which a marker is looked for, and then placed
LEAST_CORRELATION = 0.7
MOST_DRIFT = 5e-3  # of a logger's clock: the worst are resonators of half a percent


@dataclass(frozen=True)
class Marker:
    """When the load began and ended, in monotonic nanoseconds: calls may have held it longer than was asked."""

    loads_ns: tuple[tuple[int, int], ...]

    @property
    def begin_ns(self) -> int:
        """The first load's begin."""
        return self.loads_ns[0][0]

    @property
    def seconds(self) -> float:
        """From the first load to the last one's end."""
        return (self.loads_ns[-1][1] - self.begin_ns) / 1e9

    def shape(self, step: float) -> Floats:
        """The share of load in each step of so many seconds."""
        ends = np.arange(round(self.seconds / step) + 1) * step
        busy = np.zeros(len(ends))
        for begin, end in self.loads_ns:
            busy += np.clip(ends, (begin - self.begin_ns) / 1e9, (end - self.begin_ns) / 1e9)
        return np.asarray(np.diff(busy) / step)


def send_marker(load: Load) -> Marker:
    """Put the pattern of `CODE` on the device."""
    loads = []
    for work, rest in CODE:
        begin = time.monotonic_ns()
        load(begin + round(1e9 * work * CHIP_S))
        loads.append((begin, time.monotonic_ns()))
        time.sleep(rest * CHIP_S)
    return Marker(tuple(loads))


def find_markers(trace: Trace, first: Marker, last: Marker) -> tuple[float, float] | None:
    """When two markers began on the logger's clock; None where no two are plain to see as far apart as they were sent.

    Of several such pairs the one that fits best.
    """
    if trace.period_s > CHIP_S / 2:
        return None
    apart = (last.begin_ns - first.begin_ns) / 1e9
    slack = max(CHIP_S / 2, MOST_DRIFT * apart)
    pairs = [
        (fit_a + fit_b, a, b)
        for (a, fit_a), (b, fit_b) in product(_candidates(trace, first), _candidates(trace, last))
        if abs(b - a - apart) <= slack
    ]
    if not pairs:
        return None
    _, begin, end = max(pairs)
    return _placed(trace, first, begin), _placed(trace, last, end)


def _candidates(trace: Trace, marker: Marker) -> list[tuple[float, float]]:
    """Where a marker may begin, each the best of its neighbourhood, and how well it fits there."""
    step = max(CHIP_S / COARSE_STEPS, trace.period_s)  # averages noise away
    begins, fit = _correlation(trace, marker, float(trace.times_s[0]), float(trace.times_s[-1]), step)
    near = max(1, round(CHIP_S / step))
    return [
        (float(begins[k]), float(fit[k]))
        for k in np.flatnonzero(fit >= LEAST_CORRELATION)
        if fit[k] == fit[max(0, k - near) : k + near + 1].max()
    ]


def _placed(trace: Trace, marker: Marker, near: float) -> float:
    """The begin of a marker in fine steps."""
    coarse = max(CHIP_S / COARSE_STEPS, trace.period_s)
    start = max(near - coarse, float(trace.times_s[0]))
    end = min(near + coarse + marker.seconds, float(trace.times_s[-1]))
    begins, fit = _correlation(trace, marker, start, end, max(CHIP_S / STEPS, trace.period_s))
    return float(begins[np.argmax(fit)]) if len(fit) else near


def _correlation(
    trace: Trace, marker: Marker, start: float, end: float, step: float
) -> tuple[Floats, NDArray[np.float64]]:
    """Times at which a marker could begin, and how well it fits there: 1 for one without noise."""
    grid, template = np.arange(start, end, step), marker.shape(step)
    power, width = np.diff(trace.joules(grid)) / step, len(template)
    if len(power) < width:
        return np.empty(0), np.empty(0)
    template = template - template.mean()
    power = power - power.mean()
    mean, square = (np.convolve(values, np.full(width, 1 / width), "valid") for values in (power, power**2))
    spread = np.sqrt(np.maximum(square - mean**2, 1e-24)) * width * template.std()
    return grid[: len(mean)], np.correlate(power, template, "valid") / spread
