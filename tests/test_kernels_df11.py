"""The kernels that decode entropy-coded weights: on a CUDA device, and in Triton's interpreter where there is none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from dfloat11_package import GOLDEN, golden_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import Bits, bf16, layer

from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.formats import df11 as df11_format
from edgekit.formats import df11x as df11x_format
from edgekit.formats._huffman import canonical_codes

torch = pytest.importorskip("torch", reason="torch is not installed")
triton = pytest.importorskip("triton", reason="triton is not installed")

from kernel_devices import interpreted, on_all, on_gpu, patterns  # noqa: E402

from edgekit.kernels import df11, df11x  # noqa: E402
from edgekit.kernels.df11 import _package  # noqa: E402
from edgekit.kernels.df11.reference import decode as df11_reference  # noqa: E402
from edgekit.kernels.df11x.reference import decode as df11x_reference  # noqa: E402

Decode = Callable[[], "torch.Tensor"]


def df11x_decode(bits: Bits, device: str) -> Decode:
    weights = df11x.upload(df11x_format.encode(bits), bits.shape, device)
    return partial(df11x.decode, *weights, bits.shape)


def df11_decode(bits: Bits, device: str) -> Decode:
    weights = df11.upload(df11_format.encode(bits), device)
    return lambda: df11.decode(*weights, bits.size).view(bits.shape)


both = pytest.mark.parametrize("prepare", [df11_decode, df11x_decode])


def long_codes() -> Bits:
    """Exponents as frequent as Fibonacci numbers: codes of 1 to 21 bits."""
    counts = [1, 1]
    while len(counts) < 22:
        counts.append(counts[-1] + counts[-2])
    exponent = np.repeat(np.arange(100, 122), counts).astype(np.uint16)
    rng = np.random.default_rng(0)
    rng.shuffle(exponent)
    return exponent << 7 | rng.integers(0, 128, exponent.size, dtype=np.uint16)


def without_pointers(bits: Bits) -> Bits:
    """The patterns that the DFloat11 layout can hold."""
    return bits[bits >> 7 & 0xFF < 240]


EVERY = np.random.default_rng(0).permutation(np.arange(1 << 16)).astype(np.uint16)
HEAVY = bf16(1e-3 * np.random.default_rng(0).standard_t(1, (3, 5, 701)))


@on_all
@pytest.mark.parametrize("bits", [EVERY, HEAVY, layer(33, 1000), np.full((5, 1), 0x8000, np.uint16)], ids=len)
def test_df11x_weights_come_back_bit_for_bit(bits: Bits, device: str) -> None:
    dense = df11x_decode(bits, device)()
    assert dense.device.type == device
    assert dense.shape == bits.shape
    assert np.array_equal(patterns(dense), bits)
    assert np.array_equal(patterns(df11x_reference(df11x_format.encode(bits), bits.shape)), bits)


@on_all
@pytest.mark.parametrize(
    "bits",
    [without_pointers(EVERY), HEAVY, layer(33, 1000), np.full((5, 1), 0x8000, np.uint16), long_codes()],
    ids=len,
)
def test_df11_weights_come_back_bit_for_bit(bits: Bits, device: str) -> None:
    dense = df11_decode(bits, device)()
    assert dense.device.type == device
    assert np.array_equal(patterns(dense), bits)
    assert np.array_equal(patterns(df11_reference(df11_format.encode(bits), bits.size)), bits.reshape(-1))


def test_df11_codes_lead_through_one_to_three_tables() -> None:
    lengths = df11_format.encode(long_codes())["luts"][-1]
    assert lengths.max() > 20
    assert 0 < lengths[lengths > 0].min() <= 8


@on_all
@both
@pytest.mark.parametrize("size", [1, 63, 64, 65, 511, 512, 513, 8191, 8193, 16384, 16385])
def test_any_size_comes_back(prepare: Callable[[Bits, str], Decode], size: int, device: str) -> None:
    bits = layer(1, size, seed=size)
    assert np.array_equal(patterns(prepare(bits, device)()), bits)


@interpreted
@both
@settings(max_examples=10, deadline=None)
@given(
    common=st.lists(st.integers(0, 0x77FF), min_size=1, max_size=40),
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_any_patterns_come_back(
    prepare: Callable[[Bits, str], Decode], common: list[int], counts: list[int], seed: int
) -> None:
    bits = np.resize(np.array(common, np.uint16), sum(counts))
    bits[: counts[0]] = common[0]
    np.random.default_rng(seed).shuffle(bits)
    assert np.array_equal(patterns(prepare(bits, "cpu")()), bits)


@on_all
def test_a_group_is_decoded_end_to_end(device: str) -> None:
    group = [layer(7, 300), layer(1, 41, seed=1), layer(90, 10, seed=2)]
    weights = df11.upload(df11_format.encode_group(group), device)
    dense = df11.decode(*weights, sum(bits.size for bits in group))
    assert np.array_equal(patterns(dense), np.concatenate([bits.reshape(-1) for bits in group]))


@on_all
@pytest.mark.parametrize("name", sorted(golden_groups()))
def test_groups_made_by_the_package_decode_exactly(name: str, device: str) -> None:
    with np.load(GOLDEN) as golden:
        parts = {key.removeprefix(f"{name}."): golden[key] for key in golden.files if key.startswith(f"{name}.")}
    expected = np.concatenate([bits.reshape(-1) for bits in golden_groups()[name]])
    assert np.array_equal(patterns(df11.decode(*df11.upload(parts, device), expected.size)), expected)


@on_gpu
@pytest.mark.skipif(_package.decoder_file() is None, reason="the dfloat11 package is not installed")
@pytest.mark.parametrize("bits", [without_pointers(EVERY), HEAVY, layer(1000, 1001), long_codes()], ids=len)
def test_the_dfloat11_package_decodes_what_we_write(bits: Bits, device: str) -> None:
    parts = df11_format.encode(bits)
    dense = _package.decode(_package.upload(parts), _package.shared_bytes(parts))
    assert dense.device.type == device
    assert np.array_equal(patterns(dense), bits.reshape(-1))


def test_the_dfloat11_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert _package.decoder_file() is None
    (tmp_path / "dfloat11").mkdir()
    (tmp_path / "dfloat11" / "__init__.py").write_text("import cupy_that_is_not_there")
    importlib.invalidate_caches()
    assert _package.decoder_file() is None
    (tmp_path / "dfloat11" / "decode.ptx").touch()
    assert _package.decoder_file() == tmp_path / "dfloat11" / "decode.ptx"


def test_the_table_of_trained_weights_is_a_cache_line() -> None:
    table = df11x.make_table(df11x_format.encode(layer(64, 1024))["lengths"])
    assert table.nbytes <= 128


@pytest.mark.parametrize(
    "lengths",
    [
        {7: 1},
        {3: 1, 7: 1},
        dict.fromkeys(range(256), 8),
        {2: 1, 9: 2, 4: 3, 1: 3},
        {**{i: i + 1 for i in range(11)}, 200: 11},
    ],
    ids=len,
)
def test_a_table_names_the_code_that_any_eleven_bits_begin_with(lengths: dict[int, int]) -> None:
    row = np.array([lengths.get(symbol, 0) for symbol in range(256)], np.uint8)
    codes = {(int(canonical_codes(row, 11)[symbol]), length): symbol for symbol, length in lengths.items()}
    table = df11x.make_table(row)
    b = (len(table) // 12).bit_length() - 1
    for ahead in range(1 << 11):
        inverted = (~ahead & 0x7FF) << 1 | 1
        top = inverted.bit_length() - 1
        entry = int(table[top << b | (inverted << b >> top) & ((1 << b) - 1)])
        length = entry & 127
        assert len(lengths) == 1 or codes[ahead >> (11 - length), length] == entry >> 7
        assert lengths[entry >> 7] == length


@on_all
def test_damaged_parts_decode_to_wrong_weights_without_a_fault(device: str) -> None:
    bits = layer(6, 600)
    for field in ("stream", "group_off", "lane_off", "table"):
        weights = df11x.upload(df11x_format.encode(bits), bits.shape, device)
        getattr(weights, field).fill_(-1)
        assert not np.array_equal(patterns(df11x.decode(*weights, bits.shape)), bits)
    for field in ("stream", "block_start", "lane_start"):
        group = df11.upload(df11_format.encode(bits), device)
        getattr(group, field).fill_(-1)
        assert not np.array_equal(patterns(df11.decode(*group, bits.size)), bits.reshape(-1))


def test_parts_that_do_not_fit_are_refused_before_they_reach_a_kernel() -> None:
    bits = layer(6, 600)
    with pytest.raises(CorruptWeights, match="'sm' is"):
        df11x.upload(df11x_format.encode(bits), (7, 600), "cpu")
    parts = df11_format.encode(bits)
    with pytest.raises(CorruptWeights, match="'luts' is"):
        df11.upload({**parts, "luts": parts["luts"][:1]}, "cpu")
    with pytest.raises(CorruptWeights, match="'gaps' is"):
        df11.upload({**parts, "gaps": parts["gaps"][:-1]}, "cpu")
    with pytest.raises(CorruptWeights, match=r"0 weights with \d+ different exponents"):
        df11.upload({**parts, "sign_mantissa": parts["sign_mantissa"][:0]}, "cpu")


@on_all
def test_tensors_that_upload_cannot_have_made_are_refused(device: str) -> None:
    bits = layer(40, 900)
    good = df11x.upload(df11x_format.encode(bits), bits.shape, device)
    for changed, message in (
        (good._replace(sm=good.sm.float()), "df11x: 'sm' is torch.float32, not torch.uint8"),
        (good._replace(sm=good.sm[:-512]), r"df11x: 'sm' has shape \[35840\], not \[36352\]"),
        (good._replace(lane_off=good.lane_off[:1]), r"df11x: 'lane_off' has shape \[1, 128\], not \[3, 128\]"),
        (good._replace(stream=good.stream[::2]), "df11x: 'stream' is not contiguous"),
        (good._replace(stream=good.stream[:2]), "df11x: there are no weights to decode"),
        (good._replace(table=good.table[:-1]), r"df11x: 'table' has \d+ entries, not 12 times a power of two"),
    ):
        with pytest.raises(InvalidInput, match=message):
            df11x.decode(*changed, bits.shape)
    group = df11.upload(df11_format.encode(bits), device)
    for other, message in (
        (group._replace(lane_start=group.lane_start.long()), "df11: 'lane_start' is torch.int64, not torch.int32"),
        (group._replace(block_start=group.block_start[:-1]), r"df11: 'block_start' has shape \[4\], not \[5\]"),
        (group._replace(levels=4), "df11: a code leads through 1 to 3 tables, not 4"),
    ):
        with pytest.raises(InvalidInput, match=message):
            df11.decode(*other, bits.size)


@on_gpu
def test_tensors_on_two_devices_are_refused(device: str) -> None:
    bits = layer(4, 900)
    weights = df11x.upload(df11x_format.encode(bits), bits.shape, device)
    with pytest.raises(InvalidInput, match="df11x: the tensors are on cpu and cuda:0; move them to one device"):
        df11x.decode(*weights._replace(table=weights.table.cpu()), bits.shape)


def test_a_cpu_without_the_interpreter_is_told_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = layer(4, 900)
    weights = df11x.upload(df11x_format.encode(bits), bits.shape, "cpu")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(InvalidInput, match=r"df11x: the weights are on 'cpu', .* tensor\.cuda"):
        df11x.decode(*weights, bits.shape)


@on_all
def test_torch_can_trace_the_ops(device: str) -> None:
    bits = layer(9, 300)
    weights = df11x.upload(df11x_format.encode(bits), bits.shape, device)
    torch.library.opcheck(df11x.decode, (*weights, bits.shape))
    group = df11.upload(df11_format.encode(bits), device)
    torch.library.opcheck(df11.decode, (*group, bits.size))


@on_all
def test_a_compiled_function_gives_the_same(device: str) -> None:
    bits = layer(32, 300)
    weights = df11x.upload(df11x_format.encode(bits), bits.shape, device)
    x = torch.randn(2, 300, dtype=torch.bfloat16, device=device)

    def linear(x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, df11x.decode(*parts, bits.shape))

    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(linear, fullgraph=True, backend=backend)(x, *weights)
    assert torch.equal(compiled, linear(x, *weights))


@on_gpu
@both
@pytest.mark.parametrize("distribution", ["normal", "student", "laplace"])
def test_big_tensors_come_back(prepare: Callable[[Bits, str], Decode], distribution: str, device: str) -> None:
    bits = layer(4096, 4096 + 1, distribution=distribution)
    assert np.array_equal(patterns(prepare(bits, device)()), bits)


@on_gpu
@both
def test_a_graph_replays_what_its_inputs_hold_then(prepare: Callable[[Bits, str], Decode], device: str) -> None:
    bits = layer(512, 1000)
    decode = prepare(bits, device)
    decode()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dense = decode()
    dense.zero_()
    graph.replay()
    assert np.array_equal(patterns(dense), bits)


@on_gpu
@both
def test_two_streams_decode_at_once(prepare: Callable[[Bits, str], Decode], device: str) -> None:
    layers = [layer(2048, 1024, seed=seed) for seed in range(2)]
    decodes = [prepare(bits, device) for bits in layers]
    streams = [torch.cuda.Stream() for _ in layers]
    torch.cuda.synchronize()
    dense = []
    for _ in range(10):
        for stream, decode in zip(streams, decodes, strict=True):
            with torch.cuda.stream(stream):
                dense.append(decode())
    torch.cuda.synchronize()
    assert all(np.array_equal(patterns(one), layers[index % 2]) for index, one in enumerate(dense))
