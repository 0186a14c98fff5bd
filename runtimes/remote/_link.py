"""A way to run shell scripts on a board, by a client program of this machine."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable
from typing import IO, Protocol

from edgekit.errors import DeviceLost, DeviceUnreachable, EdgekitError

MARK = "edgekit-end"  # adb says 0 when a device vanishes in the middle: only this line proves that a script ended

SILENCE = "the connection ended without a word"


class Link(Protocol):
    """An open connection to one board."""

    name: str  # for people: "pi@raspberrypi.local"
    has_python: bool  # whether boards of this kind can be expected to have one

    def command(self, script: str) -> list[str]:
        """The command line that runs a shell script over there, where $EDGEKIT is the folder that is ours."""

    def answers(self) -> bool:
        """Whether the board is still there, as far as the client would not end by itself."""

    def close(self) -> None:
        """Leave nothing of the connection behind. Closing twice is fine."""


def start(link: Link, script: str, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """A script in the making, its input and output as pipes, in a process group that a Ctrl-C here does not meet."""
    pipe = subprocess.PIPE
    return subprocess.Popen(link.command(script), stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True)


def run(link: Link, script: str, feed: Callable[[IO[bytes]], None] | None = None) -> str:
    """What a script prints. `feed` writes its standard input.

    Raises `DeviceLost` where it did not come to its end, `EdgekitError` with its last words where it failed.
    """
    with tempfile.TemporaryFile() as errors:
        process = start(link, f"( {script}\n); code=$?; echo; echo {MARK} $code", errors)
        try:
            if feed is not None and process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # whoever closed it says why
                    feed(process.stdin)
                process.stdin = None  # closed by now
            output = process.communicate()[0].decode(errors="replace")
        finally:
            process.kill()
            process.wait()
        body, marked, code = output.rpartition(f"\n{MARK} ")
        if not marked:
            raise DeviceLost(f"{link.name} did not answer: {last_words(errors) or SILENCE}")
        if code.strip() != "0":
            raise EdgekitError(f"{link.name}: {last_words(errors)}")
    return body


def last_words(errors: IO[bytes]) -> str:
    """The last line of what a client or a script said on standard error, empty where it said nothing."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def unreachable(name: str, reason: str) -> DeviceUnreachable:
    """The error for a board that cannot be spoken to."""
    return DeviceUnreachable(f"no connection to {name}: {reason}")
