"""The contract of a runtime, and the accounting that every session shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from edgekit.energy import Energy
from edgekit.errors import BundleCorrupt, InvalidInput
from edgekit.op_profile import OpProfile
from edgekit.processing import Array, Arrays, check_arrays
from edgekit.types import DynamicDim, TensorSpec, Value, entry_points

if TYPE_CHECKING:
    from edgekit.bundle import Bundle, Delegation

KEPT_CALLS = 4096  # the newest call times a session remembers


class SessionStats(Value, frozen=True, kw_only=True):
    """The calls a session has served so far. Times in seconds, over the newest 4096 calls.

    `energy` is of one inference, in the newest window of `edgekit.meter(session)`; None before the first.
    """

    calls: int
    total_s: float
    p50_s: float | None = None
    p90_s: float | None = None
    max_s: float | None = None
    energy: Energy | None = None


class CallLog:
    """Times of the calls of one session.

    `add` runs right after a model has emptied the caches, where every line of Python costs microseconds: it appends,
    and older calls are summed up only now and then.
    """

    def __init__(self) -> None:
        self._recent: list[int] = []
        self._older_calls = 0
        self._older_ns = 0

    def add(self, elapsed_ns: int) -> None:
        """Count one call."""
        recent = self._recent
        recent.append(elapsed_ns)
        if len(recent) == 2 * KEPT_CALLS:
            self._older_calls += KEPT_CALLS
            self._older_ns += sum(recent[:KEPT_CALLS])
            del recent[:KEPT_CALLS]

    def stats(self) -> SessionStats:
        """A snapshot."""
        calls, total_s = self._older_calls + len(self._recent), (self._older_ns + sum(self._recent)) / 1e9
        if not self._recent:
            return SessionStats(calls=calls, total_s=total_s)
        p50, p90, most = np.quantile(np.array(self._recent[-KEPT_CALLS:]) / 1e9, [0.5, 0.9, 1.0])
        return SessionStats(calls=calls, total_s=total_s, p50_s=float(p50), p90_s=float(p90), max_s=float(most))


def counted_run(
    call: Callable[[Arrays], Sequence[Array]],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    dynamic: tuple[DynamicDim, ...],
    log: CallLog,
) -> Callable[[Arrays], Arrays]:
    """The `run` of a session around a backend's `call`: check the inputs, count the time, name the outputs.

    One closure without inner calls, since it runs on caches that the model has emptied: as methods it cost 45 us.
    """
    names = [spec.name for spec in outputs]
    static = [(spec.name, np.dtype(spec.dtype), spec.shape) for spec in inputs]
    count = -1 if dynamic else len(static)  # dynamic sizes always take the long check
    array_type, add = np.ndarray, log.add

    def run(feeds: Arrays) -> Arrays:
        start = perf_counter_ns()
        if len(feeds) == count:
            for name, dtype, shape in static:
                array = feeds.get(name)
                if type(array) is not array_type or array.dtype is not dtype or array.shape != shape:
                    check_arrays(feeds, inputs, dynamic)
                    break
        else:
            check_arrays(feeds, inputs, dynamic)
        results = call(feeds)
        add(perf_counter_ns() - start)
        return dict(zip(names, results))  # noqa: B905  the backend returns one array per name

    return run


def by_size(
    open_entry: Callable[[str], Callable[[Arrays], Sequence[Array]]],
    default: str,
    inputs: tuple[TensorSpec, ...],
    dynamic: tuple[DynamicDim, ...],
) -> Callable[[Arrays], Sequence[Array]]:
    """The call of a file with an entry point for each listed size: that of the size at hand; else that of `default`."""
    calls = {size: open_entry(name) for name, size in entry_points(dynamic).items()}
    if not calls:
        return open_entry(default)
    name, axis = _sized_axis(inputs, dynamic)
    return lambda feeds: calls[feeds[name].shape[axis]](feeds)


def entry_point(default: str, inputs: tuple[TensorSpec, ...], dynamic: tuple[DynamicDim, ...], feeds: Arrays) -> str:
    """The name of the entry point that `by_size` takes for these inputs."""
    names = {size: name for name, size in entry_points(dynamic).items()}
    if not names:
        return default
    name, axis = _sized_axis(inputs, dynamic)
    return names[feeds[name].shape[axis]]


def _sized_axis(inputs: tuple[TensorSpec, ...], dynamic: tuple[DynamicDim, ...]) -> tuple[str, int]:
    """The first input and axis that has one of the listed sizes."""
    names = {dim.axis_name for dim in dynamic if dim.sizes}
    places = [(spec.name, axis) for spec in inputs for axis, size in enumerate(spec.shape) if size in names]
    if not places:
        raise BundleCorrupt(f"the manifest lists sizes of {', '.join(names)}, which no input has: export it again")
    return places[0]


def closed_run(feeds: Arrays) -> Arrays:
    """The `run` of a session that was closed."""
    raise InvalidInput("this session is closed: open another one")


class CountedSession:
    """An open model around a backend's `call`; see `Session`. `owner` is what the call needs kept alive."""

    def __init__(self, bundle: Bundle, call: Callable[[Arrays], Sequence[Array]], owner: object = None) -> None:
        manifest = bundle.manifest
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self._owner, self._log = owner, CallLog()
        self._energy: Energy | None = None
        self.run = counted_run(call, self.inputs, self.outputs, manifest.dynamic, self._log)

    def stats(self) -> SessionStats:
        """Calls and times so far."""
        return msgspec.structs.replace(self._log.stats(), energy=self._energy)

    def count_energy(self, energy: Energy) -> None:
        """Keep what a window measured of this session's calls."""
        self._energy = energy

    def close(self) -> None:
        """Free the model."""
        self.run = closed_run
        self._owner = None

    def __enter__(self) -> CountedSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Session(Protocol):
    """An open model. Use it as a context manager, or call `close`."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""

    @property
    def run(self) -> Callable[[Arrays], Arrays]:
        """One inference. Raises `InvalidInput` when names, dtypes or shapes do not fit."""

    def stats(self) -> SessionStats:
        """Calls and times so far."""

    def count_energy(self, energy: Energy) -> None:
        """Keep what a window measured of this session's calls, for `stats`."""

    def close(self) -> None:
        """Free the model. Closing twice is fine; running after it raises `InvalidInput`."""

    def __enter__(self) -> Session: ...
    def __exit__(self, *exc: object) -> None: ...


class Runtime(Protocol):
    """What a module in `runtimes/` offers. Its file name is the runtime's name."""

    FORMAT: str  # the artifact format it runs

    def load_backend(self) -> str:
        """Import the backend and return its version. Raises `ToolchainMissing`."""

    def open_session(self, bundle: Bundle, *, threads: int = 1) -> Session:
        """Load the bundle's artifact. Raises `ToolchainMissing`, `BundleCorrupt`."""

    def delegation(self, bundle: Bundle, feeds: Arrays) -> Delegation:
        """Run once and report which unit ran each op."""

    def time_ops(self, bundle: Bundle, feeds: Arrays, *, threads: int = 1) -> OpProfile:
        """The time of each op by the backend's own profiler; without ops and with a reason where it has none."""
