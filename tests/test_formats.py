"""The bytes of df12 and df11x: golden parts, decoders written from the specification, and parts that lie."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import Bits, exponent_entropy, layer, layer_with_every_pattern

from edgekit.codec import Codec, NoGain, Parts, bits_per_weight, encode
from edgekit.errors import CorruptWeights
from edgekit.formats import _huffman, df11x, df12
from edgekit.processing import Array

PATTERNS = st.one_of(st.sampled_from([0, 0x8000, 1, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x3F80]), st.integers(0, 0xFFFF))
SHAPES = st.lists(st.integers(1, 40), max_size=4).filter(lambda shape: math.prod(shape) < 3000).map(tuple)


def drawn(shape: tuple[int, ...], patterns: list[int], seed: int) -> Bits:
    return np.random.default_rng(seed).choice(np.array(patterns, np.uint16), shape)


# --- the bytes -------------------------------------------------------------------------------------------------------


def test_df12_example_of_its_specification() -> None:
    row = np.zeros((1, 240), np.uint16)
    row[0, 33], row[0, 34] = 0xBFC0, 0x5380
    parts = df12.pack(row, np.array([0, 58, 59, 60, 61, 62, 63, 64], np.uint8))
    assert parts["hi"].shape == (1, 32)
    assert parts["lo"].shape == (1, 32, 8)
    assert parts["hi"].tobytes().hex() == "00000000" + "60800000" + "00000000" * 30
    assert parts["lo"].tobytes().hex() == "00" * 8 + "00c0000000000000" + "00" * 8 * 30
    assert parts["pal"].tobytes().hex() == "003a3b3c3d3e3f40"
    assert parts["esc_ptr"].tobytes().hex() == "00000000" + "01000000"
    assert parts["esc_pos"].tobytes().hex() == "22000000"
    assert parts["esc_val"].tobytes().hex() == "8053"


def test_df11x_example_of_its_specification() -> None:
    parts = df11x.encode(np.array([0x3F80, 0xBFC0, 0x3E80], np.uint16))
    lengths = bytearray(256)
    lengths[125] = lengths[127] = 1
    assert parts["lengths"].tobytes() == bytes(lengths)
    assert parts["group_off"].tobytes().hex() == "00000000" + "10000000"
    assert parts["lane_off"].tobytes() == b"".join(lane.to_bytes(2, "little") for lane in range(128))
    assert parts["stream"].tobytes().hex() == "ffffffdf" + "ffffffff" * 15 + "00000000" * 2
    assert parts["sm"].tobytes().hex() == "00c000" + "00" * 509


def plain_df12(parts: Parts, shape: tuple[int, ...]) -> list[int]:
    """A decoder written from the docstring alone, one weight at a time."""
    columns = shape[-1] if shape else 1
    rows, padded = math.prod(shape[:-1]), (columns + 127) // 128 * 128
    bw = max(width for width in (128, 64, 32, 16) if padded % (8 * width) == 0)
    found = []
    for row in range(rows):
        for column in range(columns):
            tile, inside = divmod(column, 8 * bw)
            i, j = divmod(inside, bw)
            word = int(parts["hi"][row, tile * bw + j])
            sign = word >> 4 * (1, 3, 5, 7, 0, 2, 4, 6)[i] + 3 & 1
            pair = int(parts["pal"][word >> 4 * i & 7])
            found.append(sign << 15 | pair << 8 | int(parts["lo"][row, tile * bw + j, i]))
    for block, (start, end) in enumerate(itertools.pairwise(parts["esc_ptr"].tolist())):
        for escape in range(start, end):
            place = int(parts["esc_pos"][escape])
            at = (16 * block + (place >> 24)) * columns + (place & 0xFFFFFF)
            assert found[at] == 0
            found[at] = int(parts["esc_val"][escape])
    return found


def plain_df11x(parts: Parts, count: int) -> list[int]:
    """A decoder written from the docstring alone: the stream is a string of 0 and 1."""
    symbols = sorted((int(length), symbol) for symbol, length in enumerate(parts["lengths"]) if length)
    code, previous, words = -1, symbols[0][0], {}
    for length, symbol in symbols:
        code, previous = code + 1 << length - previous, length
        words[format(code, f"0{length}b")] = symbol
    stream = "".join(format(word, "032b") for word in parts["stream"].tolist())
    found = [0] * count
    for group in range((count + 16383) // 16384):
        steps = min(32, (count - 16384 * group + 511) // 512)
        for lane in range(128):
            at = 32 * int(parts["group_off"][group]) + 4 * int(parts["lane_off"][group, lane])
            for i, u in itertools.product(range(steps), range(4)):
                end = next(at + size for size in range(1, 12) if stream[at : at + size] in words)
                number = 16384 * group + (i * 128 + lane) * 4 + u
                if number < count:
                    sm = int(parts["sm"][number])
                    found[number] = (sm & 0x80) << 8 | words[stream[at:end]] << 7 | sm & 0x7F
                at = end
    return found


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, patterns=st.lists(PATTERNS, min_size=1, max_size=300), seed=st.integers(0, 99))
def test_decoders_written_from_the_specification_agree(shape: tuple[int, ...], patterns: list[int], seed: int) -> None:
    weights = drawn(shape, patterns, seed)
    flat = weights.reshape(-1).tolist()
    assert plain_df11x(df11x.encode(weights), weights.size) == flat
    columns = shape[-1] if shape else 1
    palette = df12.choose_palette(np.bincount(weights.reshape(-1) >> 8 & 127, minlength=128))
    assert plain_df12(df12.pack(weights.reshape(-1, columns), palette), shape) == flat


def test_groups_of_a_long_tensor_follow_the_specification() -> None:
    weights = layer(3, 11000)  # two groups of 32 steps and one of one
    assert plain_df11x(df11x.encode(weights), weights.size) == weights.reshape(-1).tolist()


# --- what goes in comes out ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, patterns=st.lists(PATTERNS, min_size=1, max_size=300), seed=st.integers(0, 99))
def test_any_patterns_in_any_shape(shape: tuple[int, ...], patterns: list[int], seed: int) -> None:
    weights = drawn(shape, patterns, seed)
    assert np.array_equal(df11x.decode(df11x.encode(weights), shape), weights)
    palette = df12.choose_palette(np.bincount(weights.reshape(-1) >> 8 & 127, minlength=128))
    packed = df12.pack(weights.reshape(-1, shape[-1] if shape else 1), palette)
    assert np.array_equal(df12.decode(packed, shape), weights)


@pytest.mark.parametrize("codec", [df11x, df12], ids=["df11x", "df12"])
def test_every_pattern_survives(codec: Codec) -> None:
    weights = layer_with_every_pattern()
    assert np.array_equal(codec.decode(codec.encode(weights), weights.shape), weights)


@pytest.mark.parametrize("columns", [1, 127, 128, 129, 256, 384, 511, 512, 1000, 1024, 1152, 4096])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33])
def test_df12_at_the_edges_of_its_tiles_and_blocks(rows: int, columns: int) -> None:
    weights = (
        np.random.default_rng(columns).integers(0, 1 << 16, (rows, columns)).astype(np.uint16)
    )  # nearly all escapes
    packed = df12.pack(weights, np.arange(8, dtype=np.uint8))  # nearly all are escapes
    assert np.array_equal(df12.decode(packed, (rows, columns)), weights)


@pytest.mark.parametrize("count", [1, 4, 511, 512, 513, 16383, 16384, 16385, 16384 * 16 + 512, 16384 * 17 + 1])
def test_df11x_at_the_edges_of_its_steps_groups_and_chunks(count: int) -> None:
    weights = layer(1, count)
    parts = df11x.encode(weights)
    assert len(parts["sm"]) == -(-count // 512) * 512
    assert np.array_equal(df11x.decode(parts, (count,)), weights.reshape(-1))


def test_df11x_holds_a_region_of_rare_exponents() -> None:
    """Untrained rows of an embedding: every code of their lanes is long, which must not overflow an offset."""
    weights = layer(4096, 256)
    weights[100:300] = np.random.default_rng(0).integers(0, 1 << 16, (200, 256))
    coded = encode(weights, "df11x")
    assert coded.parts["lane_off"].max() > 0xFFFF // 4  # more than 65,535 bits in a group
    assert np.array_equal(df11x.decode(coded.parts, weights.shape), weights)


# --- size ------------------------------------------------------------------------------------------------------------


def test_realistic_weights_meet_the_promised_rates() -> None:
    weights = layer(1024, 4096)
    assert 2.62 < exponent_entropy(weights) < 2.72
    assert bits_per_weight(encode(weights, "df12")) <= 12.1
    assert bits_per_weight(encode(weights, "df11x")) <= 10.95


@pytest.mark.parametrize("distribution", ["normal", "student", "laplace"])
def test_rates_stay_near_their_bounds_with_heavier_tails(distribution: str) -> None:
    weights = layer(1000, 1280, distribution=distribution)
    assert bits_per_weight(encode(weights, "df12")) <= 12.1
    assert bits_per_weight(encode(weights, "df11x")) <= 8 + exponent_entropy(weights) + 0.2


def test_a_small_tensor_still_gains() -> None:
    assert bits_per_weight(encode(layer(1, 4096), "df11x")) < 12


def test_df12_refuses_short_rows_and_many_escapes_and_says_why() -> None:
    with pytest.raises(NoGain, match="df12 pads rows of 3 weights to 128"):
        encode(layer(64, 192).reshape(-1, 3), "df12")
    with pytest.raises(NoGain, match="rows of 16777216 weights are too long for df12"):
        encode(np.zeros(1 << 24, np.uint16), "df12")
    weights = layer(64, 256)
    weights[:4] = np.random.default_rng(0).integers(0, 1 << 16, (4, 256))  # 4 of 64 rows are noise
    with pytest.raises(NoGain, match=r"[56]\.\d% of the weights are outside df12's palette, more than 2%"):
        encode(weights, "df12")


def test_df12_palette_holds_the_most_frequent_pairs_and_the_smaller_of_equals() -> None:
    counts = np.zeros(128, np.int64)
    counts[[0, 90, 60, 61, 100, 7]] = 1000, 5, 9, 9, 1, 1
    assert df12.choose_palette(counts).tolist() == [0, 1, 2, 7, 60, 61, 90, 100]
    assert df12.choose_palette(np.ones(128, np.int64)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


# --- Huffman ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 50), min_size=2, max_size=5), limit=st.integers(3, 4))
def test_code_lengths_are_the_best_of_all_prefix_codes(counts: list[int], limit: int) -> None:
    lengths = _huffman.code_lengths(np.array(counts), limit)
    choices = itertools.product(range(1, limit + 1), repeat=len(counts))
    best = min(
        sum(count * size for count, size in zip(counts, sizes, strict=True))
        for sizes in choices
        if sum(2.0**-size for size in sizes) <= 1
    )
    assert int((lengths * np.array(counts)).sum()) == best
    assert _huffman.is_complete(lengths, limit)


def test_code_lengths_stay_within_the_limit_where_the_tree_is_deeper() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(sum(fibonacci[-2:]))
    counts = np.zeros(256, np.int64)
    counts[100:140] = fibonacci
    lengths = _huffman.code_lengths(counts, 11)
    assert lengths.max() == 11
    assert _huffman.is_complete(lengths, 11)
    assert _huffman.code_lengths(counts, 39).max() == 39


def test_code_lengths_of_one_and_of_no_symbol() -> None:
    assert _huffman.code_lengths(np.array([0, 7, 0]), 11).tolist() == [0, 1, 0]
    assert _huffman.code_lengths(np.zeros(3, np.int64), 11).tolist() == [0, 0, 0]


def test_canonical_codes_and_their_table() -> None:
    """The example of RFC 1951, section 3.2.2: lengths of A to H are 3, 3, 3, 3, 3, 2, 4, 4."""
    lengths = np.array([3, 3, 3, 3, 3, 2, 4, 4], np.uint8)
    assert _huffman.canonical_codes(lengths, 4).tolist() == [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]
    table = _huffman.lookup_table(lengths, 4).tolist()
    assert [entry >> 4 for entry in table] == [5, 5, 5, 5, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 6, 7]
    assert [entry & 15 for entry in table] == [2] * 4 + [3] * 10 + [4] * 2


@given(st.lists(st.integers(1, 64).flatmap(lambda n: st.tuples(st.integers(0, 2**n - 1), st.just(n))), max_size=80))
def test_put_writes_what_joining_strings_gives(strings: list[tuple[int, int]]) -> None:
    text = "".join(format(code, f"0{length}b") for code, length in strings)
    length = np.array([length for _, length in strings], np.int64)
    words = np.zeros(len(text) // 64 + 1, np.uint64)
    code = np.array([code for code, _ in strings], np.uint64)
    _huffman.put(words, length.cumsum() - length, code, length)
    assert "".join(format(word, "064b") for word in words.tolist()).startswith(text)


# --- parts that lie --------------------------------------------------------------------------------------------------


def changed(parts: Parts, name: str, index: int | tuple[int, ...], value: int) -> Parts:
    copy = parts[name].copy()
    copy[index] = value
    return {**parts, name: copy}


def refused(codec: Codec, parts: Parts, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(CorruptWeights, match=sentence):
        codec.decode(parts, shape)


@pytest.fixture(scope="module")
def coded12() -> Parts:
    weights = layer(40, 240)
    weights[3, 10] = weights[3, 11] = weights[39, 239] = 0x7FC0
    return df12.encode(weights)


@pytest.fixture(scope="module")
def coded11x() -> Parts:
    return df11x.encode(layer(40, 1000))


def test_df12_names_what_is_wrong(coded12: Parts) -> None:
    shape = (40, 240)
    end = len(coded12["esc_pos"])
    refused(df12, changed(coded12, "pal", 0, 1), shape, r"the palette \[1, .* does not rise from 0 to at most 127")
    refused(df12, changed(coded12, "pal", 7, 128), shape, "palette")
    refused(df12, changed(coded12, "pal", 2, coded12["pal"][1]), shape, "palette")
    refused(df12, changed(coded12, "esc_ptr", 0, 1), shape, f"'esc_ptr' does not rise from 0 to {end}")
    refused(df12, changed(coded12, "esc_ptr", 1, -1), shape, "'esc_ptr' does not rise")
    refused(df12, changed(coded12, "esc_ptr", 3, end + 1), shape, "'esc_ptr' does not rise")
    refused(df12, changed(coded12, "esc_pos", -1, 7 << 24 | 240), shape, "an escape lies outside the 40 x 240 matrix")
    refused(df12, changed(coded12, "esc_pos", -1, 8 << 24 | 0), shape, "outside")  # row 40
    refused(df12, changed(coded12, "esc_pos", 0, 255 << 24), shape, "outside")
    last = coded12["esc_ptr"][1] - 1
    refused(df12, changed(coded12, "esc_pos", last, 16 << 24), shape, "outside")  # a row of the next block
    refused(df12, changed(coded12, "esc_pos", 1, coded12["esc_pos"][0]), shape, "not in ascending order")
    place = 3 << 24 | 12  # an ordinary weight
    at = coded12["esc_pos"].tolist().index(3 << 24 | 11)
    refused(df12, changed(coded12, "esc_pos", at, place), shape, "the matrix is not zero under an escape")
    refused(df12, {**coded12, "hi": coded12["hi"][:-1]}, shape, r"'hi' is uint32\[39, 32\], not uint32\[40, 32\]")
    refused(df12, {**coded12, "lo": coded12["lo"].astype(np.int8)}, shape, r"'lo' is int8\[40, 32, 8\], not uint8")
    refused(df12, {**coded12, "esc_val": coded12["esc_val"][1:]}, shape, "'esc_val'")
    refused(df12, {**coded12, "esc_pos": np.uint32(3)}, shape, "'esc_pos'")
    refused(df12, coded12, (1, 1 << 24), "rows of 16777216 weights are too long for df12")


def test_df11x_names_what_is_wrong(coded11x: Parts) -> None:
    shape = (40, 1000)
    rare = int(coded11x["lengths"].argmax())
    refused(df11x, changed(coded11x, "lengths", rare, 1), shape, "no complete prefix code of at most 11 bits")
    refused(df11x, changed(coded11x, "lengths", rare, 0), shape, "no complete prefix code")
    refused(df11x, changed(coded11x, "lengths", rare, 12), shape, "no complete prefix code")
    refused(df11x, {**coded11x, "lengths": np.zeros(256, np.uint8)}, shape, "no complete prefix code")
    refused(df11x, changed(coded11x, "group_off", 0, 1), shape, r"'group_off' does not rise from 0 to \d+")
    refused(df11x, changed(coded11x, "group_off", 1, 2**32 - 1), shape, "'group_off' does not rise")
    refused(df11x, {**coded11x, "stream": coded11x["stream"][:-1]}, shape, "'group_off' does not rise")
    refused(df11x, {**coded11x, "stream": coded11x["stream"][:1]}, shape, "'stream' is uint32.1., not uint32.2.")
    refused(df11x, changed(coded11x, "lane_off", (1, 0), 1), shape, "'lane_off' does not rise from 0 in every group")
    refused(df11x, changed(coded11x, "lane_off", (1, 9), 0xFFFF), shape, "'lane_off' does not rise")
    refused(df11x, changed(coded11x, "lane_off", (1, 127), 0xFFFF), shape, "'lane_off' leads out of its group")
    moved = coded11x["lane_off"][1, 9] + 1
    refused(df11x, changed(coded11x, "lane_off", (1, 9), moved), shape, "a lane does not end where the next one begins")
    refused(df11x, {**coded11x, "sm": coded11x["sm"][:-1]}, shape, "'sm'")


def test_another_prefix_code_makes_lanes_end_in_the_wrong_place(coded11x: Parts) -> None:
    lengths = np.zeros(256, np.uint8)
    lengths[110:126] = 4
    refused(df11x, {**coded11x, "lengths": lengths}, (40, 1000), "a lane does not end where the next one begins")


@pytest.mark.parametrize("shape", [(0,), (40, 0), (-1, -9600), (1,) * 33])
@pytest.mark.parametrize("codec", [df11x, df12], ids=["df11x", "df12"])
def test_shapes_that_no_coded_tensor_has(codec: Codec, shape: tuple[int, ...]) -> None:
    refused(codec, codec.encode(layer(40, 240)), shape, "is not one of coded weights")


@pytest.mark.parametrize("shape", [(1 << 62, 1 << 62), (1 << 40,), (40, 1 << 23), (41, 240)])
@pytest.mark.parametrize("codec", [df11x, df12], ids=["df11x", "df12"])
def test_shapes_that_do_not_fit_the_parts_allocate_nothing(codec: Codec, shape: tuple[int, ...]) -> None:
    refused(codec, codec.encode(layer(40, 240)), shape, "not uint|not rise|too long")


def test_parts_may_be_read_only_and_strided() -> None:
    weights = layer(40, 240)
    for codec in (df11x, df12):
        parts: dict[str, Array] = {}
        for name, part in codec.encode(weights).items():
            twice = np.repeat(part, 2, axis=0)
            twice.setflags(write=False)
            parts[name] = twice[::2]
        assert np.array_equal(codec.decode(parts, weights.shape), weights)
