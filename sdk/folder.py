"""Output folders that appear when they are finished, and never before."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from edgekit.errors import EdgekitError, InvalidInput, OutputExists
from edgekit.types import Value

V = TypeVar("V", bound=Value)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a system says when nothing more can be written


def check_free(folder: Path, force: bool, marker: str) -> None:
    """Raise `OutputExists` unless `folder` may be made; `force` replaces one that holds the file `marker`, or none."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputExists(f"'{folder}' is a file or a link, which is never replaced: choose another -o")
    if folder.exists() and not force:
        raise OutputExists(f"'{folder}' is there already: choose another -o, or replace it with --force")
    if folder.exists() and not (folder / marker).is_file() and any(folder.iterdir()):
        raise OutputExists(f"'{folder}' holds no {marker}, so --force will not replace it: choose another -o")


def read_value(path: Path, kind: type[V], most_bytes: int) -> V:
    """The value that a folder's JSON file holds. Raises `InvalidInput` with the path for one too large or damaged."""
    if (size := path.stat().st_size) > most_bytes:
        raise InvalidInput(f"'{path}' has {size} bytes; no sane one has more than {most_bytes}")
    try:
        return kind.from_json(path.read_bytes())
    except InvalidInput as error:
        raise InvalidInput(f"'{path}': {error}") from error


def check_room(folder: Path, need: int) -> None:
    """Raise `InvalidInput` unless `need` bytes are free where `folder` will be; makes the folders above it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < need:
        raise InvalidInput(
            f"about {need / 1e6:.0f} MB are needed beside '{folder}' and {free / 1e6:.0f} MB are free: "
            "make room or choose another -o"
        )


def put_in_place(partial: Path, folder: Path, force: bool) -> None:
    """Let a finished folder take its name; `force` takes it from the one that is there."""
    if force and folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


@contextlib.contextmanager
def building(folder: Path, need: int, force: bool = False) -> Iterator[Path]:
    """A folder beside the target that takes its place when all went well, and goes when not."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")  # no user's folder, and no parallel run's
    with write_errors(folder):
        try:
            check_room(folder, need)
            partial.mkdir()
            yield partial
            put_in_place(partial, folder, force)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Turn what the system says while `folder` is written into errors with a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise InvalidInput(f"the disk is full, and nothing was left at '{folder}': make room there") from error
        raise EdgekitError(f"cannot write '{folder}': {error.strerror or error}") from error
