"""Percentiles and confidence intervals of times, each only where there are samples enough for it.

Quantiles of calls have distribution-free intervals from order statistics. Calls of one process are not independent of
each other, so means and ratios get theirs from a bootstrap over whole trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgekit.types import Value

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
LEAST_TRIALS = 5  # for an interval over trials: a bootstrap reaches no further than their extremes
DRAWS = 20_000


class Interval(Value, frozen=True, kw_only=True):
    """A 95 % confidence interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies in the interval, its ends included."""
        return self.low <= value <= self.high


def percentile(times: Sequence[float], q: float) -> float | None:
    """The `q` quantile, None below the samples that bound it with 95 % confidence (p90: 29, p99: 299, p99.9: 2,995)."""
    if len(times) < math.ceil(math.log(1 - CONFIDENCE) / math.log(q)):
        return None
    return float(np.quantile(np.asarray(times), q))


def quantile_interval(times: Sequence[float], q: float) -> Interval | None:
    """Distribution-free 95 % interval of the `q` quantile (`q` >= 0.5), between two order statistics.

    Each binomial tail stays under 2.5 %. Where even the slowest call leaves more above it, the lower tail gets what is
    left of 5 %. None where the extremes do not reach 95 % (below 6 samples of a median, 29 of a p90, 299 of a p99).
    """
    n = len(times)
    if n == 0:
        return None
    below = _binomial_cdf(n, q)  # [k]: the chance that at most k samples lie under the quantile
    high = min(n, int(np.searchsorted(below, 1 - TAIL)) + 1)
    low = int(np.searchsorted(below, min(TAIL, below[high - 1] - CONFIDENCE), side="right"))
    if low == 0:
        return None
    ordered = np.sort(np.asarray(times))
    return Interval(low=float(ordered[low - 1]), high=float(ordered[high - 1]))


def mean_interval(trials: Sequence[float], seed: int = 0) -> Interval | None:
    """95 % interval of the mean of what independent trials gave, by bootstrap; None below 5 trials.

    A plain percentile bootstrap of five values holds the mean in 4 of 5 cases only, so its quantiles are moved out to
    where Student's t would have them.
    Source: Hesterberg, What Teachers Should Know About the Bootstrap (2015), 3.4, the expanded percentile interval.
    """
    n = len(trials)
    if n < LEAST_TRIALS:
        return None
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile(n - 1))
    means = np.random.default_rng(seed).choice(np.asarray(trials), size=(DRAWS, n)).mean(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high))


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, within 0.3 % from four degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = NormalDist().inv_cdf(1 - TAIL)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def _binomial_cdf(n: int, q: float) -> NDArray[np.float64]:
    """P(B <= k) of B ~ Binomial(n, q) for k = 0..n; by logarithms, since q**n leaves the floats above 1000 samples."""
    counts = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    ways = log_factorial[n] - log_factorial - log_factorial[::-1]
    mass = np.exp(ways + counts * math.log(q) + (n - counts) * math.log1p(-q))
    return np.asarray(np.cumsum(mass))
