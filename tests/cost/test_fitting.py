"""The fit recovers what made synthetic times, survives outliers, and holds whole families out."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from edgekit.cost.fitting import Hardware, Sample, fit, held_out, spearman
from edgekit.cost.forecast import STORED
from edgekit.cost.kernels import Kernel, Work
from edgekit.cost.latency import Roofline, forecast_latency
from edgekit.profile import EfficiencyPoint, OpClass
from edgekit.types import DType

HARDWARE = Hardware(channel_multiple=1, on_chip_bytes=0)
RATES: dict[OpClass, float] = {
    "conv": 8e12, "dwconv": 3e11, "gemm": 4e12, "gemv": 1e12, "attention": 1e12, "elementwise": 4e11, "layout": 2e11,
    "gather": 2e11,
}  # fmt: skip
FACTORS: dict[DType, float] = {"float16": 1.0, "int8": 3.0}
BANDWIDTH, OP_S, CALL_S = 50e9, 3e-6, 2e-4


def truth(dtype: DType) -> Roofline:
    """The device that the synthetic times come from."""
    efficiency = {
        kind: (EfficiencyPoint(ops=1e6, fraction=rate / 3e13 * FACTORS[dtype]),) for kind, rate in RATES.items()
    }
    return Roofline(
        unit="npu", runtime="truth", dtype=dtype, peak_ops_per_s=3e13, bytes_per_s=BANDWIDTH, efficiency=efficiency,
        op_overhead_s=OP_S, call_overhead_s=CALL_S,
    )  # fmt: skip


def samples(count: int, noise: float = 0.0, seed: int = 0) -> list[Sample]:
    """Models of random kernels, each leaning on one class, timed by the truth."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        kernels = []
        for _ in range(rng.integers(5, 60)):
            kind = get_args(OpClass)[rng.choice([index % 8, rng.integers(8)])]
            rows, inner, outer = (int(2 ** rng.uniform(4, 11)) for _ in range(3))
            less = int(rng.choice([1, 64]))  # some are bound by memory, some are not
            moved = {"read": rows * inner // less, "written": rows * outer // less, "weights": inner * outer // less}
            kernels.append(Kernel(op="op", module="", op_class=kind, rows=rows, inner=inner, outer=outer, **moved))
        dtype: DType = "int8" if index % 3 == 0 else "float16"
        made_of = Work(kernels=tuple(kernels), boundary=int(rng.integers(1000, 100_000)))
        seconds = forecast_latency(made_of, truth(dtype), STORED[dtype]).seconds * np.exp(noise * rng.normal())
        made.append(Sample(f"model {index}", f"family {index % 12}", STORED[dtype], made_of, float(seconds)))
    return made


def test_the_fit_recovers_what_made_the_times() -> None:
    found = fit(samples(120), HARDWARE)
    assert set(found) == {"float16", "int8"}
    for dtype, fitted in found.items():
        assert fitted.bytes_per_s == pytest.approx(BANDWIDTH, rel=0.1)
        assert fitted.op_overhead_s == pytest.approx(OP_S, rel=0.3)
        for kind in ("conv", "gemm", "attention"):
            assert fitted.rates[kind] == pytest.approx(RATES[kind] * FACTORS[dtype], rel=0.15)  # type: ignore[index]


def test_the_fit_and_the_forecast_are_one_model() -> None:
    known = samples(60)
    found = fit(known, HARDWARE)["float16"]
    points = {kind: (EfficiencyPoint(ops=1.0, fraction=rate / 1e14),) for kind, rate in found.rates.items()}
    roofline = Roofline(
        unit="npu", runtime="fit", dtype="float16", peak_ops_per_s=1e14, bytes_per_s=found.bytes_per_s,
        efficiency=points, op_overhead_s=found.op_overhead_s, call_overhead_s=found.call_overhead_s,
    )  # fmt: skip
    mine = [sample for sample in known if sample.numbers.dtype == "float16"]
    ratios = [forecast_latency(s.work, roofline, s.numbers).seconds / s.seconds for s in mine]
    assert np.median(np.abs(np.log(ratios))) < 0.02


def test_a_few_models_that_are_far_off_do_not_bend_the_fit() -> None:
    known = samples(120)
    spoilt = [sample._replace(seconds=20 * sample.seconds) if index % 15 == 0 else sample
              for index, sample in enumerate(known)]  # fmt: skip
    found = fit(spoilt, HARDWARE)["float16"]
    assert found.rates["conv"] == pytest.approx(RATES["conv"], rel=0.3)


def test_every_fitted_number_is_positive_whatever_the_times_say() -> None:
    rng = np.random.default_rng(1)
    nonsense = [sample._replace(seconds=float(np.exp(rng.uniform(-12, 3)))) for sample in samples(20)]
    for fitted in fit(nonsense, HARDWARE).values():
        numbers = [*fitted.rates.values(), fitted.bytes_per_s, fitted.op_overhead_s, fitted.call_overhead_s]
        assert min(numbers) > 0
        assert np.isfinite(numbers).all()


def test_held_out_errors_are_those_of_the_noise_and_repeat_with_the_seed() -> None:
    known = samples(90, noise=0.2)
    found = held_out(known, HARDWARE, splits=4)
    assert found == held_out(known, HARDWARE, splits=4)
    assert found != held_out(known, HARDWARE, splits=4, seed=1)
    for errors in found.values():
        assert 0.05 < errors.median < 0.3
        assert errors.median < errors.p90
        assert errors.bias == pytest.approx(1, abs=0.15)
        assert errors.spearman > 0.9
        assert errors.families <= 12


def test_a_family_is_never_tested_on_what_it_was_fitted_on() -> None:
    known = samples(48)
    spoilt = [
        sample._replace(seconds=10 * sample.seconds) if sample.family == "family 4" else sample for sample in known
    ]
    found = held_out([sample for sample in spoilt if sample.numbers.dtype == "float16"], HARDWARE, splits=8)["float16"]
    assert found.p90 > 0.5  # had its members been fitted on, they would have been predicted


def test_one_family_alone_has_nothing_to_be_tested_on() -> None:
    alone = [sample._replace(family="one") for sample in samples(5)]
    assert held_out(alone, HARDWARE, splits=3) == {}


@pytest.mark.parametrize(
    ("first", "second", "rank"),
    [([1, 2, 3], [10, 20, 90], 1), ([1, 2, 3], [3, 2, 1], -1), ([1, 1, 2, 2], [1, 1, 2, 2], 1), ([1, 2], [5, 5], 0)],
)
def test_spearman_looks_at_ranks_only(first: list[float], second: list[float], rank: float) -> None:
    assert spearman(first, second) == pytest.approx(rank)
