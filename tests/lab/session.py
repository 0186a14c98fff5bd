"""The command line as a user types it, against a board of the lab."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab.board import Board
from lab.environment import CACHE

CLI = (sys.executable, "-c", "from edgekit.cli import main; main()")


class Command:
    """One `edgekit` command at work. Its caches are the lab's, not the user's."""

    def __init__(self, board: Board, *words: object, **variables: str) -> None:
        wheels = ("--offline-wheels", str(board.environment.wheels)) if "--offline-wheels" not in words else ()
        path = f"{board.folder / 'bin'}:{os.environ['PATH']}"
        environment = os.environ | {"HOME": str(CACHE / "home"), "PATH": path} | variables
        (CACHE / "home").mkdir(exist_ok=True)
        self.log = board.folder / f"command-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            command = [*CLI, *map(str, words), "-d", board.device, *wheels]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
                                            start_new_session=True)  # fmt: skip

    def wait_for(self, text: str, seconds: float = 120) -> Command:
        """Until the progress on stderr says so."""
        until(lambda: text in self.errors() or self.process.poll() is not None, seconds)
        assert text in self.errors(), f"it ended without '{text}': {self.errors()}"
        return self

    def errors(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, seconds: float = 180) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output, self.errors()


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until it holds; fails when it does not."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start


def runs(board: Board) -> list[Path]:
    """Run folders that are left on a board."""
    return list((board.home / ".edgekit/runs").glob("*"))
