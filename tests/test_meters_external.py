"""Loggers outside the machine: recordings tied to our clock by a marker, and lines on a serial port."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.energy_window import all_cores, measure_energy
from edgekit.errors import EdgekitError, InvalidInput
from edgekit.runtimes.meters._columns import columns, watts
from edgekit.runtimes.meters._marker import CHIP_S, CODE, Marker, find_markers, send_marker
from edgekit.runtimes.meters._trace import Trace, load
from edgekit.runtimes.meters.external_csv import ExternalCsv
from edgekit.runtimes.meters.serial import Lines, Serial


def marker(at_s: float, late_s: float = 0.0) -> Marker:
    """What `send_marker` says when it begins then, with calls that run on for `late_s` after each load's time."""
    loads, begin = [], at_s
    for work, rest in CODE:
        end = begin + work * CHIP_S + late_s
        loads.append((round(1e9 * begin), round(1e9 * end)))
        begin = end + rest * CHIP_S
    return Marker(tuple(loads))


MARKER_S = marker(0).seconds


def powered(times: np.ndarray, *markers: Marker, idle_w: float = 2.0, load_w: float = 3.0) -> np.ndarray:
    """Idle power, the steps of markers on top of it, and full load between them from 1 s after the first."""
    loads = [(begin / 1e9, end / 1e9) for each in markers for begin, end in each.loads_ns]
    work = [(a.begin_ns / 1e9 + a.seconds + 1, b.begin_ns / 1e9 - 1) for a, b in itertools.pairwise(markers)]
    busy = np.zeros(len(times), bool)
    for begin, end in (*loads, *work):
        busy |= (times >= begin) & (times < end)
    return idle_w + load_w * busy


@pytest.mark.parametrize(
    ("header", "row", "volts", "expected"),
    [
        ("Timestamp(ms),Current(uA)", [1.0, 250_000], 5.0, 1.25),  # PPK2
        ("Timestamp(ms),Current(uA),D0-D7", [1.0, 250_000, 0], 5.0, 1.25),
        ("#time (s),current (A),voltage (V)", [0.1, 0.25, 5.0], None, 1.25),  # Joulescope
        ("time_ms,bus_v,current_ma,power_mw", [1, 5.0, 250, 1250], None, 1.25),  # an INA228 logger
        ("Time [s];Voltage [mV];Current [mA]", [1, 5000, 250], None, 1.25),
        ("timestamp_us,current_A,bus_voltage_V", [1, 0.25, 5.0], None, 1.25),
    ],
)
def test_columns_are_found_by_their_names_and_units(
    header: str, row: list[float], volts: float | None, expected: float
) -> None:
    where = columns(header.replace(";", ",").split(","), "log.csv", volts)
    assert watts(row, where, volts) == pytest.approx(expected)
    assert "time" in where


