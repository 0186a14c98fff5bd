"""What a window of counter readings gives agrees with arithmetic done another way, and says what it does not know."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.energy import NO_METER, Availability, Energy, MeterInfo, Snapshot, Window, not_here, reading, require
from edgekit.errors import MeterMissing

INFO = MeterInfo(
    id="counter",
    provenance="measured.counter",
    domains=("package", "dram"),
    covers=("cpu", "dram"),
    excludes=("gpu",),
    update_period_s=0.001,
    resolution_j=1e-4,
    gain_uncertainty=0.01,
)
SECOND = 10**9


def mark(seconds: float, joules: float, updates: int | None = None) -> Snapshot:
    """Two domains that add up to `joules`, and a third that lies within one of them."""
    parts = {"package": 0.75 * joules, "dram": 0.25 * joules, "cores": 0.5 * joules}
    return Snapshot(t_ns=round(seconds * SECOND), joules=parts, updates=updates)


def window(*marks: Snapshot, calls: tuple[int, ...] = (100,), **changes: object) -> Window:
    return msgspec.structs.replace(Window(marks=marks, calls=calls, edge_s=0.001), **changes)


def test_a_window_is_the_difference_of_its_ends_over_its_calls() -> None:
    found = reading(INFO, window(mark(5, 1000), mark(15, 1600)))
    assert found.gross_j == pytest.approx(6.0, rel=1e-12)
    assert (found.window_s, found.iterations, found.updates_seen) == (10, 100, 10_000)
    assert (found.provenance, found.meter, found.covers, found.excludes) == (
        "measured.counter", "counter", ("cpu", "dram"), ("gpu",),
    )  # fmt: skip
    assert found.net_j is None
    assert found.idle_w is None
    assert found.flags == ()


@given(
    start=st.floats(0, 1e6),
    joules=st.lists(st.floats(0.5, 1e3), min_size=2, max_size=6),
    calls=st.integers(1, 10**6),
)
def test_trials_add_up_to_the_whole_window(start: float, joules: list[float], calls: int) -> None:
    marks, at = [mark(0, start)], Fraction(start)
    for number, each in enumerate(joules):
        at += Fraction(each)
        marks.append(mark(number + 1, float(at)))
    found = reading(INFO, window(*marks, calls=(calls,) * len(joules)))
    expected = sum(map(Fraction, joules)) / (calls * len(joules))
    assert found.gross_j == pytest.approx(float(expected), rel=1e-6)  # a counter at 1e6 J keeps 1e-10 J
    assert found.iterations == calls * len(joules)


def test_nested_domains_are_not_counted_twice() -> None:
    assert reading(INFO, window(mark(0, 0), mark(1, 8))).gross_j == pytest.approx(0.08)
    with_cores = msgspec.structs.replace(INFO, domains=("package", "dram", "cores"))
    assert reading(with_cores, window(mark(0, 0), mark(1, 8))).gross_j == pytest.approx(0.12)


@pytest.mark.parametrize("joules", [0.0, 1e-5])
def test_a_counter_that_did_not_move_is_below_resolution_and_not_zero(joules: float) -> None:
    found = reading(INFO, window(mark(0, 7), mark(0.02, 7 + joules)))
    assert (found.gross_j, found.net_j, found.u_rel) == (None, None, None)
    assert found.flags == ("below_resolution",)
    assert found.reason == "the counter did not move in 0.02 s: a longer window is needed"


def test_a_counter_that_went_backwards_gives_nothing() -> None:
    found = reading(INFO, window(mark(0, 7), mark(1, 3)))
    assert found.gross_j is None
    assert found.flags == ("went_backwards",)
    assert found.reason is not None
    assert "reset" in found.reason


def test_a_meter_of_nothing_says_so() -> None:
    nothing = msgspec.structs.replace(INFO, id="null", domains=(), provenance="unavailable")
    found = reading(nothing, window(mark(0, 0), mark(1, 5)))
    assert (found.gross_j, found.provenance, found.reason) == (None, "unavailable", "meter 'null' measures nothing")


def test_an_unknown_gain_is_flagged() -> None:
    plain = msgspec.structs.replace(INFO, update_period_s=0.1, gain_uncertainty=None)
    assert reading(plain, window(mark(0, 0), mark(2.05, 5))).flags == ("gain_unknown",)


@pytest.mark.parametrize(
    ("last", "seen"), [(mark(1.99, 5), 19), (mark(9, 5, updates=22), 19), (mark(9, 5, updates=3), 0)]
)
def test_a_window_with_few_updates_of_its_counter_gives_no_figure(last: Snapshot, seen: int) -> None:
    slow = msgspec.structs.replace(INFO, update_period_s=0.1)
    found = reading(slow, window(mark(0, 0, updates=last.updates and 3), last))
    assert (found.gross_j, found.net_j, found.flags, found.updates_seen) == (None, None, ("few_updates",), seen)
    assert found.reason is not None
    assert f"the counter moved {seen} times in" in found.reason
    assert "a longer window is needed" in found.reason


def test_the_uncertainty_of_the_edges_is_what_random_edges_scatter_by() -> None:
    rng, period, seconds, watts = np.random.default_rng(0), 0.1, 1.0, 20.0
    late = rng.uniform(0, period, (2, 200_000))
    scatter = (watts * (seconds + late[0] - late[1])).std() / (watts * seconds)
    exact = msgspec.structs.replace(INFO, gain_uncertainty=0.0)
    found = reading(exact, window(mark(0, 0), mark(seconds, watts * seconds), edge_s=period))
    assert found.u_rel == pytest.approx(scatter, rel=0.01)
    assert found.u_rel == pytest.approx(0.0408, rel=0.01)  # 4.1 % at a second of NVML's 100 ms


def test_the_uncertainty_of_trials_is_their_scatter_over_the_root_of_their_number() -> None:
    joules = [10.0, 10.4, 9.7, 10.1, 9.9]
    marks = [mark(k, sum(joules[:k])) for k in range(6)]
    exact = msgspec.structs.replace(INFO, gain_uncertainty=0.0)
    found = reading(exact, window(*marks, calls=(10,) * 5, edge_s=0.0))
    expected = np.std(joules, ddof=1) / math.sqrt(5) / np.mean(joules)
    assert found.u_rel == pytest.approx(float(expected), rel=1e-9)


def test_gain_edges_and_trials_add_as_squares() -> None:
    joules = [10.0, 11.0]
    both = reading(INFO, window(*[mark(k, sum(joules[:k])) for k in range(3)], calls=(1, 1), edge_s=0.1))
    trial = np.std(joules, ddof=1) / math.sqrt(2) / 10.5
    assert both.u_rel == pytest.approx(math.sqrt(0.01**2 + (0.1 / math.sqrt(6) / 2) ** 2 + trial**2), rel=1e-9)


def idle(watts: float, start: float = 0.0) -> tuple[Snapshot, Snapshot]:
    return mark(start, 0), mark(start + 10, 10 * watts)


def test_the_idle_baseline_is_taken_off() -> None:
    found = reading(INFO, window(mark(0, 0), mark(10, 120), idle=(idle(2.0), idle(2.2))))
    assert found.idle_w == pytest.approx(2.1)
    assert found.gross_j == pytest.approx(1.2)
    assert found.net_j == pytest.approx(1.2 - 2.1 * 0.1)
    assert found.u_rel is not None
    edge = 0.001 / math.sqrt(6) / 10
    parts = (0.01 * 0.99, edge * 1.2, 0.1 * 0.2 / math.sqrt(12), 0.1 * 2.0 * edge / 2, 0.1 * 2.2 * edge / 2)
    assert found.u_rel == pytest.approx(math.sqrt(sum(part**2 for part in parts)) / 0.99, rel=1e-9)


def test_a_baseline_that_drifts_too_far_is_not_taken_off() -> None:
    steady = reading(INFO, window(mark(0, 0), mark(10, 120), idle=(idle(2.0), idle(2.9))))
    assert steady.net_j is not None
    drifted = reading(INFO, window(mark(0, 0), mark(10, 120), idle=(idle(2.0), idle(3.1))))
    assert drifted.net_j is None
    assert drifted.gross_j == pytest.approx(1.2)
    assert drifted.idle_w == pytest.approx(2.55)
    assert drifted.flags == ("idle_drift",)
    assert drifted.u_rel == reading(INFO, window(mark(0, 0), mark(10, 120))).u_rel


def test_work_that_does_not_stand_out_from_idle_has_no_net() -> None:
    found = reading(INFO, window(mark(0, 0), mark(10, 20), idle=(idle(2.0), idle(2.0))))
    assert found.net_j is None
    assert found.flags == ("not_above_idle",)


def test_a_missing_meter_is_none_with_a_reason_and_never_zero() -> None:
    assert NO_METER.provenance == "unavailable"
    assert NO_METER.gross_j is None
    assert NO_METER.reason


def test_energy_goes_to_json_and_back() -> None:
    found = reading(INFO, window(mark(0, 0), mark(10, 120), idle=(idle(2.0), idle(2.0))))
    assert Energy.from_json(found.to_json()) == found


def test_what_is_not_here_says_why_and_how_to_get_it() -> None:
    gone = not_here("there is no /dev/vcio", "it is part of a Raspberry Pi")
    assert str(gone) == "there is no /dev/vcio; it is part of a Raspberry Pi"
    assert str(Availability(ok=True)) == "ok"
    require("x", Availability(ok=True))
    with pytest.raises(MeterMissing, match="meter 'x' cannot be read here: there is no /dev/vcio; it is part") as error:
        require("x", gone)
    assert error.value.exit_code == 3
