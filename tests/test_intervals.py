"""Figures are given only where enough samples carry them, and their intervals are what they say."""

from __future__ import annotations

import math
import random
from itertools import accumulate
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.intervals import Interval, mean_interval, percentile, quantile_interval, student_quantile

QUANTILES = {0.5: (1, 2), 0.9: (9, 10), 0.99: (99, 100)}


def at_most(n: int, q: float) -> tuple[list[int], int]:
    """P(B <= k) of B ~ Binomial(n, q), exact: what to divide, and by what."""
    under, of = QUANTILES[q]
    return list(accumulate(comb(n, k) * under**k * (of - under) ** (n - k) for k in range(n + 1))), of**n


def ranks(n: int, q: float) -> tuple[int, int] | None:
    """The ranks of the ends of the interval of `n` samples, from 1."""
    times = list(range(1, n + 1))  # the value is the rank
    random.Random(n).shuffle(times)
    found = quantile_interval(times, q)
    return None if found is None else (int(found.low), int(found.high))


@pytest.mark.parametrize(("q", "least"), [(0.9, 29), (0.99, 299), (0.999, 2995)])
def test_a_percentile_appears_exactly_with_enough_samples(q: float, least: int) -> None:
    assert 1 - q ** (least - 1) < 0.95 <= 1 - q**least  # the chance that the slowest call lies above the percentile
    assert percentile(range(least - 1), q) is None
    assert percentile(range(least), q) == pytest.approx(q * (least - 1), rel=1e-12)


def test_no_calls_have_no_percentile_and_no_interval() -> None:
    assert percentile([], 0.9) is None
    assert quantile_interval([], 0.5) is None


@pytest.mark.parametrize("q", QUANTILES)
@pytest.mark.parametrize("n", [*range(1, 50), 298, 299, 300, 368, 369])
def test_the_interval_of_a_quantile_covers_it_and_is_the_tightest_that_does(n: int, q: float) -> None:
    (below, whole), found = at_most(n, q), ranks(n, q)
    if found is None:
        assert 20 * (below[n - 1] - below[0]) < 19 * whole  # the chance that it lies between the extremes
        return
    low, high = found
    under, over = below[low - 1], whole - below[high - 1]
    assert 20 * (under + over) <= whole
    if 40 * over <= whole:
        assert 40 * under <= whole < 40 * below[low]
        assert whole < 40 * (whole - below[high - 2])
    else:  # even the slowest call leaves more than 2.5 % above it: the lower tail gets the rest of 5 %
        assert high == n
        assert whole < 20 * (below[low] + over)


@pytest.mark.parametrize(("q", "least"), [(0.5, 6), (0.9, 29), (0.99, 299)])
def test_an_interval_appears_exactly_with_enough_samples(q: float, least: int) -> None:
    assert ranks(least - 1, q) is None
    assert ranks(least, q) is not None


@pytest.mark.parametrize("n", [1000, 1024, 3000])
@pytest.mark.parametrize("q", QUANTILES)
def test_the_interval_of_very_many_calls_is_exact_too(n: int, q: float) -> None:
    (below, whole), found = at_most(n, q), ranks(n, q)
    assert found is not None
    low, high = found
    assert 40 * below[low - 1] <= whole < 40 * below[low]
    assert 40 * (whole - below[high - 1]) <= whole < 40 * (whole - below[high - 2])


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=80), st.sampled_from([0.5, 0.9, 0.99]))
def test_an_interval_holds_what_was_measured(times: list[float], q: float) -> None:
    found = quantile_interval(times, q)
    assert found is None or {found.low, found.high} <= set(times)
    if found:
        assert found.low <= sorted(times)[math.ceil(q * len(times)) - 1] <= found.high


@pytest.mark.parametrize("freedom", [4, 5, 9, 30, 200])
def test_students_quantile_leaves_a_fortieth_above_it(freedom: int) -> None:
    beyond = student_quantile(freedom) + np.arange(0, 400, 1e-3)  # the density, integrated
    constant = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    density = constant * (1 + beyond**2 / freedom) ** (-(freedom + 1) / 2)
    assert float(density.sum() * 1e-3) == pytest.approx(0.025, rel=0.01)


def test_the_mean_of_few_trials_has_no_interval() -> None:
    assert mean_interval([1.0, 2.0, 3.0, 4.0]) is None
    assert mean_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is not None


@given(st.lists(st.floats(0.1, 10), min_size=5, max_size=12), st.integers(0, 9))
def test_the_interval_of_a_mean_lies_within_the_trials_around_it(trials: list[float], seed: int) -> None:
    found = mean_interval(trials, seed)
    assert found == mean_interval(trials, seed)
    assert found is not None
    mean, slack = sum(trials) / len(trials), 1e-12
    assert min(trials) - slack <= found.low <= mean + slack
    assert mean - slack <= found.high <= max(trials) + slack


@pytest.mark.parametrize(("trials", "least"), [(5, 0.90), (10, 0.93)])
def test_the_interval_of_a_mean_holds_the_true_one_nearly_as_often_as_it_says(trials: int, least: float) -> None:
    rng, held, tries = np.random.default_rng(1), 0, 400
    for seed in range(tries):
        found = mean_interval(list(rng.normal(10, 1, trials)), seed)
        held += found is not None and found.holds(10)
    assert least - 0.03 <= held / tries <= 0.98  # two standard errors; an endless interval would hold all


def test_an_interval_holds_its_ends() -> None:
    assert [Interval(low=1, high=2).holds(x) for x in (0.99, 1, 1.5, 2, 2.01)] == [False, True, True, True, False]
