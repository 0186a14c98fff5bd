"""Measure bundles in trials, in fresh processes that each hold the runtime half and one model."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec

from edgekit.bundle import Bundle
from edgekit.energy import NO_METER
from edgekit.energy_ratio import energy_ratio
from edgekit.errors import InvalidInput
from edgekit.inference import sample_source
from edgekit.intervals import LEAST_TRIALS, mean_interval
from edgekit.measurement import (
    Comparison,
    Control,
    Measurement,
    Trial,
    coefficient_of_variation,
    ratio_interval,
    summarize,
    summarize_texts,
    verdict,
)
from edgekit.metering import EnergyFigures
from edgekit.meters import EnergyRequest, to_do
from edgekit.op_profile import OpProfile
from edgekit.place import HERE, Place, Worker
from edgekit.throttle import slowed, throttling
from edgekit.wire import Closing, Opening, Times

CALLS = 300  # enough for a p99
TRIALS = 5
SLOW_START_S = 2.0  # of a process: beyond it the trials of one bundle share one
ROUNDS, ROUND_CALLS = 6, 10
QUICK_ROUNDS = 2  # where an export measures on its way
WARM_CHUNK, WARM_LEAST_CHUNK, WARM_CHUNK_S = 10, 3, 1.0
WARM_TOLERANCE = 0.02
WARM_LEAST_S, WARM_MOST_S = 0.5, 10.0
WARM_AGAIN_MOST_S = 2.0  # of further processes: the machine is as warm as it gets
TEXT_TOKENS = 64  # of one timed answer: short enough that the last tokens cost what the first do

Block = tuple[float, ...]  # seconds of calls made one after the other


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one process gave, from its start to its end."""

    opening: Opening
    warmup_runs: int
    warm: bool
    trials: tuple[Block, ...]
    texts: tuple[Times, ...]
    closing: Closing


