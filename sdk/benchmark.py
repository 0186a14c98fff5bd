"""Measure bundles on this machine, each in a fresh process that holds the runtime half and one model."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from edgekit import errors
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError, InvalidInput
from edgekit.measurement import (
    NO_METER,
    Comparison,
    GenerationTimes,
    HostState,
    Measurement,
    bootstrap_ratio,
    summarize,
    summarize_texts,
    verdict,
)

CALLS = 300  # enough for a p99
WARM_CHUNK = 10
WARM_TOLERANCE = 0.02
WARM_LEAST_S, WARM_MOST_S = 0.5, 10.0
ROUNDS = 30
QUICK_ROUNDS = 10  # where an export measures on its way
ROUND_CALLS = 10
TEXT_TOKENS = 64  # of one timed answer: short enough that the last tokens cost what the first do


def measure(
    bundle: Bundle | str | Path,
    *,
    threads: int = 1,
    calls: int = CALLS,
    progress: Callable[[str], None] = lambda step: None,
) -> Measurement:
    """Load, first run, warm-up until the median is steady, then `calls` timed calls on the first golden sample.

    A language model then also writes texts until `calls` times between tokens were measured.
    """
    if calls < 1:
        raise InvalidInput(f"calls must be 1 or more, not {calls}")
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    progress(f"measure {found.path}")
    with _Worker(found, threads) as worker:
        worker.warm_up()
        times = worker.times(calls)
        return worker.finish(times, worker.text_times(calls) if found.manifest.generation else None)


def compare(
    bundles: Sequence[Bundle | str | Path],
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
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
    workers: list[_Worker] = []
    try:
        for bundle in found:
            workers.append(_Worker(bundle, threads))
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


class _Worker:
    """The other side of `edgekit.worker`."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.bundle, self.threads = bundle, threads
        self.warmup_runs, self.warm = 0, False
        command = [sys.executable, "-P", "-m", "edgekit.worker", str(bundle.path), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._opening = self._answer()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def warm_up(self) -> None:
        """Run until the median of one chunk is within 2 % of the one before, for half a second at least."""
        spent, last = 0.0, 0.0
        while spent < WARM_MOST_S and not self.warm:
            chunk = self.times(WARM_CHUNK)
            spent += sum(chunk)
            self.warmup_runs += len(chunk)
            median = statistics.median(chunk)
            self.warm = spent >= WARM_LEAST_S and abs(median - last) <= WARM_TOLERANCE * last
            last = median

    def times(self, calls: int) -> list[float]:
        """Seconds of each of `calls` calls."""
        times: list[float] = self._ask({"calls": calls})["times_s"]
        return times

    def text_times(self, calls: int) -> GenerationTimes:
        """Texts of at most `TEXT_TOKENS` tokens each, until there are `calls` times between tokens."""
        texts: list[list[float]] = []
        while sum(len(text) - 1 for text in texts) < calls:
            said = self._ask({"tokens": min(TEXT_TOKENS, calls + 1)})
            texts.append(said["times_s"])
        return summarize_texts(said["prompt_tokens"], texts)

    def finish(self, times: list[float], generation: GenerationTimes | None = None) -> Measurement:
        """End the process and put the measurement together."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        closing = self._answer()
        opening, artifact = self._opening, self.bundle.artifact
        return Measurement(
            bundle=str(self.bundle.path),
            artifact=artifact.path,
            runtime=artifact.runtime,
            runtime_version=opening["runtime_version"],
            threads=self.threads,
            load_s=opening["load_s"],
            first_run_s=opening["first_run_s"],
            warmup_runs=self.warmup_runs,
            warm=self.warm,
            latency=summarize(times),
            generation=generation,
            peak_rss_bytes=closing["peak_rss_bytes"],
            energy=NO_METER,
            before=msgspec.convert(opening["state"], HostState),
            after=msgspec.convert(closing["state"], HostState),
        )

    def stop(self) -> None:
        """Leave no process behind."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _ask(self, question: dict[str, int]) -> dict[str, Any]:
        if self._process.stdin is None:
            raise RuntimeError("the worker was started without a pipe")
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            code = self._process.wait()
            how = f"killed by signal {-code}" if code < 0 else f"left with code {code}"
            hint = ": probably out of memory" if code == -9 else ""
            raise EdgekitError(f"the process that measured '{self.bundle.path}' was {how}{hint}")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise getattr(errors, document["type"], EdgekitError)(document["error"])
        return document
