"""The safetensors format: what the package writes is read, what is written the package reads, the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgekit.errors import CorruptWeights, EdgekitError, InvalidInput
from edgekit.tensorfile import MAX_HEADER_BYTES, TensorEntry, TensorFile, TensorWriter, header_room, parse_header

ONE = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def content(header: object, data: bytes = b"") -> bytes:
    """A file with this header, given as JSON or as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def refused(path: Path, *words: str) -> None:
    with pytest.raises(CorruptWeights) as caught:
        TensorFile.open(path)
    assert all(word in str(caught.value) for word in (str(path), *words)), caught.value


def write(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    kinds = {"uint8": "U8", "uint16": "BF16", "uint32": "U32", "int64": "I64"}
    with TensorWriter(path, header_room((name, array.ndim) for name, array in tensors.items())) as writer:
        for name, array in tensors.items():
            writer.write(name, kinds[array.dtype.name], array.shape, array)
        writer.finish()


@pytest.fixture
def tensors() -> dict[str, np.ndarray[Any, Any]]:
    """Sizes that put what follows on odd offsets, an empty tensor, a scalar, and names that JSON must escape."""
    rng = np.random.default_rng(0)
    return {
        "odd": rng.integers(0, 256, 3, np.uint8),
        "model.weight.hi": rng.integers(0, 2**32, (3, 5), np.uint32),
        'a "quoted" näme\n': rng.integers(0, 2**16, (7, 2), np.uint16),
        "scalar": np.array(7, np.int64),
        "empty": np.empty((0, 4), np.uint16),
        "last": rng.integers(-9, 9, 4, np.int64),
    }


def test_what_the_package_writes_is_read_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dtypes = [
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.int8,
        torch.bool,
        torch.float8_e4m3fn,
        torch.complex64,
    ]
    given_tensors = {str(dtype): torch.randn(3, 5).to(dtype) for dtype in dtypes} | {"none": torch.empty(0, 3)}
    save_file(given_tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = TensorFile.open(tmp_path / "m.safetensors")
    assert {entry.name for entry in found.tensors} == set(given_tensors)
    for entry in found.tensors:
        want = given_tensors[entry.name]
        assert entry.shape == tuple(want.shape)
        assert found.read(entry).tobytes() == bytes(want.reshape(-1).view(torch.uint8).tolist())
    names = {entry.dtype for entry in found.tensors}
    assert names == {"BF16", "F16", "F32", "I8", "BOOL", "F8_E4M3", "C64"}


def test_what_is_written_opens_in_the_package(tensors: dict[str, np.ndarray[Any, Any]], tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", tensors)
    found = load_file(tmp_path / "m.safetensors")
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert tuple(found[name].shape) == array.shape
        assert found[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes()


def test_what_is_written_is_read_back_aligned_and_read_only(
    tensors: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    write(tmp_path / "m.safetensors", tensors)
    found = TensorFile.open(tmp_path / "m.safetensors")
    assert [entry.name for entry in found.tensors if entry.bytes] == [n for n, a in tensors.items() if a.size]
    for entry in found.tensors:
        array = found.array(entry)
        assert array.flags.aligned
        assert array.dtype == tensors[entry.name].dtype
        assert np.array_equal(array, tensors[entry.name])
    with pytest.raises(ValueError, match="read-only"):
        found.read(found.tensors[-1])[0] = 1


def test_the_golden_bytes(tmp_path: Path) -> None:
    """Written by hand from the format's description: the header in the room that was left for it, then the data."""
    header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    with TensorWriter(tmp_path / "m.safetensors", 64) as writer:
        writer.write("w", "BF16", (2,), np.array([0x3F80, 0xC000], np.uint16))
        writer.finish()
    assert (tmp_path / "m.safetensors").read_bytes() == (
        b"\x40\0\0\0\0\0\0\0" + header + b" " * (64 - len(header)) + b"\x80\x3f\x00\xc0"
    )


def test_a_file_without_tensors_is_one(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {})
    assert TensorFile.open(tmp_path / "m.safetensors").tensors == ()
    assert load_file(tmp_path / "m.safetensors") == {}


def test_until_it_is_finished_a_file_cannot_be_opened(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "m.safetensors", 256) as writer:
        writer.write("w", "U8", (2,), np.zeros(2, np.uint8))
    refused(tmp_path / "m.safetensors", "no JSON object")
    with pytest.raises(safetensors.SafetensorError):
        load_file(tmp_path / "m.safetensors")


def test_a_header_that_outgrows_its_room_is_an_error(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "m.safetensors", 16) as writer:
        writer.write("w", "U8", (2,), np.zeros(2, np.uint8))
        with pytest.raises(EdgekitError, match=r"m\.safetensors' needs a header of \d+ bytes, and 16 were reserved"):
            writer.finish()


@given(st.lists(st.tuples(st.text(max_size=20), st.integers(0, 32)), max_size=8, unique_by=lambda pair: pair[0]))
def test_the_room_is_enough_for_any_names_and_sizes(named: list[tuple[str, int]]) -> None:
    most = 2**63 - 1
    longest = {"dtype": "F8_E4M3FNUZ", "data_offsets": [most, most]}
    said = {name: {**longest, "shape": [most] * dimensions} for name, dimensions in named}
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    assert len(text.encode(errors="replace")) <= header_room(named)


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_file_is_gone_on_with_after_its_last_finished_tensor(cut: int, tmp_path: Path) -> None:
    arrays = [np.arange(7, dtype=np.uint8), np.arange(12, dtype=np.uint8)]

    def append(writer: TensorWriter, names: str) -> None:
        for name in names:
            writer.write(name, "U8", arrays["ab".index(name)].shape, arrays["ab".index(name)])

    with TensorWriter(tmp_path / "whole", 256) as writer:
        append(writer, "ab")
        writer.finish()
    with TensorWriter(tmp_path / "half", 256) as writer:
        append(writer, "ab")
    entries = writer.entries[: 1 if cut < 20 else 2]
    with (tmp_path / "half").open("ab") as stream:
        stream.write(bytes(cut))  # what was begun and not finished
    with TensorWriter(tmp_path / "half", 256, entries) as writer:
        append(writer, "b" if len(entries) == 1 else "")
        writer.finish()
    assert (tmp_path / "half").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("header", "data", "word"),
    [
        (b"", b"", "no JSON object"),
        (b"[1]", b"", "no JSON object"),
        (b' {"a": {}}', b"", "no JSON object"),
        (b'{"a": ', b"", "broken header"),
        (b'{"a\xff": 1}', b"", "broken header"),
        (b'{"a": ' * 20_000, b"", "broken header"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "broken header"),
        (b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": 1}', b"", "'a' is there twice"),
        (b'{"a": {"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b"", "'dtype' is there twice"),
        (b'{"\\ud800": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b"", "'\\ud800'"),
        ({"__metadata__": {"format": 1}}, b"", "__metadata__"),
        ({"__metadata__": [1]}, b"", "__metadata__"),
        ({"a": 1}, b"", "tensor 'a'"),
        ({"a": {**ONE, "more": 1}}, b"12", "more"),
        ({"a": {"dtype": "U8", "shape": [2]}}, b"12", "data_offsets"),
        ({"a": {**ONE, "dtype": "U9"}}, b"12", "dtype 'U9' is none of the format's"),
        ({"a": {**ONE, "dtype": 8}}, b"12", "tensor 'a'"),
        ({"a": {**ONE, "shape": [-2]}}, b"12", "tensor 'a'"),
        ({"a": {**ONE, "shape": [2.0]}}, b"12", "tensor 'a'"),
        ({"a": {**ONE, "shape": [True, 2]}}, b"12", "tensor 'a'"),
        ({"a": {**ONE, "shape": 2}}, b"12", "tensor 'a'"),
        ({"a": {**ONE, "shape": [3]}}, b"12", "takes 3 bytes"),
        ({"a": {**ONE, "shape": []}}, b"12", "takes 1 bytes"),
        ({"a": {**ONE, "dtype": "F4", "shape": [3]}}, b"12", "takes 1.5 bytes"),
        ({"a": {**ONE, "shape": [2**32, 2**32, 2**32]}}, b"12", "too large for any file"),
        ({"a": {**ONE, "shape": [2**63, 2**63, 0]}}, b"12", "too large for any file"),
        ({"a": {**ONE, "shape": [2**64 + 2]}}, b"12", "tensor 'a'"),
        ({"a": {**ONE, "shape": [1] * 40 + [2]}}, b"12", "41 dimensions"),
        ({"a": {**ONE, "data_offsets": [2, 0]}}, b"12", "tensor 'a'"),
        ({"a": {**ONE, "data_offsets": [-2, 0]}}, b"12", "tensor 'a'"),
        ({"a": {**ONE, "data_offsets": [0, 1, 2]}}, b"12", "tensor 'a'"),
        ({"a": {**ONE, "data_offsets": [1, 3]}}, b"123", "'a' of"),
        ({"a": ONE, "b": {**ONE, "data_offsets": [1, 3]}}, b"123", "'b' of"),
        ({"a": ONE, "b": {**ONE, "data_offsets": [3, 5]}}, b"12345", "leaves a hole"),
        ({"a": ONE, "b": ONE}, b"12", "overlaps"),
        ({"a": ONE}, b"1", "cut or added to"),
        ({"a": ONE}, b"123", "cut or added to"),
        ({}, b"1", "cut or added to"),
    ],
)  # fmt: skip
def test_a_hostile_header_is_refused_by_name(header: object, data: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(content(header, data))
    refused(tmp_path / "m.safetensors", word)


def test_a_header_of_a_million_dimensions_costs_no_time(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(content({"a": {**ONE, "shape": [2**62] * 1_000_000}}, b"12"))
    refused(tmp_path / "m.safetensors", "1000000 dimensions")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, MAX_HEADER_BYTES + 1, 100])
def test_a_header_that_is_longer_than_the_file_is_refused(length: int, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    refused(tmp_path / "m.safetensors", "does not fit")


def test_a_header_beyond_the_formats_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "m.safetensors").open("wb") as stream:
        stream.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
        stream.truncate(MAX_HEADER_BYTES + 100)  # sparse
    refused(tmp_path / "m.safetensors", f"the format allows {MAX_HEADER_BYTES}")


def test_a_file_that_is_cut_anywhere_is_refused(tensors: dict[str, np.ndarray[Any, Any]], tmp_path: Path) -> None:
    write(tmp_path / "whole", tensors)
    whole = (tmp_path / "whole").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        refused(tmp_path / "cut")


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir])
def test_what_is_no_file_is_bad_input(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "m.safetensors")
    with pytest.raises(InvalidInput, match=r"cannot read '.*m\.safetensors'"):
        TensorFile.open(tmp_path / "m.safetensors")


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"w": np.zeros(100_000, np.uint8)})
    found = TensorFile.open(tmp_path / "m.safetensors")
    with (tmp_path / "m.safetensors").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(CorruptWeights, match=r"m\.safetensors' changed while it was read, at tensor 'w'"):
        found.read(found.tensors[0])


@pytest.mark.parametrize(("dtype", "shape"), [("F32", [2]), ("U16", [0, 2**62])])
def test_only_arrays_of_bits_are_handed_out_as_arrays(dtype: str, shape: list[int], tmp_path: Path) -> None:
    size = 8 if dtype == "F32" else 0
    header = {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    (tmp_path / "m.safetensors").write_bytes(content(header, bytes(size)))
    found = TensorFile.open(tmp_path / "m.safetensors")
    with pytest.raises(CorruptWeights, match=rf"tensor 'w' of '.*m\.safetensors' is no array of bits: {dtype}"):
        found.array(found.tensors[0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
NEAR = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["U8", "BF16", "F4", "X"]) | JSON,
            "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
            "data_offsets": st.lists(st.integers(-1, 9), min_size=2, max_size=2) | JSON,
        }
    )
    | JSON,
    max_size=3,
)


def agrees(header: bytes, data: bytes) -> None:
    """What is accepted, the package accepts as the same tensors; anything else is refused with a sentence."""
    try:
        found = parse_header(header, len(data), "m.safetensors")
    except CorruptWeights:
        return
    theirs = dict(safetensors.deserialize(content(header, data)))
    assert {entry.name for entry in found} == set(theirs)
    for entry in found:
        assert list(entry.shape) == theirs[entry.name]["shape"]
        assert data[entry.begin : entry.end] == bytes(theirs[entry.name]["data"])


@given(NEAR | JSON, st.integers(0, 20))
@settings(max_examples=300)
def test_any_json_is_accepted_as_the_package_does_or_refused(header: object, size: int) -> None:
    agrees(json.dumps(header).encode(), bytes(range(size)))


VALID = json.dumps(
    {"a": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}, "b": {**ONE, "data_offsets": [4, 6]}}
)


@given(st.integers(0, len(VALID) - 1), st.integers(0, 255))
@settings(max_examples=300)
def test_a_header_with_another_byte_is_accepted_as_the_package_does_or_refused(at: int, byte: int) -> None:
    header = bytearray(VALID.encode())
    header[at] = byte
    agrees(bytes(header), b"123456")


def test_the_header_that_is_mutated_is_a_good_one() -> None:
    assert parse_header(VALID.encode(), 6, "m") == (
        TensorEntry(name="a", dtype="BF16", shape=(2, 1), begin=0, end=4),
        TensorEntry(name="b", dtype="U8", shape=(2,), begin=4, end=6),
    )
