"""Joules of two bundles: the ratio agrees with random readings, and there is no winner where intervals overlap."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.energy import NO_METER, Energy
from edgekit.energy_ratio import energy_ratio

JOULES, ERRORS = st.floats(1e-6, 1e3), st.floats(1e-4, 0.3)


def read(net_j: float | None, u_rel: float | None, gross_j: float | None = None, meter: str = "rapl") -> Energy:
    gross = 2 * net_j if net_j else gross_j
    return Energy(provenance="measured.counter", meter=meter, gross_j=gross, net_j=net_j, u_rel=u_rel)


@given(JOULES, ERRORS, JOULES, ERRORS)
def test_a_winner_is_named_only_where_the_intervals_stand_apart(a: float, u_a: float, b: float, u_b: float) -> None:
    found = energy_ratio("A", read(a, u_a), "B", read(b, u_b))
    assert found.figure == "net_j"
    assert found.ratio == pytest.approx(b / a)
    assert found.ratio_ci is not None
    assert found.ratio_ci.low < b / a < found.ratio_ci.high
    apart = a * (1 + 1.96 * u_a) < b * (1 - 1.96 * u_b) or b * (1 + 1.96 * u_b) < a * (1 - 1.96 * u_a)
    winner = f"{'A' if a < b else 'B'} takes {min(a, b) / max(a, b):.2f}x the joules of {'B' if a < b else 'A'}"
    said = "no difference in joules shown between A and B: their 95 % intervals overlap"
    assert found.verdict == (winner if apart else said)


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng, u_rel, held = np.random.default_rng(0), 0.05, 0
    for a, b in rng.normal([3.0, 2.0], [3.0 * u_rel, 2.0 * u_rel], (2000, 2)):
        found = energy_ratio("A", read(a, u_rel), "B", read(b, u_rel))
        held += found.ratio_ci is not None and found.ratio_ci.holds(2 / 3)
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_without_a_baseline_on_either_side_all_joules_are_compared() -> None:
    found = energy_ratio("A", read(None, 0.01, 4.0), "B", read(None, 0.01, 2.0))
    assert (found.figure, found.ratio, found.verdict) == ("gross_j", 0.5, "B takes 0.50x the joules of A")


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        (NO_METER, read(1, 0.01), "A: not asked for"),
        (read(1, 0.01), NO_METER, "B: not asked for"),
        (read(1, None), read(1, 0.01), "A: their uncertainty is unknown"),
        (read(1, 0.01), read(1, 0.01, meter="nvml"), "rapl read A, and nvml read B"),
        (read(1, 0.01), read(None, 0.01, 1.0), "no baseline could be taken off B"),
        (read(None, 0.01, 1.0), read(1, 0.01), "no baseline could be taken off A"),
    ],
)
def test_readings_that_cannot_be_compared_get_the_reason(a: Energy, b: Energy, why: str) -> None:
    found = energy_ratio("A", a, "B", b)
    assert (found.ratio, found.ratio_ci, found.figure) == (None, None, None)
    assert found.verdict.startswith("no joules to compare: ")
    assert why in found.verdict


def test_a_ratio_survives_json() -> None:
    found = energy_ratio("A", read(1, 0.1), "B", read(2, 0.1))
    document: Any = msgspec.json.decode(found.to_json())
    assert type(found).from_json(found.to_json()) == found
    assert document["figure"] == "net_j"
