"""Any power logger that exports CSV (Joulescope, PPK2, INA226 and INA228 loggers), tied to our clock by a marker.

Record while edgekit runs: it first loads all cores in a pattern, which is then looked for in the recording. The file is
read when it is there; until then edgekit waits. Columns need names with units: `Timestamp(ms),Current(uA)`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, Snapshot, not_here, require
from edgekit.errors import InvalidInput
from edgekit.runtimes.meters._trace import CHIP_S, Trace, find_marker, load, send_marker
from edgekit.types import Value

POLL_S = 0.5


class ExternalCsv(Value, frozen=True, kw_only=True):
    """`volts` where the logger knows the current alone, `gain` its relative error (1 sigma) from the data sheet."""

    path: str = ""
    volts: float | None = None
    gain: float | None = None
    wait_s: float = 300.0

    @property
    def info(self) -> MeterInfo:
        """Whatever hangs behind the logger."""
        return MeterInfo(
            id="external_csv",
            provenance="measured.external",
            domains=("input",),
            covers=("cpu", "gpu", "npu", "dram", "board"),
            excludes=("supply loss",),
            update_period_s=1e-3,  # until the recording says
            resolution_j=1e-6,
            gain_uncertainty=self.gain,
            privileges=f"a recording all the while, in {self.path or 'the file'} within {self.wait_s:g} s after",
            runs_on="client",
        )

    def available(self) -> Availability:
        """Whether a file was named that can come to be."""
        if not self.path:
            fix = "start its recording, then: --meter external_csv,path=recording.csv"
            return not_here("no recording of a power logger is named", fix)
        if not Path(self.path).absolute().parent.is_dir():
            return not_here(f"there is no folder for {self.path}", "make it, or name another file")
        return HERE_IT_IS

    def open(self) -> Counter:
        """Send the marker."""
        require("external_csv", self.available())
        return _Recording(self)


class _Recording(Counter):
    def __init__(self, options: ExternalCsv) -> None:
        self._options, self._info = options, options.info
        self._marker_ns = send_marker()

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        return Snapshot(t_ns=time.monotonic_ns(), joules={})  # known once the recording is there

    def settle(self, taken: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
        trace, began_s = self._recorded((taken[-1].t_ns - self._marker_ns) / 1e9)
        self._info = msgspec.structs.replace(self._info, update_period_s=max(trace.period_s, CHIP_S / 50))
        joules = trace.joules(began_s + (np.array([each.t_ns for each in taken]) - self._marker_ns) / 1e9)
        return tuple(
            msgspec.structs.replace(each, joules={"input": float(j)}) for each, j in zip(taken, joules, strict=True)
        )

    def _recorded(self, seconds: float) -> tuple[Trace, float]:
        """The recording, once it reaches `seconds` beyond the marker, and when the marker began in it."""
        path, end, why = Path(self._options.path), time.monotonic() + self._options.wait_s, "it is not there"
        while True:
            if path.is_file():
                trace = load(path, self._options.volts)
                began_s = find_marker(trace)
                if began_s is not None and began_s + seconds <= trace.times_s[-1]:
                    return trace, began_s
                short = "it ends before the work did"
                why = "the marker, 13 steps of 0.25 s of full load, is not in it" if began_s is None else short
            if time.monotonic() > end:
                raise InvalidInput(f"no energy from '{path}': {why}. Record from before edgekit starts until it asks")
            time.sleep(POLL_S)


METER = ExternalCsv
