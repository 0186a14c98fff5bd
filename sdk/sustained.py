"""Run one bundle for minutes without a pause: what its calls take when the machine is as hot as they make it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import msgspec

from edgekit.benchmark import finish, measurement, warm_up
from edgekit.bundle import Bundle
from edgekit.energy import NO_METER, Counter, Energy, Load, MeterInfo, Snapshot, Window, reading
from edgekit.energy_window import calls_until
from edgekit.errors import DeviceLost, InvalidInput, MeterMissing
from edgekit.measurement import Measurement, Sustained
from edgekit.meters import EnergyRequest
from edgekit.place import HERE, Place, Worker

ANSWER_S = 1.0  # of calls in one answer of the worker: time enough to hide the way there, little enough to be stopped
SHOWN_EVERY = 5  # answers
MINUTE_S = 60.0
OFF = EnergyRequest()

Chunk = tuple[float, tuple[float, ...]]  # seconds since the start when its answer came, and its calls


def sustain(
    bundle: Bundle | str | Path,
    seconds: float,
    *,
    energy: EnergyRequest = OFF,
    threads: int = 1,
    place: Place = HERE,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[str], None] = lambda step: None,
) -> Measurement:
    """Warm up, then call without a pause for `seconds`, or until `stopped` says so after an answer of a second.

    Where `energy` asks for it a meter is read after each answer. Raises `MeterMissing`.
    """
    if not seconds > 0:
        raise InvalidInput(f"a sustained run needs a time above 0 s, not {seconds:g}")
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    progress(f"warm up {found.path}")
    with Worker(found, threads, place) as worker, _Watched(worker, energy) as meter:
        warmed = warm_up(worker)
        chunks: list[Chunk] = []
        call_s = worker.times(1)[0]
        meter.mark(calls_until(worker.times, call_s))
        meter.take()
        start = perf_counter()
        while not chunks or (chunks[-1][0] < seconds and not stopped()):
            try:
                times = worker.times(max(1, round(ANSWER_S / call_s)))
            except DeviceLost as lost:
                raise DeviceLost(f"{lost}{_so_far(chunks, seconds)}") from lost
            call_s = statistics.median(times)
            chunks.append((perf_counter() - start, times))
            meter.take()
            if len(chunks) % SHOWN_EVERY == 1:
                progress(f"p50 {1e3 * call_s:.2f} ms, {max(0.0, seconds - chunks[-1][0]):.0f} s left of {seconds:.0f}")
        meter.mark(calls_until(worker.times, call_s))
        measured = meter.read(summary(chunks, seconds), sum(len(times) for _, times in chunks))
        run = finish(worker, warmed, (tuple(time for _, times in chunks for time in times),))
    return msgspec.structs.replace(measurement(found, threads, [run]), sustained=measured[0], energy=measured[1])


class _Watched:
    """A meter beside the calls of a worker; where none was asked for or none is there, nothing but the reason."""

    def __init__(self, worker: Worker, request: EnergyRequest) -> None:
        self._nothing, self._taken = NO_METER, list[Snapshot]()
        self._counter: Counter | None = None
        if request.mode != "off":
            try:
                self._counter = worker.watch(request)
            except MeterMissing as error:
                if request.mode == "measured":
                    raise
                self._nothing = msgspec.structs.replace(NO_METER, reason=str(error))

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._counter:
            self._counter.close()

    def mark(self, load: Load) -> None:
        """As `Counter.mark`."""
        if self._counter:
            self._counter.mark(load)

    def take(self) -> None:
        """Read the meter now."""
        if self._counter:
            self._taken.append(self._counter.read())

    def read(self, found: Sustained, calls: int) -> tuple[Sustained, Energy]:
        """The watts of the first and the last minute, and the joules of a call over the whole run."""
        if self._counter is None:
            return found, self._nothing
        marks = self._counter.settle(self._taken)
        info, ended_s = self._counter.info, (marks[-1].t_ns - marks[0].t_ns) / 1e9
        window = Window(marks=(marks[0], marks[-1]), calls=(calls,), edge_s=info.update_period_s)
        energy = reading(info, window)
        return msgspec.structs.replace(
            found,
            joules=None if energy.gross_j is None else energy.gross_j * calls,
            minute_1_w=mean_watts(info, marks, 0, found.window_s),
            final_w=mean_watts(info, marks, ended_s - found.window_s, ended_s),
        ), energy


def mean_watts(info: MeterInfo, marks: Sequence[Snapshot], after_s: float, until_s: float) -> float | None:
    """Mean power between the first and the last snapshot of a time; None where the meter moved too seldom in it."""
    first_ns = marks[0].t_ns
    inside = [mark for mark in marks if after_s <= (mark.t_ns - first_ns) / 1e9 <= until_s]
    if len(inside) < 2:
        return None
    found = reading(info, Window(marks=(inside[0], inside[-1]), calls=(1,), edge_s=info.update_period_s))
    return None if found.gross_j is None or found.window_s is None else found.gross_j / found.window_s


def _so_far(chunks: Sequence[Chunk], asked_s: float) -> str:
    """What a run that was cut had found, for who will not get a measurement."""
    if not chunks:
        return ""
    found = summary(chunks, asked_s)
    return (
        f"; p50 {1e3 * found.minute_1_p50_s:.2f} ms at first and {1e3 * found.final_p50_s:.2f} ms "
        f"after {found.lasted_s:.0f} of {asked_s:.0f} s"
    )


def summary(chunks: Sequence[Chunk], asked_s: float) -> Sustained:
    """The medians of the first and the last minute, and of each minute that was begun; needs one chunk."""
    lasted = chunks[-1][0]
    window = min(MINUTE_S, lasted / 2)
    minutes = int((chunks[-1][0] - 1e-9) // MINUTE_S) + 1
    return Sustained(
        asked_s=asked_s,
        lasted_s=lasted,
        window_s=window,
        minute_1_p50_s=_median(chunks, 0, window) or statistics.median(chunks[0][1]),
        final_p50_s=_median(chunks, lasted - window, lasted) or statistics.median(chunks[-1][1]),
        minutes_p50_s=tuple(
            found for n in range(minutes) if (found := _median(chunks, n * MINUTE_S, (n + 1) * MINUTE_S))
        ),
    )


def _median(chunks: Sequence[Chunk], after: float, until: float) -> float | None:
    """The median call of the chunks that ended in this time; None where none did."""
    times = [time for end, times in chunks if after < end <= until for time in times]
    return statistics.median(times) if times else None
