"""Forecasts of time and energy against their bounds, and what a profile must say for one."""

from __future__ import annotations

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit.cli.forecast import forecast_cells
from edgekit.cost.energy import forecast_energy
from edgekit.cost.forecast import Forecast
from edgekit.cost.kernels import Kernel, Work, work
from edgekit.cost.latency import (
    ASSUMED,
    NUMBERS,
    LatencyForecast,
    Numbers,
    Roofline,
    find_roofline,
    forecast_latency,
    is_rank_only,
    native,
    traffic_bytes,
)
from edgekit.cost.memory import MemoryForecast
from edgekit.planning import RECIPES
from edgekit.profile import Calibration, DeviceProfile, EfficiencyPoint, Number, Power, device_ids, find_device
from edgekit.types import Precision

FLOAT = NUMBERS["fp32"]
PLAIN = Roofline(
    unit="cpu", runtime=None, dtype="float32", peak_ops_per_s=1e9, bytes_per_s=1e8, op_overhead_s=1e-6,
    call_overhead_s=1e-5,
)  # fmt: skip


def gemm(rows: int = 64, inner: int = 64, outer: int = 64) -> Kernel:
    return Kernel(
        op="linear", module="layer", op_class="gemm", rows=rows, inner=inner, outer=outer,
        read=rows * inner, written=rows * outer, weights=inner * outer,
    )  # fmt: skip


def watts(value: float) -> Number:
    return Number(value=value, source="bench", status="measured")


def calibrated(**changes: object) -> DeviceProfile:
    """A Raspberry Pi 5 with one calibration."""
    points = (EfficiencyPoint(ops=1e4, fraction=0.1), EfficiencyPoint(ops=1e6, fraction=0.4))
    made = Calibration(
        runtime="onnxruntime", runtime_version="1", unit="cpu", host="here", date="2026-11-22", threads=2,
        efficiency={"float32": {"gemm": points}}, op_overhead_s=2e-6, call_overhead_s=3e-5, source="a test",
    )  # fmt: skip
    made = msgspec.structs.replace(made, **changes)
    return msgspec.structs.replace(find_device("raspberrypi5"), calibration=(made,))


def roofline(device: DeviceProfile, runtime: str = "onnxruntime", dtype: str = "float32") -> Roofline:
    found = find_roofline(device, device.main_unit, runtime, dtype)  # type: ignore[arg-type]
    assert isinstance(found, Roofline)
    return found


sizes = st.integers(1, 2000)


@settings(deadline=None)  # a busy machine is no error
@given(sizes, sizes, sizes)
def test_a_kernel_takes_no_less_than_its_arithmetic_its_traffic_or_its_overhead(r: int, i: int, o: int) -> None:
    kernel = gemm(r, i, o)
    [found] = forecast_latency(Work(kernels=(kernel,)), PLAIN, FLOAT).kernels
    compute = kernel.ops / (1e9 * ASSUMED["gemm"])
    memory = 4 * (kernel.read + kernel.written + kernel.weights) / 1e8
    assert found.seconds == pytest.approx(1e-6 + max(compute, memory))
    bounds = {"compute": compute, "memory": memory, "overhead": 1e-6}
    assert bounds[found.binding] == max(bounds.values())


