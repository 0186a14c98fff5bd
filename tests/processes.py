"""Processes that end with the test that started them, also where the test is killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

TIED = ("setpriv", "--pdeathsig", "TERM")  # a signal that torchrun passes on to its own
STOPPED_S = 60  # for it to do so


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with text pipes for what it says, which is stopped when the context ends."""
    process = subprocess.Popen(
        [*TIED, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=STOPPED_S)


def finished(command: Sequence[str], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process that has ended by itself. Raises `TimeoutExpired`; nothing that it started goes on then."""
    with running(command, **options) as process:
        said, errors = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, said, errors)


def torchrun(count: int, *command: str) -> list[str]:
    """The command that runs a program as several processes which know each other."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *command]
