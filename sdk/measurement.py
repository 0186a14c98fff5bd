"""What a run cost: latency with its distribution, memory, energy with its source, and the state of the machine.

Times are seconds from a monotonic clock, raw samples kept. A percentile is reported only where enough samples bound it
with 95 % confidence; a figure that nothing measured is None with a reason, never 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from edgekit.energy import Energy
from edgekit.energy_ratio import EnergyRatio
from edgekit.intervals import LEAST_TRIALS, Interval, mean_interval, percentile, quantile_interval
from edgekit.op_profile import OpProfile
from edgekit.types import Value

KEPT_CALLS = 20_000  # raw times that a record holds at most: ten minutes of calls would be megabytes


class Latency(Value, frozen=True, kw_only=True):
    """The distribution of one call's time, in seconds; None for what needs more samples."""

    times_s: tuple[float, ...]  # raw, in order; of more than 20,000 calls every `kept_every`-th
    kept_every: int = 1
    calls: int | None = None  # that the figures below are of; None: those in `times_s`
    mean_s: float
    p50_s: float
    p50_ci_s: Interval | None
    p90_s: float | None  # from 29 calls
    p90_ci_s: Interval | None = None
    p99_s: float | None  # from 299 calls
    p99_ci_s: Interval | None = None
    p999_s: float | None = None  # from 2,995 calls
    drift: float  # median of the last quarter over the first; above 1.05 means throttling or a busy machine


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
    temperature_c: float | None  # of the hottest thermal zone
    affinity: tuple[int, ...] | None = None  # the cores that the measured process may use
    power_mode: str | None = None  # "nvpmodel MAXN", "platform profile balanced"
    power_supply: str | None = None  # "mains", "battery 83 %, discharging"
    throttle_flags: tuple[str, ...] | None = None  # see `edgekit.throttle`; None: no sensor tells
    emulated: bool = False


class GenerationTimes(Value, frozen=True, kw_only=True):
    """How fast a language model reads and answers; every text begins with the same prompt and an empty cache."""

    texts: int
    prompt_tokens: int
    time_to_first_token_s: float  # median over texts
    prefill_tokens_per_s: float  # prompt tokens over that time
    decode_tokens_per_s: float  # answer tokens after the first, over all their time
    inter_token: Latency  # between one token of an answer and the next


class Trial(Value, frozen=True, kw_only=True):
    """A part of the timed calls; a fresh process for each where starting one is quick."""

    process: int  # from 0
    load_s: float  # of its process
    first_run_s: float
    calls: int
    mean_s: float
    p50_s: float


class Sustained(Value, frozen=True, kw_only=True):
    """What happened to the time of a call while one process ran without a pause."""

    asked_s: float
    lasted_s: float  # less when it was interrupted
    window_s: float  # of the two figures below: a minute, or half of a run that was shorter than two
    minute_1_p50_s: float
    final_p50_s: float
    minutes_p50_s: tuple[float, ...]  # one for each minute that was begun
    joules: float | None = None  # over the run, all that the meter covers; None: nothing measured, `energy` says why
    minute_1_w: float | None = None  # mean power in the first `window_s`; None: too few updates of the meter in it
    final_w: float | None = None  # in the last


class Control(Value, frozen=True, kw_only=True):
    """A bundle compared with itself: how far to trust comparisons on this machine now."""

    ratio: float
    ratio_ci: Interval
    holds: bool  # whether the interval holds 1


