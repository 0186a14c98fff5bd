"""The safetensors format, read and written one tensor at a time.

    u64 little-endian   N, bytes of the header
    N bytes             UTF-8 JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...};
                        `__metadata__` may map strings to strings, and spaces may follow
    the rest            the tensors' bytes, little-endian, each at its offsets, without holes

A reader needs the whole header before the first tensor, a writer knows it after the last one: the writer leaves room
and fills it at the end, so that no tensor is held or copied twice. Source: the safetensors README, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import CorruptWeights, EdgekitError, InvalidInput
from edgekit.processing import Array
from edgekit.types import Value

LENGTH_BYTES = 8  # the header's length, before it
MAX_HEADER_BYTES = 100_000_000  # the safetensors package's own limit
MAX_BITS = 8 * (2**63 - 1)  # of a tensor: what a file offset can count, in bytes
MAX_DIMENSIONS = 32  # the least that any numpy allows
METADATA = "__metadata__"
ENTRY_BYTES, SIZE_BYTES = 104, 20  # the most that a tensor takes in a header beside its name, and each size of it

BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
NUMPY: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"), "BF16": np.dtype("<u2"),
}  # fmt: skip
SAFETENSORS = {dtype: name for name, dtype in NUMPY.items() if name != "BF16"}


class TensorEntry(Value, frozen=True, kw_only=True):
    """What a header says of one tensor; `begin` and `end` count from the first byte after the header."""

    name: str
    dtype: str  # as the format names it: "BF16"
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """Size of the tensor."""
        return self.end - self.begin

    @property
    def kind(self) -> str:
        """`BF16[2, 3]`."""
        return f"{self.dtype}{list(self.shape)}"


class _Said(Value, frozen=True, kw_only=True):
    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header was checked against its size. No tensor is read before it is asked for."""

    path: Path
    header: bytes  # exactly as in the file, with the spaces at its end
    tensors: tuple[TensorEntry, ...]  # in the order of their bytes

    @classmethod
    def open(cls, path: str | Path) -> TensorFile:
        """Read and check the header. Raises `InvalidInput` for no file, `CorruptWeights` for one that is damaged."""
        path = Path(path)
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
                header = stream.read(min(length, MAX_HEADER_BYTES))
        except OSError as error:
            raise InvalidInput(f"cannot read '{path}': {error.strerror}") from error
        if size < LENGTH_BYTES or length > size - LENGTH_BYTES:
            raise CorruptWeights(f"'{path}' is cut, or no safetensors file: a header of {length} bytes does not fit")
        if length > MAX_HEADER_BYTES:
            raise CorruptWeights(f"'{path}' has a header of {length} bytes; the format allows {MAX_HEADER_BYTES}")
        return cls(path, header, parse_header(header, size - LENGTH_BYTES - length, str(path)))

    def read(self, entry: TensorEntry) -> NDArray[np.uint8]:
        """A tensor's bytes as a read-only memory map, which is dropped with the array."""
        if not entry.bytes:
            return np.empty(0, np.uint8)
        offset = LENGTH_BYTES + len(self.header) + entry.begin
        try:
            mapped = np.memmap(self.path, np.uint8, "r", offset, (entry.bytes,))
        except (OSError, ValueError) as error:  # it was there and whole when the header was read
            raise CorruptWeights(f"'{self.path}' changed while it was read, at tensor '{entry.name}'") from error
        return np.asarray(mapped)

    def array(self, entry: TensorEntry) -> Array:
        """A tensor of U8, U16, U32, I32, I64 or BF16 (as its bits in uint16); a copy only where it is not aligned."""
        try:
            view = self.read(entry).view(NUMPY[entry.dtype]).reshape(entry.shape)
        except (KeyError, ValueError) as error:  # an empty tensor's other sizes can be beyond numpy
            raise CorruptWeights(f"tensor '{entry.name}' of '{self.path}' is no array of bits: {entry.kind}") from error
        return np.require(view, requirements="A")


