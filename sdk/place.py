"""Where bundles are measured: a place starts workers, and a worker is asked over its pipes."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, TypeVar

import msgspec

from edgekit import errors, registry
from edgekit.bandwidth import Bandwidth
from edgekit.bundle import Bundle
from edgekit.energy import Counter, Energy, MeterInfo, Snapshot
from edgekit.errors import DeviceLost, EdgekitError, InvalidInput, MeterMissing
from edgekit.inference import open_session
from edgekit.metering import EnergyFigures, energy_figures
from edgekit.meters import EnergyRequest, parse_meter, unit_of
from edgekit.op_profile import OpProfile
from edgekit.processing import Arrays, check_arrays
from edgekit.session import CallLog, Session, SessionStats, closed_run
from edgekit.wire import Closing, Ended, Failed, Opening, Outputs, Times, Watch, decoded, encoded

REMOTE = "edgekit.runtimes.remote"
TIME_LIMIT_S = 900
TIMED_OUT = 124  # what timeout(1) leaves with
SILENT_S = 3.0  # after which a machine is asked whether it is still there
ASKED_S, LEAST_ASKED = 1.0, 10  # seconds and calls of one question: what a lost device takes along
A = TypeVar("A", bound=msgspec.Struct)


class Place(Protocol):
    """A machine that can hold a bundle and answer questions about it in the words of `edgekit.worker`."""

    title: str  # "this machine", "pi@raspberrypi.local"

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        """A worker that opens the bundle, its standard input and output as UTF-8 pipes.

        It is no part of the terminal's process group: after a Ctrl-C a sustained run asks it for what it reached.
        """

    def ended(self, process: subprocess.Popen[str]) -> int:
        """The exit code of a worker that says nothing more, -N for signal N. Raises `DeviceLost` where none came."""

    def check(self, process: subprocess.Popen[str]) -> None:
        """Asked of a worker that is silent for seconds: raises `DeviceLost` where its machine is gone."""


class Here:
    """This machine."""

    title = "this machine"

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        """A process of its own, so that its peak memory and load time are the model's and nobody else's."""
        command = [sys.executable, "-P", "-m", "edgekit.worker", str(bundle.path), str(threads)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", process_group=0
        )

    def ended(self, process: subprocess.Popen[str]) -> int:
        """What the kernel says."""
        return process.wait()

    def check(self, process: subprocess.Popen[str]) -> None:
        """It is here."""


HERE = Here()


@contextlib.contextmanager
def place_at(
    device: str | None,
    *,
    time_limit_s: int = TIME_LIMIT_S,
    offline_wheels: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Iterator[Place]:
    """The machine that `-d` names, `ssh:user@host[:port]` or `adb:SERIAL`, held as long as the context; None: this one.

    Raises `InvalidInput`, `UnknownName`, and `DeviceUnreachable` in its three kinds.
    """
    if device is None:
        yield HERE
        return
    kind, colon, address = device.partition(":")
    if not colon or not address:
        raise InvalidInput(f"'{device}' is no device to measure on: write ssh:user@host[:port] or adb:SERIAL")
    place = registry.load(REMOTE, kind).open_place(address, time_limit_s, offline_wheels, progress)
    try:
        yield place
    finally:
        place.close()


class Worker:
    """The other side of `edgekit.worker`: one bundle, open somewhere. Use it as a context manager, or call `stop`."""

    def __init__(self, bundle: Bundle, threads: int, place: Place) -> None:
        self.bundle, start = bundle, perf_counter()
        self._place, self._timed = place, list[float]()
        self._process = place.start(bundle, threads)
        try:
            self.opening = self._answer(Opening)
        except BaseException:
            self.stop()
            raise
        self.start_s = perf_counter() - start

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def times(self, calls: int) -> tuple[float, ...]:
        """Seconds of each of `calls` calls, asked for in pieces of about a second."""
        before = len(self._timed)
        while (left := before + calls - len(self._timed)) > 0:
            asked = min(left, max(LEAST_ASKED, int(ASKED_S / self._timed[-1]) if self._timed else 0))
            times = self._ask({"calls": asked}, Times).times_s
            if len(times) != asked:
                raise self._misunderstood(f"{len(times)} times for {asked} calls")
            self._timed += times
        return tuple(self._timed[before:])

    def run(self, feeds: Arrays) -> tuple[Arrays, float]:
        """The outputs of one call, and its seconds on the worker's clock."""
        said = self._ask({"feeds": encoded(feeds)}, Outputs)
        return decoded(said.outputs), said.time_s

    def text(self, tokens: int) -> Times:
        """One text of a language model: seconds from its start to each of at most `tokens` tokens, two at least."""
        said = self._ask({"tokens": tokens}, Times)
        if said.prompt_tokens is None or not 2 <= len(said.times_s) <= tokens:
            raise self._misunderstood(f"{len(said.times_s)} times for {tokens} tokens")
        return said

    def bandwidth(self, threads: int) -> Bandwidth:
        """How fast the machine copies memory, with `threads` threads."""
        return self._ask({"copy_threads": threads}, Bandwidth)

    def ops(self, threads: int) -> OpProfile:
        """The time of each op."""
        return self._ask({"op_threads": threads}, OpProfile)

    def energy(self, request: EnergyRequest) -> EnergyFigures:
        """Joules of one inference, read where the bundle runs, or from here where that is where the meter hangs."""
        if request.meter and parse_meter(request.meter).info.runs_on == "client":
            return energy_figures(request, unit_of(self.bundle), self.times)
        found = self._ask({"energy": msgspec.to_builtins(request)}, EnergyFigures)
        if request.mode == "measured" and found.energy.provenance == "unavailable":
            raise MeterMissing(found.energy.reason or "nothing measures there")
        return found

    def watch(self, request: EnergyRequest) -> Counter:
        """An open meter to read while calls are asked for, here or where the bundle runs. Raises `MeterMissing`."""
        if request.meter and (meter := parse_meter(request.meter)).info.runs_on == "client":
            return meter.open()
        said = self._ask({"watch": msgspec.to_builtins(request)}, Watch)
        if said.info is None:
            raise MeterMissing(said.reason)
        return _Watched(said.info, self)

    def snapshot(self) -> Snapshot:
        """What the meter that `watch` opened over there stands at."""
        return self._ask({"snapshot": True}, Snapshot)

    def close(self) -> Closing:
        """End the process in peace."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self._answer(Closing)

    def stop(self) -> None:
        """Leave no process behind."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # a question that nobody read
                if stream is not None:
                    stream.close()

    def _ask(self, question: dict[str, Any], kind: type[A]) -> A:
        if self._process.stdin is None:
            raise RuntimeError("the worker was started without a pipe")
        with contextlib.suppress(BrokenPipeError):  # it has ended: its last line, or its exit code, says why
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self._answer(kind)

    def _answer(self, kind: type[A]) -> A:
        try:
            line = self._line()
            if not line.endswith("\n"):
                raise self._ended(Ended(ended=self._place.ended(self._process)))
            said = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            if "ended" in said:
                raise self._ended(msgspec.json.decode(line, type=Ended))
            if "error" not in said:
                return msgspec.json.decode(line, type=kind)
            failed = msgspec.json.decode(line, type=Failed)
        except DeviceLost as lost:
            raise DeviceLost(f"{lost}; {self._reached()}") from lost
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._misunderstood(str(error)) from error
        named = getattr(errors, failed.type, None)
        raise (named if isinstance(named, type) and issubclass(named, EdgekitError) else EdgekitError)(failed.error)

    def _line(self) -> str:
        stdout = self._process.stdout
        if stdout is None:
            raise RuntimeError("the worker was started without a pipe")
        while not select.select([stdout], [], [], SILENT_S)[0]:
            self._place.check(self._process)
        return next((line for line in stdout if line.strip()), "")

    def _reached(self) -> str:
        """How far a measurement came, for who will not get one."""
        if not self._timed:
            return "nothing was timed yet"
        return f"reached {len(self._timed)} calls, p50 {1e3 * statistics.median(self._timed):.2f} ms"

    def _ended(self, end: Ended) -> EdgekitError:
        words = f" ({end.words})" if end.words else ""
        return EdgekitError(f"the process that measured '{self.bundle.path}' {_death(end.ended)}{words}")

    def _misunderstood(self, what: str) -> EdgekitError:
        return EdgekitError(
            f"the process that measured '{self.bundle.path}' gave an answer that makes no sense ({what}): "
            "is another version of edgekit there?"
        )


