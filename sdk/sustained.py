"""Run one bundle for minutes without a pause: what its calls take when the machine is as hot as they make it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import msgspec

from edgekit.benchmark import finish, measurement, warm_up
from edgekit.bundle import Bundle
from edgekit.errors import DeviceLost, InvalidInput
from edgekit.measurement import Measurement, Sustained
from edgekit.place import HERE, Place, Worker

ANSWER_S = 1.0  # of calls in one answer of the worker: time enough to hide the way there, little enough to be stopped
SHOWN_EVERY = 5  # answers
MINUTE_S = 60.0

Chunk = tuple[float, tuple[float, ...]]  # seconds since the start when its answer came, and its calls


def sustain(
    bundle: Bundle | str | Path,
    seconds: float,
    *,
    threads: int = 1,
    place: Place = HERE,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[str], None] = lambda step: None,
) -> Measurement:
    """Warm up, then call without a pause for `seconds`, or until `stopped` says so after an answer of a second."""
    if not seconds > 0:
        raise InvalidInput(f"a sustained run needs a time above 0 s, not {seconds:g}")
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    progress(f"warm up {found.path}")
    with Worker(found, threads, place) as worker:
        warmed = warm_up(worker)
        chunks: list[Chunk] = []
        call_s, start = worker.times(1)[0], perf_counter()
        while not chunks or (chunks[-1][0] < seconds and not stopped()):
            try:
                times = worker.times(max(1, round(ANSWER_S / call_s)))
            except DeviceLost as lost:
                raise DeviceLost(f"{lost}{_so_far(chunks, seconds)}") from lost
            call_s = statistics.median(times)
            chunks.append((perf_counter() - start, times))
            if len(chunks) % SHOWN_EVERY == 1:
                progress(f"p50 {1e3 * call_s:.2f} ms, {max(0.0, seconds - chunks[-1][0]):.0f} s left of {seconds:.0f}")
        run = finish(worker, warmed, (tuple(time for _, times in chunks for time in times),))
    return msgspec.structs.replace(measurement(found, threads, [run]), sustained=summary(chunks, seconds))


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
