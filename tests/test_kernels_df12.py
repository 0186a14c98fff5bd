"""df12 on a CUDA device, in Triton's interpreter where there is none: decode to the bit, products to the rounding."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from weights import Bits, bf16, layer

from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.formats import df12 as df12_format

torch = pytest.importorskip("torch", reason="torch is not installed")
triton = pytest.importorskip("triton", reason="triton is not installed")

from kernel_devices import interpreted, on_all, on_gpu, patterns  # noqa: E402

from edgekit.kernels import df12  # noqa: E402
from edgekit.kernels.df12.reference import decode as reference_decode  # noqa: E402
from edgekit.kernels.df12.reference import linear as reference_linear  # noqa: E402

EVERY = np.random.default_rng(0).permutation(np.arange(1 << 16)).astype(np.uint16).reshape(64, 1024)


def parts_of(bits: Bits) -> df12_format.Parts:
    """The parts with any share of escapes, where `encode` would refuse more than 2 %."""
    matrix = bits.reshape(-1, bits.shape[-1])
    counts = np.bincount(matrix.reshape(-1) >> 8 & 127, minlength=128)
    return df12_format.pack(matrix, df12_format.choose_palette(counts))


def coded(bits: Bits, device: str) -> df12.Weights:
    return df12.upload(parts_of(bits), bits.shape, device)


def dense(bits: Bits, device: str = "cpu") -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).to(device)


def spotted(rows: int, columns: int, seed: int = 0) -> Bits:
    """A layer with escapes in every block of rows, weights of +-2 to 2**25 that no palette holds all, and zeros."""
    bits = layer(rows, columns, seed=seed).copy()
    flat = bits.reshape(-1)
    count = np.arange(flat[5::61].size)
    flat[5::61] = (count % 2 << 15 | 64 + count % 12 << 8 | 0x40).astype(np.uint16)
    flat[7::101] = 0
    return bits


def inputs(lines: int, columns: int, device: str, seed: int = 0) -> torch.Tensor:
    return dense(bf16(np.random.default_rng(seed).standard_normal((lines, columns))), device)


def close(got: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> bool:
    """Within the rounding to bf16, which the interpreter cuts off, and that of float32 sums over terms of this size."""
    error = (got.double() - expected).abs()
    return bool((error <= expected.abs() * 2 ** (-8 if got.is_cuda else -7) + scale * 2**-20).all())


@on_all
@pytest.mark.parametrize(
    "bits",
    [EVERY, layer(33, 1000), layer(7, 240), spotted(50, 2304), spotted(1, 128), layer(6, 128).reshape(2, 3, 128)],
    ids=lambda bits: "x".join(map(str, bits.shape)),
)
def test_weights_come_back_bit_for_bit(bits: Bits, device: str) -> None:
    back = df12.decode(*coded(bits, device), bits.shape)
    assert back.device.type == device
    assert np.array_equal(patterns(back), bits)
    assert np.array_equal(patterns(reference_decode(parts_of(bits), bits.shape)), bits)


@on_all
@pytest.mark.parametrize("lines", [1, 2, 8, 9, 16, 17])
@pytest.mark.parametrize(("rows", "columns"), [(40, 256), (70, 240)])
def test_products_are_those_of_the_dense_weights(rows: int, columns: int, lines: int, device: str) -> None:
    bits = spotted(rows, columns)
    weights = coded(bits, device)
    assert weights.esc_val.numel() > rows
    x, bias = inputs(lines, columns, device), inputs(1, rows, device, seed=1)[0]
    scale = reference_linear(x.abs(), dense(bits, device).abs())
    for given in (None, bias):
        got = df12.linear(x, *weights, rows, given)
        assert got.dtype == torch.bfloat16
        assert close(got, reference_linear(x, dense(bits, device), given), scale)


@on_all
def test_large_matrices_are_decoded_in_slices(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = spotted(40, 256)
    x, bias = inputs(20, 256, device), inputs(1, 40, device, seed=1)[0]
    weights = coded(bits, device)
    monkeypatch.setattr(df12, "SLICE_BYTES", 1)
    scale = reference_linear(x.abs(), dense(bits, device).abs())
    assert close(df12.linear(x, *weights, 40, bias), reference_linear(x, dense(bits, device), bias), scale)


@on_all
@pytest.mark.parametrize("lines", [1, 8, 12])
@pytest.mark.parametrize("columns", [128, 1152, 2304, 4096])
def test_long_rows_are_summed_in_parts_where_rows_are_few(columns: int, lines: int, device: str) -> None:
    bits = spotted(20, columns)
    x = inputs(lines, columns, device)
    got = df12.linear(x, *coded(bits, device), 20, None)
    scale = reference_linear(x.abs(), dense(bits, device).abs())
    assert close(got, reference_linear(x, dense(bits, device)), scale)


@on_all
@pytest.mark.parametrize("lines", [1, 3, 11])
def test_infinities_count_as_in_dense_weights(lines: int, device: str) -> None:
    """An escape is +0 among the dense weights, and +0 times Inf would be NaN."""
    bits = spotted(20, 128)
    parts = parts_of(bits)
    escape = int(parts["esc_pos"][0] & 0xFFFFFF)
    zero = int(np.flatnonzero((bits == 0).any(0))[0])
    for column, value in ((escape, float("inf")), (zero, float("-inf")), (11, float("nan"))):
        x = inputs(lines, 128, device)
        x[-1, column] = value
        expected = reference_linear(x, dense(bits, device))
        got = df12.linear(x, *coded(bits, device), 20, None).double()
        assert torch.isfinite(expected).logical_not().any()
        assert torch.equal(torch.isnan(got), torch.isnan(expected))
        assert torch.equal(got.isposinf(), expected.isposinf())
        assert torch.equal(got.isneginf(), expected.isneginf())


@on_all
def test_leading_axes_of_x_stay_and_no_rows_make_no_rows(device: str) -> None:
    bits = layer(16, 128)
    weights = coded(bits, device)
    assert df12.linear(inputs(6, 128, device).view(2, 3, 128), *weights, 16, None).shape == (2, 3, 16)
    assert df12.linear(inputs(1, 128, device)[0], *weights, 16, None).shape == (16,)
    assert df12.linear(inputs(0, 128, device), *weights, 16, None).shape == (0, 16)


@on_all
def test_the_same_product_twice_is_the_same_to_the_bit(device: str) -> None:
    bits, x = spotted(64, 2048), inputs(1, 2048, device)
    weights = coded(bits, device)
    first, second = (df12.linear(x, *weights, 64, None) for _ in range(2))
    assert np.array_equal(patterns(first), patterns(second))


@interpreted
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, x: (x.float(), w), r"'x' is torch.float32, not torch.bfloat16"),
        (lambda w, x: (x[:, :-1].contiguous(), w._replace(hi=w.hi[:, :-1].contiguous())), r"'hi' has shape \[16, 15\]"),
        (lambda w, x: (x, w._replace(hi=w.hi.T)), r"'hi' is not contiguous"),
        (lambda w, x: (x, w._replace(esc_ptr=w.esc_ptr[:-1])), r"'esc_ptr' has shape \[1\], not \[2\]"),
        (lambda w, x: (x, w._replace(pal=w.pal.to(torch.int32))), r"'pal' is torch.int32, not torch.uint8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Callable[..., tuple[object, df12.Weights]], message: str) -> None:
    x, weights = change(coded(layer(16, 128), "cpu"), inputs(1, 128, "cpu"))
    with pytest.raises(InvalidInput, match=message):
        df12.linear(x, *weights, 16, None)


@interpreted
def test_a_bias_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"'bias' has shape \[15\], not \[16\]"):
        df12.linear(inputs(1, 128, "cpu"), *coded(layer(16, 128), "cpu"), 16, inputs(1, 15, "cpu")[0])


def test_damaged_parts_are_not_uploaded() -> None:
    parts = parts_of(spotted(16, 128))
    parts["esc_pos"][0] = 0xFFFFFF
    with pytest.raises(CorruptWeights, match="outside the 16 x 128 matrix"):
        df12.upload(parts, (16, 128), "cpu")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs on the CPU")
def test_weights_on_the_cpu_are_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidInput, match=r"tensor.cuda\(\)"):
        df12.linear(inputs(1, 128, "cpu"), *coded(layer(16, 128), "cpu"), 16, None)


@pytest.mark.parametrize("lines", [1, 40])
def test_shapes_are_known_without_weights(lines: int) -> None:
    """What `torch.compile` and memory planners ask."""
    weights = [part.to("meta") for part in coded(layer(16, 128), "cpu")]
    x = torch.empty(lines, 128, dtype=torch.bfloat16, device="meta")
    assert df12.linear(x, *weights, 16, None).shape == (lines, 16)
    assert df12.decode(*weights, (16, 128)).dtype == torch.bfloat16


@interpreted
def test_the_ops_keep_torchs_rules() -> None:
    weights = coded(spotted(16, 128), "cpu")
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(df12.linear, (inputs(2, 128, "cpu"), *weights, 16, None), test_utils=tests)
    torch.library.opcheck(df12.decode, (*weights, (16, 128)), test_utils=tests)


@on_gpu
@pytest.mark.parametrize(("rows", "columns"), [(14336, 4096), (4096, 14336), (1024, 4096), (11008, 4096)])
def test_large_matrices(rows: int, columns: int, device: str) -> None:
    bits = layer(rows, columns)
    weights, exact = coded(bits, device), dense(bits, device)
    assert torch.equal(df12.decode(*weights, bits.shape).view(torch.int16), exact.view(torch.int16))
    for lines in (1, 4, 16, 64):
        x = inputs(lines, columns, device)
        scale = reference_linear(x.abs(), exact.abs())
        assert close(df12.linear(x, *weights, rows, None), reference_linear(x, exact), scale)


@on_gpu
@pytest.mark.parametrize("lines", [1, 8, 32])
def test_a_graph_replays_on_new_inputs(lines: int, device: str) -> None:
    bits = spotted(2048, 1024)
    weights, x = coded(bits, device), inputs(lines, 1024, device)
    df12.linear(x, *weights, 2048, None)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = df12.linear(x, *weights, 2048, None)
    x.copy_(inputs(lines, 1024, device, seed=5))
    graph.replay()
    assert torch.equal(y, df12.linear(x, *weights, 2048, None))


@on_gpu
def test_compiled_code_gives_the_same(device: str) -> None:
    bits = spotted(256, 1024)
    weights, x = coded(bits, device), inputs(2, 1024, device)

    def twice(x: torch.Tensor) -> torch.Tensor:
        return df12.linear(x * 2, *weights, 256, None) + 1

    assert torch.equal(torch.compile(twice, fullgraph=True)(x), twice(x))


@on_gpu
def test_two_streams_do_not_meet(device: str) -> None:
    bits = spotted(4096, 1024)
    weights = coded(bits, device)
    xs = [inputs(1, 1024, device, seed=seed) for seed in range(2)]
    expected = [df12.linear(x, *weights, 4096, None) for x in xs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in xs]
    found = []
    for _ in range(20):
        for stream, x in zip(streams, xs, strict=True):
            with torch.cuda.stream(stream):
                found.append(df12.linear(x, *weights, 4096, None))
    torch.cuda.synchronize()
    assert all(torch.equal(y, expected[i % 2]) for i, y in enumerate(found))
