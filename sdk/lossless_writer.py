"""Writes what `compress_weights` stores, tensor by tensor, from where an earlier run stopped."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import msgspec

from edgekit.bundle import file_sha256
from edgekit.codec import RAW_BITS, SMALLEST, NoGain, Parts, encode, part_names
from edgekit.journal import Journal
from edgekit.lossless_folder import (
    CODED_DTYPE,
    GROUPED,
    RAW,
    TIED,
    Content,
    EditedFile,
    Group,
    Place,
    SourceFile,
    TensorFileRecord,
    TensorRecord,
)
from edgekit.lossless_groups import GroupPlan, Planned, configured
from edgekit.lossless_groups import encode as encode_group
from edgekit.tensorfile import LENGTH_BYTES, TensorEntry, TensorFile, TensorWriter, header_room
from edgekit.types import Value

CONFIG_FILE = "config.json"
SMALLEST_BYTES = SMALLEST * RAW_BITS // 8
LEAST_TIED = 1 << 16  # bytes; below it a second copy costs less than a reader who looks for the tensor by name


class Finished(Value, frozen=True, kw_only=True):
    """A line of the journal: a tensor that is written, and what was written for it."""

    file: str
    tensor: TensorRecord
    group: Group | None = None  # whose stream was written with this tensor, its first
    entries: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class LosslessWriter:
    """One call of `compress_weights`: what it is to write, and what it has written so far."""

    partial: Path
    codec: str
    weights: Mapping[str, TensorFile]
    plan: GroupPlan  # empty but for the codec that has groups
    journal: Journal[Finished]
    advance: Callable[[int], None]  # called with the bytes of the source that are done
    stored: dict[Content, Place] = field(default_factory=dict)  # the tensor that has it
    groups: dict[Place, Group | str] = field(default_factory=dict)  # or the reason why its tensors stay raw

    def compress_file(self, path: str) -> TensorFileRecord:
        """Write the compressed file of one source file."""
        source, target = self.weights[path], self.partial / path
        target.parent.mkdir(parents=True, exist_ok=True)
        room = header_room(self._names_to_come(path, source))
        finished = self._kept(path, source, target, room)
        with TensorWriter(target, room, [entry for done in finished for entry in done.entries]) as writer:
            for entry in source.tensors[len(finished) :]:
                finished.append(self._write(Place(file=path, tensor=entry.name), entry, writer))
                self.journal.append(finished[-1])
                self.advance(entry.bytes)
            writer.finish()
        return TensorFileRecord(
            path=path,
            bytes=source.path.stat().st_size,
            sha256=file_sha256(source.path),
            stored_bytes=target.stat().st_size,
            stored_sha256=file_sha256(target),
            header=source.header.decode(),
            tensors=tuple(done.tensor for done in finished),
        )

    def copy(self, path: str, source: Path) -> SourceFile:
        """Copy a file that holds no tensors."""
        target = self.partial / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        size, sha256 = source.stat().st_size, file_sha256(source)
        self.advance(size)
        patterns = self.plan.patterns.get(PurePosixPath(path).parent)
        if patterns and target.name == CONFIG_FILE and (text := configured(target.read_bytes(), patterns)):
            original = target.read_bytes().decode()
            target.write_bytes(text)
            return EditedFile(
                path=path, bytes=size, sha256=sha256, original=original, stored_sha256=file_sha256(target)
            )
        return SourceFile(path=path, bytes=size, sha256=sha256)

    def _kept(self, path: str, source: TensorFile, target: Path, room: int) -> list[Finished]:
        """What an earlier run wrote and still holds: the source has those bytes, and the file reaches that far."""
        finished = {done.tensor.name: done for done in self.journal.finished if done.file == path}
        size = target.stat().st_size if target.is_file() else 0
        kept: list[Finished] = []
        end = 0
        for entry in source.tensors:
            done, place = finished.get(entry.name), Place(file=path, tensor=entry.name)
            if done is None or done.tensor.sha256 != hashlib.sha256(source.read(entry).data).hexdigest():
                break
            planned = self.plan.groups.get(place)
            if done.tensor.same_as != self._twin(done.tensor, planned):
                break
            if done.entries and (done.entries[0].begin != end or LENGTH_BYTES + room + done.entries[-1].end > size):
                break
            if planned:
                self.groups.setdefault(planned.at, done.group or done.tensor.reason or "")
            self.stored.setdefault(done.tensor.content, place)
            kept.append(done)
            end = done.entries[-1].end if done.entries else end
            self.advance(entry.bytes)
        return kept

    def _write(self, place: Place, entry: TensorEntry, writer: TensorWriter) -> Finished:
        """Write one tensor as it is stored."""
        raw, written = self.weights[place.file].read(entry), len(writer.entries)
        planned = self.plan.groups.get(place)
        record = TensorRecord(
            name=entry.name,
            dtype=entry.dtype,
            shape=entry.shape,
            bytes=entry.bytes,
            sha256=hashlib.sha256(raw.data).hexdigest(),
            crc32=zlib.crc32(raw.data),
            codec=RAW,
            stored_bytes=entry.bytes,
        )
        group = None
        if twin := self._twin(record, planned):
            record = msgspec.structs.replace(record, codec=TIED, same_as=twin, stored_bytes=0)
        else:
            self.stored.setdefault(record.content, place)
            try:
                if planned:
                    record, group = self._in_group(record, place, planned, writer)
                else:
                    record = self._coded(record, place, entry, writer)
            except NoGain as reason:
                writer.write(entry.name, entry.dtype, entry.shape, raw)
                record = msgspec.structs.replace(record, reason=str(reason))
        return Finished(file=place.file, tensor=record, group=group, entries=tuple(writer.entries[written:]))

    def _coded(self, record: TensorRecord, place: Place, entry: TensorEntry, writer: TensorWriter) -> TensorRecord:
        """Write a tensor that is coded for itself. Raises `NoGain` with the reason to keep it raw."""
        if entry.dtype != CODED_DTYPE:
            raise NoGain(f"{entry.dtype}: only {CODED_DTYPE} is coded")
        if entry.bytes < SMALLEST_BYTES:
            raise NoGain(f"fewer than {SMALLEST} weights")
        if self.codec == GROUPED:
            raise NoGain("the DFloat11 layout codes matrices called 'weight', each name once")
        coded = encode(self.weights[place.file].array(entry), self.codec)
        size = self._write_parts(place, coded.parts, writer)
        return msgspec.structs.replace(record, codec=coded.codec, parts=tuple(coded.parts), stored_bytes=size)

    def _in_group(
        self, record: TensorRecord, place: Place, planned: Planned, writer: TensorWriter
    ) -> tuple[TensorRecord, Group | None]:
        """Write the stream of a group with its first tensor. Raises `NoGain` with the reason to keep all raw."""
        first = planned.at not in self.groups
        if first:
            try:
                parts = encode_group(planned, self.weights)
                size = self._write_parts(planned.at, parts, writer)
                made = Group(at=planned.at, tensors=tuple(planned.members), parts=tuple(parts), stored_bytes=size)
                self.groups[planned.at] = made
            except NoGain as reason:
                self.groups[planned.at] = str(reason)
        group = self.groups[planned.at]
        if isinstance(group, str):
            raise NoGain(group)
        share = planned.share(place, group.stored_bytes)
        record = msgspec.structs.replace(record, codec=GROUPED, group=group.at, stored_bytes=share)
        return record, group if first else None

    def _write_parts(self, at: Place, parts: Parts, writer: TensorWriter) -> int:
        """Write parts under a name, the widest first, and return their size. Raises `NoGain` when a name is taken."""
        names = {entry.name for entry in self.weights[at.file].tensors}
        if taken := names & {f"{at.tensor}.{part}" for part in parts}:
            raise NoGain(f"another tensor is called '{min(taken)}'")
        writer.write_parts(at.tensor, parts)
        return sum(array.nbytes for array in parts.values())

    def _names_to_come(self, path: str, source: TensorFile) -> Iterator[tuple[str, int]]:
        """At least what the header of the compressed file will hold: names, and the number of dimensions."""
        for entry in source.tensors:
            yield entry.name, len(entry.shape)
            grouped = Place(file=path, tensor=entry.name) in self.plan.groups
            if grouped or (entry.dtype == CODED_DTYPE and entry.bytes >= SMALLEST_BYTES):
                yield from part_names(entry.name)

    def _twin(self, tensor: TensorRecord, planned: Planned | None) -> Place | None:
        """The stored tensor with the same bytes that this one is tied to; a group is always whole."""
        return self.stored.get(tensor.content) if tensor.bytes >= LEAST_TIED and not planned else None
