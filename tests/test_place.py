"""A worker's answers are believed when they make sense, and what ends it is named."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from edgekit.bundle import Bundle
from edgekit.errors import BundleCorrupt, EdgekitError, ToolchainMissing
from edgekit.place import HERE, Here, Worker
from tests.scripted_worker import CLOSING, OPENING, Scripted


@pytest.fixture
def bundle(small_conv_bundle: Bundle) -> Bundle:
    return small_conv_bundle


def worker(bundle: Bundle, **script: Any) -> Worker:
    return Worker(bundle, 1, Scripted([script]))


def refused(bundle: Bundle, ask: Any, *texts: str, **script: Any) -> None:
    place = Scripted([script])
    with pytest.raises(EdgekitError) as caught, Worker(bundle, 1, place) as opened:
        ask(opened)
    for text in (str(bundle.path), *texts):
        assert text in str(caught.value)
    assert place.started[0].poll() is not None  # no process is left behind


@pytest.mark.parametrize(
    "line",
    [
        "no json\n", "[]\n", "null\n", "1\n", '"x"\n', "{}\n", '{"times_s": 1}\n', '{"times_s": [1, 2, 3}\n',
        '{"times_s": [NaN, 1, 1]}\n', '{"times_s": [Infinity, 1, 1]}\n', '{"times_s": [1e999, 1, 1]}\n',
        '{"times_s": [0, 1, 1]}\n', '{"times_s": [-1, 1, 1]}\n', '{"times_s": ["1", 1, 1]}\n',
        '{"times_s": [null, 1, 1]}\n', '{"times_s": [true, 1, 1]}\n', '{"times_s": []}\n', '{"times_s": [1, 1]}\n',
        '{"times_s": [1, 1, 1, 1]}\n', '{"error": 3}\n', '{"error": null}\n', '{"error": "x", "type": 3}\n',
        "[" * 9_000 + "\n", '{"a":' * 9_000 + "\n", '{"times_s": "\\ud800"}\n',
    ],
)  # fmt: skip
def test_times_that_make_no_sense_are_refused(bundle: Bundle, line: str) -> None:
    refused(bundle, lambda w: w.times(3), "makes no sense", "another version of edgekit", answers=[line])


@pytest.mark.parametrize(
    "change",
    [
        {"load_s": "fast"}, {"load_s": 0}, {"load_s": -1}, {"load_s": None}, {"first_run_s": 0.0},
        {"runtime_version": 3}, {"state": None}, {"state": {}}, {"state": {"machine": 1}},
    ],
)  # fmt: skip
def test_an_opening_that_makes_no_sense_is_refused(bundle: Bundle, change: dict[str, Any]) -> None:
    refused(bundle, lambda w: None, "makes no sense", opening={**OPENING, **change})


@pytest.mark.parametrize("change", [{"peak_rss_bytes": 0}, {"peak_rss_bytes": 1.5}, {"overhead_s": -1.0}])
def test_a_closing_that_makes_no_sense_is_refused(bundle: Bundle, change: dict[str, Any]) -> None:
    refused(bundle, lambda w: w.close(), "makes no sense", closing={**CLOSING, **change})


def test_bytes_that_are_no_text_are_refused(bundle: Bundle) -> None:
    class Binary:
        def start(self, bundle: object, threads: int) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", r"import sys; sys.stdout.buffer.write(b'\xff\xfe\n')"]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")

    with pytest.raises(EdgekitError, match="makes no sense"):
        Worker(bundle, 1, Binary())


@pytest.mark.parametrize("tokens", [[], [1.0]])
def test_a_text_needs_two_tokens_to_time(bundle: Bundle, tokens: list[float]) -> None:
    answer = json.dumps({"times_s": tokens, "prompt_tokens": 3}) + "\n"
    refused(bundle, lambda w: w.text(8), "for 8 tokens", answers=[answer])


def test_a_text_says_how_long_its_prompt_was(bundle: Bundle) -> None:
    refused(bundle, lambda w: w.text(2), "makes no sense", answers=[json.dumps({"times_s": [1.0, 2.0]}) + "\n"])
    with worker(bundle, call_s=0.5) as opened:
        assert opened.text(3).prompt_tokens == 7


@pytest.mark.parametrize("last", ["", '{"times_s": [0.1, 0.'])
def test_a_worker_that_ends_early_is_named_with_its_code(bundle: Bundle, last: str) -> None:
    class Ends(Here):
        def start(self, bundle: object, threads: int) -> subprocess.Popen[str]:
            code = f"import sys; sys.stdout.write({json.dumps(json.dumps(OPENING))} + '\\n' + {last!r}); sys.exit(3)"
            return subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, encoding="utf-8")

    with Worker(bundle, 1, Ends()) as opened, pytest.raises(EdgekitError, match="left with code 3"):
        opened.times(2)


@pytest.mark.parametrize(("number", "hint"), [(signal.SIGKILL, "out of memory"), (signal.SIGSEGV, "signal 11")])
def test_a_worker_that_is_killed_is_named_with_the_signal(bundle: Bundle, number: int, hint: str) -> None:
    place = Scripted([{"call_s": 0.1}])
    with Worker(bundle, 1, place) as opened:
        place.started[0].send_signal(number)
        place.started[0].wait()
        with pytest.raises(EdgekitError, match=f"killed by signal {number}") as caught:
            opened.times(10)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("BundleCorrupt", BundleCorrupt), ("ToolchainMissing", ToolchainMissing), ("ImportError", EdgekitError),
     ("SHOWN", EdgekitError), ("Iterable", EdgekitError), ("__name__", EdgekitError), ("unknown_name", EdgekitError)],
)  # fmt: skip
def test_a_workers_error_is_raised_as_what_it_is(bundle: Bundle, kind: str, expected: type[EdgekitError]) -> None:
    with pytest.raises(EdgekitError, match=r"^this and that$") as caught:
        worker(bundle, opening={"error": "this and that", "type": kind})
    assert type(caught.value) is expected


def test_what_a_newer_worker_says_beyond_this_is_left_alone(bundle: Bundle) -> None:
    with worker(bundle, opening={**OPENING, "new": [1]}, call_s=0.5) as opened:
        assert opened.times(2) == (0.5, 0.5)
        assert opened.close().overhead_s is None


def test_the_real_worker_answers_all_of_it(bundle: Bundle) -> None:
    with Worker(bundle, 1, HERE) as opened:
        times = opened.times(7)
        closing = opened.close()
    assert len(times) == 7
    assert all(0 < time < 10 for time in times)
    assert opened.opening.load_s < opened.start_s < 60
    assert opened.opening.state.affinity
    assert closing.runtime_build is not None
    assert closing.overhead_s is not None
    assert 1e-7 < closing.overhead_s < 1e-2
    assert math.isclose(closing.peak_rss_bytes, 60e6, rel_tol=0.9)


def test_a_ctrl_c_in_the_terminal_reaches_who_asked_and_not_the_worker(bundle: Bundle) -> None:
    process = HERE.start(bundle, 1)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert os.getpgid(process.pid) != os.getpgid(0)
    finally:
        process.kill()
        process.communicate()
