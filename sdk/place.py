"""Where bundles are measured: a place starts workers, and a worker is asked over its pipes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from time import perf_counter
from types import TracebackType
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from edgekit import errors
from edgekit.bandwidth import Bandwidth
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.measurement import HostState
from edgekit.metering import EnergyFigures, energy_figures
from edgekit.meters import EnergyRequest, parse_meter, unit_of

Seconds = Annotated[float, msgspec.Meta(gt=0)]
A = TypeVar("A", bound=msgspec.Struct)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a worker. What it says beyond the fields is left alone; what it says wrongly is refused."""


class Failed(Answer, frozen=True, kw_only=True):
    """The last line of a worker that met an error."""

    error: str
    type: str = "EdgekitError"


class Opening(Answer, frozen=True, kw_only=True):
    """How loading went."""

    load_s: Seconds
    first_run_s: Seconds
    runtime_version: str
    state: HostState


class Times(Answer, frozen=True, kw_only=True):
    """Seconds of calls, or from the start of a text to each of its tokens."""

    times_s: tuple[Seconds, ...]
    prompt_tokens: Annotated[int, msgspec.Meta(gt=0)] | None = None


class Closing(Answer, frozen=True, kw_only=True):
    """What is known when all is done."""

    peak_rss_bytes: Annotated[int, msgspec.Meta(gt=0)]
    state: HostState
    overhead_s: Seconds | None = None  # None: a worker without edgekit's session
    runtime_build: str | None = None


class Place(Protocol):
    """A machine that can hold a bundle and answer questions about it in the words of `edgekit.worker`."""

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        """A worker that opens the bundle, its standard input and output as UTF-8 pipes.

        It is no part of the terminal's process group: after a Ctrl-C a sustained run asks it for what it reached.
        """


class Here:
    """This machine."""

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        """A process of its own, so that its peak memory and load time are the model's and nobody else's."""
        command = [sys.executable, "-P", "-m", "edgekit.worker", str(bundle.path), str(threads)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", process_group=0
        )


HERE = Here()


class Worker:
    """The other side of `edgekit.worker`: one bundle, open somewhere. Use it as a context manager, or call `stop`."""

    def __init__(self, bundle: Bundle, threads: int, place: Place) -> None:
        self.bundle, start = bundle, perf_counter()
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
        """Seconds of each of `calls` calls."""
        times = self._ask({"calls": calls}, Times).times_s
        if len(times) != calls:
            raise self._misunderstood(f"{len(times)} times for {calls} calls")
        return times

    def text(self, tokens: int) -> Times:
        """One text of a language model: seconds from its start to each of at most `tokens` tokens, two at least."""
        said = self._ask({"tokens": tokens}, Times)
        if said.prompt_tokens is None or not 2 <= len(said.times_s) <= tokens:
            raise self._misunderstood(f"{len(said.times_s)} times for {tokens} tokens")
        return said

    def bandwidth(self, threads: int) -> Bandwidth:
        """How fast the machine copies memory, with `threads` threads."""
        return self._ask({"copy_threads": threads}, Bandwidth)

    def energy(self, request: EnergyRequest) -> EnergyFigures:
        """Joules of one inference, read where the bundle runs, or from here where that is where the meter hangs."""
        if request.meter and parse_meter(request.meter).info.runs_on == "client":
            return energy_figures(request, unit_of(self.bundle), self.times)
        return self._ask({"energy": msgspec.to_builtins(request)}, EnergyFigures)

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
            line = self._process.stdout.readline() if self._process.stdout is not None else ""
            if not line.endswith("\n"):
                raise self._ended()
            if "error" not in msgspec.json.decode(line, type=dict[str, msgspec.Raw]):
                return msgspec.json.decode(line, type=kind)
            failed = msgspec.json.decode(line, type=Failed)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._misunderstood(str(error)) from error
        named = getattr(errors, failed.type, None)
        raise (named if isinstance(named, type) and issubclass(named, EdgekitError) else EdgekitError)(failed.error)

    def _ended(self) -> EdgekitError:
        code = self._process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"left with code {code}"
        hint = ": probably out of memory" if code == -9 else ""
        return EdgekitError(f"the process that measured '{self.bundle.path}' was {how}{hint}")

    def _misunderstood(self, what: str) -> EdgekitError:
        return EdgekitError(
            f"the process that measured '{self.bundle.path}' gave an answer that makes no sense ({what}): "
            "is another version of edgekit there?"
        )
