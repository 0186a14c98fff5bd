"""Everything the commands print: JSON or tables on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from edgekit.errors import OutputExists
from edgekit.folder import write_errors

PIPE_COLUMNS = 200


def show_json(value: Any) -> None:
    """Print one JSON document."""
    print(_document(value))


def show_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print label and value, one a line."""
    width = max(len(label) for label, _ in pairs)
    console = _console()
    for label, value in pairs:
        style = "red" if value.startswith("FAILED") else "green" if value.startswith("ok ") else None
        console.print(f"{label:<{width}}  ", style="bold", end="", highlight=False)
        console.print(value, style=style, highlight=False, markup=False, soft_wrap=True)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under column names."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    _console().print(table)


def say(text: str) -> None:
    """Print a line on stdout."""
    _console().print(text, highlight=False, markup=False, soft_wrap=True)


def warn(texts: Sequence[str]) -> None:
    """Print warnings on stderr."""
    for text in texts:
        Console(stderr=True).print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows the step at work: a spinner on a terminal, a line with seconds elsewhere.

    Toolchains can swallow a Ctrl-C that meets them in a callback; then the next step stops for it.
    """
    console = Console(stderr=True)
    start = time.monotonic()
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def step(text: str) -> None:
        if interrupted:
            raise KeyboardInterrupt
        if console.is_terminal and not quiet:
            status.update(f"{text} [dim]({time.monotonic() - start:.0f} s so far)[/dim]")
        elif not quiet:
            print(f"[{time.monotonic() - start:6.1f} s] {text}", file=sys.stderr, flush=True)

    status = console.status("start")
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with status if console.is_terminal and not quiet else contextlib.nullcontext():
            yield step
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_file(path: Path, force: bool) -> None:
    """Raise `OutputExists` unless a file may be written there."""
    if path.is_dir():
        raise OutputExists(f"'{path}' is a folder: name a file, as in -o {path / 'profile.json'}")
    if path.exists() and not force:
        raise OutputExists(f"'{path}' is there already: choose another -o, or replace it with --force")


def save_json(path: Path, value: Any) -> None:
    """Write one JSON document."""
    save_text(path, _document(value) + "\n")


def save_text(path: Path, text: str) -> None:
    """Write a file that appears when it is whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with write_errors(path):
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _document(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _console() -> Console:
    """Reads NO_COLOR and whether stdout is a terminal; what is not gets one line for each row."""
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
