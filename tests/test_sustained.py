"""A sustained run tells the first minute from the last, and gives what it reached when it is stopped."""

from __future__ import annotations

import itertools
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import Bundle
from edgekit.errors import DeviceLost, InvalidInput
from edgekit.measurement import Measurement
from edgekit.place import Here
from edgekit.sustained import Chunk, summary, sustain
from tests.scripted_worker import OPENING, Scripted


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
