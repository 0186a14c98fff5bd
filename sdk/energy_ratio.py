"""Two readings of energy side by side: their ratio with its interval, and a winner only where they stand apart."""

from __future__ import annotations

import math
from typing import Literal

from edgekit.energy import Energy
from edgekit.intervals import Interval
from edgekit.types import Value

SIGMAS = 1.96  # of a normal distribution, for 95 %


class EnergyRatio(Value, frozen=True, kw_only=True):
    """How many joules B takes for each of A, per inference; None where they cannot be compared, and the verdict why."""

    figure: Literal["net_j", "gross_j"] | None = None  # that is compared: the net one where both have it
    ratio: float | None = None
    ratio_ci: Interval | None = None  # 95 %, of both uncertainties; an error of gain that both share is in it too
    verdict: str


def energy_ratio(a_name: str, a: Energy, b_name: str, b: Energy) -> EnergyRatio:
    """Compare what one meter read of two bundles; no winner where their 95 % intervals overlap."""
    for name, each in ((a_name, a), (b_name, b)):
        if each.gross_j is None or each.u_rel is None:
            return EnergyRatio(verdict=f"no joules to compare: {name}: {each.reason or 'their uncertainty is unknown'}")
    if a.meter != b.meter:
        return EnergyRatio(verdict=f"no joules to compare: {a.meter} read {a_name}, and {b.meter} read {b_name}")
    if (a.net_j is None) != (b.net_j is None):
        unsure = a_name if a.net_j is None else b_name
        return EnergyRatio(verdict=f"no joules to compare: no baseline could be taken off {unsure}; measure again")
    figure: Literal["net_j", "gross_j"] = "gross_j" if a.net_j is None else "net_j"
    first, second = _joules(a), _joules(b)
    apart = math.exp(SIGMAS * math.hypot(a.u_rel or 0, b.u_rel or 0))
    ratio = second / first
    return EnergyRatio(
        figure=figure,
        ratio=ratio,
        ratio_ci=Interval(low=ratio / apart, high=ratio * apart),
        verdict=_verdict(a_name, _interval(a), b_name, _interval(b), ratio),
    )


def _verdict(a: str, of_a: Interval, b: str, of_b: Interval, ratio: float) -> str:
    if of_a.low <= of_b.high and of_b.low <= of_a.high:
        return f"no difference in joules shown between {a} and {b}: their 95 % intervals overlap"
    less, more, factor = (b, a, 1 / ratio) if ratio < 1 else (a, b, ratio)
    return f"{less} takes {1 / factor:.2f}x the joules of {more}"


def _interval(energy: Energy) -> Interval:
    joules, half = _joules(energy), SIGMAS * (energy.u_rel or 0)
    return Interval(low=joules * (1 - half), high=joules * (1 + half))


def _joules(energy: Energy) -> float:
    """The figure that `u_rel` is of."""
    return energy.net_j or energy.gross_j or 0.0
