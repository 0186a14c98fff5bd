"""What is measured becomes a profile that plans; nothing else changes, and no other machine's figures get in."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import calibration as module
from edgekit.bandwidth import Bandwidth, CopyRate
from edgekit.bundle import Bundle
from edgekit.calibration import calibrate, check_machine, jobs, runtime_on_cpu, steady_time
from edgekit.calibration_profile import Observed, Sample, calibrated, kernel_rates, overheads, with_bandwidth
from edgekit.cli.app import run
from edgekit.energy import Energy
from edgekit.errors import InvalidInput, UnknownName
from edgekit.host import host_state
from edgekit.inference import open_session
from edgekit.intervals import Interval
from edgekit.micromodels import Micromodel, build, chains, micromodels
from edgekit.place import Worker
from edgekit.profile import MOST_FRACTION, DeviceProfile, Memory, Number, find_device, load_profile, load_shipped
from edgekit.types import DType
from tests.scripted_worker import Scripted

HOST = host_state()
WATTS = Energy(
    provenance="measured.counter", meter="rapl", gross_j=0.05, iterations=400, window_s=2.0, idle_w=2.71828,
    covers=("cpu package",),
)  # fmt: skip
RATES = st.floats(1e6, 1e13)
COPIES = tuple(CopyRate(working_set_bytes=32768 << i, bytes_per_s=1e9 * (20 - i)) for i in range(14))  # to 256 MiB
FEW = ("conv 16x28x28", "gemm 64x256x256", "gather 64x256")


def sample(
    ops: float, rate: float, dtype: DType = "float32", op_class: str = "gemm", kernels: int = 4, overhead_s: float = 0
) -> Sample:
    return msgspec.convert(
        {
            "name": "x",
            "dtype": dtype,
            "op_class": op_class,
            "ops": ops,
            "kernels": kernels,
            "call_s": (call_s := ops * kernels / rate + overhead_s),
            "call_ci_s": {"low": call_s, "high": call_s},
        },
        Sample,
    )


def observed(*samples: Sample, op_s: float = 0.0, call_s: float = 0.0, **changes: Any) -> Observed:
    lengths = (4, 64)
    found = Observed(
        runtime="onnxruntime",
        runtime_version="1.31",
        threads=1,
        host=HOST,
        bandwidth=Bandwidth(threads=1, rates=COPIES),
        chains=tuple(sample(1, 1e15, kernels=n, overhead_s=call_s + n * op_s) for n in lengths),
        samples=samples,
    )
    return msgspec.structs.replace(found, **changes)


# Overheads and rates


@given(st.floats(0, 1e-3), st.floats(0, 1e-2))
def test_overheads_are_the_slope_and_the_intercept_of_chains(op_s: float, call_s: float) -> None:
    found = overheads(observed(op_s=op_s, call_s=call_s).chains)
    assert found == pytest.approx((op_s, call_s), rel=1e-3, abs=1e-9)


@given(st.lists(st.floats(1e-9, 1.0), min_size=2, max_size=2))
def test_overheads_are_never_below_zero(times: list[float]) -> None:
    made = [sample(1, 1e15, kernels=n, overhead_s=t) for n, t in zip((4, 64), times, strict=True)]
    assert min(overheads(made)) >= 0


def test_overheads_need_two_lengths() -> None:
    with pytest.raises(ValueError, match="two lengths"):
        overheads([sample(1, 1, kernels=4), sample(1, 1, kernels=4)])


@given(RATES, st.floats(0, 1e-5), st.floats(0, 1e-4))
def test_rates_are_those_of_the_kernels_without_overheads(rate: float, op_s: float, call_s: float) -> None:
    one = sample(1e9, rate, overhead_s=call_s + 4 * op_s)
    found = kernel_rates([one], op_s, call_s)["float32"]["gemm"][1e9]
    assert found == pytest.approx(rate, rel=1e-6) or call_s + 4 * op_s > 0.9 * one.call_s


def test_a_call_that_is_all_overhead_still_has_a_finite_rate() -> None:
    assert kernel_rates([sample(8, 1e15, overhead_s=1e-6)], 1.0, 1.0)["float32"]["gemm"][8] == pytest.approx(32 / 1e-7)


# The calibrated copy


@given(st.lists(st.tuples(st.floats(1e3, 1e12), RATES, st.sampled_from(["float32", "int8"])), min_size=1, max_size=8))
def test_fractions_are_above_zero_and_at_most_a_little_over_the_peak(points: list[Any]) -> None:
    device = find_device("x86")
    made = calibrated(device, device.main_unit, observed(*(sample(ops, rate, dtype) for ops, rate, dtype in points)))
    fractions = [p.fraction for c in made.calibration for curve in c.efficiency.values() for p in curve["gemm"]]
    assert 0 < min(fractions) <= max(fractions) <= MOST_FRACTION
    assert {dtype for _, _, dtype in points} == set(made.main_unit.peak_ops_per_s)
    assert DeviceProfile.from_json(made.to_json()) == made


def test_a_published_peak_stays_while_kernels_are_not_far_beyond_it() -> None:
    device = load_shipped("raspberrypi5")
    published = device.main_unit.peak_ops_per_s["float32"]
    slow = calibrated(device, device.main_unit, observed(sample(1e9, 0.5 * published.value)))
    assert slow.main_unit.peak_ops_per_s == device.main_unit.peak_ops_per_s
    assert slow.calibration[0].efficiency["float32"]["gemm"][0].fraction == 0.5
    fast = calibrated(device, device.main_unit, observed(sample(1e9, 2 * published.value)))
    peak = fast.main_unit.peak_ops_per_s["float32"]
    assert (peak.value, peak.status, peak.source) == (2 * published.value, "measured", "calibrate-onnxruntime")
    assert fast.main_unit.peak_ops_per_s["int8"] == device.main_unit.peak_ops_per_s["int8"]


def test_the_source_names_host_date_and_runtime() -> None:
    device = load_shipped("generic-x86")
    made = calibrated(device, device.main_unit, observed(sample(1e9, 1e9), op_s=2e-7, call_s=3e-6))
    source = made.sources["calibrate-onnxruntime"]
    record = made.calibration[0]
    for word in (HOST.cpu or HOST.machine, record.date, "onnxruntime 1.31", "1 thread(s)"):
        assert word in source
    assert (record.op_overhead_s, record.call_overhead_s) == pytest.approx((2e-7, 3e-6), rel=1e-3)
    assert made.notes == device.notes
    assert made.runtime == device.runtime


@pytest.mark.parametrize("name", ["raspberrypi4", "generic-x86"])
def test_watts_of_rest_and_work_are_kept_where_a_meter_read_them_and_those_of_another_scope_go(name: str) -> None:
    device = load_shipped(name)
    same = calibrated(device, device.main_unit, observed(sample(1e9, 1e9)))
    assert same.power == device.power
    made = calibrated(device, device.main_unit, observed(sample(1e9, 1e9), energy=WATTS, threads=3))
    power = made.power
    assert power is not None
    assert power.idle_w is not None
    assert power.active_w is not None
    assert (power.scope, power.idle_w.value, power.active_w.value) == ("cpu package", 2.718, 10)
    assert power.idle_w.status == power.active_w.status == "measured"
    assert power.idle_w.note == "meter rapl [measured.counter]"
    assert power.active_w.note == "meter rapl [measured.counter], 3 thread(s) at work"
    assert power.active_threads == 3
    assert power.budget_w is None
    assert DeviceProfile.from_json(made.to_json()) == made


def test_a_budget_of_what_the_meter_sees_stays() -> None:
    device = load_shipped("raspberrypi4")
    assert device.power is not None
    alike = msgspec.structs.replace(WATTS, covers=(device.power.scope,))
    made = calibrated(device, device.main_unit, observed(sample(1e9, 1e9), energy=alike))
    assert made.power is not None
    assert made.power.budget_w == device.power.budget_w


@pytest.mark.parametrize("name", ["idle_w", "gross_j"])
def test_half_a_reading_of_watts_changes_nothing(name: str) -> None:
    device = load_shipped("raspberrypi4")
    half = msgspec.structs.replace(WATTS, **{name: None})
    assert calibrated(device, device.main_unit, observed(sample(1e9, 1e9), energy=half)).power == device.power


def test_a_second_runtime_joins_the_first_and_the_same_one_is_replaced() -> None:
    device = load_shipped("generic-x86")
    first = calibrated(device, device.main_unit, observed(sample(1e9, 1e9)))
    both = calibrated(first, first.main_unit, observed(sample(1e9, 9e8), runtime="litert"))
    assert [c.runtime for c in both.calibration] == ["onnxruntime", "litert"]
    assert both.calibration[1].efficiency["float32"]["gemm"][0].fraction == 0.9
    again = calibrated(both, both.main_unit, observed(sample(1e9, 8e8)))
    assert [c.runtime for c in again.calibration] == ["litert", "onnxruntime"]


def test_fractions_of_a_peak_that_is_gone_go_with_it() -> None:
    device = load_shipped("generic-x86")
    first = calibrated(device, device.main_unit, observed(sample(1e9, 1e9)))
    faster = calibrated(first, first.main_unit, observed(sample(1e9, 5e9), runtime="litert"))
    assert [c.runtime for c in faster.calibration] == ["litert"]


# Bandwidth by level


def level(name: str, size: int | None = None, **more: Any) -> Memory:
    number = Number(value=size, source="s", status="vendor") if size else None
    return Memory(name=name, size_bytes=number, **more)


def rates_of(levels: tuple[Memory, ...]) -> dict[str, float | None]:
    return {m.name: m.sustained_bytes_per_s.value if m.sustained_bytes_per_s else None for m in levels}


def test_each_level_gets_the_largest_copy_that_only_it_holds() -> None:
    levels = (level("l1d", 65536), level("l2", 1 << 20), level("dram", 8 << 30))
    found = with_bandwidth(levels, Bandwidth(threads=1, rates=COPIES), "c")
    assert rates_of(found) == {"l1d": 20e9, "l2": 16e9, "dram": 7e9}


def test_private_caches_hold_each_threads_part_and_the_last_one_all_of_them() -> None:
    levels = (level("l2", 512 << 10), level("l3", 16 << 20), level("dram"))
    four = Bandwidth(threads=4, rates=COPIES)
    assert rates_of(with_bandwidth(levels, four, "c")) == {"l2": 15e9, "l3": 12e9, "dram": 7e9}


def test_caches_that_only_the_kernel_names_are_added_in_their_order() -> None:
    found = with_bandwidth(
        (level("l2", 1 << 20), level("dram")),
        Bandwidth(threads=1, rates=COPIES, caches={"l1d": 49152, "l2": 1 << 20, "l3": 32 << 20}),
        "c",
    )
    assert [m.name for m in found] == ["l1d", "l2", "l3", "dram"]
    assert rates_of(found) == {"l1d": 20e9, "l2": 16e9, "l3": 11e9, "dram": 7e9}


def test_copies_that_a_cache_holds_say_nothing_about_main_memory() -> None:
    found = with_bandwidth((level("l3", 1 << 30), level("dram")), Bandwidth(threads=1, rates=COPIES), "c")
    assert rates_of(found) == {"l3": 7e9, "dram": None}


def test_the_memory_of_another_unit_is_left_alone() -> None:
    levels = (level("vtcm", 1 << 20, unit="npu"), level("dram"))
    assert with_bandwidth(levels, Bandwidth(threads=1, rates=COPIES), "c")[0] == levels[0]


# Which runtime, and whose machine


def test_the_runtime_is_the_first_on_the_cpu_or_the_one_that_is_named() -> None:
    assert runtime_on_cpu(load_shipped("rk3588"), None).name == "onnxruntime"
    assert runtime_on_cpu(load_shipped("pixel8"), None).name == "litert"
    assert runtime_on_cpu(load_shipped("pixel8"), "executorch").name == "executorch"


@pytest.mark.parametrize(("device", "runtime"), [("h200", None), ("hailo-8l", "litert"), ("ethos-u55-128", None)])
def test_a_runtime_that_is_not_on_the_cpu_is_refused(device: str, runtime: str | None) -> None:
    with pytest.raises(InvalidInput, match=r"on the CPU only, and of the runtimes in the profile of .* there: none"):
        runtime_on_cpu(load_shipped(device), runtime)


def test_an_unknown_runtime_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'litert'"):
        runtime_on_cpu(load_shipped("generic-x86"), "lite-rt")


@pytest.mark.parametrize(
    ("device", "changes", "problem"),
    [
        ("raspberrypi5", {"machine": "x86_64"}, "is x86_64, and Raspberry Pi 5 Model B 8 GB is arm64-linux"),
        ("generic-x86", {"machine": "aarch64"}, "is aarch64, and Generic x86-64 computer is x86_64-linux"),
        ("raspberrypi5", {"machine": "aarch64", "emulated": True}, "is emulated"),
    ],
)
def test_another_machine_is_refused(device: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        check_machine(load_shipped(device), msgspec.structs.replace(HOST, **changes))


def test_the_devices_own_machine_is_welcome() -> None:
    check_machine(load_shipped("raspberrypi5"), msgspec.structs.replace(HOST, machine="aarch64"))
    check_machine(load_shipped("generic-x86"), msgspec.structs.replace(HOST, machine="x86_64"))


def test_products_are_measured_in_every_type_that_the_format_holds_and_the_rest_in_float32() -> None:
    models = micromodels()
    for format, narrow in (("onnx", {"int8", "float16"}), ("executorch", {"int8"}), ("tflite", {"int8"})):
        wanted = jobs(format, models)
        assert {dtype for _, dtype in wanted} == {"float32", *narrow}
        for dtype in narrow:
            assert {model.op_class for model, each in wanted if each == dtype} == {"conv", "dwconv", "gemm", "gemv"}
        assert [model for model, dtype in wanted if dtype == "float32"] == models


# When a model's time is known


@pytest.mark.parametrize(
    ("call_s", "growth", "asked"),
    [
        (0.001, 1.0, 2 + 9 * 30),  # nine rounds of 30 ms that agree
        (0.5, 1.0, 2 + 9),  # calls that are longer than a round
        (0.01, 1.01, 2 + 3 * 31),  # that never agree: until 1.5 s of calls are over
        (1.0, 1.5, 2 + 6),  # but six rounds at least, below which there is no interval
    ],
)
def test_a_model_is_timed_until_its_rounds_agree(
    small_conv_bundle: Bundle, call_s: float, growth: float, asked: int
) -> None:
    with Worker(small_conv_bundle, 1, Scripted([{"call_s": call_s, "growth": growth}])) as worker:
        found, interval = steady_time(worker)
        [after] = worker.times(1)
    assert after == pytest.approx(call_s * growth**asked)
    assert interval.holds(found)
    assert (interval.high - interval.low < 1e-12) == (growth == 1)


def test_calls_that_another_program_held_up_do_not_count(small_conv_bundle: Bundle) -> None:
    held = [0.001, *[0.004] * 4] * 6  # one call in five runs through
    answers = [json.dumps({"times_s": held[:n]}) + "\n" for n in (2, *[30] * 9)]
    with Worker(small_conv_bundle, 1, Scripted([{"call_s": 1.0, "answers": answers}])) as worker:
        found, interval = steady_time(worker)
    assert (found, interval.high) == pytest.approx((0.001, 0.001))


def test_times_that_did_not_settle_are_named() -> None:
    steady, wild = sample(1e9, 1e9), sample(2e9, 1e9)
    wild = msgspec.structs.replace(wild, name="gemm 1", call_ci_s=Interval(low=1e-3, high=1.2e-3))
    assert observed(steady).unsteady == ()
    assert observed(steady, wild).unsteady == ("gemm 1, float32: 1000 to 1200 us",)


# Micromodels


def test_there_are_two_sizes_or_more_of_every_class_and_two_lengths_of_chains() -> None:
    sizes: dict[str, set[float]] = {}
    for model in micromodels():
        sizes.setdefault(model.op_class, set()).add(model.ops)
    assert set(sizes) == {"conv", "dwconv", "gemm", "gemv", "attention", "elementwise", "layout", "gather"}
    assert min(map(len, sizes.values())) >= 2
    assert [chain.kernels for chain in chains()] == [4, 64]
    assert len({model.name for model in micromodels()}) == len(micromodels())


@pytest.mark.parametrize("model", micromodels(), ids=lambda model: model.name)
def test_the_ops_of_a_micromodel_are_what_pytorch_counts(model: Micromodel) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        answer = model.module(model.example)
    if model.op_class in ("elementwise", "layout", "gather"):
        assert (model.ops, counter.get_total_flops()) == (answer.numel(), 0)
    else:
        assert counter.get_total_flops() == model.ops * model.kernels


@pytest.mark.parametrize("model", [m for m in micromodels() if m.name in FEW], ids=lambda model: model.name)
def test_a_micromodel_is_a_bundle_that_answers_like_the_module(model: Micromodel, tmp_path: Path) -> None:
    bundle = build(model, "onnx", "float32", load_shipped("generic-x86"), tmp_path / "made")
    (feeds, expected), *_ = bundle.golden()
    with open_session(bundle) as session:
        found = session.run(feeds)
    for name, answer in expected.items():
        np.testing.assert_allclose(found[name], answer, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_micromodel_is_the_same_bytes_each_time(dtype: DType, tmp_path: Path) -> None:
    device = load_shipped("generic-x86")
    first, again = (
        build(next(m for m in micromodels() if m.name == FEW[0]), "onnx", dtype, device, tmp_path / name)
        for name in ("first", "again")
    )
    assert first.artifact.sha256 == again.artifact.sha256
    assert first.manifest == again.manifest


# On this machine


@pytest.fixture
def few_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing with three models, and copies of small arrays."""
    monkeypatch.setattr(module, "micromodels", lambda: [model for model in micromodels() if model.name in FEW])
    monkeypatch.setattr(module, "ROUND_S", 0.002)
    monkeypatch.setattr(module, "MOST_S", 0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("few_models")
def test_this_machine_gets_a_profile_that_plans(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.toml"
    assert run(["calibrate", "x86", "-o", str(out), "--json", "-q"]) == 0
    said = json.loads(capfd.readouterr().out)
    made = load_profile(out)
    assert said["profile"]["id"] == made.id == "generic-x86"
    (record,) = made.calibration
    assert {(dtype, op_class) for dtype, curve in record.efficiency.items() for op_class in curve} == {
        ("float32", "conv"), ("float32", "gemm"), ("float32", "gather"), ("float16", "conv"), ("float16", "gemm"),
        ("int8", "conv"), ("int8", "gemm"),
    }  # fmt: skip
    assert record.runtime_version == said["observed"]["runtime_version"]
    assert 0 <= record.op_overhead_s < 1e-3
    assert 0 < record.call_overhead_s < 1e-1
    assert made.memory[-1].name == "dram"
    assert said["observed"]["skipped"] == []
    energy = said["observed"]["energy"]
    assert (energy["idle_w"] is None) == (made.power is None) == bool(energy["reason"])
    assert all(1e7 < peak.value < 1e14 for peak in made.main_unit.peak_ops_per_s.values())
    models = Path(__file__).parent / "models.py"
    assert run(["plan", "-m", f"{models}:small_conv", "-d", str(out), "--json", "-q"]) == 0
    assert json.loads(capfd.readouterr().out)["plan"]["format"] == "onnx"


@pytest.mark.usefixtures("few_models")
def test_an_interrupted_calibration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def interrupt(step: str) -> None:
        if step.startswith("1 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(load_shipped("generic-x86"), progress=interrupt)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(threads: int) -> None:
    with pytest.raises(InvalidInput, match="threads must be 1 or more"):
        calibrate(load_shipped("generic-x86"), threads=threads)
