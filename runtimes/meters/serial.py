"""A power logger on a serial port that prints a line per sample, such as a microcontroller with an INA226 or INA228.

Lines are numbers with commas; the first line names them with units (`current_ma,bus_v`), or `columns` does.
"""

from __future__ import annotations

import contextlib
import os
import termios
import time
import tty
from collections.abc import Iterator

from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, not_here, require
from edgekit.errors import EdgekitError
from edgekit.runtimes.meters._columns import columns, watts
from edgekit.sampling import Sampler
from edgekit.types import Value

PERIOD_S = 0.02
SILENCE_S = 3.0


class Serial(Value, frozen=True, kw_only=True):
    """`columns` with semicolons between; `gain` is the logger's relative error (1 sigma) from its data sheet."""

    port: str = ""
    baud: int = 115200
    columns: str = ""
    volts: float | None = None
    gain: float | None = None

    @property
    def info(self) -> MeterInfo:
        """Whatever hangs behind the logger."""
        return MeterInfo(
            id=f"serial {self.port}".strip(),
            provenance="measured.external",
            domains=("input",),
            covers=("cpu", "gpu", "npu", "dram", "board"),
            excludes=("supply loss",),
            update_period_s=PERIOD_S,
            resolution_j=1e-6,
            gain_uncertainty=self.gain,
            privileges="the group of the port, mostly dialout",
            runs_on="client",
        )

    def available(self) -> Availability:
        """Whether a port was named that prints samples."""
        if not self.port:
            return not_here("no serial port is named", "--meter serial,port=/dev/ttyUSB0")
        try:
            Lines(self).close()
        except PermissionError:
            return not_here(f"{self.port} may not be opened", "sudo usermod -aG dialout $USER, then log in again")
        except (OSError, termios.error, EdgekitError) as error:
            return not_here(
                f"{self.port}: {error}", "check the port, its baud rate and that it prints lines of numbers"
            )
        return HERE_IT_IS

    def open(self) -> Counter:
        """Start to listen."""
        require("serial", self.available())
        lines = Lines(self)
        return Sampler(self.info, lambda: {"input": lines.watts()}, lines.close)


class Lines:
    """The samples that a port prints. Raises `OSError`, `termios.error`, or `EdgekitError` for what is no sample."""

    def __init__(self, options: Serial) -> None:
        speed = getattr(termios, f"B{options.baud}", None)
        if speed is None:
            raise EdgekitError(f"{options.baud} is no baud rate of this system")
        self._options, self._rest, self._last = options, b"", 0.0
        self._heard = time.monotonic()
        self._port = os.open(options.port, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(self._port)
            settings = termios.tcgetattr(self._port)
            settings[4] = settings[5] = speed
            termios.tcsetattr(self._port, termios.TCSANOW, settings)
            header = options.columns.split(";") if options.columns else self._header()
            self._where = columns(header, options.port, options.volts)
            self._last = self._first()
        except BaseException:
            self.close()
            raise

    def watts(self) -> float:
        """The mean of the samples since it was last asked, or the last one. Raises `EdgekitError` after silence."""
        samples = self._samples(self._new())
        if samples:
            self._last, self._heard = sum(samples) / len(samples), time.monotonic()
        elif time.monotonic() - self._heard > SILENCE_S:
            raise EdgekitError(f"{self._options.port} has been silent for {SILENCE_S:g} s")
        return self._last

    def close(self) -> None:
        """Let go of the port."""
        os.close(self._port)

    def _header(self) -> list[str]:
        """The first line with letters in it."""
        for line in self._lines():
            if any(c.isalpha() for c in line):
                return line.split(",")
        raise EdgekitError("it prints no names of columns; say them: columns=current_ma;bus_v")

    def _first(self) -> float:
        """The first sample."""
        line = ""
        for line in self._lines():
            if samples := self._samples([line]):
                return samples[0]
        raise EdgekitError(f"it prints '{line[:60]}', which is no sample" if line else "it prints nothing")

    def _lines(self) -> Iterator[str]:
        """Lines as they come, for a while."""
        end = time.monotonic() + SILENCE_S
        while time.monotonic() < end:
            yield from self._new()
            time.sleep(PERIOD_S)

    def _new(self) -> list[str]:
        """Whole lines that have come, without the empty ones."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._port, 65536):
                self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return [text for line in lines if (text := line.decode(errors="replace").strip())]

    def _samples(self, lines: list[str]) -> list[float]:
        """Watts of the lines that are samples: names come once more, and the first line may be cut."""
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, IndexError):
                found.append(float(watts([float(cell) for cell in line.split(",")], self._where, self._options.volts)))
        return found


METER = Serial