@pytest.mark.parametrize("header", ["a,b", "current,voltage", "Timestamp(ms),Current(uA)", "1.0,2.0", "", "power (h)"])
def test_columns_without_units_or_volts_are_refused(header: str) -> None:
    with pytest.raises(InvalidInput, match=r"'log.csv' has the columns .*it needs power_w, or current_a and voltage_v"):
        columns(header.split(","), "log.csv")


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0.001, 1), st.floats(0, 20)), min_size=3, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_joules_between_samples_follow_the_lines_between_them(
    steps: list[tuple[float, float]], a: float, b: float
) -> None:
    times, power = np.cumsum([s for s, _ in steps]), np.array([w for _, w in steps])
    trace = Trace(times, power)
    ends = np.sort(times[0] + np.array([a, b]) * (times[-1] - times[0]))
    fine = np.unique(np.concatenate([ends, times[(times > ends[0]) & (times < ends[1])]]))
    exact = np.trapezoid(np.interp(fine, times, power), fine) if len(fine) > 1 else 0.0
    found = trace.joules(ends)
    assert found[1] - found[0] == pytest.approx(float(exact), rel=1e-6, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    begin_s=st.floats(0.5, 8),
    apart_s=st.floats(6, 60),
    late_s=st.floats(0, 0.4),
    drift=st.floats(-0.003, 0.003),
    rate=st.sampled_from([20, 100, 1000]),
    noise=st.floats(0, 0.4),
    load_w=st.floats(0.5, 20),
    seed=st.integers(0, 99),
)
def test_markers_are_found_where_they_are(
    begin_s: float, apart_s: float, late_s: float, drift: float, rate: int, noise: float, load_w: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    first, last = marker(begin_s, late_s), marker(begin_s + apart_s, late_s)
    ours = np.arange(0, begin_s + apart_s + MARKER_S + 4, 1 / rate)
    power = powered(ours, first, last, load_w=load_w) + rng.normal(0, noise * load_w, len(ours))
    found = find_markers(Trace(100 + (1 + drift) * ours, power), first, last)
    expected = [100 + (1 + drift) * each for each in (begin_s, begin_s + apart_s)]
    assert found == pytest.approx(expected, abs=max(0.03, 1.5 / rate))


def test_a_marker_of_another_run_is_not_taken_for_ours() -> None:
    times = np.arange(0, 60, 0.01)
    power = powered(times, marker(2), marker(12), marker(40))
    assert find_markers(Trace(times, power), marker(1002), marker(1012)) == pytest.approx((2, 12), abs=0.02)
    assert find_markers(Trace(times, power), marker(1002), marker(1040)) == pytest.approx((2, 40), abs=0.02)
    assert find_markers(Trace(times, power), marker(1002), marker(1020)) is None


@pytest.mark.parametrize("shape", ["flat", "noise", "ramp", "step", "square", "one", "cut", "slow"])
def test_recordings_without_both_markers_have_none(shape: str) -> None:
    times, first, last = np.arange(0, 20, 0.01), marker(1), marker(10)
    power = {
        "flat": np.full_like(times, 3.0),
        "noise": np.random.default_rng(0).normal(3, 1, len(times)),
        "ramp": times,
        "step": 2.0 + 3.0 * (times > 5),
        "square": 2.0 + (np.floor(times / CHIP_S) % 2),
        "one": powered(times, first),
    }.get(shape, powered(times, first, last))
    kept = {"cut": slice(0, 1200), "slow": slice(0, None, 20)}.get(shape, slice(None))
    assert find_markers(Trace(times[kept], power[kept]), first, last) is None


def test_the_marker_that_is_sent_is_the_one_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load itself is recorded: a thread notes how much of every 5 ms the process computes."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    samples: list[tuple[float, float]] = []
    stop = threading.Event()

    def record() -> None:
        while not stop.wait(0.005):
            samples.append((time.monotonic(), time.process_time()))

    thread = threading.Thread(target=record)
    thread.start()
    time.sleep(0.5)
    first = send_marker(all_cores)
    time.sleep(2)
    last = send_marker(all_cores)
    time.sleep(0.5)
    stop.set()
    thread.join()
    times, cpu = np.array(samples).T
    found = find_markers(Trace((times[1:] + times[:-1]) / 2, np.diff(cpu) / np.diff(times)), first, last)
    assert found == pytest.approx((first.begin_ns / 1e9, last.begin_ns / 1e9), abs=0.1)


def write(path: Path, times: np.ndarray, power: np.ndarray, header: str = "time (s),power (mW)") -> None:
    partial = path.with_suffix(".part")
    np.savetxt(partial, np.column_stack([times, 1e3 * power]), delimiter=",", header=header, comments="")
    partial.rename(path)


class Board:
    """A board whose power is known: 2 W, and 3 W more while it works. Its logger's clock runs ahead, and fast."""

    def __init__(self, path: Path, logger_ahead_s: float, logger_rate: float) -> None:
        self.path, self.ahead_s, self.rate = path, logger_ahead_s, logger_rate
        self.busy, self.start = list[tuple[float, float]](), time.monotonic()

    def work(self, count: int) -> None:
        begin = time.monotonic()
        time.sleep(0.01 * count)
        self.busy.append((begin, time.monotonic()))

    def export(self) -> None:
        """Somebody stops the logger."""
        times = np.arange(self.start, time.monotonic(), 0.001)
        power = np.full_like(times, 2.0)
        for begin, end in self.busy:
            power[(times >= begin) & (times < end)] += 3.0
        write(self.path, self.rate * times + self.ahead_s, power)


def test_a_recording_on_another_clock_gives_the_joules_of_the_calls(tmp_path: Path) -> None:
    board = Board(tmp_path / "recording.csv", logger_ahead_s=5000.0, logger_rate=1.004)
    threading.Timer(18.0, board.export).start()
    found = measure_energy(ExternalCsv(path=str(board.path), gain=0.005, wait_s=30), board.work, idle_s=2.0)
    assert found.gross_j is not None
    assert found.window_s is not None
    assert found.net_j is not None
    assert found.gross_j == pytest.approx(5 * found.window_s / found.iterations, rel=0.02)
    assert found.net_j == pytest.approx(3 * found.window_s / found.iterations, rel=0.03)
    assert found.idle_w == pytest.approx(2, rel=0.01)
    assert found.provenance == "measured.external"
    assert "gain_unknown" not in found.flags


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has the columns"),
        ("time (s),power (W)\n", "has no rows under"),
        ("time (s),power (W)\n1,2\n", "needs two rows or more"),
        ("time (s),power (W)\n1,2\n1,3\n", "at times that only grow"),
        ("time (s),power (W)\n2,2\n1,3\n", "at times that only grow"),
        ("time (s),power (W)\n1,2\n2,nan\n", "of finite numbers"),
        ("time (s),power (W)\n1,2\n2,inf\n", "of finite numbers"),
        ("time (s),power (W)\n1,2\n2\n", "not a table of numbers"),
        ("time (s),power (W)\n1,2\n2,x\n", "not a table of numbers"),
        ("power (W),note\n1,2\n2,3\n", "no column of time"),
        ("\x00\x01\x02", "has the columns"),
    ],
)
def test_a_recording_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=message):
        load(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00time")
    with pytest.raises(InvalidInput, match="not a table of numbers"):
        load(tmp_path / "log.csv")


def test_other_separators_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("\ufeffTime [s];Power [W];Note\n0;1;7\n2;3;8\n", encoding="utf-8")
    trace = load(tmp_path / "log.csv")
    assert trace.times_s.tolist() == [0, 2]
    assert trace.watts.tolist() == [1, 3]
    assert trace.period_s == 2


@pytest.mark.parametrize(
    ("kind", "why"), [("none", "it is not there"), ("flat", "the load before"), ("cut", "the load")]
)
def test_a_recording_that_does_not_come_or_does_not_fit_is_named(tmp_path: Path, kind: str, why: str) -> None:
    path, times = tmp_path / "log.csv", np.arange(0, 20, 0.01)
    if kind == "flat":
        write(path, times, np.full_like(times, 2.0))
    if kind == "cut":
        write(path, times[:800], powered(times, marker(1), marker(10))[:800])
    counter = ExternalCsv(path=str(path), wait_s=0.1).open()
    counter.mark(idle)
    taken = [counter.read(), counter.read()]
    counter.mark(idle)
    with pytest.raises(InvalidInput, match=f"no energy from '.*log.csv': {why}"):
        counter.settle(taken)


def idle(until_ns: int) -> None:
    time.sleep(max(0, until_ns - time.monotonic_ns()) / 1e9)


def test_a_recording_must_be_named_and_have_a_folder(tmp_path: Path) -> None:
    assert ExternalCsv().available().reason == "no recording of a power logger is named"
    assert not ExternalCsv(path=str(tmp_path / "gone" / "a.csv")).available().ok
    assert ExternalCsv(path=str(tmp_path / "a.csv")).available().ok
    assert ExternalCsv().info.runs_on == "client"


class Logger:
    """A microcontroller at the other end of a pseudo-terminal."""

    def __init__(self) -> None:
        self._end, port = os.openpty()
        self.port, self._held = os.ttyname(port), port
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def say(self, *lines: str, every_s: float = 0.01, header: str = "") -> None:
        def serve() -> None:
            turn = 0
            while not self._stop.wait(every_s):
                text = header if header and turn % 5 == 0 else lines[turn % len(lines)]
                os.write(self._end, f"{text}\r\n".encode())
                turn += 1

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()

    def hush(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()


@pytest.fixture
def logger() -> Iterator[Logger]:
    made = Logger()
    yield made
    made.hush()


def test_lines_on_a_port_are_integrated(logger: Logger) -> None:
    logger.say("5.0,400", "5.0,600", header="bus_v,current_ma")
    meter = Serial(port=logger.port)
    assert meter.available().ok
    counter = meter.open()
    try:
        first = counter.read()
        time.sleep(1.0)
        last = counter.read()
    finally:
        counter.close()
    seconds = (last.t_ns - first.t_ns) / 1e9
    assert last.joules["input"] - first.joules["input"] == pytest.approx(2.5 * seconds, rel=0.1)
    assert counter.info.provenance == "measured.external"
    assert counter.info.runs_on == "client"


def test_columns_may_be_named_where_the_logger_does_not(logger: Logger) -> None:
    logger.say("17,250")
    lines = Lines(Serial(port=logger.port, columns="t_ms;current_ma", volts=4.0))
    try:
        assert lines.watts() == pytest.approx(1.0)
    finally:
        lines.close()


@pytest.mark.parametrize(
    ("line", "options", "reason"),
    [
        ("1,2", {}, "it prints no names of columns"),
        ("hello,world", {}, "has the columns hello, world"),
        ("hello", {"columns": "power_w"}, "prints 'hello', which is no sample"),
        ("1,2", {"baud": 12345}, "12345 is no baud rate"),
    ],
)
def test_a_port_that_prints_no_samples_says_so(
    logger: Logger, monkeypatch: pytest.MonkeyPatch, line: str, options: dict[str, object], reason: str
) -> None:
    monkeypatch.setattr("edgekit.runtimes.meters.serial.SILENCE_S", 0.5)
    logger.say(line)
    said = Serial(port=logger.port, **options).available()  # type: ignore[arg-type]
    assert not said.ok
    assert reason in (said.reason or "")


def test_silence_is_an_error_and_no_constant_power(logger: Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.runtimes.meters.serial.SILENCE_S", 0.3)
    logger.say("5", header="power_w,x")
    lines = Lines(Serial(port=logger.port, columns="power_w"))
    logger.hush()
    try:
        time.sleep(0.1)
        lines.watts()
        time.sleep(0.4)
        with pytest.raises(EdgekitError, match="has been silent"):
            lines.watts()
    finally:
        lines.close()


def test_a_port_must_be_named_and_be_one(tmp_path: Path) -> None:
    assert Serial().available().reason == "no serial port is named"
    (tmp_path / "file").write_text("power_w\n1\n")
    for port in (tmp_path / "none", tmp_path / "file"):
        said = Serial(port=str(port)).available()
        assert not said.ok
        assert str(port) in (said.reason or "")


def test_the_code_nearly_vanishes_against_itself() -> None:
    chips = [chip for work, rest in CODE for chip in [1] * work + [0] * rest]
    signs = 2 * np.array(chips) - 1
    sides = np.correlate(signs, signs, "full")
    assert sides.max() == len(chips) == 13
    assert sorted(np.abs(sides))[-2] == 1
