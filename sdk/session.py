"""The contract of a runtime, and the accounting that every session shares."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgekit.processing import Arrays
from edgekit.types import TensorSpec, Value

if TYPE_CHECKING:
    from edgekit.bundle import Bundle, Delegation

KEPT_CALLS = 4096  # the newest call times a session remembers


class SessionStats(Value, frozen=True, kw_only=True):
    """The calls a session has served so far. Times in seconds, over the newest 4096 calls."""

    calls: int
    total_s: float
    p50_s: float | None = None
    p90_s: float | None = None
    max_s: float | None = None


class CallLog:
    """Times of the calls of one session. Adding one costs well under a microsecond."""

    def __init__(self) -> None:
        self.calls = 0
        self.total_ns = 0
        self._recent: deque[int] = deque(maxlen=KEPT_CALLS)

    def add(self, elapsed_ns: int) -> None:
        """Count one call."""
        self.calls += 1
        self.total_ns += elapsed_ns
        self._recent.append(elapsed_ns)

    def stats(self) -> SessionStats:
        """A snapshot."""
        if not self._recent:
            return SessionStats(calls=self.calls, total_s=0.0)
        p50, p90, most = np.quantile(np.array(self._recent) / 1e9, [0.5, 0.9, 1.0])
        return SessionStats(
            calls=self.calls, total_s=self.total_ns / 1e9, p50_s=float(p50), p90_s=float(p90), max_s=float(most)
        )


class Session(Protocol):
    """An open model. Use it as a context manager, or call `close`."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""

    def run(self, feeds: Arrays) -> Arrays:
        """One inference. Raises `InvalidInput` when names, dtypes or shapes do not fit."""

    def stats(self) -> SessionStats:
        """Calls and times so far."""

    def close(self) -> None:
        """Free the model. Closing twice is fine; running after it raises `InvalidInput`."""

    def __enter__(self) -> Session: ...
    def __exit__(self, *exc: object) -> None: ...


class Runtime(Protocol):
    """What a module in `runtimes/` offers. Its file name is the runtime's name."""

    FORMAT: str  # the artifact format it runs
    DISTRIBUTION: str  # the package that carries it

    def open_session(self, bundle: Bundle, *, threads: int = 1) -> Session:
        """Load the bundle's artifact. Raises `ToolchainMissing`, `BundleCorrupt`."""

    def delegation(self, bundle: Bundle, feeds: Arrays) -> Delegation:
        """Run once and report which unit ran each op."""
