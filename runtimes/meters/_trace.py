"""Power over time as a logger recorded it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import InvalidInput
from edgekit.runtimes.meters._columns import columns, watts

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """Watts at ascending seconds of the logger's clock; straight lines between."""

    times_s: Floats
    watts: Floats

    @property
    def period_s(self) -> float:
        """The usual time between two samples."""
        return float(np.median(np.diff(self.times_s)))

    def joules(self, at_s: Floats) -> Floats:
        """Energy from the first sample to each of these times, which lie within the trace."""
        steps = np.diff(self.times_s)
        until = np.concatenate(([0.0], np.cumsum(steps * (self.watts[1:] + self.watts[:-1]) / 2)))
        left = np.clip(np.searchsorted(self.times_s, at_s, side="right") - 1, 0, len(steps) - 1)
        rest = at_s - self.times_s[left]
        slope = (self.watts[left + 1] - self.watts[left]) / steps[left]
        return np.asarray(until[left] + rest * (self.watts[left] + slope * rest / 2))


def load(path: Path, volts: float | None = None) -> Trace:
    """A CSV export: names with units in the first line, then numbers. Raises `InvalidInput`."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            header, more = file.readline(), file.readline()
        mark = max(",;\t", key=header.count)
        where = columns(header.split(mark), str(path), volts)
        if "time" not in where:
            raise InvalidInput(f"'{path}' has no column of time with its unit, as in time (s) or Timestamp(ms)")
        if not more.strip():
            raise InvalidInput(f"'{path}' has no rows under the names of its columns")
        used = sorted({column.index for column in where.values()})
        table = np.loadtxt(path, delimiter=mark, skiprows=1, usecols=used, ndmin=2, comments=None, encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:  # of numpy; a file that is not UTF-8 too
        raise InvalidInput(f"'{path}' is not a table of numbers under its first line: {error}") from error
    rows = dict(zip(used, table.T, strict=True))
    times = rows[where["time"].index] * where["time"].scale
    power = np.asarray(watts(rows, where, volts), dtype=np.float64)
    if len(times) < 2 or not np.isfinite(table).all() or (np.diff(times) <= 0).any():
        raise InvalidInput(f"'{path}' needs two rows or more, of finite numbers, at times that only grow")
    return Trace(times, power)
