"""The bytes of df11: parts made by the dfloat11 package, a decoder written from the specification, parts that lie."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from dfloat11_package import GOLDEN, golden_groups, installed, package_encode_group
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from weights import Bits, layer

from edgekit.codec import NoGain, Parts, bits_per_weight, encode
from edgekit.errors import CorruptWeights
from edgekit.formats import df11
from edgekit.formats._df11_luts import LONGEST, MOST_LUTS, lut_prefixes, read_luts, write_luts
from edgekit.formats._huffman import canonical_codes, code_lengths
from edgekit.processing import Array

BELOW_240 = st.integers(0, 0xFFFF).filter(lambda pattern: (pattern >> 7 & 0xFF) < 240)


def weights_of(exponents: list[int]) -> Bits:
    """Weights with these exponents, signs and mantissas at random."""
    low = np.random.default_rng(0).integers(0, 1 << 16, len(exponents), np.uint16)
    return low & 0x807F | np.array(exponents, np.uint16) << 7


def fibonacci(symbols: int, times: int = 1) -> list[int]:
    """Exponents from 60 on whose Huffman code is as deep as it can be, the rarest last."""
    counts = [1, 1]
    while len(counts) < symbols:
        counts.append(counts[-1] + counts[-2])
    return [60 + symbol for symbol, count in enumerate(counts) for _ in range(count * times)][::-1]


def plain_df11(parts: Parts) -> list[int]:
    """A decoder written from the docstring alone: every chunk by itself, one weight at a time."""
    bits = "".join(f"{byte:08b}" for byte in parts["encoded_exponent"].tolist())
    gaps = "".join(f"{byte:08b}" for byte in parts["gaps"].tolist())
    positions = np.frombuffer(parts["output_positions"].tobytes(), "<u4").tolist()
    tables, lengths = parts["luts"][:-1].tolist(), parts["luts"][-1].tolist()
    found: list[int] = []
    for start in range(0, len(bits), 64):
        if start % (64 * 512) == 0:
            assert positions[start // (64 * 512)] == len(found)
        at = start + int(gaps[start // 64 * 5 :][:5], 2)
        while at < start + 64 and len(found) < positions[-1]:
            depth, entry = 0, tables[0][int(bits[at : at + 8].ljust(8, "0"), 2)]
            while entry >= 240:
                depth += 8
                entry = tables[256 - entry][int(bits[at + depth : at + depth + 8].ljust(8, "0"), 2)]
            low = int(parts["sign_mantissa"][len(found)])
            found.append((low & 0x80) << 8 | entry << 7 | low & 0x7F)
            at += lengths[entry]
    return found


# --- the bytes -------------------------------------------------------------------------------------------------------


def test_example_of_the_layout() -> None:
    parts = df11.encode(np.array([0x3F80, 0xBFC0, 0x3E80], np.uint16))
    lengths = bytearray(256)
    lengths[125] = lengths[127] = 1
    assert parts["encoded_exponent"].tobytes().hex() == "c0"
    assert parts["sign_mantissa"].tobytes().hex() == "00c000"
    assert parts["luts"].tobytes() == b"\x7d" * 128 + b"\x7f" * 128 + lengths
    assert parts["gaps"].tobytes() == bytes(320)
    assert parts["output_positions"].tobytes().hex() == "00000000" + "03000000"
    assert parts["split_positions"].tolist() == []


def test_tables_of_a_code_of_nine_bits() -> None:
    lengths = np.zeros(256, np.uint8)
    lengths[[7, 8, 9, 10, 11, 12, 13, 14, 15, 16]] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    luts = write_luts(lengths, canonical_codes(lengths, LONGEST))
    assert luts.shape == (3, 256)
    assert luts[0, [0, 127, 128, 191, 253, 254, 255]].tolist() == [7, 7, 8, 8, 13, 14, 255]
    assert luts[1, [0, 127, 128, 255]].tolist() == [15, 15, 16, 16]
    assert luts[2].tolist() == lengths.tolist()


@pytest.mark.parametrize("name", sorted(golden_groups()))
def test_parts_made_by_the_package_decode_exactly(name: str) -> None:
    with np.load(GOLDEN) as golden:
        parts = {key.removeprefix(f"{name}."): golden[key] for key in golden.files if key.startswith(f"{name}.")}
    group = golden_groups()[name]
    found = df11.decode_group(parts, [bits.shape for bits in group])
    assert all(np.array_equal(one, other) for one, other in zip(found, group, strict=True))
    assert plain_df11(parts) == np.concatenate([bits.reshape(-1) for bits in group]).tolist()


@pytest.mark.skipif(not installed(), reason="needs dfloat11 and dahuffman")
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    patterns=st.lists(BELOW_240, min_size=2, max_size=60),
    skew=st.floats(0, 2),
    seed=st.integers(0, 2**32),
)
def test_what_the_package_makes_of_any_group_decodes_exactly(
    sizes: list[int], patterns: list[int], skew: float, seed: int
) -> None:
    share = np.exp(-skew * np.arange(len(patterns)))
    drawn = np.random.default_rng(seed).choice(np.array(patterns, np.uint16), sum(sizes), p=share / share.sum())
    group = np.split(drawn, np.cumsum(sizes[:-1]))
    try:
        parts = package_encode_group(group)
    except UnboundLocalError:  # the package fails where its end-of-file code is all zeros
        reject()
    found = df11.decode_group(parts, [bits.shape for bits in group])
    assert all(np.array_equal(one, other) for one, other in zip(found, group, strict=True))


def run_over(lengths: Array) -> Bits:
    """Weights whose last code begins in the first block of 32,768 bits and ends 8 bits into the second."""
    rare = fibonacci(16)
    assert lengths[rare[-1]] > 8
    return weights_of([200] * (32776 - int(lengths[rare].sum())) + rare)


def test_the_weight_of_a_block_in_which_no_code_starts_may_be_left_out() -> None:
    weights = run_over(df11.encode(weights_of([200] * 20000 + fibonacci(16)))["luts"][-1])
    parts = df11.encode(weights)
    assert parts["encoded_exponent"].size == 4097
    assert np.frombuffer(parts["output_positions"].tobytes(), "<u4").tolist() == [0, weights.size, weights.size]
    assert np.array_equal(df11.decode(parts, weights.shape), weights)
    shorter = {**parts, "output_positions": np.array([0, weights.size], "<u4").view(np.uint8)}
    assert np.array_equal(df11.decode(shorter, weights.shape), weights)


@pytest.mark.skipif(not installed(), reason="needs dfloat11 and dahuffman")
def test_the_package_leaves_that_weight_out() -> None:
    weights = run_over(package_encode_group([weights_of([200] * 20000 + fibonacci(16))])["luts"][-1])
    parts = package_encode_group([weights])
    assert parts["encoded_exponent"].size == 4097
    assert np.frombuffer(parts["output_positions"].tobytes(), "<u4").tolist() == [0, weights.size]
    assert np.array_equal(df11.decode(parts, weights.shape), weights)


# --- every weight ----------------------------------------------------------------------------------------------------


def test_all_patterns_below_exponent_240_among_a_million_weights() -> None:
    weights = layer(1000, 1024)
    patterns = np.array([pattern for pattern in range(1 << 16) if (pattern >> 7 & 0xFF) < 240], np.uint16)
    weights.reshape(-1)[np.random.default_rng(1).choice(weights.size, patterns.size, replace=False)] = patterns
    assert np.array_equal(df11.decode(df11.encode(weights), weights.shape), weights)


@pytest.mark.parametrize("pattern", [0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x7800, 0xF800])
def test_what_pointers_stand_for_is_refused(pattern: int) -> None:
    weights = layer(80, 64)
    weights[3, 3] = pattern
    with pytest.raises(NoGain, match=r"cannot hold infinities, NaN or weights from 2\^113 on, and there are 1$"):
        df11.encode(weights)


def test_a_layer_takes_eleven_bits() -> None:
    assert bits_per_weight(encode(layer(512, 2048), "df11")) < 11


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=5),
    patterns=st.lists(BELOW_240, min_size=1, max_size=240),
    skew=st.floats(0, 3),
    seed=st.integers(0, 2**32),
)
def test_any_group_comes_back_and_the_plain_decoder_agrees(
    sizes: list[int], patterns: list[int], skew: float, seed: int
) -> None:
    share = np.exp(-skew * np.arange(len(patterns)))
    drawn = np.random.default_rng(seed).choice(np.array(patterns, np.uint16), sum(sizes), p=share / share.sum())
    group = np.split(drawn, np.cumsum(sizes[:-1]))
    parts = df11.encode_group(group)
    assert parts["split_positions"].tolist() == np.cumsum(sizes[:-1]).tolist()
    found = df11.decode_group(parts, [bits.shape for bits in group])
    assert all(np.array_equal(one, other) for one, other in zip(found, group, strict=True))
    assert plain_df11(parts) == drawn.tolist()


@pytest.mark.parametrize(
    "exponents",
    [
        pytest.param(fibonacci(20), id="codes of 19 bits, eight of the rarest too long for a word"),
        pytest.param([*range(60, 68)] * 3 + fibonacci(23), id="even four of the rarest too long for a word"),
        pytest.param([0], id="one weight"),
        pytest.param([239] * 5000, id="one exponent, code of one bit"),
        pytest.param([1, 2] * 2080, id="64 codes to a chunk"),
        pytest.param([*range(240)] * 40, id="all exponents alike"),
        pytest.param([100] * 9000 + [*range(240)] * 9, id="one exponent half of all: more tables than pointers"),
    ],
)
def test_hard_distributions(exponents: list[int]) -> None:
    weights = weights_of(exponents)
    parts = df11.encode(weights)
    assert np.array_equal(df11.decode(parts, weights.shape), weights)
    assert plain_df11(parts) == weights.tolist()


def test_a_code_that_needs_too_many_tables_is_made_shorter() -> None:
    counts = np.ones(256, np.int64)
    counts[240:], counts[100] = 0, 1000
    lengths = code_lengths(counts, LONGEST)
    assert len(lut_prefixes(lengths, canonical_codes(lengths, LONGEST))) > MOST_LUTS
    assert df11.encode(weights_of([100] * 1000 + [*range(240)]))["luts"].shape == (2, 256)


@pytest.mark.parametrize("sizes", [[], [0], [5, 0], [1 << 31]])
def test_groups_of_no_or_too_many_weights_are_refused(sizes: list[int]) -> None:
    with pytest.raises(NoGain, match=r"df11 codes tensors of 1 to 2147483647 weights together, not of \["):
        df11.encode_group([np.broadcast_to(np.uint16(0), size) for size in sizes])


@settings(max_examples=200, deadline=None)
@given(counts=st.lists(st.integers(0, 1 << 40), min_size=240, max_size=240).filter(any))
def test_tables_hold_the_code(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts + [0] * 16), LONGEST)
    codes = canonical_codes(lengths, LONGEST)
    if len(lut_prefixes(lengths, codes)) <= MOST_LUTS:
        found_lengths, found_codes = read_luts(write_luts(lengths, codes))
        assert found_lengths.tolist() == lengths.tolist()
        assert found_codes.tolist() == codes.tolist()


# --- parts that lie --------------------------------------------------------------------------------------------------

SHAPES = [(100, 128), (40, 64)]


@pytest.fixture(scope="module")
def coded() -> Parts:
    first, second = layer(100, 128), layer(40, 64, seed=1)
    first[5:30, 3] = weights_of(fibonacci(5) + list(range(10, 23)))  # rare ones, for a second table
    return df11.encode_group([first, second])


def put(name: str, index: object, value: object) -> Callable[[Parts], Parts]:
    """Parts with one place overwritten."""

    def damage(parts: Parts) -> Parts:
        changed = parts[name].copy()
        changed[index] = value
        return {**parts, name: changed}

    return damage


def cut(name: str, end: int) -> Callable[[Parts], Parts]:
    return lambda parts: {**parts, name: parts[name][:end]}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("encoded_exponent", -9), r"'encoded_exponent' ends after \d+ of 15360 weights"),
        (cut("encoded_exponent", -1), "'encoded_exponent' has 5183 bytes, and its codes take 5184"),
        (cut("encoded_exponent", 0), r"'gaps' is uint8\[640\], not uint8\[0\]"),
        (put("gaps", 0, 0x80), "the first code starts 16 bits into 'encoded_exponent', not at its begin"),
        (put("gaps", 0, 0x07), "the codes of chunk 0 do not end at the gap of the next one"),
        (put("gaps", 9, 0xFF), r"the codes of chunk 1\d do not end at the gap of the next one"),
        (put("luts", (0, 255), 240), "'luts' table 0, entry 255: points to table 16, and there are 3"),
        (put("luts", (1, 0), 255), "'luts' table 1, entry 0: points to table 1, which is led to already"),
        (put("luts", (-1, 121), 33), "a code is 33 bits long, more than 32"),
        (put("luts", (-1, 121), 0), "'luts' table 0, entry .*: exponent 121, whose code has 0 bits, cannot stand here"),
        (put("luts", (-1, 121), 1), "'luts' table 0, entry .*: exponent 121 is no code of 1 bits"),
        (put("luts", (-1, 3), 8), "'luts' gives exponent 3 a length of 8 bits and no code"),
        (lambda parts: put("luts", (0, 255), parts["luts"][0, 254])(parts), "no pointer leads to table 2 of 'luts'"),
        (put("output_positions", 4, 0), "'output_positions' does not say with which weight each block begins"),
        (put("output_positions", 7, 255), "'output_positions' does not say with which weight each block begins"),
        (cut("output_positions", 7), r"'output_positions' is uint8\[7\], not uint8\[4\]"),
        (cut("output_positions", 0), "'output_positions' does not say with which weight each block begins"),
        (put("split_positions", 0, 20000), "'split_positions' does not cut where tensors of these shapes end"),
        (cut("split_positions", 0), r"'split_positions' is int64\[0\], not int64\[1\]"),
        (cut("sign_mantissa", -1), r"'sign_mantissa' is uint8\[15359\], not uint8\[15360\]"),
        (cut("luts", 1), r"'luts' is uint8\[1, 256\], not uint8\[2 to 18, 256\]"),
    ],
)
def test_damage_is_named(coded: Parts, damage: Callable[[Parts], Parts], message: str) -> None:
    with pytest.raises(CorruptWeights, match=message):
        df11.decode_group(damage(coded), SHAPES)


def test_bytes_after_the_last_code_are_named(coded: Parts) -> None:
    size = coded["encoded_exponent"].size
    longer = {**coded, "encoded_exponent": np.append(coded["encoded_exponent"], np.uint8(0))}
    with pytest.raises(CorruptWeights, match=f"'encoded_exponent' has {size + 1} bytes, and its codes take {size}"):
        df11.decode_group(longer, SHAPES)


def test_bits_that_are_no_code_are_named() -> None:
    parts = df11.encode(weights_of([100] * 1000))
    parts["encoded_exponent"][17] = 1
    with pytest.raises(CorruptWeights, match="chunk 2 of 'encoded_exponent' holds bits that are no code"):
        df11.decode(parts, (1000,))


def test_tables_that_lead_in_a_circle_are_named() -> None:
    luts = np.zeros((3, 256), np.uint8)
    luts[0], luts[1], luts[2, 7] = 255, 255, 9
    luts[1, 128:] = 7
    lengths, _ = read_luts(luts)  # the package's own, where its end-of-file code was
    assert lengths[7] == 9
    luts[1, 128:], luts[1, 200:] = 7, 255
    with pytest.raises(CorruptWeights, match="table 1, entry 128: exponent 7 is no code of 9 bits"):
        read_luts(luts)
    luts[0, :5] = [3, 255, 3, 255, 3]
    luts[2, 3] = 8
    with pytest.raises(CorruptWeights, match="table 0, entry 2: exponent 3, whose code has 8 bits, cannot stand here"):
        read_luts(luts)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 255), st.sampled_from([0, 1, 8, 9, 61, 75, 240, 253, 254, 255])),
        min_size=1,
        max_size=6,
    )
)
def test_changed_tables_are_a_prefix_code_or_refused(changes: list[tuple[int, int, int]]) -> None:
    luts = df11.encode(weights_of(fibonacci(20)))["luts"]
    assert len(luts) == 4
    for table, entry, value in changes:
        luts[table, entry] = value
    with suppress(CorruptWeights):
        lengths, codes = read_luts(luts)
        words = [f"{codes[symbol]:0{lengths[symbol]}b}" for symbol in np.flatnonzero(lengths)]
        assert not any(one != other and other.startswith(one) for one in words for other in words)
        assert len(set(words)) == len(words)