class _Watched(Counter):
    """A meter that a worker holds."""

    def __init__(self, info: MeterInfo, worker: Worker) -> None:
        self._info, self._worker = info, worker

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        return self._worker.snapshot()


class WorkerSession:
    """A `Session` whose calls run in a worker: the times are those of the worker's clock, without the way there."""

    def __init__(self, worker: Worker) -> None:
        manifest = worker.bundle.manifest
        self.inputs, self.outputs, self._dynamic = manifest.inputs, manifest.outputs, manifest.dynamic
        self._worker, self._log = worker, CallLog()
        self._energy: Energy | None = None
        self.run: Callable[[Arrays], Arrays] = self._run

    def _run(self, feeds: Arrays) -> Arrays:
        check_arrays(feeds, self.inputs, self._dynamic)
        outputs, seconds = self._worker.run({spec.name: feeds[spec.name] for spec in self.inputs})
        self._log.add(round(1e9 * seconds))
        return outputs

    def stats(self) -> SessionStats:
        """Calls and times so far."""
        return msgspec.structs.replace(self._log.stats(), energy=self._energy)

    def count_energy(self, energy: Energy) -> None:
        """Keep what a window measured of this session's calls."""
        self._energy = energy

    def close(self) -> None:
        """End the worker."""
        self.run = closed_run
        self._worker.stop()

    def __enter__(self) -> WorkerSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_at(place: Place, bundle: Bundle, threads: int) -> Session:
    """An open bundle: in this process here, in a worker elsewhere."""
    return open_session(bundle, threads=threads) if place is HERE else WorkerSession(Worker(bundle, threads, place))


def _death(code: int) -> str:
    if code == TIMED_OUT:
        return "was stopped at its time limit on the device: give it more with --time-limit"
    if code >= 0:
        return f"left with code {code}"
    hints = {signal.SIGKILL: ": probably out of memory",
             signal.SIGILL: ": the processor lacks an instruction that the runtime chose"}  # fmt: skip
    return f"was killed by signal {-code} ({signal.Signals(-code).name}){hints.get(signal.Signals(-code), '')}"
