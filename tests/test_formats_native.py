"""The C decoders give what NumPy gives, on any number of threads, and refuse what they are not given by us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import pairwise
from threading import Thread
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights import Bits, layer

from edgekit.codec import Parts
from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.formats import _native_decoder, df11x, df12

FORMATS: dict[str, ModuleType] = {"df11x": df11x, "df12": df12}
PALETTE = df12.choose_palette(np.bincount(layer(64, 64).reshape(-1) >> 8 & 127, minlength=128))
every_format = pytest.mark.parametrize("name", FORMATS)


def encode(name: str, weights: Bits) -> Parts:
    """As the codec does, without its rule of what gains."""
    return df11x.encode(weights) if name == "df11x" else df12.pack(weights, PALETTE)


def with_numpy(name: str, parts: Parts, shape: tuple[int, int]) -> Bits:
    out = np.empty(shape, np.uint16)
    FORMATS[name].unpack(parts, out.reshape(-1) if name == "df11x" else out)
    return out


def test_the_extension_was_built() -> None:
    assert _native_decoder.library() is not None, "no _native.abi3.so: is there a C compiler? then run make setup"


@every_format
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_all_patterns_come_out_as_numpy_gives_them(name: str, threads: int) -> None:
    weights = (
        np.random.default_rng(0).permutation(np.arange(1 << 17, dtype=np.uint32).astype(np.uint16)).reshape(128, 1024)
    )
    parts = encode(name, weights)
    assert np.array_equal(with_numpy(name, parts, (128, 1024)), weights)
    assert np.array_equal(FORMATS[name].decode(parts, (128, 1024), threads), weights)


@every_format
@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.one_of(st.integers(1, 1100), st.sampled_from([128, 256, 384, 512, 1024])),  # all widths of a tile
    rare=st.lists(st.integers(0, 0xFFFF), max_size=40),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_any_shape_comes_out_as_numpy_gives_it(
    name: str, rows: int, columns: int, rare: list[int], threads: int, seed: int
) -> None:
    weights = layer(rows, columns, seed)
    weights.reshape(-1)[np.random.default_rng(seed).integers(0, weights.size, len(rare))] = rare
    parts = encode(name, weights)
    decoded = FORMATS[name].decode(parts, (rows, columns), threads)
    assert np.array_equal(decoded, weights)
    assert np.array_equal(decoded, with_numpy(name, parts, (rows, columns)))


@every_format
def test_where_nothing_was_built_numpy_decodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, unpacked = layer(33, 200), list[int]()
    numpy_unpack = FORMATS[name].unpack
    monkeypatch.setattr(FORMATS[name], "library", lambda: None)
    monkeypatch.setattr(FORMATS[name], "unpack", lambda parts, out: (unpacked.append(1), numpy_unpack(parts, out)))
    assert np.array_equal(FORMATS[name].decode(encode(name, weights), (33, 200)), weights)
    assert unpacked == [1]


@every_format
def test_no_threads_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="0 threads cannot decode: ask for 1 or more"):
        FORMATS[name].decode(encode(name, layer(16, 128)), (16, 128), 0)


@pytest.mark.parametrize(("count", "unit"), [(1, 1), (7, 1), (100, 16), (16, 16), (33, 16)])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_share_everything_once(count: int, unit: int, threads: int) -> None:
    ranges = []
    out = np.empty(count, np.uint16)
    _native_decoder.fill(lambda out, columns, first, last: ranges.append((first, last)), out, [], count, unit, threads)
    edges = [0, *(last for _, last in sorted(ranges))]
    assert sorted(ranges) == list(pairwise(edges))
    assert edges[-1] == count
    assert len(ranges) == min(threads, -(-count // unit))
    assert all(edge % unit == 0 for edge in edges[:-1])


@every_format
def test_other_threads_run_while_it_decodes(name: str) -> None:
    weights = layer(2048, 1024)
    parts, out, spans = encode(name, weights), np.empty(weights.shape, np.uint16), list[tuple[float, float]]()

    def work() -> None:
        for _ in range(20):
            start = perf_counter()
            call(name, parts, out, 1024, 0, 2048 if name == "df12" else 128)
            spans.append((start, perf_counter()))

    worker, ticks = Thread(target=work), list[float]()
    worker.start()
    while worker.is_alive():
        ticks.append(perf_counter())
    worker.join()
    assert len(spans) == 20
    assert any(start < tick < end for tick in ticks for start, end in spans)  # none, were the GIL held


@every_format
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_parts_are_refused_or_read_by_both_alike(name: str, data: st.DataObject) -> None:
    parts = {part: array.copy() for part, array in encode(name, layer(40, 500)).items()}
    flat = parts[data.draw(st.sampled_from(sorted(parts)))].reshape(-1).view(np.uint8)
    for _ in range(data.draw(st.integers(1, 3))):
        flat[data.draw(st.integers(0, flat.size - 1))] ^= data.draw(st.integers(1, 255))
    answers = []
    for decode in (lambda: FORMATS[name].decode(parts, (40, 500), 2), lambda: checked_with_numpy(name, parts)):
        try:
            answers.append(decode().tobytes())
        except CorruptWeights:
            answers.append(None)
    assert answers[0] == answers[1]


def checked_with_numpy(name: str, parts: Parts) -> Bits:
    FORMATS[name].check(parts, (40, 500))
    return with_numpy(name, parts, (40, 500))


BAD: list[tuple[str, str, Callable[[Parts], Any], str]] = [
    ("df11x", "lengths", lambda p: p["lengths"][:-1], "lengths must be 256 bytes"),
    ("df11x", "lengths", lambda p: np.ones(256, np.uint8), "lengths is no prefix code"),
    ("df11x", "lengths", lambda p: np.eye(1, 256, dtype=np.uint8) * 2, "lengths is no complete prefix code"),
    ("df11x", "group_off", lambda p: p["group_off"][:-1], "group_off has not one entry more than there are groups"),
    ("df11x", "group_off", lambda p: p["group_off"] + 2**31, "group_off leads outside stream"),
    ("df11x", "group_off", lambda p: p["group_off"][::-1], "group_off leads outside stream"),
    ("df11x", "lane_off", lambda p: p["lane_off"][:-1], "lane_off has not 128 entries for each group"),
    ("df11x", "lane_off", lambda p: p["lane_off"] | 0xFFF0, "lane_off leads out of its group"),
    ("df11x", "lane_off", lambda p: p["lane_off"] * 0, "a lane does not end where the next one begins"),
    ("df11x", "stream", lambda p: p["stream"][: p["group_off"][-1] - 1], "group_off leads outside stream"),
    ("df11x", "sm", lambda p: p["sm"][1:], "sm has not 512 bytes for each step"),
    ("df12", "hi", lambda p: p["hi"][1:], "hi or lo is not of N x Kp / 8 words"),
    ("df12", "lo", lambda p: p["lo"][1:], "hi or lo is not of N x Kp / 8 words"),
    ("df12", "pal", lambda p: p["pal"][1:], "pal must be 8 bytes"),
    ("df12", "esc_ptr", lambda p: p["esc_ptr"][1:], "esc_ptr has not one entry more than there are blocks"),
    ("df12", "esc_ptr", lambda p: p["esc_ptr"] + 1, "esc_ptr leads outside the escapes"),
    ("df12", "esc_ptr", lambda p: p["esc_ptr"] - 1, "esc_ptr leads outside the escapes"),
    ("df12", "esc_val", lambda p: p["esc_val"][1:], "esc_pos and esc_val are not of one length"),
    ("df12", "esc_pos", lambda p: p["esc_pos"] | 16 << 24, "an escape lies outside the matrix"),
    ("df12", "esc_pos", lambda p: p["esc_pos"] | 0x800000, "an escape lies outside the matrix"),
    ("df12", "esc_pos", lambda p: np.r_[p["esc_pos"][:-1], np.uint32(15 << 24)], "an escape lies outside the matrix"),
    ("df12", "esc_pos", lambda p: p["esc_pos"] + 1, "the matrix is not zero under an escape"),
]


@pytest.mark.parametrize(("name", "part", "damage", "message"), BAD)
def test_the_library_itself_says_what_is_wrong(
    name: str, part: str, damage: Callable[[Parts], Any], message: str
) -> None:
    parts = encode(name, escaped())
    parts[part] = np.ascontiguousarray(damage(parts))
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(name, parts, np.empty((40, 500), np.uint16), 500, 0, 40 if name == "df12" else 2)


def escaped(rows: int = 40, columns: int = 500) -> Bits:
    weights = layer(rows, columns)
    weights[::8, 7::columns] = 0x7FC1
    return weights


@every_format
@pytest.mark.parametrize(
    ("columns", "first", "last", "message"),
    [
        (500, -1, 1, "sizes and ranges cannot be negative"),
        (500, 2, 1, "there are no such"),
        (500, 0, 1 << 62, "there are no such"),
    ],
)
def test_a_range_lies_inside_the_tensor(name: str, columns: int, first: int, last: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(name, encode(name, escaped()), np.empty((40, 500), np.uint16), columns, first, last)


@pytest.mark.parametrize(
    ("columns", "first", "last", "message"),
    [
        (0, 0, 0, "a row has no weights, or 2\\*\\*24 and more"),
        (1 << 24, 0, 0, "a row has no weights, or 2\\*\\*24 and more"),
        (499, 0, 1, "out does not end with a row"),
        (500, 8, 40, "a range of rows ends inside a block of 16"),
        (500, 0, 24, "a range of rows ends inside a block of 16"),
    ],
)
def test_rows_of_df12_fit_its_blocks(columns: int, first: int, last: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call("df12", encode("df12", escaped()), np.empty((40, 500), np.uint16), columns, first, last)


@every_format
def test_the_target_is_writable_and_of_aligned_uint16(name: str) -> None:
    parts, memory = encode(name, escaped()), np.empty(40 * 500 * 2 + 1, np.uint8)
    for out in (memory[1:], memory[:-2]):  # at an odd address, of odd length
        with pytest.raises(ValueError, match="out must be of uint16 and aligned"):
            call(name, parts, out, 500, 0, 2)
    memory.flags.writeable = False
    with pytest.raises((TypeError, BufferError)):
        call(name, parts, memory[:-1], 500, 0, 2)


def call(name: str, parts: Parts, out: Any, columns: int, first: int, last: int) -> None:
    """The C function as it is, without the checks that the formats make before."""
    function = getattr(_native_decoder.library(), f"decode_{name}")
    function(out, columns, first, last, *(parts[part] for part in FORMATS[name].NAMES))


def test_no_buffer_crashes_or_hangs_it() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, f"exit code {child.returncode}\n{child.stdout}{child.stderr}"
    assert child.stdout == "decoded refused\n"


SHAPES = [(1, 1), (3, 130), (20, 1024), (40, 500)]
ANYTHING = st.one_of(st.integers(0, 48), st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=1500, deadline=None, database=None)
@given(name=st.sampled_from(sorted(FORMATS)), shape=st.sampled_from(SHAPES), data=st.data())
def hostile(name: str, shape: tuple[int, int], data: st.DataObject) -> None:
    """Real parts, of which some are cut, lengthened or scrambled, with sizes and ranges that may not fit."""
    rows, columns = shape
    parts: Any = whole(name, rows, columns).copy()
    for part in data.draw(st.lists(st.sampled_from(sorted(parts)), max_size=3)):
        parts[part] = data.draw(damage_of(parts[part]))

    def usually(value: int, other: st.SearchStrategy[int] = ANYTHING) -> int:
        return data.draw(other) if data.draw(st.integers(0, 3)) == 0 else value

    out = bytearray(usually(2 * rows * columns, st.integers(0, 5000)))
    last = rows if name == "df12" else -(-rows * columns // df11x.GROUP)
    with suppress(ValueError):
        OUTCOMES.add("refused")
        call(name, parts, out, usually(columns), usually(0), usually(last))
        OUTCOMES.add("decoded")


@cache
def whole(name: str, rows: int, columns: int) -> dict[str, bytes]:
    return {part: array.tobytes() for part, array in encode(name, escaped(rows, columns)).items()}


def damage_of(content: bytes) -> st.SearchStrategy[bytes]:
    def scramble(places: list[tuple[int, int]]) -> bytes:
        scrambled = bytearray(content)
        for place, byte in places:
            scrambled[place % len(scrambled)] = byte
        return bytes(scrambled)

    ways = [
        st.binary(max_size=600),
        st.binary(max_size=600).map(lambda more: content + more),
        st.integers(0, len(content)).map(lambda end: content[:end]),
    ]
    if content:
        place = st.tuples(st.integers(0, 1 << 20), st.integers(0, 255))
        ways.append(st.lists(place, min_size=1, max_size=8).map(scramble))
    return st.one_of(ways)


if __name__ == "__main__":
    OUTCOMES: set[str] = set()
    hostile()
    print(*sorted(OUTCOMES))
