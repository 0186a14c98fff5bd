"""Packed model files: every byte comes back, and a damaged file is refused by the piece that is wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from weights import layer

from edgekit import lossless_artifact
from edgekit.bundle import Unpacked, file_sha256
from edgekit.codec import SMALLEST
from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.lossless_artifact import CHUNK, LEAST, MOST, Bytes, PackedFile, Piece, pack
from edgekit.tensorfile import TensorFile, TensorWriter, header_room

RNG = np.random.default_rng(0)


def as_float32(bits: NDArray[np.uint16]) -> bytes:
    """bf16 patterns as the float32 that an exported file holds."""
    return (bits.reshape(-1).astype("<u4") << 16).tobytes()


def noise(count: int) -> bytes:
    """Bytes in which no run begins."""
    return RNG.integers(1, 256, count, np.uint8).tobytes()


WEIGHTS = as_float32(layer(64, 128))


def packed(content: bytes, folder: Path, codec: str = "auto") -> tuple[PackedFile, Unpacked]:
    (folder / "model").write_bytes(content)
    said = pack(folder / "model", folder / "model.lossless", codec)
    return PackedFile.open(folder / "model.lossless"), said


def restored(path: Path) -> bytes:
    return b"".join(piece.tobytes() for piece in PackedFile.open(path).content())


@pytest.mark.parametrize("codec", ["auto", "df11", "df11x", "df12"])
@pytest.mark.parametrize("phase", range(4))
def test_weights_are_coded_at_any_byte_and_come_back(phase: int, codec: str, tmp_path: Path) -> None:
    before, after = noise(4 + phase), noise(31)
    file, said = packed(before + WEIGHTS + after, tmp_path, codec)
    assert [(p.bytes, p.codec) for p in file.pieces] == [
        (len(before), None),
        (len(WEIGHTS), "df11x" if codec == "auto" else codec),
        (len(after), None),
    ]
    assert restored(file.file.path) == before + WEIGHTS + after
    assert (said.path, said.bytes) == ("model", len(before + WEIGHTS + after))
    assert said.sha256 == file_sha256(tmp_path / "model")
    assert said.weights == len(WEIGHTS) // 4
    assert said.bits_per_weight is not None
    assert 10 < said.bits_per_weight < 12.5
    assert file.file.path.stat().st_size < 0.5 * said.bytes


@pytest.mark.parametrize("content", [b"", b"\x00", b"abc", noise(100_000), bytes(LEAST - 4)])
def test_files_without_runs_are_stored_as_they_are(content: bytes, tmp_path: Path) -> None:
    file, said = packed(content, tmp_path)
    assert all(piece.codec is None and piece.reason is None for piece in file.pieces)
    assert (said.weights, said.bits_per_weight) == (0, None)
    assert restored(file.file.path) == content


def test_a_run_that_does_not_gain_stays_as_it_is_with_the_reason(tmp_path: Path) -> None:
    content = as_float32(RNG.integers(0, 1 << 16, 8192).astype(np.uint16))
    file, said = packed(content, tmp_path)
    assert [piece.codec for piece in file.pieces] == [None]
    assert "bits a weight" in str(file.pieces[0].reason)
    assert said.weights == 0
    assert restored(file.file.path) == content


def test_large_runs_are_cut_into_pieces_of_about_one_size(tmp_path: Path) -> None:
    content = as_float32(np.tile(layer(64, 128).reshape(-1), -(-(MOST + 4 * SMALLEST) // len(WEIGHTS))))
    file, _ = packed(content, tmp_path)
    sizes = [piece.bytes for piece in file.pieces]
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) <= 4
    assert restored(file.file.path) == content


def test_a_run_over_the_borders_of_what_is_searched_at_a_time_is_one(tmp_path: Path) -> None:
    for length in (CHUNK - len(WEIGHTS) // 2, CHUNK - len(WEIGHTS), CHUNK):
        file, _ = packed(noise(length) + WEIGHTS, tmp_path)
        assert [piece.bytes for piece in file.pieces] == [length, len(WEIGHTS)]


SPECIAL = np.array([0x7F80, 0xFF80, 0x7FC1, 0xFF81, 0x8000, 0, 1, 0x8001], np.uint16)
PARTS = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 5).map(lambda count: bytes(count * LEAST // 3)),
    st.integers(0, 3 * SMALLEST).map(lambda count: WEIGHTS[: 4 * count]),
    st.integers(1, 2 * SMALLEST).map(lambda count: as_float32(np.full(count, 0x4000, np.uint16))),
    st.integers(1, 8).map(lambda count: as_float32(np.concatenate([layer(64, 64).reshape(-1), SPECIAL[:count]]))),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(PARTS, max_size=6), st.sampled_from(["auto", "df12"]))
def test_whatever_a_file_holds_comes_back(parts: list[bytes], codec: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, said = packed(b"".join(parts), Path(folder), codec)
        assert restored(file.file.path) == b"".join(parts)
        assert sum(piece.bytes for piece in file.pieces) == said.bytes


def runs_by_the_definition(content: bytes, least: int) -> list[tuple[int, int]]:
    """Byte by byte: the longest runs of every phase, the first one first, each without what the one before has."""
    found = []
    for begin in range(len(content)):
        end = begin
        while end + 4 <= len(content) and content[end] == content[end + 1] == 0:
            end += 4
        before = content[begin - 4 : begin - 2] if begin >= 4 else b"x"
        if end - begin >= least and before != b"\0\0":
            found.append((begin, end))
    kept: list[tuple[int, int]] = []
    for begin, end in found:
        while kept and begin < kept[-1][1]:
            begin += 4
        if end - begin >= least:
            kept.append((begin, end))
    return kept


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([0, 0, 0, 1]), max_size=90).map(bytes), st.sampled_from([4, 8, 12, 1 << 18]))
def test_runs_are_found_as_defined(content: bytes, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lossless_artifact, "LEAST", 8)
        patch.setattr(lossless_artifact, "CHUNK", chunk)
        found = lossless_artifact._runs(np.frombuffer(content, np.uint8))
    assert found == runs_by_the_definition(content, 8)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed file of three pieces, the middle one coded; `model` lies beside it."""
    file, _ = packed(noise(50) + WEIGHTS + noise(50), tmp_path_factory.mktemp("sound"))
    return file.file.path


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_flipped_bit_is_found_or_does_not_matter(sound: Path, data: st.DataObject) -> None:
    content = bytearray(sound.read_bytes())
    last = len(content) - 1
    where = st.one_of(st.integers(0, last), st.integers(0, 800), st.integers(last - 300, last))  # header and index
    content[data.draw(where)] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.lossless"
        path.write_bytes(content)
        try:
            found = restored(path)
        except CorruptWeights:
            return
    assert found == (sound.parent / "model").read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_cut_file_is_refused(sound: Path, data: st.DataObject) -> None:
    whole = sound.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.lossless"
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(InvalidInput, match=r"model\.lossless"):
            restored(path)


