"""The check of a GPU's energy counter: its arithmetic anywhere, its figures on a GPU."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch

import edgekit
from edgekit.bench.energy import POWER, EnergyBench, cadence, cells, run
from edgekit.errors import InvalidInput

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_the_cadence_of_a_counter_is_found() -> None:
    start = time.perf_counter()
    found = cadence(lambda: 3.0 * ((time.perf_counter() - start) // 0.02), lambda: None, seconds=0.5)
    assert found.step_s == pytest.approx(0.02, rel=0.2)
    assert found.longest_step_s >= found.step_s
    assert found.step_j == 3.0
    assert 0 < found.read_s < 0.01


def test_a_counter_that_stands_still_has_no_cadence() -> None:
    with pytest.raises(InvalidInput, match="moved 0 times"):
        cadence(lambda: 1.0, lambda: None, seconds=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_there_is_nothing_to_check() -> None:
    with pytest.raises(InvalidInput, match="torch sees no CUDA device"):
        run()


@pytest.fixture(scope="module")
def found() -> EnergyBench:
    return run(repeats=3)


@pytest.mark.gpu
@on_gpu
def test_counter_and_sampled_power_agree_under_load(found: EnergyBench) -> None:
    for repeat in found.repeats:
        assert repeat.counter.window_s is not None
        assert repeat.counter.window_s >= 10
        assert repeat.counter.updates_seen >= 50
        for power in POWER:
            assert repeat.ratio(power) == pytest.approx(1, abs=0.05)
            assert repeat.sampled[power].iterations == repeat.counter.iterations


@pytest.mark.gpu
@on_gpu
def test_windows_repeat(found: EnergyBench) -> None:
    assert found.spread < 0.03


@pytest.mark.gpu
@on_gpu
def test_idle_and_cadence_are_plausible(found: EnergyBench) -> None:
    assert 20 < found.idle_w < 200
    for each in (found.cadence_idle, found.cadence_load):
        assert 0.005 < each.step_s < 0.15
    gross, seconds = found.repeats[0].counter.gross_j, found.repeats[0].counter.window_s
    assert gross is not None
    assert seconds is not None
    assert gross * found.repeats[0].counter.iterations / seconds > 2 * found.idle_w
    assert [label for label, _ in cells(found)][-1] == "spread"


@pytest.mark.gpu
@on_gpu
def test_an_app_counts_the_joules_of_its_gpu_work() -> None:
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    with edgekit.meter(unit="cuda", sync=torch.cuda.synchronize) as window:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            a @ a
            torch.cuda.synchronize()
    energy = window.energy
    assert energy.provenance == "measured.counter"
    assert energy.meter is not None
    assert "nvml" in energy.meter
    assert energy.gross_j is not None
    assert 150 < energy.gross_j < 3000  # 3 s of 50 to 1000 W
