"""A model file whose bf16 weights are coded, and the way back to the file, byte by byte.

Weights that were bfloat16 are float32 in an exported file, and the low half of each is zero. So no format needs to be
known: what is coded is every long run of such 32-bit words, at whatever byte it begins, by its high halves, which are
bf16 patterns. The packed file is a safetensors file that holds the model file in pieces:

| tensor | content |
|---|---|
| `pieces` u1 | JSON: a list of `Piece`, in the order of the model file |
| `N` u1 | piece N, counted from 0, where it is not coded: its bytes |
| `N.PART` | piece N where it is coded: the parts that its codec specifies |
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.bundle import Unpacked, file_sha256
from edgekit.codec import SMALLEST, Encoded, NoGain, decode, encode, part_names
from edgekit.errors import CorruptWeights, EdgekitError
from edgekit.tensorfile import TensorEntry, TensorFile, TensorWriter, header_room
from edgekit.types import Value

INDEX = "pieces"
WORD = 4  # bytes of a float32
LEAST = SMALLEST * WORD  # bytes of a run; a shorter one would not be coded
MOST = 1 << 24  # bytes of a coded piece: its weights share a code, and are in memory together
CHUNK = 1 << 18  # bytes that are searched at a time: what is found in them stays in cache

Bytes = NDArray[np.uint8]
Run = tuple[int, int]  # its first byte, and the one after its last


class Piece(Value, frozen=True, kw_only=True):
    """A part of the model file, and how it is stored."""

    bytes: Annotated[int, msgspec.Meta(ge=0)]  # in the model file
    codec: str | None = None  # of the high halves of its 32-bit words; None: its bytes are stored
    crc32: int  # of its bytes; where it is coded, of the high halves
    reason: str | None = None  # why a run of bf16 weights is not coded


def pack(source: Path, packed: Path, codec: str) -> Unpacked:
    """Write the packed file of a model file, and return what a manifest says of it.

    `codec` is a format of `edgekit list formats`, or `auto`. Runs that do not gain are stored as they are.
    """
    content = np.asarray(np.memmap(source, np.uint8, "r")) if source.stat().st_size else np.empty(0, np.uint8)
    cuts = list(_cuts(content))
    names = [(INDEX, 1), *((str(number), 1) for number in range(len(cuts)))]
    names += [name for number, (_, _, is_run) in enumerate(cuts) if is_run for name in part_names(str(number))]
    pieces: list[Piece] = []
    with TensorWriter(packed, header_room(names)) as writer:
        for begin, end, is_run in cuts:
            pieces.append(_write(writer, str(len(pieces)), content[begin:end], codec if is_run else None))
        coded_bytes = sum(entry.bytes for entry in writer.entries if "." in entry.name)
        index = np.frombuffer(msgspec.json.encode(pieces), np.uint8)
        writer.write(INDEX, "U8", index.shape, index)
        writer.finish()
    weights = sum(piece.bytes // WORD for piece in pieces if piece.codec)
    return Unpacked(
        path=source.name,
        bytes=content.size,
        sha256=file_sha256(source),
        weights=weights,
        bits_per_weight=8 * coded_bytes / weights if weights else None,
    )


@dataclass(frozen=True)
class PackedFile:
    """A packed file with its index; what a piece holds is checked when it is read."""

    file: TensorFile
    pieces: tuple[Piece, ...]
    stored: dict[str, list[TensorEntry]]  # by the number of the piece, as text

    @classmethod
    def open(cls, path: Path) -> PackedFile:
        """Read header and index. Raises `CorruptWeights` for a file that `pack` cannot have written."""
        file = TensorFile.open(path)
        stored = defaultdict(list)
        for entry in file.tensors:
            stored[entry.name.partition(".")[0]].append(entry)
        if len(stored[INDEX]) != 1:
            raise CorruptWeights(f"'{path}' is no packed model file: it has no tensor '{INDEX}'")
        try:
            pieces = msgspec.json.decode(file.read(stored[INDEX][0]).tobytes(), type=tuple[Piece, ...])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptWeights(f"'{INDEX}' of '{path}' is no list of pieces: {error}") from error
        return cls(file, pieces, stored)

    def content(self) -> Iterator[Bytes]:
        """The model file, piece by piece. Raises `CorruptWeights` that names the piece where a bit is another."""
        begin = 0
        for number, piece in enumerate(self.pieces):
            entries = self.stored.get(str(number), [])
            try:
                data = self._verbatim(piece, entries) if piece.codec is None else self._decoded(piece, entries)
            except EdgekitError as error:
                where = f"piece {number} of '{self.file.path}' (bytes {begin} to {begin + piece.bytes} of the model)"
                raise CorruptWeights(f"{where}: {error}") from error
            begin += piece.bytes
            yield data

    def _verbatim(self, piece: Piece, entries: list[TensorEntry]) -> Bytes:
        if (found := [entry.bytes for entry in entries]) != [piece.bytes]:
            raise CorruptWeights(f"the file holds {' and '.join(map(str, found)) or 'no'} bytes of it")
        data = self.file.read(entries[0])
        if (crc32 := zlib.crc32(data.data)) != piece.crc32:
            raise CorruptWeights(f"the stored bytes have crc32 {crc32:08x}, not the recorded {piece.crc32:08x}")
        return data

    def _decoded(self, piece: Piece, entries: list[TensorEntry]) -> Bytes:
        words, rest = divmod(piece.bytes, WORD)
        if rest or words > sum(entry.bytes for entry in entries):  # no codec has less than a byte for a weight
            raise CorruptWeights(f"the file holds no {piece.bytes / WORD:g} coded weights of it")
        parts = {entry.name.partition(".")[2]: self.file.array(entry) for entry in entries}
        bits = decode(Encoded(codec=str(piece.codec), shape=(words,), parts=parts, crc32=piece.crc32))
        return np.left_shift(bits, 16, dtype="<u4").view(np.uint8)


def _write(writer: TensorWriter, name: str, data: Bytes, codec: str | None) -> Piece:
    """Write one piece; coded where it is a run, for which there is a codec, and gains."""
    reason = None
    if codec is not None:
        try:
            coded = encode(data.view("<u2")[1::2].astype(np.uint16), codec)
            writer.write_parts(name, coded.parts)
            return Piece(bytes=data.size, codec=coded.codec, crc32=coded.crc32)
        except NoGain as error:
            reason = str(error)
    writer.write(name, "U8", data.shape, data)
    return Piece(bytes=data.size, crc32=zlib.crc32(data.data), reason=reason)


def _cuts(content: Bytes) -> Iterator[tuple[int, int, bool]]:
    """Where pieces begin and end, in order and without holes, and whether each is of a run."""
    at = 0
    for begin, end in _runs(content):
        if at < begin:
            yield at, begin, False
        words, parts = (end - begin) // WORD, -(-(end - begin) // MOST)
        edges = [begin + words * part // parts * WORD for part in range(parts + 1)]
        yield from ((first, last, True) for first, last in pairwise(edges))
        at = end
    if at < content.size:
        yield at, content.size, False


def _runs(content: Bytes) -> list[Run]:
    """The runs of words with a zero low half at any byte, in order; where two overlap, the first one has the bytes."""
    found = sorted(run for phase in range(WORD) for run in _runs_at(content, phase))
    kept: list[Run] = []
    for begin, end in found:
        overlap = max(0, kept[-1][1] - begin) if kept else 0
        begin += -(-overlap // WORD) * WORD
        if end - begin >= LEAST:
            kept.append((begin, end))
    return kept


def _runs_at(content: Bytes, phase: int) -> Iterator[Run]:
    """The runs whose words begin at multiples of four bytes and `phase`."""
    stop = phase + (content.size - phase) // WORD * WORD
    begin = phase  # of the run that goes on
    for first in range(phase, stop, CHUNK):
        low = content[first : min(first + CHUNK, stop)].view("<u2")[::2]
        breaks = first + WORD * np.flatnonzero(low)
        begins = np.append(begin, breaks + WORD)
        long = breaks - begins[:-1] >= LEAST
        yield from zip(begins[:-1][long].tolist(), breaks[long].tolist(), strict=True)
        begin = int(begins[-1])
    if stop - begin >= LEAST:
        yield begin, stop
