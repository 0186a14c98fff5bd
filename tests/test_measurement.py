"""A record says what the calls, the trials and the minutes of a measurement were."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.intervals import Interval
from edgekit.measurement import coefficient_of_variation, ratio_interval, summarize, verdict

TIMES = st.lists(st.floats(1e-6, 10), min_size=1, max_size=80)


@given(TIMES)
def test_a_summary_agrees_with_exact_arithmetic(times: list[float]) -> None:
    latency = summarize(times)
    assert latency.times_s == tuple(times)
    assert (latency.calls, latency.kept_every) == (len(times), 1)
    assert latency.mean_s == pytest.approx(float(sum(map(Fraction, times)) / len(times)), rel=1e-12)
    assert latency.p50_s == statistics.median(times)
    assert (latency.p90_s is None) == (latency.p90_ci_s is None) == (len(times) < 29)
    assert latency.p99_s is latency.p99_ci_s is latency.p999_s is None
    if latency.p90_s is not None:
        assert latency.p90_s == float(np.quantile(times, 0.9))
    if latency.p50_ci_s:
        assert min(times) <= latency.p50_ci_s.low <= latency.p50_s <= latency.p50_ci_s.high <= max(times)


def test_a_summary_of_one_call_is_that_call() -> None:
    latency = summarize([0.5])
    assert (latency.mean_s, latency.p50_s, latency.p50_ci_s, latency.drift) == (0.5, 0.5, None, 1.0)


def test_a_summary_of_no_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarize([])


def test_raw_times_keep_their_order() -> None:
    assert summarize([3.0, 1.0, 2.0]).times_s == (3.0, 1.0, 2.0)


@pytest.mark.parametrize(("calls", "every"), [(20_000, 1), (20_001, 2), (60_001, 4)])
def test_of_very_many_calls_some_are_kept_and_all_are_counted(calls: int, every: int) -> None:
    times = [1.0 + number / calls for number in range(calls)]
    latency = summarize(times)
    assert (latency.kept_every, latency.calls) == (every, calls)
    assert latency.times_s == tuple(times[::every])
    assert len(latency.times_s) <= 20_000
    assert latency.p50_s == statistics.median(times)
    assert latency.p999_s == pytest.approx(float(np.quantile(times, 0.999)))


@pytest.mark.parametrize(("times", "drift"), [([1.0] * 12 + [2.0] * 4, 2.0), ([4.0, 1.0, 1.0, 1.0], 0.25)])
def test_drift_is_the_last_quarter_over_the_first(times: list[float], drift: float) -> None:
    assert summarize(times).drift == drift


@pytest.mark.parametrize(("trials", "cv"), [([2.0], None), ([2.0, 2.0], 0.0), ([1.0, 3.0], math.sqrt(2) / 2)])
def test_the_variation_of_trials_is_their_deviation_over_their_mean(trials: list[float], cv: float | None) -> None:
    assert coefficient_of_variation(trials) == (cv if cv is None else pytest.approx(cv))


@given(ratio=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_trials_of_a_constant_ratio_give_just_that_ratio(ratio: float, seed: int) -> None:
    found, interval = ratio_interval([ratio] * 5, seed)
    for figure in (found, interval.low, interval.high):
        assert figure == pytest.approx(ratio, rel=1e-12)


@given(st.lists(st.floats(0.5, 2), min_size=5, max_size=9))
def test_a_ratio_turned_round_is_its_reciprocal(trials: list[float]) -> None:
    ratio, interval = ratio_interval(trials)
    back, around = ratio_interval([1 / trial for trial in trials])
    assert back == pytest.approx(1 / ratio)
    assert interval.low <= ratio * (1 + 1e-12)
    assert ratio <= interval.high * (1 + 1e-12)
    assert (around.low, around.high) == (pytest.approx(1 / interval.high, 0.05), pytest.approx(1 / interval.low, 0.05))


def test_a_ratio_of_few_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 5 trials, not 4"):
        ratio_interval([1.0] * 4)


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (1.0, 1.2), (0.8, 1.0)])
def test_no_winner_is_named_when_the_interval_holds_one(low: float, high: float) -> None:
    text = verdict("a", "b", 1.05, Interval(low=low, high=high))
    assert "no difference shown between a and b" in text
    assert "fast" not in text


@pytest.mark.parametrize(
    ("ratio", "low", "high", "text"),
    [(0.5, 0.4, 0.6, "b is 2.00x as fast as a"), (1.5, 1.4, 1.6, "a is 1.50x as fast as b")],
)
def test_the_winner_is_the_one_that_takes_less_time(ratio: float, low: float, high: float, text: str) -> None:
    assert verdict("a", "b", ratio, Interval(low=low, high=high)) == text
