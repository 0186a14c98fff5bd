"""Any power logger that exports CSV (Joulescope, PPK2, INA226 and INA228 loggers), tied to our clock by markers.

Record while edgekit runs: before and after the work it makes the device work and rest in a pattern, with the model's
own calls where these run (so on a board too), with all cores of this machine around an app's block. Both patterns are
looked for in the recording, and their distance tells how fast the logger's clock runs. The file is read when it is
there; until then edgekit waits. Columns need names with units: `Timestamp(ms),Current(uA)`.

What this can miss: a load that hardly shows above the noise or beside other programs' (no marker is found, and there is
no figure); a recording coarser than 0.125 s (likewise); a logger whose clock jumps and jumps back between the markers;
samples that a logger dropped and bridged by a line. The edges lie within about 5 ms or one sample of the recording.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgekit.energy import HERE_IT_IS, Availability, Counter, Load, MeterInfo, Snapshot, not_here, require
from edgekit.errors import InvalidInput
from edgekit.runtimes.meters._marker import CHIP_S, STEPS, Marker, find_markers, send_marker
from edgekit.runtimes.meters._trace import Trace, load
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
        """Nothing is read yet; markers are sent around the work."""
        require("external_csv", self.available())
        return _Recording(self)


class _Recording(Counter):
    def __init__(self, options: ExternalCsv) -> None:
        self._options, self._info = options, options.info
        self._markers: list[Marker] = []

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        return Snapshot(t_ns=time.monotonic_ns(), joules={})  # known once the recording is there

    def mark(self, load: Load) -> None:
        self._markers.append(send_marker(load))

    def settle(self, taken: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
        if len(self._markers) < 2:
            raise RuntimeError("a recording is found by a marker before and one after the work")
        first, last = self._markers[0], self._markers[-1]
        trace, begin_s, end_s = self._recorded(first, last)
        self._info = msgspec.structs.replace(self._info, update_period_s=max(trace.period_s, CHIP_S / STEPS))
        rate = (end_s - begin_s) / (last.begin_ns - first.begin_ns) * 1e9  # of the logger's seconds to ours
        at_s = np.array([(each.t_ns - first.begin_ns) / 1e9 for each in taken])
        joules = trace.joules(begin_s + rate * at_s) / rate
        return tuple(
            msgspec.structs.replace(each, joules={"input": float(j)}) for each, j in zip(taken, joules, strict=True)
        )

    def _recorded(self, first: Marker, last: Marker) -> tuple[Trace, float, float]:
        """The recording once both markers are in it, and when each of them began."""
        path, end, why = Path(self._options.path), time.monotonic() + self._options.wait_s, "it is not there"
        while True:
            if path.is_file():
                trace = load(path, self._options.volts)
                if found := find_markers(trace, first, last):
                    return trace, *found
                why = "the load before the work and the load after it, 3 s each in a pattern, are not both in it"
            if time.monotonic() > end:
                raise InvalidInput(f"no energy from '{path}': {why}. Record from before edgekit starts until it asks")
            time.sleep(POLL_S)


METER = ExternalCsv