def parse_header(header: bytes, data_bytes: int, path: str) -> tuple[TensorEntry, ...]:
    """The tensors of a header over `data_bytes` of data, in the order of their bytes.

    Raises `CorruptWeights` that names the file at `path` and the tensor: no UTF-8, no JSON, a name twice, a dtype that
    is not the format's, sizes that overflow or are not the shape's, data that overlaps, leaves holes or ends elsewhere.
    """
    if not header.startswith(b"{"):
        raise CorruptWeights(f"'{path}' is no safetensors file: its header is no JSON object")
    try:
        said = json.loads(header.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CorruptWeights(f"'{path}' has a broken header: {error}") from error
    _check_metadata(said.pop(METADATA, {}), path)
    entries = sorted((_entry(name, value, path) for name, value in said.items()), key=lambda e: (e.begin, e.end))
    at = 0
    for entry in entries:
        if entry.begin != at:
            fault = "overlaps the one before it" if entry.begin < at else "leaves a hole before it"
            raise CorruptWeights(f"tensor '{entry.name}' of '{path}' {fault}: it begins at {entry.begin}, not at {at}")
        at = entry.end
    if at != data_bytes:
        raise CorruptWeights(f"'{path}' has {data_bytes} bytes of tensors, its header says {at}: cut or added to")
    return tuple(entries)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!a} is there twice")
        found[name] = value
    return found


def _check_metadata(metadata: Any, path: str) -> None:
    try:
        msgspec.convert(metadata, dict[str, str])
    except msgspec.ValidationError as error:
        raise CorruptWeights(f"'{path}' has a broken {METADATA}: {error}") from error


def _entry(name: str, value: Any, path: str) -> TensorEntry:
    def wrong(fault: object) -> NoReturn:
        raise CorruptWeights(f"tensor {name!a} of '{path}': {fault}")

    try:
        name.encode()
        said = msgspec.convert(value, _Said)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        wrong(error)
    if said.dtype not in BITS:
        wrong(f"dtype '{said.dtype}' is none of the format's: {', '.join(BITS)}")
    if len(said.shape) > MAX_DIMENSIONS:
        wrong(f"{len(said.shape)} dimensions are more than the {MAX_DIMENSIONS} that arrays have")
    bits, kind = BITS[said.dtype], f"{said.dtype}{list(said.shape)}"
    for size in said.shape:
        bits *= size
        if bits > MAX_BITS:
            wrong(f"{kind} is too large for any file")
    begin, end = said.data_offsets
    if 8 * (end - begin) != bits:
        wrong(f"{kind} takes {bits / 8:g} bytes, its offsets {begin} to {end} hold {end - begin}")
    return TensorEntry(name=name, dtype=said.dtype, shape=said.shape, begin=begin, end=end)


class TensorWriter:
    """Writes a safetensors file tensor by tensor; until `finish` it has no header and cannot be opened.

    `room` is what to reserve for the header in bytes, `header_room` of what may come. A file that was begun is gone on
    with by giving its `entries`: what was written after them is cut off.
    """

    def __init__(self, path: Path, room: int, entries: Iterable[TensorEntry] = ()) -> None:
        self.path = path
        self.entries = list(entries)
        self._room = min(room, MAX_HEADER_BYTES)
        self._stream = path.open("r+b" if self.entries else "wb")
        self._stream.truncate(LENGTH_BYTES + self._room + self._end)
        self._stream.seek(0, 2)

    @property
    def _end(self) -> int:
        return self.entries[-1].end if self.entries else 0

    def write(self, name: str, dtype: str, shape: tuple[int, ...], data: Array) -> TensorEntry:
        """Append one tensor; `data` has its bytes in order, little-endian, with any shape and dtype."""
        entry = TensorEntry(name=name, dtype=dtype, shape=shape, begin=self._end, end=self._end + data.nbytes)
        self._stream.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        self._stream.flush()  # what a journal says is written must be so when this process dies
        self.entries.append(entry)
        return entry

    def write_parts(self, name: str, parts: Mapping[str, Array]) -> None:
        """Append the parts of a coded tensor as `NAME.PART`, the widest first, so that each is aligned."""
        for part, array in sorted(parts.items(), key=lambda item: -item[1].itemsize):
            self.write(f"{name}.{part}", SAFETENSORS[array.dtype], array.shape, array)

    def finish(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the header, and with it the file."""
        said: dict[str, Any] = {METADATA: metadata} if metadata else {}
        said |= {e.name: {"dtype": e.dtype, "shape": e.shape, "data_offsets": (e.begin, e.end)} for e in self.entries}
        header = msgspec.json.encode(said)
        if len(header) > self._room:
            raise EdgekitError(f"'{self.path}' needs a header of {len(header)} bytes, and {self._room} were reserved")
        self._stream.seek(0)
        self._stream.write(self._room.to_bytes(LENGTH_BYTES, "little") + header.ljust(self._room))
        self._stream.flush()

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()


def header_room(tensors: Iterable[tuple[str, int]]) -> int:
    """Bytes that a header fits in, a multiple of 8, from the name and the number of dimensions of each tensor."""
    room = sum(len(msgspec.json.encode(name)) + ENTRY_BYTES + SIZE_BYTES * dimensions for name, dimensions in tensors)
    return -(-(2 + room) // 8) * 8
