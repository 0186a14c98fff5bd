"""Least, greatest and how far apart the values of a tensor lie, added up over samples in float64.

Source: Pébay, Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical moments
(Sandia report SAND2008-6212, 2008), equations 2.1 to 2.3: central moments of two sets give those of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of the finite values: their number, mean, and sums of the second, third and fourth power around it."""

    count: int
    mean: float
    second: float
    third: float
    fourth: float
    low: float
    high: float
    not_finite: int

    @classmethod
    def of(cls, tensor: Tensor) -> Moments:
        """One tensor's; of none or only NaN and infinities, a range of 0."""
        values = tensor.double().flatten()
        finite = values[torch.isfinite(values)]
        lost = len(values) - len(finite)
        if not len(finite):
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, lost)
        mean = finite.mean()
        apart = finite - mean
        square = apart.square()
        powers = (float(square.sum()), float((square * apart).sum()), float(square.square().sum()))
        return cls(len(finite), float(mean), *powers, float(finite.min()), float(finite.max()), lost)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets together."""
        lost = self.not_finite + other.not_finite
        if not self.count or not other.count:
            known = self if self.count else other
            return Moments(
                known.count, known.mean, known.second, known.third, known.fourth, known.low, known.high, lost
            )
        a, b, n = self.count, other.count, self.count + other.count
        d = other.mean - self.mean
        third = self.third + other.third + d**3 * a * b * (a - b) / n**2
        third += 3 * d * (a * other.second - b * self.second) / n
        fourth = self.fourth + other.fourth + d**4 * a * b * (a * a - a * b + b * b) / n**3
        fourth += 6 * d**2 * (a * a * other.second + b * b * self.second) / n**2
        fourth += 4 * d * (a * other.third - b * self.third) / n
        return Moments(
            count=n,
            mean=self.mean + d * b / n,
            second=self.second + other.second + d**2 * a * b / n,
            third=third,
            fourth=fourth,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            not_finite=lost,
        )

    @property
    def kurtosis(self) -> float | None:
        """The fourth standardised moment, 3 for a normal distribution; None where nothing varies."""
        return _finite(self.count * self.fourth, self.second**2) if self.varies else None

    @property
    def max_over_std(self) -> float | None:
        """The largest magnitude in standard deviations; None where nothing varies."""
        return _finite(max(-self.low, self.high), math.sqrt(self.second / self.count)) if self.varies else None

    @property
    def varies(self) -> bool:
        """Whether two values differ."""
        return self.low < self.high


def _finite(above: float, below: float) -> float | None:
    """A quotient, where float64 holds it."""
    found = above / below if below else math.inf
    return found if math.isfinite(found) else None
