"""The bench of GPU kernels: its arithmetic, and what it says where there is no GPU."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch

from edgekit.bench.kernels import INSTRUCTIONS, KernelBench, Timing, decoding_table, run, table
from edgekit.errors import InvalidInput
from edgekit.kernels.nn.bench import DecodeSpeed


def timing(kernel: str, seconds: float, moved_bytes: int, lines: int = 1) -> Timing:
    return Timing(kernel=kernel, rows=1000, columns=1000, lines=lines, seconds=seconds, moved_bytes=moved_bytes)


def bench(*timings: Timing, instructions_per_s: float | None = None) -> KernelBench:
    speeds = {"bf16": (100.0, 2_000_000), "small": (50.0, 1_400_000)}
    return KernelBench(
        suite="lossless",
        device="a GPU",
        versions={},
        copy_bytes_per_s=1e12,
        instructions_per_s=instructions_per_s,
        bits_per_weight={},
        timings=timings,
        decoding=tuple(
            DecodeSpeed(resident=name, compiled=False, tokens_per_s=speed, weights=1, weight_bytes=size, tokens=())  # type: ignore[arg-type]
            for name, (speed, size) in speeds.items()
        ),
    )


def test_memory_is_as_fast_as_the_fastest_that_used_it() -> None:
    coded = timing("df12 product", 1e-6, 9_000_000)
    assert bench(coded, timing("cuBLAS bf16 product", 1e-6, 500_000)).bytes_per_s == 1e12
    assert bench(coded, timing("cuBLAS bf16 product", 1e-6, 2_000_000)).bytes_per_s == 2e12


def test_the_bound_is_what_takes_longer() -> None:
    decode = timing("df11x decode", 5e-6, 3_000_000)
    least = INSTRUCTIONS["df11x decode"] * 1e6
    dense = timing("cuBLAS bf16 product", 1.0, 1)
    assert bench(decode, dense).bound(decode) == ("bytes", 3e-6)
    assert bench(decode, dense, instructions_per_s=least / 2e-6).bound(decode) == ("bytes", 3e-6)
    assert bench(decode, dense, instructions_per_s=least / 4e-6).bound(decode) == ("instructions", pytest.approx(4e-6))
    assert table(bench(decode, dense))[1][0][3:] == ["5.0", "0.40", "bytes, 3.0 us", "1.67"]


def test_coded_models_are_compared_with_the_dense_one() -> None:
    assert decoding_table(bench())[1] == [
        ["bf16", "100", "1.00", "2", "100.0 %"],
        ["small", "50", "0.50", "1", "70.0 %"],
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_there_is_nothing_to_time() -> None:
    with pytest.raises(InvalidInput, match="torch sees no CUDA device"):
        run()


def test_an_unknown_suite_is_refused_with_the_one_there_is() -> None:
    with pytest.raises(InvalidInput, match=r"no suite 'fast'.*lossless is the one"):
        run("fast")
