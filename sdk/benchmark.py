"""Measure bundles, each in a fresh process that holds the runtime half and one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.errors import InvalidInput
from edgekit.measurement import Comparison, Measurement, bootstrap_ratio, verdict
from edgekit.place import HERE, Place, Worker

CALLS = 300  # enough for a p99
ROUNDS = 30
QUICK_ROUNDS = 10  # where an export measures on its way
ROUND_CALLS = 10


def measure(
    bundle: Bundle | str | Path,
    *,
    threads: int = 1,
    calls: int = CALLS,
    place: Place = HERE,
    progress: Callable[[str], None] = lambda step: None,
) -> Measurement:
    """Load, first run, warm-up until the median is steady, then `calls` timed calls on the first golden sample.

    A language model then also writes texts until `calls` times between tokens were measured.
    """
    if calls < 1:
        raise InvalidInput(f"calls must be 1 or more, not {calls}")
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    progress(f"measure {found.path}")
    with Worker(found, threads, place) as worker:
        worker.warm_up()
        times = worker.times(calls)
        return worker.finish(times, worker.text_times(calls) if found.manifest.generation else None)


def compare(
    bundles: Sequence[Bundle | str | Path],
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
    place: Place = HERE,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Comparison]:
    """Measure bundles in alternating rounds of calls and compare each with the first.

    The order turns round every time, so that drift of the machine falls on all alike.
    """
    if len(bundles) < 2:
        raise InvalidInput("compare needs two bundles or more")
    if rounds < 6:
        raise InvalidInput(f"rounds must be 6 or more for a confidence interval, not {rounds}")
    found = [bundle if isinstance(bundle, Bundle) else Bundle.open(bundle) for bundle in bundles]
    workers: list[Worker] = []
    try:
        for bundle in found:
            workers.append(Worker(bundle, threads, place))
            workers[-1].warm_up()
        times: list[list[list[float]]] = [[] for _ in workers]
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            order = range(len(workers)) if number % 2 == 0 else reversed(range(len(workers)))
            for index in order:
                times[index].append(workers[index].times(ROUND_CALLS))
        measured = [w.finish([t for chunk in chunks for t in chunk]) for w, chunks in zip(workers, times, strict=True)]
    finally:
        for worker in workers:
            worker.stop()
    return [_comparison(measured[0], measured[i], times[0], times[i]) for i in range(1, len(measured))]


def _comparison(a: Measurement, b: Measurement, times_a: list[list[float]], times_b: list[list[float]]) -> Comparison:
    ratio, interval = bootstrap_ratio(list(zip(times_a, times_b, strict=True)))
    said = verdict(a.bundle, b.bundle, ratio, interval)
    return Comparison(a=a, b=b, ratio=ratio, ratio_ci=interval, rounds=len(times_a), verdict=said)
