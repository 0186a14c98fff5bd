"""Figures are given only where enough samples carry them, and their intervals are what they say."""

from __future__ import annotations

import random
import statistics
from fractions import Fraction
from itertools import accumulate
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.measurement import (
    NO_METER,
    Interval,
    bootstrap_ratio,
    median_interval,
    percentile,
    summarize,
    verdict,
)

TIMES = st.lists(st.floats(1e-6, 10), min_size=1, max_size=80)


def tails(n: int) -> list[Fraction]:
    """P(B <= k) for B ~ Binomial(n, 1/2), exact."""
    return [Fraction(total, 2**n) for total in accumulate(comb(n, k) for k in range(n + 1))]


@pytest.mark.parametrize(("q", "least"), [(0.9, 29), (0.99, 299)])
def test_a_percentile_appears_exactly_with_enough_samples(q: float, least: int) -> None:
    assert 1 - q ** (least - 1) < 0.95 <= 1 - q**least  # the chance that the slowest call lies above the percentile
    assert percentile(range(least - 1), q) is None
    assert percentile(range(least), q) == pytest.approx(q * (least - 1), rel=1e-12)


def test_no_calls_have_no_percentile() -> None:
    assert percentile([], 0.9) is None


@pytest.mark.parametrize("n", range(61))
def test_the_interval_of_the_median_covers_it_and_is_the_tightest_that_does(n: int) -> None:
    times = list(range(1, n + 1))  # the value is the rank
    random.Random(n).shuffle(times)
    interval, below = median_interval(times), tails(n)
    if interval is None:
        assert n < 6
        assert n == 0 or 1 - 2 * below[0] < Fraction(95, 100)  # not even the extremes reach 95 %
        return
    low, high = int(interval.low), int(interval.high)
    assert low == n + 1 - high  # as many samples below as above
    assert 1 - 2 * below[low - 1] >= Fraction(95, 100)
    assert low + 1 > high - 1 or 1 - 2 * below[low] < Fraction(95, 100)


@pytest.mark.parametrize("n", [1000, 1022, 1023, 1024, 1060, 1100, 3000])
def test_the_interval_of_the_median_of_very_many_calls_is_exact_too(n: int) -> None:
    interval = median_interval(list(range(1, n + 1)))
    assert interval is not None
    below = tails(n)
    assert 1 - 2 * below[int(interval.low) - 1] >= Fraction(95, 100) > 1 - 2 * below[int(interval.low)]
    assert interval.high == n + 1 - interval.low


@given(TIMES)
def test_a_summary_agrees_with_exact_arithmetic(times: list[float]) -> None:
    latency = summarize(times)
    assert latency.times_s == tuple(times)
    assert latency.mean_s == pytest.approx(float(sum(map(Fraction, times)) / len(times)), rel=1e-12)
    assert latency.p50_s == statistics.median(times)
    assert (latency.p90_s is None) == (len(times) < 29)
    assert latency.p99_s is None
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


@pytest.mark.parametrize(("times", "drift"), [([1.0] * 12 + [2.0] * 4, 2.0), ([4.0, 1.0, 1.0, 1.0], 0.25)])
def test_drift_is_the_last_quarter_over_the_first(times: list[float], drift: float) -> None:
    assert summarize(times).drift == drift


@given(ratio=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_rounds_of_a_constant_ratio_give_just_that_ratio(ratio: float, seed: int) -> None:
    scales = np.random.default_rng(seed).uniform(1, 5, 10)  # a machine whose speed changes from round to round
    found, interval = bootstrap_ratio([([s] * 3, [s * ratio] * 3) for s in scales], seed)
    for figure in (found, interval.low, interval.high):
        assert figure == pytest.approx(ratio, rel=1e-12)


def test_the_interval_of_a_ratio_holds_the_true_one_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rounds = [(rng.lognormal(0, 0.1, 9), rng.lognormal(np.log(1.3), 0.1, 9)) for _ in range(30)]
        ratio, interval = bootstrap_ratio(rounds, seed)
        assert interval.low <= ratio <= interval.high
        held += interval.low <= 1.3 <= interval.high
    assert 86 <= held < 100  # 95 of 100 expected; outside has odds under 1 in 1000, and an endless interval holds all


def test_the_same_seed_gives_the_same_interval() -> None:
    rounds = [([1.0, 1.1], [1.2 + k / 50, 1.3]) for k in range(10)]
    assert bootstrap_ratio(rounds, 3) == bootstrap_ratio(rounds, 3)


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


def test_a_missing_meter_is_none_with_a_reason_and_never_zero() -> None:
    assert NO_METER.provenance == "unavailable"
    assert NO_METER.gross_j is None
    assert NO_METER.reason
