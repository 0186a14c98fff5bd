"""Where bundles are measured: a place starts workers, and a worker is asked over its pipes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from types import TracebackType
from typing import Any, Protocol

import msgspec

from edgekit import errors
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.measurement import NO_METER, GenerationTimes, HostState, Measurement, summarize, summarize_texts

WARM_CHUNK = 10
WARM_TOLERANCE = 0.02
WARM_LEAST_S, WARM_MOST_S = 0.5, 10.0
TEXT_TOKENS = 64  # of one timed answer: short enough that the last tokens cost what the first do


class Place(Protocol):
    """A machine that can hold a bundle and answer questions about it in the words of `edgekit.worker`."""

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        """A worker with the bundle open, its standard input and output as pipes."""


class Here:
    """This machine."""

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        """A process of its own, so that its peak memory and load time are the model's and nobody else's."""
        command = [sys.executable, "-P", "-m", "edgekit.worker", str(bundle.path), str(threads)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


HERE = Here()


class Worker:
    """The other side of `edgekit.worker`: one bundle, open somewhere. Use it as a context manager, or call `stop`."""

    def __init__(self, bundle: Bundle, threads: int, place: Place) -> None:
        self.bundle, self.threads = bundle, threads
        self.warmup_runs, self.warm = 0, False
        self._process = place.start(bundle, threads)
        self._opening = self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def warm_up(self) -> None:
        """Run until the median of one chunk is within 2 % of the one before, for half a second at least."""
        spent, last = 0.0, 0.0
        while spent < WARM_MOST_S and not self.warm:
            chunk = self.times(WARM_CHUNK)
            spent += sum(chunk)
            self.warmup_runs += len(chunk)
            median = statistics.median(chunk)
            self.warm = spent >= WARM_LEAST_S and abs(median - last) <= WARM_TOLERANCE * last
            last = median

    def times(self, calls: int) -> list[float]:
        """Seconds of each of `calls` calls."""
        times: list[float] = self._ask({"calls": calls})["times_s"]
        return times

    def text_times(self, calls: int) -> GenerationTimes:
        """Texts of at most `TEXT_TOKENS` tokens each, until there are `calls` times between tokens."""
        texts: list[list[float]] = []
        while sum(len(text) - 1 for text in texts) < calls:
            said = self._ask({"tokens": min(TEXT_TOKENS, calls + 1)})
            texts.append(said["times_s"])
        return summarize_texts(said["prompt_tokens"], texts)

    def finish(self, times: list[float], generation: GenerationTimes | None = None) -> Measurement:
        """End the process and put the measurement together."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        closing = self._answer()
        opening, artifact = self._opening, self.bundle.artifact
        return Measurement(
            bundle=str(self.bundle.path),
            artifact=artifact.path,
            runtime=artifact.runtime,
            runtime_version=opening["runtime_version"],
            threads=self.threads,
            load_s=opening["load_s"],
            first_run_s=opening["first_run_s"],
            warmup_runs=self.warmup_runs,
            warm=self.warm,
            latency=summarize(times),
            generation=generation,
            peak_rss_bytes=closing["peak_rss_bytes"],
            energy=NO_METER,
            before=msgspec.convert(opening["state"], HostState),
            after=msgspec.convert(closing["state"], HostState),
        )

    def stop(self) -> None:
        """Leave no process behind."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _ask(self, question: dict[str, int]) -> dict[str, Any]:
        if self._process.stdin is None:
            raise RuntimeError("the worker was started without a pipe")
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            code = self._process.wait()
            how = f"killed by signal {-code}" if code < 0 else f"left with code {code}"
            hint = ": probably out of memory" if code == -9 else ""
            raise EdgekitError(f"the process that measured '{self.bundle.path}' was {how}{hint}")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise getattr(errors, document["type"], EdgekitError)(document["error"])
        return document
