"""Compress the weights of a folder without losing a bit, bring them back, and check that nothing changed.

Everything goes tensor by tensor: in memory is one that is hashed or written, and the next with its coded form.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from edgekit import registry
from edgekit.bundle import file_sha256, stays_inside
from edgekit.codec import FORMATS
from edgekit.errors import CorruptWeights, EdgekitError, InvalidInput, OutputExists
from edgekit.folder import building, check_free, check_room, put_in_place, write_errors
from edgekit.journal import Journal
from edgekit.lossless_folder import (
    GROUPED,
    MANIFEST,
    SCHEMA_VERSION,
    EditedFile,
    Group,
    LosslessFolder,
    LosslessManifest,
)
from edgekit.lossless_groups import GroupPlan
from edgekit.lossless_groups import plan as plan_groups
from edgekit.lossless_writer import Finished, LosslessWriter
from edgekit.tensorfile import TensorFile
from edgekit.toolchains import versions
from edgekit.types import Value

AUTO = "auto"
SUFFIX = ".safetensors"
JOURNAL = "lossless.journal"
REPORT_S = 0.5  # between two lines of progress

Progress = Callable[[str], None]


def compress_weights(
    source: str | Path,
    out: str | Path,
    codec: str = AUTO,
    *,
    force: bool = False,
    progress: Progress = lambda step: None,
) -> LosslessManifest:
    """Compress all bf16 tensors of a Hugging Face folder, or of one .safetensors file, into the folder `out`.

    `codec` is a format of `edgekit list formats`, or `auto`. What does not gain stays raw, with the reason recorded;
    identical tensors are stored once; other files are copied. The result is decoded and compared before it takes its
    name. A run that was stopped leaves `OUT.partial`, and the same call goes on there after the last finished tensor.
    Raises `InvalidInput` for a source that cannot be read, `OutputExists` unless `out` is free.
    """
    folder = Path(os.path.abspath(out))
    check_free(folder, force, MANIFEST)
    if codec != AUTO:
        registry.load(FORMATS, codec)
    files = _source_files(Path(os.path.abspath(source)), folder)
    weights = {path: TensorFile.open(files[path]) for path in files if path.endswith(SUFFIX)}
    job = _Job.of(os.path.abspath(source), codec, files)
    partial = partial_of(folder)
    with write_errors(folder):
        _check_partial(partial)
        check_room(folder, job.bytes - _bytes_in(partial))
        partial.mkdir(exist_ok=True)
        with Journal(partial / JOURNAL, job, Finished) as journal:
            if journal.is_new:
                _clear(partial)
            plan = plan_groups(weights) if codec == GROUPED else GroupPlan({}, {})
            advance = _percent(progress, "compress", job.bytes)
            writer = LosslessWriter(partial, codec, weights, plan, journal, advance)
            manifest = LosslessManifest(
                schema_version=SCHEMA_VERSION,
                codec=codec,
                files=tuple(writer.compress_file(path) for path in weights),
                others=tuple(writer.copy(path, file) for path, file in files.items() if path not in weights),
                groups=tuple(group for group in writer.groups.values() if isinstance(group, Group)),
                tool_versions=job.tool_versions,
                created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            _prove(partial, manifest, progress)
            put_in_place(partial, folder, force)
            (folder / JOURNAL).unlink()
    return manifest


def partial_of(out: Path) -> Path:
    """Where `compress_weights` writes until `out` is finished."""
    return out.with_name(f"{out.name}.partial")


def decompress_weights(
    folder: str | Path, out: str | Path, *, progress: Progress = lambda step: None
) -> LosslessManifest:
    """Write the source's files into the folder `out`, byte by byte as they were.

    Raises `CorruptWeights` that names file and tensor where that cannot be, and then leaves nothing at `out`.
    """
    opened, target = LosslessFolder.open(folder), Path(os.path.abspath(out))
    check_free(target, False, MANIFEST)
    advance = _percent(progress, "decompress", opened.manifest.bytes)
    with building(target, opened.manifest.bytes) as partial:
        for file in opened.manifest.files:
            (partial / file.path).parent.mkdir(parents=True, exist_ok=True)
            with (partial / file.path).open("wb") as stream:
                for piece in opened.source_file(file):
                    stream.write(piece.data)
                    advance(piece.nbytes)
        for other in opened.manifest.others:
            (partial / other.path).parent.mkdir(parents=True, exist_ok=True)
            opened.check_other(other)
            if isinstance(other, EditedFile):
                (partial / other.path).write_bytes(other.original.encode())
            else:
                shutil.copyfile(opened.path / other.path, partial / other.path)
            advance(other.bytes)
    return opened.manifest


def verify_weights(folder: str | Path, *, progress: Progress = lambda step: None) -> LosslessManifest:
    """Decode every tensor and hash every file of a compressed folder, and compare with what the source had.

    Raises `CorruptWeights` that names file and tensor where a bit differs.
    """
    opened = LosslessFolder.open(folder)
    advance = _percent(progress, "verify", opened.manifest.bytes)
    with ThreadPoolExecutor(1) as beside:
        for file in opened.manifest.files:
            hashing = beside.submit(file_sha256, opened.path / file.path)
            for piece in opened.source_file(file):
                advance(piece.nbytes)
            if hashing.result() != file.stored_sha256:  # a bit that no tensor needs
                raise CorruptWeights(f"'{opened.path / file.path}' was altered: its sha256 is not the recorded one")
    for other in opened.manifest.others:
        opened.check_other(other)
        advance(other.bytes)
    return opened.manifest


class _Job(Value, frozen=True, kw_only=True):
    """What must be the same for a run to go on where another stopped."""

    source: str
    codec: str
    files: dict[str, tuple[int, int]]  # size, and when it was last written in ns
    tool_versions: dict[str, str]

    @classmethod
    def of(cls, source: str, codec: str, files: dict[str, Path]) -> _Job:
        stats = {path: file.stat() for path, file in files.items()}
        found = {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}
        return cls(source=source, codec=codec, files=found, tool_versions=versions(("edgekit", "numpy")))

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def _source_files(source: Path, out: Path) -> dict[str, Path]:
    """All files of a source by their relative path, which must be good on every system."""
    if source.is_file() and source.name.endswith(SUFFIX):
        return {source.name: source}
    if not source.is_dir():
        raise InvalidInput(f"'{source}' is no folder and no {SUFFIX} file: give one of the two with -m")
    if out.resolve().is_relative_to(source.resolve()):
        raise InvalidInput(f"'{out}' lies inside the source '{source}': choose another -o")
    files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}
    if {MANIFEST, JOURNAL} & files.keys():
        raise InvalidInput(f"'{source}' was written by compress: bring it back with: edgekit decompress")
    if not any(path.endswith(SUFFIX) for path in files):
        raise InvalidInput(f"'{source}' holds no {SUFFIX} file: save the model with save_pretrained first")
    for path in files:
        if not stays_inside(path) or path.encode(errors="replace").decode() != path:
            raise InvalidInput(f"'{source}' holds a file called {path!a}, which other systems cannot have: rename it")
    return files


def _prove(partial: Path, manifest: LosslessManifest, progress: Progress) -> None:
    """Write the manifest and decode all that was written; what does not make the source is removed."""
    (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    try:
        verify_weights(partial, progress=progress)
    except CorruptWeights as error:
        shutil.rmtree(partial)
        raise EdgekitError(f"what was written does not make the source again, so nothing was kept: {error}") from error


def _check_partial(partial: Path) -> None:
    """Raise `OutputExists` where something is in the way that no earlier run left."""
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise OutputExists(f"'{partial}' is in the way: move it or choose another -o")
    if partial.exists() and not (partial / JOURNAL).is_file() and any(partial.iterdir()):
        raise OutputExists(f"'{partial}' is in the way and holds no {JOURNAL}: move it or choose another -o")


def _clear(partial: Path) -> None:
    """Remove what another job left."""
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != JOURNAL:
            path.unlink()


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _percent(progress: Progress, verb: str, total: int) -> Callable[[int], None]:
    """A function that counts bytes and reports the share now and then."""
    done, said_s = 0, float("-inf")

    def advance(count: int) -> None:
        nonlocal done, said_s
        done += count
        if (now_s := time.monotonic()) >= said_s + REPORT_S:
            said_s = now_s
            progress(f"{verb}: {100 * done // max(total, 1)} % of {total / 1e6:.1f} MB")

    return advance
