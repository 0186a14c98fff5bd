"""A folder of losslessly compressed weights: what is in it, and every tensor as it was.

    OUT/lossless.json        this module's `LosslessManifest`
    OUT/model.safetensors    of each source file the tensors: raw ones under their names, coded ones as `NAME.PART`
    OUT/config.json          and all other files as they were

The manifest keeps each source file's header to the letter, so the file comes back byte by byte. No path in it may leave
the folder, and nothing it says is believed before the bytes agree.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit import registry
from edgekit.bundle import file_sha256, stays_inside
from edgekit.codec import FORMATS, Bits, Encoded, Parts, decode
from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.formats.df11 import decode_group
from edgekit.tensorfile import LENGTH_BYTES, TensorEntry, TensorFile, parse_header
from edgekit.types import Value

SCHEMA_VERSION = 1
MANIFEST = "lossless.json"
MAX_MANIFEST_BYTES = 512 << 20  # about 0.5 KB a tensor, and a header
CODED_DTYPE = "BF16"
RAW, TIED = "raw", "tied"  # beside the names of formats
GROUPED = "df11"  # the format that codes several tensors as one stream

Item = TypeVar("Item")
Made = TypeVar("Made")
Content = tuple[str, int, str]  # sha256, bytes and dtype of a tensor: what those have in common that are tied


class Place(Value, frozen=True, kw_only=True):
    """Which tensor of which source file."""

    file: str
    tensor: str


class TensorRecord(Value, frozen=True, kw_only=True):
    """One tensor of the source, and how it is stored."""

    name: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    bytes: int
    sha256: str  # of the source's bytes, as is
    crc32: int
    codec: str  # `raw`, `tied`, or the name of a format
    reason: str | None = None  # why it is raw
    parts: tuple[str, ...] = ()  # of a format: part P is the stored tensor `NAME.P`
    same_as: Place | None = None  # of a tied one: an earlier tensor with the very same bytes
    group: Place | None = None  # of one that is coded with others: which `Group`
    stored_bytes: int  # of a group's its share

    @property
    def kind(self) -> str:
        """`BF16[2, 3]`."""
        return f"{self.dtype}{list(self.shape)}"

    @property
    def content(self) -> Content:
        """What tensors have in common that are tied."""
        return self.sha256, self.bytes, self.dtype


class Group(Value, frozen=True, kw_only=True):
    """Tensors that are coded as one stream; part P of it is the stored tensor `PATH.P`."""

    at: Place  # the file with the parts, and the path they lie under
    tensors: tuple[Place, ...]  # in the order of the stream
    parts: tuple[str, ...]
    stored_bytes: int


class SourceFile(Value, frozen=True, kw_only=True, tag="copied"):
    """A file as the source had it."""

    path: str  # relative, with forward slashes
    bytes: int
    sha256: str


class EditedFile(SourceFile, frozen=True, kw_only=True, tag="edited"):
    """A config.json that says here how the tensors beside it are stored."""

    original: str
    stored_sha256: str


class TensorFileRecord(SourceFile, frozen=True, kw_only=True, tag="tensors"):
    """A safetensors file of the source, and the file of the same name that holds its tensors here."""

    stored_bytes: int
    stored_sha256: str
    header: str  # the source's, without its length
    tensors: tuple[TensorRecord, ...]  # in the order of their bytes


class LosslessManifest(Value, frozen=True, kw_only=True):
    """What a folder of compressed weights says of itself."""

    schema_version: int
    codec: str  # as asked for; each tensor says what it got
    files: tuple[TensorFileRecord, ...]
    others: tuple[SourceFile | EditedFile, ...]
    groups: tuple[Group, ...] = ()
    tool_versions: dict[str, str]
    created_utc: str

    @property
    def bytes(self) -> int:
        """Size of all files of the source."""
        return sum(file.bytes for file in self.all_files)

    @property
    def all_files(self) -> tuple[SourceFile, ...]:
        """Those with tensors, then those without."""
        return (*self.files, *self.others)


@dataclass(frozen=True)
class LosslessFolder:
    """A folder whose manifest and headers hold together; the bytes of a tensor are checked when it is read."""

    path: Path
    manifest: LosslessManifest
    tensors: dict[Place, TensorRecord] = field(default_factory=dict)  # all of the source
    files: dict[str, TensorFile] = field(default_factory=dict)  # by the path of the source file
    entries: dict[Place, TensorEntry] = field(default_factory=dict)  # all that is stored
    groups: dict[Place, Group] = field(default_factory=dict)
    _decoded_group: dict[Place, dict[Place, Bits]] = field(default_factory=dict)  # the last one that was read

    @classmethod
    def open(cls, path: str | Path) -> LosslessFolder:
        """Read and check the manifest. Raises `InvalidInput` where there is none, `CorruptWeights` for a wrong one."""
        root = Path(path)
        manifest = _read_manifest(root / MANIFEST)
        _check_paths(root / MANIFEST, manifest)
        folder = cls(root, manifest)
        for file in manifest.files:
            _check_header(root / MANIFEST, file)
            folder.files[file.path] = TensorFile.open(root / file.path)
            folder.entries.update({_at(file, entry.name): entry for entry in folder.files[file.path].tensors})
            for tensor in file.tensors:
                folder._check_stored(file, tensor)
                folder.tensors[_at(file, tensor.name)] = tensor
        folder._check_groups()
        folder._check_no_others()
        return folder

    def source_file(self, file: TensorFileRecord) -> Iterator[NDArray[np.uint8]]:
        """A source file, first its header, then tensor by tensor. Raises `CorruptWeights` where a bit is another."""
        whole = hashlib.sha256()
        tensors = one_ahead(self.raw, (_at(file, tensor.name) for tensor in file.tensors))
        for piece in itertools.chain([head(file.header)], tensors):
            yield piece
            whole.update(piece.data)  # after whoever asked let go of the piece before, and while the next is decoded
        if whole.hexdigest() != file.sha256:
            raise CorruptWeights(f"'{self.path / file.path}' does not make the source's sha256: its header was altered")

    def raw(self, place: Place) -> NDArray[np.uint8]:
        """A tensor's bytes as they were in the source, checked against its sha256."""
        tensor = self.tensors[place]
        if tensor.same_as:
            return self.raw(tensor.same_as)
        if tensor.codec == RAW:
            data = self.files[place.file].read(self.entries[place])
        else:
            data = self._decoded(place, tensor).reshape(-1).view(np.uint8)
        if hashlib.sha256(data.data).hexdigest() != tensor.sha256:
            raise CorruptWeights(f"{self._shown(place)} was altered: its sha256 is not the source's")
        return data

    def encoded(self, place: Place) -> Encoded:
        """A tensor that is coded for itself, as it is stored, for those who decode it elsewhere."""
        tensor = self.tensors[place]
        parts = self._parts(place, tensor.parts)
        return Encoded(codec=tensor.codec, shape=tensor.shape, parts=parts, crc32=tensor.crc32)

    def group_parts(self, at: Place) -> Parts:
        """The stream of a group, as it is stored."""
        return self._parts(at, self.groups[at].parts)

    def check_other(self, other: SourceFile) -> None:
        """Raise `CorruptWeights` unless a file without tensors is here as it was stored."""
        path = self.path / other.path
        if not path.is_file():
            raise CorruptWeights(f"'{path}' is missing")
        if file_sha256(path) != (other.stored_sha256 if isinstance(other, EditedFile) else other.sha256):
            raise CorruptWeights(f"'{path}' was altered: its sha256 is not the recorded one")
        if isinstance(other, EditedFile) and hashlib.sha256(other.original.encode()).hexdigest() != other.sha256:
            raise CorruptWeights(f"'{self.path / MANIFEST}' does not hold the source's '{other.path}'")

    def _parts(self, at: Place, names: tuple[str, ...]) -> Parts:
        file = self.files[at.file]
        return {name: file.array(self.entries[_part(at, name)]) for name in names}

    def _decoded(self, place: Place, tensor: TensorRecord) -> Bits:
        try:
            return self._group(tensor.group)[place] if tensor.group else decode(self.encoded(place))
        except CorruptWeights as error:
            raise CorruptWeights(f"{self._shown(place)}: {error}") from error

    def _group(self, at: Place) -> dict[Place, Bits]:
        """The tensors of a group. One is kept: they mostly lie side by side."""
        if at not in self._decoded_group:
            self._decoded_group.clear()
            tensors = self.groups[at].tensors
            found = decode_group(self.group_parts(at), [self.tensors[place].shape for place in tensors])
            self._decoded_group[at] = dict(zip(tensors, found, strict=True))
        return self._decoded_group[at]

    def _shown(self, place: Place) -> str:
        return f"tensor '{place.tensor}' of '{self.path / place.file}'"

    def _check_stored(self, file: TensorFileRecord, tensor: TensorRecord) -> None:
        """Raise `CorruptWeights` unless the file has what the manifest says of the tensor."""
        place = _at(file, tensor.name)
        missing = [name for name in stored_names(tensor) if _at(file, name) not in self.entries]
        twin = self.tensors.get(tensor.same_as) if tensor.same_as else None
        if missing:
            fault = f"'{missing[0]}' is not in the file"
        elif (tensor.codec == TIED) != (tensor.same_as is not None):
            fault = f"it is '{tensor.codec}' and the same as {tensor.same_as}"
        elif tensor.same_as and (twin is None or twin.codec == TIED or twin.content != tensor.content):
            fault = f"it is tied to {tensor.same_as}, which is no stored tensor before it with the same bytes"
        elif tensor.codec == RAW and (kind := self.entries[place].kind) != tensor.kind:
            fault = f"the file has {kind}, not {tensor.kind}"
        elif tensor.codec not in (RAW, TIED) and tensor.dtype != CODED_DTYPE:
            fault = f"{tensor.codec} holds {CODED_DTYPE}, not {tensor.dtype}"
        elif tensor.codec not in (RAW, TIED, *registry.names(FORMATS)):
            fault = f"no codec is called '{tensor.codec}' here: pip install --upgrade edgekit"
        else:
            return
        raise CorruptWeights(f"{self._shown(place)}: {fault}")

    def _check_groups(self) -> None:
        """Raise `CorruptWeights` unless every group has its parts and its tensors, and every such tensor its group."""
        for group in self.manifest.groups:
            where = f"group '{group.at.tensor}' of '{self.path / group.at.file}'"
            if lost := [part for part in group.parts if _part(group.at, part) not in self.entries]:
                raise CorruptWeights(f"{where}: '{group.at.tensor}.{lost[0]}' is not in the file")
            for place in group.tensors:
                if place not in self.tensors or self.tensors[place].group != group.at:
                    raise CorruptWeights(f"{where}: tensor '{place.tensor}' of '{place.file}' is not recorded so")
            self.groups[group.at] = group
        for place, tensor in self.tensors.items():
            if tensor.group and (tensor.group not in self.groups or place not in self.groups[tensor.group].tensors):
                raise CorruptWeights(f"{self._shown(place)}: it is in no group called '{tensor.group.tensor}'")

    def _check_no_others(self) -> None:
        """Raise `CorruptWeights` for a stored tensor that the manifest does not name."""
        known = {_part(group.at, part) for group in self.manifest.groups for part in group.parts}
        for file in self.manifest.files:
            known |= {_at(file, name) for tensor in file.tensors for name in stored_names(tensor)}
        for place in self.entries:
            if place not in known:
                raise CorruptWeights(f"{self._shown(place)} is not in {MANIFEST}")


