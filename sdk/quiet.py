"""Keep the terminal for edgekit: toolchains print banners, progress and warnings that help nobody here."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what Python code prints, logs and warns inside; errors still pass."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def quiet_native() -> Iterator[None]:
    """As `quiet`, and drop what native code writes to the process's stderr: its banners ask nobody."""
    with quiet(), open(os.devnull, "wb") as null:
        kept = os.dup(2)
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
