"""Ranges with zero on a step, against a search over all places that zero can have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgekit.ranges import zero_on_step

ENDS = st.floats(1e-6, 1e6)


@given(ENDS, ENDS, st.sampled_from([15, 255, 65535]))
@example(0.006, 1.0, 255)
@example(1.0, 0.006, 255)
@example(1.0, 1.0, 255)
@example(1e-6, 1e6, 255)
def test_zero_is_on_a_step_of_the_narrowest_range_there_is(below: float, above: float, steps: int) -> None:
    low, high = zero_on_step(-below, above, steps)
    assert low <= -below
    assert high >= above
    step = (high - low) / steps
    assert abs(-low / step - round(-low / step)) < 1e-9 * steps
    places = np.arange(1, steps)
    assert step == pytest.approx(np.maximum(below / places, above / (steps - places)).min(), rel=1e-9)
    assert step <= (below + above) / (steps - 2) * (1 + 1e-9)


def test_a_small_end_costs_one_step_and_not_a_third_of_them() -> None:
    low, high = zero_on_step(-0.006, 1.0)
    assert (high - low) / 255 == pytest.approx(1.006 / 255, rel=0.003)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 0.0), (0.5, 1.0), (0.0, 0.0), (float("inf"), float("-inf"))])
def test_a_range_without_zero_inside_stays_as_it_is(ends: tuple[float, float]) -> None:
    assert zero_on_step(*ends) == ends
