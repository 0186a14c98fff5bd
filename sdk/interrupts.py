"""Ctrl-C for work that can end with what it has."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stoppable(*signals: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, or one of `signals` came; the second time, they interrupt as ever.

    Python tells signals to the main thread alone, so elsewhere it never was.
    """
    noted = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *signals)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(*_: object) -> None:
        nonlocal noted
        noted = True
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: noted
    finally:
        restore()
