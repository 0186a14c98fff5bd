"""A sensor of watts becomes a counter of joules: trapezoids in a thread that ends with it."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.energy import MeterInfo
from edgekit.errors import EdgekitError
from edgekit.sampling import Sampler, trapezoid

INFO = MeterInfo(
    id="sensor",
    provenance="measured.sampled",
    domains=("a", "b"),
    covers=("cpu",),
    excludes=(),
    update_period_s=0.005,
    resolution_j=1e-9,
)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@given(st.lists(st.tuples(st.integers(1, 10**10), st.floats(0, 500)), min_size=2, max_size=20))
def test_trapezoids_agree_with_exact_sums(steps: list[tuple[int, float]]) -> None:
    times, at = [], 0
    for step, _ in steps:
        at += step
        times.append(at)
    found = trapezoid(times, [{"rail": watts} for _, watts in steps])
    exact = sum(
        (Fraction(steps[k][1]) + Fraction(steps[k + 1][1])) / 2 * (times[k + 1] - times[k])
        for k in range(len(steps) - 1)
    )
    assert found == {"rail": pytest.approx(float(exact / 10**9), rel=1e-9)}


def test_a_ramp_is_integrated_exactly_whenever_samples_fall() -> None:
    start = time.monotonic()
    sampler = Sampler(INFO, lambda: {"a": 10 * (time.monotonic() - start), "b": 3.0})
    try:
        first, begin = sampler.read(), time.monotonic() - start
        time.sleep(0.3)
        last, end = sampler.read(), time.monotonic() - start
    finally:
        sampler.close()
    assert last.joules["a"] - first.joules["a"] == pytest.approx(5 * (end**2 - begin**2), rel=0.01)
    assert last.joules["b"] - first.joules["b"] == pytest.approx(3 * (end - begin), rel=0.01)
    assert (last.t_ns - first.t_ns) / 1e9 == pytest.approx(end - begin, abs=0.005)
    assert last.updates is not None
    assert first.updates is not None
    assert 10 <= last.updates - first.updates <= 70


def test_joules_never_fall_and_two_readers_do_not_count_twice() -> None:
    sampler = Sampler(INFO, lambda: {"a": 5.0, "b": 0.0})
    taken = []
    try:
        readers = [threading.Thread(target=lambda: taken.extend(sampler.read() for _ in range(200))) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        whole = sampler.read()
    finally:
        sampler.close()
    assert len(taken) == 600
    for snapshot in taken:
        assert snapshot.joules["a"] <= whole.joules["a"]
    ordered = sorted(taken, key=lambda snapshot: snapshot.t_ns)
    for before, after in pairwise(ordered):
        seconds = (after.t_ns - before.t_ns) / 1e9
        assert after.joules["a"] - before.joules["a"] == pytest.approx(5 * seconds, abs=1e-9)


def test_a_sensor_that_goes_away_is_named_at_the_next_reading() -> None:
    answers = iter([{"a": 1.0, "b": 1.0}])
    sampler = Sampler(INFO, lambda: next(answers))
    time.sleep(0.05)
    try:
        with pytest.raises(EdgekitError, match="meter 'sensor' stopped answering"):
            sampler.read()
    finally:
        sampler.close()


def test_closing_ends_the_thread_and_lets_go_of_the_sensor() -> None:
    closed: list[bool] = []
    sampler = Sampler(INFO, lambda: {"a": 1.0, "b": 1.0}, lambda: closed.append(True))
    assert "edgekit sensor" in threads()
    sampler.close()
    assert "edgekit sensor" not in threads()
    assert closed == [True]