@settings(deadline=None)  # a busy machine is no error
@given(sizes, sizes, sizes, st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_more_of_anything_never_takes_less_time(r: int, i: int, o: int, dr: int, di: int, do: int) -> None:
    def seconds(kernel: Kernel) -> float:
        return forecast_latency(Work(kernels=(kernel,)), roofline(find_device("raspberrypi5")), FLOAT).seconds

    assert seconds(gemm(r, i, o)) <= seconds(gemm(r + dr, i + di, o + do))


@settings(deadline=None)  # a busy machine is no error
@given(st.lists(st.tuples(sizes, sizes, sizes), min_size=1, max_size=5), st.floats(0.5, 5), st.floats(0.1, 20))
def test_energy_is_the_sum_of_kernels_and_its_power_lies_between_idle_and_active(
    shapes: list[tuple[int, int, int]], idle: float, more: float
) -> None:
    latency = forecast_latency(Work(kernels=tuple(gemm(*shape) for shape in shapes), boundary=10), PLAIN, FLOAT)
    found = forecast_energy(latency, Power(scope="board", idle_w=watts(idle), active_w=watts(idle + more)))
    assert not isinstance(found, str)
    assert found.joules == pytest.approx(sum(found.kernels_j) + found.call_j)
    assert latency.seconds == pytest.approx(sum(kernel.seconds for kernel in latency.kernels) + latency.call_s)
    assert idle * (1 - 1e-9) <= found.joules / latency.seconds <= (idle + more) * (1 + 1e-9)
    assert found.error == "analytical"


@pytest.mark.parametrize("power", [None, Power(scope="board"), Power(scope="board", idle_w=watts(2))])
def test_without_two_wattages_there_is_no_energy(power: Power | None) -> None:
    latency = forecast_latency(Work(kernels=(gemm(),)), PLAIN, FLOAT)
    assert forecast_energy(latency, power) == "the profile gives no idle and active watts"


def test_activations_that_fit_on_the_chip_are_not_traffic_and_weights_always_are() -> None:
    kernel = gemm()
    activations, weights = 4 * (kernel.read + kernel.written), 4 * kernel.weights
    assert traffic_bytes(kernel, FLOAT, 0) == activations + weights
    assert traffic_bytes(kernel, FLOAT, activations) == weights
    assert traffic_bytes(kernel, NUMBERS["w4a8"], 1e9) == weights / 8


def test_a_decoder_step_takes_what_its_weights_and_cache_take_to_read() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(1024, 4096, bias=False), nn.Linear(4096, 1024, bias=False)

        def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            q = x[:, None]
            return self.down(self.up(nn.functional.scaled_dot_product_attention(q, keys, values)[:, 0]))

    cache = torch.rand(1, 4096, 1024)
    found = work(torch.export.export(Step(), (torch.rand(1, 1024), cache, cache.clone()), strict=False))
    device = find_device("raspberrypi5")
    level = device.memory[-1].sustained_bytes_per_s
    assert level is not None
    latency = forecast_latency(found, roofline(device), FLOAT)
    expected = 4 * (2 * 1024 * 4096 + 2 * cache.numel()) / level.value
    assert sum(kernel.seconds for kernel in latency.kernels) == pytest.approx(expected, rel=0.05)
    assert latency.binding == "memory"


def test_a_calibration_is_used_between_its_sizes_and_said_to_be_left_beyond_them() -> None:
    found = roofline(calibrated(held_out_p90={"model": 0.3, "gemm": 0.2}))
    assert (found.runtime, found.threads, found.op_overhead_s, found.call_overhead_s) == ("onnxruntime", 2, 2e-6, 3e-5)
    assert found.rate("gemm", 1e5) == pytest.approx(found.peak_ops_per_s * 0.2)  # half way in logarithms
    assert found.rate("gemm", 1) == pytest.approx(found.peak_ops_per_s * 0.1)
    assert found.rate("gemm", 1e9) == pytest.approx(found.peak_ops_per_s * 0.4)
    assert found.rate("conv", 1e5) == pytest.approx(found.peak_ops_per_s * ASSUMED["conv"])
    inside = forecast_latency(Work(kernels=(gemm(),)), found, FLOAT)
    assert (inside.error, inside.kernels[0].error, inside.extrapolated) == (0.3, 0.2, False)
    assert forecast_latency(Work(kernels=(gemm(900, 900, 900),)), found, FLOAT).extrapolated


def test_another_runtime_or_dtype_is_analytical() -> None:
    device = calibrated(held_out_p90={"model": 0.3})
    for found in (roofline(device, "litert"), roofline(device, dtype="int8")):
        assert found.runtime is None
        latency = forecast_latency(Work(kernels=(gemm(),)), found, FLOAT)
        assert (latency.error, latency.kernels[0].error, latency.extrapolated) == ("analytical", "analytical", False)


def test_what_was_measured_in_float32_only_runs_at_that_rate_in_int8() -> None:
    points = (EfficiencyPoint(ops=1e4, fraction=0.2),)
    device = calibrated(efficiency={"float32": {"layout": points, "gemm": points}, "int8": {"gemm": points}})
    narrow, wide = roofline(device, dtype="int8"), roofline(device)
    assert narrow.rate("layout", 1e5) == pytest.approx(wide.rate("layout", 1e5))
    assert narrow.rate("gemm", 1e5) == pytest.approx(0.2 * narrow.peak_ops_per_s)


def test_a_calibration_brings_its_own_bandwidth() -> None:
    assert roofline(calibrated(bytes_per_s=1.5e9)).bytes_per_s == 1.5e9
    assert roofline(calibrated()).bytes_per_s == pytest.approx(11.11e9)


@pytest.mark.parametrize(
    ("median", "rank", "only"), [(None, None, False), (0.25, 0.9, False), (0.26, 0.99, True), (0.1, 0.89, True)]
)
def test_a_time_is_named_only_where_held_out_models_allow(median: float, rank: float, only: bool) -> None:
    assert is_rank_only(median, rank) is only
    assert roofline(calibrated(held_out_median=median, held_out_spearman=rank)).rank_only is only


@pytest.mark.parametrize("device_id", device_ids())
@pytest.mark.parametrize("precision", sorted(RECIPES))
def test_every_profile_gives_a_forecast_or_the_reason(device_id: str, precision: Precision) -> None:
    device = find_device(device_id)
    for unit in device.unit:
        numbers = native(unit, NUMBERS[precision])
        found = find_roofline(device, unit, "onnxruntime", numbers.dtype)
        if isinstance(found, str):
            assert f"gives no {numbers.dtype} rate of its {unit.name}" in found
        else:
            assert forecast_latency(Work(kernels=(gemm(),)), found, numbers).seconds > 0


def test_a_processor_without_rates_is_judged_by_its_instructions() -> None:
    found = roofline(find_device("generic-x86"))
    assert (found.peak_ops_per_s, found.threads) == (16 * 2e9, 1)  # one core, one AVX2 multiply-add a cycle


def test_an_engine_without_float32_runs_it_in_float16() -> None:
    npu = find_device("snapdragon-8-gen-3").main_unit
    assert native(npu, FLOAT) == Numbers("float16", 2, 2)
    assert native(npu, NUMBERS["int8"]) == NUMBERS["int8"]
    assert native(find_device("raspberrypi5").main_unit, FLOAT) == FLOAT


@pytest.mark.parametrize("profile", ["snapdragon-8-gen-3", "sa8295p"])
def test_snapdragon_profiles_carry_a_fit_with_its_errors(profile: str) -> None:
    device = find_device(profile)
    npu = next(unit for unit in device.unit if unit.name == "npu")
    for dtype in ("float16", "int8", "int16"):
        found = find_roofline(device, npu, "qnn", dtype)  # type: ignore[arg-type]
        assert isinstance(found, Roofline)
        assert (found.runtime, found.threads, found.channel_multiple) == ("qnn", None, 32)
        assert found.held_out_p90["model"] > 0
        assert {"conv", "dwconv", "gemm", "elementwise"} <= set(found.efficiency)


def shown(latency: LatencyForecast | None, **rest: object) -> str:
    memory = MemoryForecast(artifact_bytes=1, weight_bytes=1, peak_activation_bytes=1, export_peak_bytes=1)
    found = Forecast(memory=memory, latency=latency, energy=None, **rest)  # type: ignore[arg-type]
    return "\n".join(f"{label}: {text}" for label, text in forecast_cells(found))


def test_the_screen_says_what_binds_and_how_far_to_trust_it() -> None:
    works = Work(kernels=(gemm(),), not_modelled={"lstm": 2})
    plain = shown(forecast_latency(works, PLAIN, FLOAT))
    assert "(forecast, analytical); compute binds" in plain or "(forecast, analytical); memory binds" in plain
    assert "not counted: 2x lstm" in plain
    trusted = roofline(calibrated(held_out_p90={"model": 0.3}))
    assert "9 of 10 held-out models within 30%" in shown(forecast_latency(works, trusted, FLOAT))
    far = forecast_latency(Work(kernels=(gemm(900, 900, 900),)), trusted, FLOAT)
    assert "within 30%, extrapolated)" in shown(far)


def test_errors_too_large_for_a_time_leave_a_rank() -> None:
    poor = roofline(calibrated(held_out_p90={"model": 0.9}, held_out_median=0.4))
    text = shown(forecast_latency(Work(kernels=(gemm(),)), poor, FLOAT))
    assert "index" in text
    assert "ranks models on this unit, too far off for a time" in text
    assert " ms" not in text


def test_what_is_missing_is_said() -> None:
    assert "no forecast: latency: why" in shown(None, missing=("latency: why",))
