"""What a long job has finished, one JSON line each, so that it can go on after it was killed."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import msgspec

from edgekit.errors import OutputExists
from edgekit.types import Value

V = TypeVar("V", bound=Value)


class Journal(Generic[V]):
    """An append-only file: the job on the first line, then what was finished, of type `kind`.

    `finished` is what an earlier run of the very same job wrote; a line that was cut by its end does not count, and
    neither does any line of another job. Raises `OutputExists` while another process has the journal open.
    """

    def __init__(self, path: Path, job: Value, kind: type[V]) -> None:
        self._stream = path.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._stream.close()
            raise OutputExists(f"another process is writing '{path.parent}': wait for it or stop it") from error
        self._stream.seek(0)
        lines = self._stream.readlines()
        begun = _line(job)
        self.finished: list[V] = []
        kept = 0
        if lines[:1] == [begun]:
            kept = len(begun)
            for line in lines[1:]:
                try:
                    self.finished.append(msgspec.json.decode(line, type=kind))
                except msgspec.DecodeError:
                    break
                kept += len(line)
        self.is_new = not kept
        self._stream.truncate(kept)
        if self.is_new:
            self._write(begun)

    def append(self, finished: V) -> None:
        """Write down that something is finished."""
        self._write(_line(finished))

    def _write(self, line: bytes) -> None:
        self._stream.write(line)
        self._stream.flush()

    def __enter__(self) -> Journal[V]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()


def _line(value: Value) -> bytes:
    return msgspec.json.encode(value) + b"\n"
