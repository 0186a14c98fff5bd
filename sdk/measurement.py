"""What a run cost: latency with its distribution, memory, energy with its source, and the state of the machine.

Times are seconds from a monotonic clock, raw samples kept. A percentile is reported only where enough samples bound it
with 95 % confidence; a figure that nothing measured is None with a reason, never 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from edgekit.types import Value

Provenance = Literal[
    "measured.external",
    "measured.counter",
    "measured.sampled",
    "estimated.platform",
    "modelled.calibrated",
    "modelled.analytical",
    "unavailable",
]
CONFIDENCE = 0.95
LEAST_DIFFERENCE = 0.05  # of a ratio: processes of one bundle differ by their place in memory and on cores


class Energy(Value, frozen=True, kw_only=True):
    """Joules per inference and where they come from; None, with the reason, where nothing measured."""

    provenance: Provenance
    gross_j: float | None = None
    reason: str | None = None


NO_METER = Energy(provenance="unavailable", reason="no energy meter is read by this version of edgekit")


class Interval(Value, frozen=True, kw_only=True):
    """A 95 % confidence interval."""

    low: float
    high: float


class Latency(Value, frozen=True, kw_only=True):
    """The distribution of one call's time, in seconds."""

    times_s: tuple[float, ...]  # raw, in order
    mean_s: float
    p50_s: float
    p50_ci_s: Interval | None  # from order statistics; None below 6 samples
    p90_s: float | None  # None below 29 samples
    p99_s: float | None  # None below 299 samples
    drift: float  # median of the last quarter over the first; far from 1 means throttling or a busy machine


class HostState(Value, frozen=True, kw_only=True):
    """The machine that measured, and the settings that move its numbers. None: the machine does not say."""

    machine: str  # "x86_64", "aarch64"
    system: str
    cpu: str | None
    cores: int
    python: str
    governor: str | None
    clock_min_hz: float | None
    clock_max_hz: float | None
    clock_now_hz: float | None
    temperature_c: float | None
    emulated: bool = False


class GenerationTimes(Value, frozen=True, kw_only=True):
    """How fast a language model reads and answers; every text begins with the same prompt and an empty cache."""

    texts: int
    prompt_tokens: int
    time_to_first_token_s: float  # median over texts
    prefill_tokens_per_s: float  # prompt tokens over that time
    decode_tokens_per_s: float  # answer tokens after the first, over all their time
    inter_token: Latency  # between one token of an answer and the next


class Measurement(Value, frozen=True, kw_only=True):
    """One bundle measured on one machine."""

    bundle: str
    artifact: str
    runtime: str
    runtime_version: str
    threads: int
    load_s: float  # opening the session, files warm or cold as they were
    first_run_s: float
    warmup_runs: int
    warm: bool  # whether the warm-up reached a steady median
    latency: Latency
    generation: GenerationTimes | None = None  # of a language model
    peak_rss_bytes: int  # of a fresh process that holds the runtime half and this model
    energy: Energy
    before: HostState
    after: HostState


class Comparison(Value, frozen=True, kw_only=True):
    """Two bundles measured in alternating rounds: how much time B takes for each second of A."""

    a: Measurement
    b: Measurement
    ratio: float  # median over rounds of p50(B) / p50(A)
    ratio_ci: Interval
    rounds: int
    verdict: str


class AgainstFloat(Value, frozen=True, kw_only=True):
    """The same model at fp32 in the same runtime, measured in turns with a compressed one."""

    float_p50_s: float
    ratio: float  # compressed over float: below 1 is faster
    ratio_ci: Interval
    reason: str | None = None  # why it is not faster, where it is not


def percentile(times: Sequence[float], q: float) -> float | None:
    """The `q` quantile, or None when fewer samples than a 95 % upper bound on it needs (p90: 29, p99: 299)."""
    if len(times) < math.ceil(math.log(1 - CONFIDENCE) / math.log(q)):
        return None
    return float(np.quantile(np.asarray(times), q))


def median_interval(times: Sequence[float]) -> Interval | None:
    """Distribution-free 95 % interval of the median: the order statistics whose binomial tails stay under 2.5 %."""
    n, tail, ways = len(times), 0, 1  # integers: 0.5**n and the binomials leave the floats above 1000 calls
    for low in range(n // 2):
        tail, ways = tail + ways, ways * (n - low) // (low + 1)
        if tail * 40 > 1 << n:  # 1 / 40 = 2.5 %
            break
    else:
        low = n // 2
    if low == 0:
        return None  # under 6 samples not even the extremes reach 95 %
    ordered = sorted(times)
    return Interval(low=ordered[low - 1], high=ordered[n - low])


def summarize(times: Sequence[float]) -> Latency:
    """The distribution of raw times in seconds; needs at least one."""
    quarter = max(1, len(times) // 4)
    return Latency(
        times_s=tuple(times),
        mean_s=statistics.fmean(times),
        p50_s=statistics.median(times),
        p50_ci_s=median_interval(times),
        p90_s=percentile(times, 0.9),
        p99_s=percentile(times, 0.99),
        drift=statistics.median(times[-quarter:]) / statistics.median(times[:quarter]),
    )


def summarize_texts(prompt_tokens: int, texts: Sequence[Sequence[float]]) -> GenerationTimes:
    """The figures of texts, each given as the seconds from its start to every token; needs two tokens in each."""
    first = statistics.median(text[0] for text in texts)
    between = [after - before for text in texts for before, after in pairwise(text)]
    return GenerationTimes(
        texts=len(texts),
        prompt_tokens=prompt_tokens,
        time_to_first_token_s=first,
        prefill_tokens_per_s=prompt_tokens / first,
        decode_tokens_per_s=len(between) / sum(between),
        inter_token=summarize(between),
    )


def bootstrap_ratio(rounds: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 0) -> tuple[float, Interval]:
    """Median over rounds of p50(b) / p50(a), with a bootstrap over rounds: calls within one are not independent."""
    ratios = np.array([statistics.median(b) / statistics.median(a) for a, b in rounds])
    draws = np.random.default_rng(seed).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(np.median(ratios)), Interval(low=float(low), high=float(high))


def verdict(a: str, b: str, ratio: float, interval: Interval) -> str:
    """One sentence; no winner when the interval holds 1."""
    if interval.low <= 1 <= interval.high:
        return f"no difference shown between {a} and {b}: the interval of the ratio holds 1"
    if abs(ratio - 1) < LEAST_DIFFERENCE:
        return f"no difference shown between {a} and {b}: {ratio:.3f} is within what two runs of one bundle differ by"
    winner, loser, factor = (b, a, 1 / ratio) if ratio < 1 else (a, b, ratio)
    return f"{winner} is {factor:.2f}x as fast as {loser}"
