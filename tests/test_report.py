"""The text that people read: every figure with its unit, and the reason where there is none."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit.bundle import Delegation
from edgekit.energy import NO_METER, Energy
from edgekit.intervals import Interval
from edgekit.measurement import Control, HostState, Measurement, Sustained, Trial, summarize
from edgekit.parity import TOLERANCES, Parity, compare
from edgekit.report import Report, Row, cells, energy_text, megabytes, milliseconds, parity_text
from edgekit.report_measurement import measurement_cells

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


def test_a_parity_without_figures_says_so() -> None:
    broken = msgspec.structs.replace(parity(1, 2, 9), sqnr_db=None, misses=())
    assert parity_text(broken) == "FAILED: the bundle records no figures"


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
        (NO_METER, "unavailable: not asked for: edgekit profile --energy measured"),
        (Energy(provenance="measured.counter", gross_j=0.01234), "12.34 mJ [measured.counter]"),
        (
            Energy(
                provenance="measured.sampled",
                meter="pi5_pmic",
                gross_j=0.05,
                net_j=0.03,
                u_rel=0.012,
                idle_w=2,
                flags=("gain_unknown",),
            ),
            "30 mJ ± 1.2 % [measured.sampled pi5_pmic, net of 2 W idle], 50 mJ gross  (gain_unknown)",
        ),
        (
            Energy(provenance="measured.counter", reason="the counter did not move", flags=("below_resolution",)),
            "measured.counter: the counter did not move",
        ),
    ],
)
def test_energy_shows_its_source_or_why_there_is_none(energy: Energy, text: str) -> None:
    assert energy_text(energy) == text
    assert dict(measurement_cells(measured(energy=energy)))["energy"] == text


def test_modelled_joules_have_a_line_of_their_own() -> None:
    shown = dict(measurement_cells(measured(modelled_energy_j=0.0123, modelled_energy_note="model raspberrypi4")))
    assert shown["modelled energy"] == "~12.3 mJ by model raspberrypi4"
    assert "mJ" not in shown["energy"]
    none = dict(measurement_cells(measured(modelled_energy_note="this machine does not say which device it is")))
    assert none["modelled energy"] == "none: this machine does not say which device it is"
    assert "modelled energy" not in dict(measurement_cells(measured()))


def test_a_measurement_shows_every_figure_with_its_unit() -> None:
    lines = measurement_cells(measured())
    shown = dict(lines)
    assert shown["bundle"] == "out/b  onnxruntime 1.22.0, 2 thread(s)"
    assert shown["load"] == "500.00 ms, first run 12.50 ms"
    assert shown["warm-up"] == "40 calls, steady"
    assert shown["latency"] == "p50 10.10 ms (10.00 to 10.20)  p90 10.20 ms  p99 10.20 ms  over 300 calls"
    assert shown["drift"] == "last quarter / first quarter = 1.020"
    assert shown["machine"] == "Cortex-A76, 4 cores, Linux 6.6"
    assert shown["state"] == "governor performance, 2.40 GHz before, 1.80 after, 50 C before, 50 after"
    assert shown["tail"] == "95 % intervals: p90 10.20 to 10.20 ms, p99 10.20 to 10.20 ms"
    assert shown["throttled"] == "no sign in the times; this machine has no sensor that tells"
    assert shown["model"] == "model.onnx, input not recorded"
    assert not {"note", "trials", "mean", "sustained", "A/A control", "overhead"} & set(shown)


def test_a_measurement_in_trials_shows_them_and_what_it_was_of() -> None:
    processes = [Trial(process=n // 2, load_s=0.5, first_run_s=0.1, calls=60, mean_s=0.01, p50_s=p) for n, p in
                 enumerate((0.010, 0.0102, 0.0098, 0.010, 0.0101))]  # fmt: skip
    shown = dict(
        measurement_cells(
            measured(
                trials=tuple(processes),
                trial_cv=0.0123,
                mean_ci_s=Interval(low=0.0099, high=0.0104),
                runtime_build="cp311 0123456789ab",
                artifact_sha256="ab" * 32,
                input_source="golden sample 0",
                overhead_s=15e-6,
            )
        )
    )
    assert shown["bundle"] == "out/b  onnxruntime 1.22.0 (cp311 0123456789ab), 2 thread(s)"
    assert shown["trials"] == "5 in 3 processes: p50 9.80 to 10.20 ms, CV 1.2%"
    assert shown["mean"] == "10.10 ms (9.90 to 10.40 over trials)"
    assert shown["model"] == "model.onnx sha256 abababababab, input golden sample 0"
    assert shown["overhead"] == "edgekit's session around an empty model: 15 us, 0.15%"
    alone = dict(measurement_cells(measured(trials=tuple(processes[:2]), trial_cv=0.07)))
    assert alone["trials"].startswith("2 in one process: ")
    assert "CV of 7%, above 5 %" in alone["note"]


@pytest.mark.parametrize(
    ("lasted", "window", "text"),
    [
        (600.5, 60.0, "first minute p50 10.00 ms, last 13.00 ms (1.300x) over 600 s"),
        (50.0, 25.0, "first 25 s p50 10.00 ms, last 13.00 ms (1.300x) over 50 s, interrupted of 600 s"),
    ],
)
def test_a_sustained_run_shows_how_it_began_and_ended(lasted: float, window: float, text: str) -> None:
    run = Sustained(asked_s=600, lasted_s=lasted, window_s=window, minute_1_p50_s=0.010, final_p50_s=0.013,
                    minutes_p50_s=(0.01, 0.013))  # fmt: skip
    assert dict(measurement_cells(measured(sustained=run)))["sustained"] == text


@pytest.mark.parametrize(("low", "text"), [(0.99, "holds 1"), (1.01, "does not hold 1. One in twenty does so")])
def test_the_control_says_whether_comparisons_can_be_trusted(low: float, text: str) -> None:
    itself = Control(ratio=1.02, ratio_ci=Interval(low=low, high=1.03), holds=low <= 1)
    shown = dict(measurement_cells(measured(control=itself)))["A/A control"]
    assert text in shown
    assert shown.startswith("ok " if low <= 1 else "FAILED")
    assert f"1.020 ({low:.3f} to 1.030)" in shown


def test_throttling_and_the_machines_power_are_shown() -> None:
    told = msgspec.structs.replace(STATE, throttle_flags=(), power_mode="nvpmodel MAXN", power_supply="mains", cores=1)
    shown = dict(measurement_cells(measured(before=told, after=told)))
    assert shown["throttled"] == "no"
    assert shown["state"].endswith("after, nvpmodel MAXN, mains")
    pulled = msgspec.structs.replace(told, power_supply="battery 90 %, discharging")
    changed = dict(measurement_cells(measured(before=told, after=pulled)))["state"]
    assert changed.endswith("nvpmodel MAXN, mains before, battery 90 %, discharging after")
    assert shown["machine"] == "Cortex-A76, 1 core, Linux 6.6"
    assert dict(measurement_cells(measured(throttled=("a", "b"))))["throttled"] == "a; b"


@pytest.mark.parametrize(("calls", "ci", "p90", "p99"), [(5, 0, 0, 0), (28, 1, 0, 0), (29, 1, 1, 0), (299, 1, 1, 1)])
def test_a_percentile_without_enough_calls_is_not_shown(calls: int, ci: int, p90: int, p99: int) -> None:
    shown = dict(measurement_cells(measured(calls)))
    assert [word in shown["latency"] for word in (" to ", "p90", "p99")] == [ci, p90, p99]
    assert ("note" in shown) is not p99
    assert p99 or "299 calls" in shown["note"]


def test_a_machine_that_never_got_steady_or_slowed_down_is_called_out() -> None:
    shown = dict(measurement_cells(measured(warm=False, latency=summarize([0.01] * 200 + [0.012] * 100))))
    assert "NOT steady" in shown["warm-up"]
    assert shown["drift"] == "last quarter / first quarter = 1.200"


def test_what_the_machine_does_not_say_is_not_zero() -> None:
    silent = msgspec.structs.replace(STATE, cpu=None, governor=None, clock_now_hz=None, temperature_c=None)
    shown = dict(measurement_cells(measured(before=silent, after=silent)))
    assert shown["machine"].startswith("aarch64, ")
    assert shown["state"] == "governor not shown, clocks not shown by this machine, temperature not shown"
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
