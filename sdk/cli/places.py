"""The machine that a verb works on, opened from its options `-d`, `--time-limit` and `--offline-wheels`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.output import progress

if TYPE_CHECKING:
    from edgekit.place import Place


@contextlib.contextmanager
def opened_place(
    device: str | None, time_limit: int | None, offline_wheels: Path | None, quiet: bool
) -> Iterator[tuple[Place, Callable[[str], None]]]:
    """The place, held as long as the context, and the function that shows the step at work."""
    from edgekit.place import TIME_LIMIT_S, place_at

    limit_s = TIME_LIMIT_S if time_limit is None else time_limit
    with (
        progress(quiet) as step,
        place_at(device, time_limit_s=limit_s, offline_wheels=offline_wheels, progress=step) as place,
    ):
        yield place, step