def stored_names(tensor: TensorRecord) -> tuple[str, ...]:
    """What the tensor is stored as."""
    return (tensor.name,) if tensor.codec == RAW else tuple(f"{tensor.name}.{part}" for part in tensor.parts)


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What `make` makes of each item, in order; a thread makes the next one, and no more, while one is used."""
    waiting = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(make, item) for item in itertools.islice(waiting, 1)]
        while coming:
            ready = coming.pop().result()
            coming += [pool.submit(make, item) for item in itertools.islice(waiting, 1)]
            yield ready


def head(header: str) -> NDArray[np.uint8]:
    """The bytes of a safetensors file before its tensors."""
    text = header.encode()
    return np.frombuffer(len(text).to_bytes(LENGTH_BYTES, "little") + text, np.uint8)


def _at(file: TensorFileRecord, tensor: str) -> Place:
    return Place(file=file.path, tensor=tensor)


def _part(at: Place, part: str) -> Place:
    return Place(file=at.file, tensor=f"{at.tensor}.{part}")


def _read_manifest(path: Path) -> LosslessManifest:
    if not path.is_file():
        raise InvalidInput(
            f"'{path.parent}' has no {MANIFEST}, so it holds no compressed weights: make them with: edgekit compress"
        )
    if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
        raise CorruptWeights(f"'{path}' has {size} bytes; no sane one has more than {MAX_MANIFEST_BYTES}")
    text = path.read_bytes()
    try:
        version = msgspec.json.decode(text, type=_Versioned).schema_version
        if version != SCHEMA_VERSION:
            fix = "pip install --upgrade edgekit" if version > SCHEMA_VERSION else "there never was one"
            raise CorruptWeights(f"'{path}' has schema version {version}, this edgekit reads {SCHEMA_VERSION}: {fix}")
        return msgspec.json.decode(text, type=LosslessManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptWeights(f"'{path}' is not what compress writes: {error}") from error


class _Versioned(msgspec.Struct):
    schema_version: int


def _check_paths(manifest_path: Path, manifest: LosslessManifest) -> None:
    seen = {PurePosixPath(MANIFEST)}
    for file in manifest.all_files:
        if not stays_inside(file.path):
            raise CorruptWeights(
                f"'{manifest_path}' names the file '{file.path}', which is not a path inside the folder"
            )
        if (path := PurePosixPath(file.path)) in seen:
            raise CorruptWeights(f"'{manifest_path}' names the file '{file.path}' twice")
        seen.add(path)


def _check_header(manifest_path: Path, file: TensorFileRecord) -> None:
    """Raise `CorruptWeights` unless the source's header says what the records say."""
    where = f"{manifest_path}: header of {file.path}"
    header = file.header.encode()
    said = parse_header(header, file.bytes - LENGTH_BYTES - len(header), where)
    for entry, tensor in itertools.zip_longest(said, file.tensors):
        if entry is None or tensor is None:
            raise CorruptWeights(f"'{where}' has {len(said)} tensors, and {len(file.tensors)} are recorded")
        if (entry.name, entry.kind, entry.bytes) != (tensor.name, tensor.kind, tensor.bytes):
            told = f"'{tensor.name}' {tensor.kind} of {tensor.bytes} bytes"
            raise CorruptWeights(f"'{where}' has '{entry.name}' {entry.kind} of {entry.bytes}, and recorded is {told}")