def measure(
    bundle: Bundle | str | Path,
    *,
    threads: int = 1,
    calls: int = CALLS,
    trials: int = TRIALS,
    place: Place = HERE,
    progress: Callable[[str], None] = lambda step: None,
) -> Measurement:
    """Time `calls` calls on the first golden sample, in trials that each load, run first and warm up in a new process.

    Where starting one takes more than 2 s, the trials that are left share it. A language model also writes texts
    until `calls` times between tokens were measured.
    """
    if calls < 1 or trials < 1:
        raise InvalidInput(f"calls and trials must be 1 or more, not {calls} and {trials}")
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    sizes = [calls // trials + (number < calls % trials) for number in range(min(trials, calls))]
    runs: list[Run] = []
    while left := sizes[sum(len(run.trials) for run in runs) :]:
        progress(f"measure {found.path}, trial {len(sizes) - len(left) + 1} of {len(sizes)}")
        with Worker(found, threads, place) as worker:
            mine = left if worker.start_s > SLOW_START_S else left[:1]
            warmed = warm_up(worker, WARM_AGAIN_MOST_S if runs else WARM_MOST_S)
            blocks = tuple(worker.times(size) for size in mine)
            texts = _texts(worker, sum(mine)) if found.manifest.generation else ()
            runs.append(finish(worker, warmed, blocks, texts))
    return measurement(found, threads, runs)


def energy_of(
    bundle: Bundle | str | Path,
    request: EnergyRequest,
    *,
    threads: int = 1,
    place: Place = HERE,
    progress: Callable[[str], None] = lambda step: None,
) -> EnergyFigures:
    """Joules of one call, in a window of a process of its own. Raises `MeterMissing` where nothing measures."""
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    progress(f"energy of {found.path}, in half a minute or more{to_do(request)}")
    with Worker(found, threads, place) as worker:
        warm_up(worker)
        return worker.energy(request)


def ops_of(
    bundle: Bundle | str | Path,
    *,
    threads: int = 1,
    place: Place = HERE,
    progress: Callable[[str], None] = lambda step: None,
) -> OpProfile:
    """The time of each op of one inference, in a process of its own: a profiler takes memory and time."""
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    progress(f"time of each op of {found.path}")
    with Worker(found, threads, place) as worker:
        return worker.ops(threads)


def compare(
    bundles: Sequence[Bundle | str | Path],
    *,
    threads: int = 1,
    trials: int = TRIALS,
    rounds: int = ROUNDS,
    fresh: bool = True,
    place: Place = HERE,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Comparison]:
    """Compare each bundle with the first, in trials of alternating rounds of ten calls; new processes in each trial.

    The order turns round with every trial. Each trial gives one ratio and the interval is over trials, since processes
    of one bundle differ by their place in memory. Without `fresh`, trials share processes that take more than 2 s to
    start, and that difference is not in the interval.
    """
    if len(bundles) < 2:
        raise InvalidInput("compare needs two bundles or more")
    if trials < LEAST_TRIALS or rounds < 1:
        raise InvalidInput(f"an interval needs {LEAST_TRIALS} trials of 1 round or more, not {trials} of {rounds}")
    found = [bundle if isinstance(bundle, Bundle) else Bundle.open(bundle) for bundle in bundles]
    runs: list[list[Run]] = [[] for _ in found]
    ratios: list[list[float]] = [[] for _ in found]
    while left := trials - len(ratios[0]):
        number = trials - left
        progress(f"trial {number + 1} of {trials}")
        with contextlib.ExitStack() as stack:
            step = -1 if number % 2 else 1
            opened = [stack.enter_context(Worker(bundle, threads, place)) for bundle in found[::step]]
            workers = opened[::step]
            shared = not fresh and max(worker.start_s for worker in workers) > SLOW_START_S
            warmed = [warm_up(worker, WARM_AGAIN_MOST_S if number else WARM_MOST_S) for worker in workers]
            times = [alternate(opened, rounds)[::step] for _ in range(left if shared else 1)]
            for index, worker in enumerate(workers):
                blocks = tuple(tuple(chain(*trial[index])) for trial in times)
                runs[index].append(finish(worker, warmed[index], blocks))
                ratios[index] += [trial_ratio(trial[0], trial[index]) for trial in times]
    measured = [measurement(bundle, threads, mine) for bundle, mine in zip(found, runs, strict=True)]
    return [_comparison(measured[0], b, mine, rounds) for b, mine in zip(measured[1:], ratios[1:], strict=True)]


def with_energy(
    found: Sequence[Comparison],
    request: EnergyRequest,
    *,
    place: Place = HERE,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Comparison]:
    """The same comparisons with the joules of each bundle, one window for each. Raises `MeterMissing`."""

    def counted(measured: Measurement) -> Measurement:
        figures = energy_of(measured.bundle, request, threads=measured.threads, place=place, progress=progress)
        return msgspec.structs.replace(measured, **msgspec.structs.asdict(figures))

    a, others = counted(found[0].a), [counted(pair.b) for pair in found]
    return [
        msgspec.structs.replace(pair, a=a, b=b, energy=energy_ratio(a.bundle, a.energy, b.bundle, b.energy))
        for pair, b in zip(found, others, strict=True)
    ]


def control(found: Comparison) -> Control:
    """What the comparison of a bundle with itself says of comparisons made here."""
    return Control(ratio=found.ratio, ratio_ci=found.ratio_ci, holds=found.ratio_ci.holds(1))


def warm_up(worker: Worker, most_s: float = WARM_MOST_S) -> tuple[int, bool]:
    """Run until the median of ten calls is within 2 % of that of the ten before: how many calls, and whether it came.

    For half a second at least; ten calls of more than a second in all count as fewer, down to three.
    """
    runs, spent, last = 0, 0.0, 0.0
    while spent < most_s or runs < 3 * WARM_LEAST_CHUNK:
        few = WARM_CHUNK_S / (last or worker.opening.first_run_s)
        chunk = worker.times(max(WARM_LEAST_CHUNK, min(WARM_CHUNK, int(few))))
        runs, spent, median = runs + len(chunk), spent + sum(chunk), statistics.median(chunk)
        if spent >= WARM_LEAST_S and abs(median - last) <= WARM_TOLERANCE * last:
            return runs, True
        last = median
    return runs, False


def alternate(workers: Sequence[Worker], rounds: int) -> list[list[Block]]:
    """Rounds of ten calls of each worker, always in the same order: so all begin on caches that another left."""
    turns = [[worker.times(ROUND_CALLS) for worker in workers] for _ in range(rounds)]
    return [list(mine) for mine in zip(*turns, strict=True)]


def trial_ratio(a: Sequence[Block], b: Sequence[Block]) -> float:
    """Median over rounds of p50(b) / p50(a)."""
    return statistics.median(statistics.median(y) / statistics.median(x) for x, y in zip(a, b, strict=True))


def finish(worker: Worker, warmed: tuple[int, bool], trials: tuple[Block, ...], texts: tuple[Times, ...] = ()) -> Run:
    """End a worker's process and keep what it gave."""
    runs, warm = warmed
    return Run(opening=worker.opening, warmup_runs=runs, warm=warm, trials=trials, texts=texts, closing=worker.close())


def measurement(bundle: Bundle, threads: int, runs: Sequence[Run]) -> Measurement:
    """The record of a bundle's processes, one or more, in the order they ran."""
    artifact, first, last = bundle.artifact, runs[0], runs[-1]
    trials = [_trial(number, run, block) for number, run in enumerate(runs) for block in run.trials]
    latency = summarize([time for run in runs for block in run.trials for time in block])
    old = first.opening.state.throttle_flags
    signs = [sign for run in runs for sign in throttling(old, run.closing.state.throttle_flags)]
    overheads = [run.closing.overhead_s for run in runs if run.closing.overhead_s is not None]
    texts = [text for run in runs for text in run.texts]
    return Measurement(
        bundle=str(bundle.path),
        artifact=artifact.path,
        artifact_sha256=artifact.sha256,
        input_source=sample_source(bundle),
        runtime=artifact.runtime,
        runtime_version=first.opening.runtime_version,
        runtime_build=last.closing.runtime_build,
        threads=threads,
        load_s=statistics.median(run.opening.load_s for run in runs),
        first_run_s=statistics.median(run.opening.first_run_s for run in runs),
        warmup_runs=sum(run.warmup_runs for run in runs),
        warm=all(run.warm for run in runs),
        latency=latency,
        trials=tuple(trials),
        mean_ci_s=mean_interval([trial.mean_s for trial in trials]),
        trial_cv=coefficient_of_variation([trial.p50_s for trial in trials]),
        throttled=tuple(dict.fromkeys([*signs, *slowed(latency.drift)])),
        overhead_s=statistics.median(overheads) if overheads else None,
        generation=summarize_texts(texts[0].prompt_tokens or 0, [text.times_s for text in texts]) if texts else None,
        peak_rss_bytes=max(run.closing.peak_rss_bytes for run in runs),
        energy=NO_METER,
        before=first.opening.state,
        after=last.closing.state,
    )


def _texts(worker: Worker, count: int) -> tuple[Times, ...]:
    """Texts of at most `TEXT_TOKENS` tokens each, until there are `count` times between tokens."""
    texts: list[Times] = []
    while sum(len(text.times_s) - 1 for text in texts) < count:
        texts.append(worker.text(min(TEXT_TOKENS, count + 1)))
    return tuple(texts)


def _trial(number: int, run: Run, block: Block) -> Trial:
    return Trial(
        process=number,
        load_s=run.opening.load_s,
        first_run_s=run.opening.first_run_s,
        calls=len(block),
        mean_s=statistics.fmean(block),
        p50_s=statistics.median(block),
    )


def _comparison(a: Measurement, b: Measurement, ratios: Sequence[float], rounds: int) -> Comparison:
    ratio, interval = ratio_interval(ratios)
    said = verdict(a.bundle, b.bundle, ratio, interval)
    return Comparison(a=a, b=b, ratio=ratio, ratio_ci=interval, trial_ratios=tuple(ratios), rounds=rounds, verdict=said)