class Measurement(Value, frozen=True, kw_only=True):
    """One bundle measured on one machine."""

    bundle: str
    artifact: str
    artifact_sha256: str | None = None
    input_source: str | None = None  # "golden sample 0", "ones"
    runtime: str
    runtime_version: str
    runtime_build: str | None = None  # sha256 over the native libraries of its packages, where these are known
    threads: int
    load_s: float  # opening the session, files warm or cold as they were; median over processes
    first_run_s: float  # median over processes
    warmup_runs: int  # in all processes
    warm: bool  # whether every warm-up reached a steady median
    latency: Latency
    trials: tuple[Trial, ...] = ()
    mean_ci_s: Interval | None = None  # bootstrap over trials
    trial_cv: float | None = None  # standard deviation of the trials' medians over their mean
    throttled: tuple[str, ...] = ()  # signs that the machine slowed down meanwhile
    overhead_s: float | None = None  # of edgekit's session around an empty model, which the calls hold too
    sustained: Sustained | None = None
    control: Control | None = None
    generation: GenerationTimes | None = None  # of a language model
    ops: OpProfile | None = None  # how an inference's time splits, where that was asked for
    peak_rss_bytes: int  # of a fresh process that holds the runtime half and this model
    energy: Energy
    modelled_energy_j: float | None = None  # per inference, never added to or shown as what a meter read
    modelled_energy_note: str | None = None  # where its watts come from, or why there is no such figure
    before: HostState
    after: HostState

    @property
    def emulated(self) -> bool:
        """Whether the times are an emulator's, and say nothing of the board."""
        return self.before.emulated or self.after.emulated


class Comparison(Value, frozen=True, kw_only=True):
    """Two bundles measured in turns: how much time B takes for each second of A."""

    a: Measurement
    b: Measurement
    ratio: float  # geometric mean over trials
    ratio_ci: Interval  # bootstrap over trials, so that what processes of one bundle differ by is in it
    trial_ratios: tuple[float, ...]  # of each trial the median over its rounds of p50(B) / p50(A)
    rounds: int  # in each trial
    verdict: str
    energy: EnergyRatio | None = None  # where it was asked for


class AgainstFloat(Value, frozen=True, kw_only=True):
    """The same model at fp32 in the same runtime, measured in turns with a compressed one."""

    float_p50_s: float
    ratio: float  # compressed over float: below 1 is faster
    ratio_ci: Interval
    reason: str | None = None  # why it is not faster, where it is not


def summarize(times: Sequence[float]) -> Latency:
    """The distribution of raw times in seconds; needs at least one."""
    quarter = max(1, len(times) // 4)
    every = -(-len(times) // KEPT_CALLS)
    return Latency(
        times_s=tuple(times[:: max(1, every)]),
        kept_every=max(1, every),
        calls=len(times),
        mean_s=statistics.fmean(times),
        p50_s=statistics.median(times),
        p50_ci_s=quantile_interval(times, 0.5),
        p90_s=percentile(times, 0.9),
        p90_ci_s=quantile_interval(times, 0.9),
        p99_s=percentile(times, 0.99),
        p99_ci_s=quantile_interval(times, 0.99),
        p999_s=percentile(times, 0.999),
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


def coefficient_of_variation(trials: Sequence[float]) -> float | None:
    """Standard deviation over mean; None below two trials."""
    return statistics.stdev(trials) / statistics.fmean(trials) if len(trials) > 1 else None


def ratio_interval(trials: Sequence[float], seed: int = 0) -> tuple[float, Interval]:
    """Geometric mean of the trials' ratios with its interval; needs five, all above 0."""
    logs = [math.log(ratio) for ratio in trials]
    found = mean_interval(logs, seed)
    if found is None:
        raise ValueError(f"an interval needs {LEAST_TRIALS} trials, not {len(trials)}")
    return math.exp(statistics.fmean(logs)), Interval(low=math.exp(found.low), high=math.exp(found.high))


def verdict(a: str, b: str, ratio: float, interval: Interval) -> str:
    """One sentence; no winner when the interval holds 1."""
    if interval.holds(1):
        return f"no difference shown between {a} and {b}: the interval of the ratio holds 1"
    winner, loser, factor = (b, a, 1 / ratio) if ratio < 1 else (a, b, ratio)
    return f"{winner} is {factor:.2f}x as fast as {loser}"
