"""The text that people read: every figure with its unit, and the reason where there is none."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit.bundle import Delegation
from edgekit.measurement import NO_METER, Energy, HostState, Measurement, summarize
from edgekit.parity import TOLERANCES, Parity, compare
from edgekit.report import Report, Row, cells, energy_text, measurement_cells, megabytes, milliseconds, parity_text

STATE = HostState(
    machine="aarch64",
    system="Linux 6.6",
    cpu="Cortex-A76",
    cores=4,
    python="3.11.7",
    governor="performance",
    clock_min_hz=1.5e9,
    clock_max_hz=2.4e9,
    clock_now_hz=2.4e9,
    temperature_c=50.0,
)


def measured(calls: int = 300, **changes: Any) -> Measurement:
    return msgspec.structs.replace(
        Measurement(
            bundle="out/b",
            artifact="model.onnx",
            runtime="onnxruntime",
            runtime_version="1.22.0",
            threads=2,
            load_s=0.5,
            first_run_s=0.0125,
            warmup_runs=40,
            warm=True,
            latency=summarize([0.010] * (calls - calls // 2) + [0.0102] * (calls // 2)),
            peak_rss_bytes=123_456_789,
            energy=NO_METER,
            before=STATE,
            after=msgspec.structs.replace(STATE, clock_now_hz=1.8e9),
        ),
        **changes,
    )


def parity(*answer: float, **options: Any) -> Parity:
    reference = [{"y": np.array([[1.0, 2.0, 9.0]])}]
    return compare(reference, [{"y": np.array([answer])}], TOLERANCES["fp32"], **options)


def row(**changes: Any) -> Row:
    shown = Row(
        bundle="out/b",
        model="tiny",
        device="raspberrypi5",
        format="onnx",
        runtime="onnxruntime",
        precision="int8",
        float_ops=0,
        model_bytes=1_234_567,
        parity=parity(1, 2, 9),
        delegation=Delegation(unit="npu", units={"cpu": {"Conv": 12}, "npu": {"Conv": 3}}, partitions=2),
        measurement=measured(),
        against_float=None,
    )
    return msgspec.structs.replace(shown, **changes)


def test_a_row_shows_every_figure_with_its_unit() -> None:
    shown = dict(cells(row()))
    assert list(shown) == ["model", "size", "parity", "ops ran on", "latency", "peak memory", "energy", "bundle"]
    assert shown["model"] == "tiny  int8  onnx on onnxruntime"
    assert shown["size"] == "1.23 MB"
    assert shown["parity"].startswith("ok  SQNR 200.0 dB, cosine >= 1.0000")
    assert shown["ops ran on"] == "cpu 12, npu 3 in 2 pieces"
    assert shown["peak memory"] == "123.46 MB resident, 2 thread(s)"
    assert shown["bundle"] == "out/b"


def test_a_latency_of_another_machine_says_so() -> None:
    assert "[this machine, not raspberrypi5]" in dict(cells(row()))["latency"]


def test_what_was_not_done_has_no_line() -> None:
    shown = cells(row(parity=None, delegation=None, measurement=None))
    assert [label for label, _ in shown] == ["model", "size", "bundle"]


def test_a_missed_gate_is_shown_as_failed_with_its_figures() -> None:
    text = parity_text(parity(9, 2, 1, logits="y"))
    assert text.startswith("FAILED  SQNR ")
    assert "top-1 0.0% of 1" in text
    assert text.endswith("1 real samples")


def test_outputs_of_another_shape_are_shown_as_failed_with_the_reason() -> None:
    assert parity_text(parity(1, 2)) == "FAILED: sample 0: output 'y' has shape [1, 2], PyTorch [1, 3]"


def test_top1_is_shown_only_where_it_was_judged() -> None:
    assert "top-1 100.0% of 1" in parity_text(parity(1, 2, 9, logits="y"))
    assert "top-1" not in parity_text(parity(1, 2, 9))


@pytest.mark.parametrize(
    ("energy", "text"),
    [
        (NO_METER, "unavailable: no energy meter is read by this version of edgekit"),
        (Energy(provenance="measured.counter", gross_j=0.01234), "12.3 mJ [measured.counter]"),
        (Energy(provenance="measured.external", gross_j=0.0), "0.0 mJ [measured.external]"),
    ],
)
def test_energy_shows_its_source_or_why_there_is_none(energy: Energy, text: str) -> None:
    assert energy_text(energy) == text
    assert dict(measurement_cells(measured(energy=energy)))["energy"] == text


def test_a_measurement_shows_every_figure_with_its_unit() -> None:
    lines = measurement_cells(measured())
    shown = dict(lines)
    assert shown["bundle"] == "out/b  onnxruntime 1.22.0, 2 thread(s)"
    assert shown["load"] == "500.00 ms, first run 12.50 ms"
    assert shown["warm-up"] == "40 calls, steady"
    assert shown["latency"] == "p50 10.10 ms (10.00 to 10.20)  p90 10.20 ms  p99 10.20 ms  over 300 calls"
    assert shown["drift"] == "last quarter / first quarter = 1.020"
    assert shown["machine"] == "Cortex-A76, 4 cores, Linux 6.6"
    assert shown["state"] == "governor performance, 2.40 GHz before, 1.80 after"
    assert "note" not in shown


@pytest.mark.parametrize(("calls", "ci", "p90", "p99"), [(5, 0, 0, 0), (28, 1, 0, 0), (29, 1, 1, 0), (299, 1, 1, 1)])
def test_a_percentile_without_enough_calls_is_not_shown(calls: int, ci: int, p90: int, p99: int) -> None:
    shown = dict(measurement_cells(measured(calls)))
    assert [word in shown["latency"] for word in (" to ", "p90", "p99")] == [ci, p90, p99]
    assert ("note" in shown) is not p99
    assert p99 or "299 calls" in shown["note"]


def test_a_machine_that_never_got_steady_or_slowed_down_is_called_out() -> None:
    lines = measurement_cells(measured(warm=False, latency=summarize([0.01] * 200 + [0.012] * 100)))
    assert "NOT steady" in dict(lines)["warm-up"]
    assert ("note", "calls became 20% slower: throttled, or the machine is busy") in lines


def test_what_the_machine_does_not_say_is_not_zero() -> None:
    silent = msgspec.structs.replace(STATE, cpu=None, governor=None, clock_now_hz=None)
    shown = dict(measurement_cells(measured(before=silent, after=silent)))
    assert shown["machine"].startswith("aarch64, ")
    assert shown["state"] == "governor not shown, clocks not shown by this machine"
    assert "0.00" not in dict(measurement_cells(measured(after=silent)))["state"]
    assert "0.00" not in dict(measurement_cells(measured(before=silent)))["state"]


@pytest.mark.parametrize(("size", "text"), [(0, "0.00 MB"), (1, "0.00 MB"), (5_000, "0.01 MB"), (2.5e9, "2500.00 MB")])
def test_sizes_are_in_megabytes(size: float, text: str) -> None:
    assert megabytes(size) == text


def test_times_are_in_milliseconds() -> None:
    assert milliseconds(0.001234) == "1.23 ms"


def test_the_report_as_json_has_the_same_fields() -> None:
    report = Report(rows=(row(),), warnings=("careful",), next_command="edgekit run out/b")
    assert Report.from_json(report.to_json()) == report
    assert msgspec.to_builtins(report)["rows"][0]["measurement"]["latency"]["p50_s"] == pytest.approx(0.0101)