def rewritten(sound: Path, path: Path, index: bytes | None, without: str = "") -> Path:
    """The file with another index, or none, and without one of its tensors."""
    source = TensorFile.open(sound)
    with TensorWriter(path, header_room((entry.name, 3) for entry in source.tensors)) as writer:
        for entry in source.tensors:
            data: Bytes = source.read(entry)
            if entry.name == "pieces":
                if index is None:
                    continue
                data = np.frombuffer(index, np.uint8)
                writer.write(entry.name, "U8", data.shape, data)
            elif entry.name != without:
                writer.write(entry.name, entry.dtype, entry.shape, data)
        writer.finish()
    return path


def test_rewriting_alone_changes_nothing(sound: Path, tmp_path: Path) -> None:
    index = msgspec.json.encode(PackedFile.open(sound).pieces)
    assert restored(rewritten(sound, tmp_path / "same", index)) == (sound.parent / "model").read_bytes()


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (0, {"bytes": 51}, r"piece 0 of '.*other' \(bytes 0 to 51 of the model\): the file holds 50 bytes of it"),
        (0, {"crc32": 0}, "piece 0 .*the stored bytes have crc32 .{8}, not the recorded 00000000"),
        (0, {"codec": "df11x"}, "piece 0 .*the file holds no 12.5 coded weights of it"),
        (1, {"crc32": 0}, r"piece 1 of '.*other' \(bytes 50 to 32818 of the model\): the decoded weights have crc32"),
        (1, {"codec": None}, "piece 1 .*the file holds .* and .* bytes of it"),
        (1, {"codec": "df12"}, "piece 1 .*the parts are .*, not "),
        (1, {"codec": "df13"}, "piece 1 .*'df13'.*df12"),
        (1, {"codec": "_huffman"}, "piece 1 .*'_huffman'"),
        (1, {"codec": ""}, "piece 1 .*''"),
        (1, {"bytes": 32764}, "piece 1 .*crc32"),
        (1, {"bytes": 4}, "piece 1 "),
        (1, {"bytes": 0}, "piece 1 .*is not one of coded weights"),
        (1, {"bytes": 32766}, "piece 1 .*the file holds no 8191.5 coded weights"),
        (1, {"bytes": 1 << 62}, "piece 1 .*the file holds no .* coded weights"),
        (1, {"bytes": 1 << 70}, "piece 1 |no list of pieces"),
        (1, {"bytes": -4}, "'pieces' of '.*other' is no list of pieces.*>= 0"),
        (1, {"bytes": "4"}, r"no list of pieces.*Expected `int`.*\$\[1\]\.bytes"),
        (1, {"offset": 4}, "no list of pieces.*unknown field"),
    ],
)
def test_an_index_that_lies_is_refused(
    number: int, changes: dict[str, Any], message: str, sound: Path, tmp_path: Path
) -> None:
    pieces = list(msgspec.to_builtins(PackedFile.open(sound).pieces))
    pieces[number] |= changes
    with pytest.raises(CorruptWeights, match=message):
        restored(rewritten(sound, tmp_path / "other", msgspec.json.encode(pieces)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda sound, path: rewritten(sound, path, None), "is no packed model file: it has no tensor 'pieces'"),
        (lambda sound, path: rewritten(sound, path, b"[1"), "'pieces' of '.*' is no list of pieces"),
        (lambda sound, path: rewritten(sound, path, b"\xff"), "'pieces' of '.*' is no list of pieces"),
        (lambda sound, path: rewritten(sound, path, b"[" * 100_000), "'pieces' of '.*' is no list of pieces"),
        (lambda sound, path: rewritten(sound, path, index_of(sound), "2"), "piece 2 .*the file holds no bytes of it"),
        (lambda sound, path: rewritten(sound, path, index_of(sound), "1.lengths"), "piece 1 .*the parts are"),
        (lambda sound, path: path, "cannot read"),
    ],
)
def test_a_file_that_lacks_something_is_refused(
    damage: Callable[[Path, Path], Path], message: str, sound: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=message):
        restored(damage(sound, tmp_path / "other"))


def index_of(sound: Path) -> bytes:
    return msgspec.json.encode(PackedFile.open(sound).pieces)


def test_a_piece_says_in_json_what_it_is() -> None:
    piece = Piece(bytes=8, codec="df12", crc32=7)
    assert Piece.from_json(piece.to_json()) == piece
