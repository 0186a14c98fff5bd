"""Windows of energy: the same edges for every meter.

An edge is: the device is done, then the clock, then the meter. A window is long enough that the meter's period hardly
counts, and where a counter's steps can be seen, work goes on until one, so that the edge lies on it. Where the counter
moved less often than its period says, the work is done again for longer.
"""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import threading
import time
from collections.abc import Callable

import msgspec

from edgekit.energy import LEAST_UPDATES as REFUSED_BELOW
from edgekit.energy import Counter, Energy, Load, Meter, MeterInfo, Snapshot, Window, reading

TRIALS = 5
LEAST_S, LEAST_UPDATES, LEAST_CALLS = 2.0, 50, 10  # of a window
MOST_LONGER = 10.0  # times a window, for a counter that moves less often than it says
IDLE_S = 10.0
CALIBRATION_S = 0.2
LOAD_S = 0.02  # of calls between two looks at the clock
ROUND_S, ROUNDS = 0.5, 3  # of calls with and without the sampler
NOTABLE_OVERHEAD = 0.02

Run = Callable[[int], object]  # does so many inferences
Sync = Callable[[], None]


def nothing() -> None:
    """The sync of a device that has finished when its call returns."""


def measure_energy(meter: Meter, run: Run, *, sync: Sync = nothing, idle_s: float = IDLE_S) -> Energy:
    """Joules of one inference: five trials in a row, between two stretches in which nothing runs.

    Warm up first. `idle_s` is the least for each idle stretch; 0 leaves them out. Raises `MeterMissing`.
    """
    each_s = seconds_each(run, sync)
    flags = _overhead_flags(_sampler_overhead(meter, run, each_s)) if _samples_here(meter.info) else ()
    counter = meter.open()
    try:
        window = take_window(counter, run, each_s, sync=sync, idle_s=idle_s)
        return reading(counter.info, msgspec.structs.replace(window, flags=flags))
    finally:
        counter.close()


def take_window(
    counter: Counter, run: Run, each_s: float, *, sync: Sync = nothing, idle_s: float = IDLE_S, least_s: float = LEAST_S
) -> Window:
    """The snapshots of a window around calls that take about `each_s` seconds, of `least_s` seconds or more."""
    window_s = max(LEAST_UPDATES * counter.info.update_period_s, least_s, LEAST_CALLS * each_s)
    edges, load = _Edges(counter, run, sync, each_s), calls_until(run, each_s)
    counter.mark(load)
    idle = [edges.idle(max(idle_s, window_s))] if idle_s else []
    marks, calls = edges.trials(window_s)
    if (seen := _updates(marks)) is not None and seen < REFUSED_BELOW:
        marks, calls = edges.trials(window_s * min(MOST_LONGER, LEAST_UPDATES / max(1, seen)))
    idle += [edges.idle(max(idle_s, window_s))] if idle_s else []
    counter.mark(load)
    taken = counter.settle([*marks, *(end for stretch in idle for end in stretch)])
    ends = taken[len(marks) :]
    return Window(
        marks=taken[: len(marks)],
        calls=tuple(calls),
        idle=tuple((ends[k], ends[k + 1]) for k in range(0, len(ends), 2)),
        edge_s=edges.step_s if edges.aligned else counter.info.update_period_s,
    )


def calls_until(run: Run, each_s: float) -> Load:
    """Keep a device at work with calls of `each_s` seconds."""
    few = max(1, int(LOAD_S / each_s))

    def load(until_ns: int) -> None:
        while time.monotonic_ns() < until_ns:
            run(few)

    return load


def all_cores(until_ns: int) -> None:
    """Keep every core of this machine at work."""
    threads = [threading.Thread(target=_burn, args=(until_ns,)) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _burn(until_ns: int) -> None:
    block = bytes(1 << 20)
    while time.monotonic_ns() < until_ns:
        hashlib.sha256(block)  # lets go of the interpreter's lock


def _updates(marks: list[Snapshot]) -> int | None:
    """How often the counter moved; None where it does not know."""
    first, last = marks[0].updates, marks[-1].updates
    return None if first is None or last is None else last - first


class _Edges:
    """Takes snapshots of one counter around work, and knows whether they lie on its steps."""

    def __init__(self, counter: Counter, run: Run, sync: Sync, each_s: float) -> None:
        self._counter, self._run, self._sync, self._each_s = counter, run, sync, each_s
        self._few = max(1, int(counter.info.update_period_s / 10 / each_s))
        self.step_s = self._few * each_s  # how late a step of the counter may be seen
        self.aligned = counter.info.provenance == "measured.counter" and self.step_s < counter.info.update_period_s / 2

    def trials(self, seconds: float) -> tuple[list[Snapshot], list[int]]:
        """The edges of `TRIALS` trials in a row that last so long together, and the calls in each."""
        first, _ = self._edge()
        marks, counts = [first], []
        for number in range(TRIALS):
            due_ns, mark, calls = first.t_ns + round(1e9 * seconds * (number + 1) / TRIALS), marks[-1], 0
            while mark.t_ns < due_ns:
                more = math.ceil((due_ns - mark.t_ns) / 1e9 / self._each_s)
                self._run(more)
                mark, calls = self._read(), calls + more
            marks.append(mark)
            counts.append(calls)
        marks[-1], more = self._edge()
        counts[-1] += more
        return marks, counts

    def idle(self, seconds: float) -> tuple[Snapshot, Snapshot]:
        """Two snapshots with nothing between."""
        first = self._read()
        time.sleep(seconds)
        return first, self._read()

    def _edge(self) -> tuple[Snapshot, int]:
        """A snapshot at the counter's next step, and the calls until then; at once where steps cannot be seen."""
        before, calls = self._read(), 0
        if not self.aligned:
            return before, calls
        end_ns = before.t_ns + 5e9 * self._counter.info.update_period_s
        while all((now := self._read()).joules[name] == before.joules[name] for name in self._counter.info.domains):
            if now.t_ns > end_ns:
                self.aligned = False
                break
            self._run(self._few)
            calls += self._few
        return now, calls

    def _read(self) -> Snapshot:
        self._sync()
        return self._counter.read()


def seconds_each(run: Run, sync: Sync = nothing) -> float:
    """The time of one call, from a burst that is long enough to tell."""
    calls = 1
    while True:
        sync()
        start = time.perf_counter()
        run(calls)
        sync()
        spent = time.perf_counter() - start
        if spent >= CALIBRATION_S:
            return spent / calls
        calls *= 2


def _samples_here(info: MeterInfo) -> bool:
    return info.runs_on == "board" and info.provenance == "measured.sampled"


def _sampler_overhead(meter: Meter, run: Run, each_s: float) -> float:
    """By how much a sampling meter slows calls: rounds with and without it, in turns."""
    calls = max(1, math.ceil(ROUND_S / each_s))
    alone, sampled = [], []
    for _ in range(ROUNDS):
        alone.append(_timed(run, calls))
        counter = meter.open()
        try:
            sampled.append(_timed(run, calls))
        finally:
            counter.close()
    return statistics.median(sampled) / statistics.median(alone) - 1


def _timed(run: Run, calls: int) -> float:
    start = time.perf_counter()
    run(calls)
    return time.perf_counter() - start


def _overhead_flags(overhead: float) -> tuple[str, ...]:
    notable = ("latency_energy_same_run=false",) if overhead > NOTABLE_OVERHEAD else ()
    return (f"sampler_overhead={overhead:+.1%}", *notable)
