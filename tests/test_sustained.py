"""A sustained run tells the first minute from the last, and gives what it reached when it is stopped."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import Bundle
from edgekit.energy import MeterInfo, Snapshot
from edgekit.errors import DeviceLost, InvalidInput, MeterMissing
from edgekit.measurement import Measurement
from edgekit.meters import EnergyRequest
from edgekit.place import Here
from edgekit.report_measurement import measurement_cells
from edgekit.sustained import Chunk, mean_watts, summary, sustain
from tests.scripted_worker import OPENING, Scripted
from tests.test_meters_hwmon import chip


def run_of(*minutes: float) -> list[Chunk]:
    """Answers of a second, with ten equal calls in each, for a minute at each of these medians."""
    return [(60.0 * n + second + 1, (call_s,) * 10) for n, call_s in enumerate(minutes) for second in range(60)]


def test_the_first_and_the_last_minute_are_told_apart() -> None:
    found = summary(run_of(0.010, 0.011, 0.013), 180)
    assert (found.minute_1_p50_s, found.final_p50_s) == (0.010, 0.013)
    assert found.minutes_p50_s == (0.010, 0.011, 0.013)
    assert (found.asked_s, found.lasted_s, found.window_s) == (180, 180, 60)


def test_the_last_minute_of_a_run_that_was_cut_is_the_last_sixty_seconds() -> None:
    found = summary(run_of(0.010, 0.011, 0.013)[:140], 180)
    assert (found.lasted_s, found.window_s) == (140, 60)
    assert found.final_p50_s == 0.011  # of seconds 80 to 140, forty of them in the second minute
    assert found.minutes_p50_s == (0.010, 0.011, 0.013)


def test_a_run_shorter_than_two_minutes_is_halved() -> None:
    found = summary([(10.0, (1.0,)), (20.0, (1.1,)), (30.0, (2.0,)), (40.0, (2.2,))], 40)
    assert found.window_s == 20
    assert (found.minute_1_p50_s, found.final_p50_s) == (pytest.approx(1.05), pytest.approx(2.1))


@given(st.lists(st.tuples(st.floats(0.001, 200), st.floats(0.001, 50)), min_size=1, max_size=30))
def test_every_run_has_both_figures(lasted: list[tuple[float, float]]) -> None:
    end, chunks = 0.0, []
    for seconds, call_s in lasted:
        end += seconds
        chunks.append((end, (call_s,)))
    found, calls = summary(chunks, 10.0), [call_s for _, call_s in lasted]
    assert min(calls) <= found.minute_1_p50_s <= max(calls)
    assert min(calls) <= found.final_p50_s <= max(calls)
    assert 1 <= len(found.minutes_p50_s) <= end // 60 + 1


def test_a_run_ends_after_its_time_and_keeps_all_calls(small_conv_bundle: Bundle) -> None:
    said: list[str] = []
    found = sustain(small_conv_bundle, 1.5, progress=said.append)
    assert found.sustained is not None
    assert 1.5 <= found.sustained.lasted_s < 15
    assert found.latency.calls is not None
    assert found.latency.calls > 100
    assert len(found.latency.times_s) <= 20_000
    assert found.trials[0].calls == found.latency.calls
    assert any("s left of 2" in text for text in said)
    assert Measurement.from_json(found.to_json()) == found


def test_a_run_that_is_stopped_gives_what_it_reached(small_conv_bundle: Bundle) -> None:
    answers = iter([False, False, True])
    found = sustain(small_conv_bundle, 600, stopped=lambda: next(answers))
    assert found.sustained is not None
    assert 0 < found.sustained.lasted_s < 60
    assert found.sustained.asked_s == 600
    assert found.peak_rss_bytes > 0  # the worker was asked for its end too


def test_a_run_whose_board_is_lost_says_what_it_reached(small_conv_bundle: Bundle) -> None:
    started: list[subprocess.Popen[str]] = []
    answers = itertools.count(1)

    class Far(Here):
        def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
            started.append(super().start(bundle, threads))
            return started[0]

        def ended(self, process: subprocess.Popen[str]) -> int:
            raise DeviceLost("the connection to far was lost")

    def cut_after_the_third() -> bool:
        if next(answers) == 3:
            started[0].kill()
        return False

    words = r"far was lost; reached \d+ calls, .*; p50 [\d.]+ ms at first and [\d.]+ ms after \d+ of 600 s"
    with pytest.raises(DeviceLost, match=words):
        sustain(small_conv_bundle, 600, place=Far(), stopped=cut_after_the_third)


def test_answers_hold_about_a_second_of_calls(small_conv_bundle: Bundle) -> None:
    place = Scripted([{"opening": {**OPENING, "first_run_s": 0.05}, "call_s": 0.05}])
    answers = iter([False, True])
    found = sustain(small_conv_bundle, 600, place=place, stopped=lambda: next(answers))
    assert found.latency.calls == 40


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_is_refused(small_conv_bundle: Bundle, seconds: float) -> None:
    with pytest.raises(InvalidInput, match="above 0 s"):
        sustain(small_conv_bundle, seconds)


# With a meter beside the calls

INFO = MeterInfo(
    id="counter", provenance="measured.counter", domains=("all",), covers=("cpu",), excludes=(), update_period_s=0.01,
    resolution_j=1e-6,
)  # fmt: skip


def stood(*points: tuple[float, float]) -> list[Snapshot]:
    return [Snapshot(t_ns=round(seconds * 1e9), joules={"all": joules}) for seconds, joules in points]


@given(st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_watts_are_those_of_the_time_that_is_asked_for(first_w: float, last_w: float) -> None:
    marks = stood(*((n, n * first_w if n <= 60 else 60 * first_w + (n - 60) * last_w) for n in range(7, 128)))
    assert mean_watts(INFO, marks, 0, 53) == pytest.approx(first_w)
    assert mean_watts(INFO, marks, 60, 120) == pytest.approx(last_w)


@pytest.mark.parametrize(("after_s", "until_s"), [(0.0, 0.1), (0.2, 0.9), (5.0, 6.0)])
def test_a_time_in_which_the_meter_hardly_moved_has_no_watts(after_s: float, until_s: float) -> None:
    assert mean_watts(INFO, stood((0, 0), (0.1, 5), (1, 6)), after_s, until_s) is None


def test_a_run_beside_a_meter_has_joules_and_the_watts_of_both_ends(small_conv_bundle: Bundle, tmp_path: Path) -> None:
    chip(tmp_path, "hwmon1", "ina226", power1_input=3_500_000)
    request = EnergyRequest(mode="measured", meter=f"hwmon,root={tmp_path}")
    found = sustain(small_conv_bundle, 7, energy=request)
    assert found.sustained is not None
    assert found.sustained.joules is not None
    assert found.sustained.joules == pytest.approx(3.5 * found.sustained.lasted_s, rel=0.1)
    assert found.sustained.minute_1_w == pytest.approx(3.5, rel=0.01)
    assert found.sustained.final_w == pytest.approx(3.5, rel=0.01)
    assert found.energy.gross_j == pytest.approx(found.sustained.joules / (found.latency.calls or 0))
    text = dict(measurement_cells(found))["power"]
    assert re.match(r"first \d+ s 3.5 W, last 3.5 W, \d\d", text)
    assert text.endswith("J over the run")


def test_a_run_without_a_meter_says_why_or_fails(small_conv_bundle: Bundle, tmp_path: Path) -> None:
    gone = f"hwmon,root={tmp_path}"
    found = sustain(small_conv_bundle, 0.5, energy=EnergyRequest(mode="any", meter=gone))
    assert found.sustained is not None
    assert (found.sustained.joules, found.sustained.final_w, found.energy.provenance) == (None, None, "unavailable")
    assert found.energy.reason is not None
    assert "cannot be read here" in found.energy.reason
    assert "power" not in dict(measurement_cells(found))
    with pytest.raises(MeterMissing, match="cannot be read here"):
        sustain(small_conv_bundle, 0.5, energy=EnergyRequest(mode="measured", meter=gone))
