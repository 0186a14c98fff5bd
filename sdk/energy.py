"""Joules and where they come from: what a meter says of itself, what it reads, and what a window of readings gives.

An open meter is a counter of joules that only grows, also where the device knows no more than watts (`edgekit.sampling`
integrates them then). The energy of a window is a difference of two readings.
Source: independent uncertainties add as squares (JCGM 100:2008, 5.1.2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, Protocol

import msgspec

from edgekit.errors import MeterMissing
from edgekit.types import Value

Provenance = Literal[  # from the most to the least trusted
    "measured.external",
    "measured.counter",
    "measured.sampled",
    "estimated.platform",
    "modelled.calibrated",
    "modelled.analytical",
    "unavailable",
]
LEAST_UPDATES = 20  # of a counter within a window, below which its edges carry too much and there is no figure
IDLE_DRIFT = 0.1  # of the power that the work adds: beyond it no baseline can be taken off


class MeterInfo(Value, frozen=True, kw_only=True):
    """What a meter reads, of what, how finely, and who may read it."""

    id: str  # the meter, and the device where there can be several: "nvml NVIDIA H200"
    provenance: Provenance
    domains: tuple[str, ...]  # of a snapshot, those that add up to the reading: no two of them overlap
    covers: tuple[str, ...]  # parts whose energy is in the reading: "cpu", "gpu", "npu", "dram", a rail
    excludes: tuple[str, ...]
    update_period_s: float
    resolution_j: float
    gain_uncertainty: float | None = None  # 1 sigma, relative; None: nobody states one
    privileges: str = "none"
    runs_on: Literal["board", "client"] = "board"  # which machine reads it, when these are two


class Availability(Value, frozen=True, kw_only=True):
    """Whether a meter can be read here; if not, why, and what to do."""

    ok: bool
    reason: str | None = None
    enable: str | None = None

    def __str__(self) -> str:
        return "ok" if self.ok else f"{self.reason}; {self.enable}"


HERE_IT_IS = Availability(ok=True)


def not_here(reason: str, enable: str) -> Availability:
    """The availability of a meter that cannot be read: why, and what to do."""
    return Availability(ok=False, reason=reason, enable=enable)


def require(name: str, found: Availability) -> None:
    """Raise `MeterMissing` unless a meter can be read here."""
    if not found.ok:
        raise MeterMissing(f"meter '{name}' cannot be read here: {found}")


class Snapshot(Value, frozen=True, kw_only=True):
    """What a counter stood at: a monotonic clock, and joules per domain since some moment in the past."""

    t_ns: int
    joules: dict[str, float]
    updates: int | None = None  # samples taken so far, where the counter knows


Load = Callable[[int], object]  # keeps the device at work until this nanosecond of the monotonic clock


class Counter(Protocol):
    """An open meter."""

    @property
    def info(self) -> MeterInfo:
        """What it reads, now that the device has been found."""

    def read(self) -> Snapshot:
        """The state now. Raises `EdgekitError` when the device is gone."""

    def mark(self, load: Load) -> None:
        """Make a pattern of load and rest, for a meter that must find this moment in a recording: before and after."""
        return

    def settle(self, taken: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
        """The same snapshots with joules, for a meter that learns them only after the run."""
        return tuple(taken)

    def close(self) -> None:
        """Stop reading."""
        return


class Meter(Protocol):
    """What a module in `runtimes/meters/` offers as `METER`: a frozen value whose fields are the meter's options."""

    @property
    def info(self) -> MeterInfo:
        """What it reads where it is available. Looks at nothing that could fail."""

    def available(self) -> Availability:
        """Whether it can be read here. Never raises."""

    def open(self) -> Counter:
        """Start reading. Raises `MeterMissing` where it is not available."""


class Energy(Value, frozen=True, kw_only=True):
    """Joules per inference and where they come from; None, with the reason, where nothing measured."""

    provenance: Provenance
    meter: str | None = None
    gross_j: float | None = None  # all that the meter covers, idle power included
    net_j: float | None = None  # above the idle baseline
    u_rel: float | None = None  # 1 sigma, of `net_j` where it is given, else of `gross_j`
    covers: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    window_s: float | None = None
    iterations: int = 0
    updates_seen: int = 0  # of the counter within the window, or samples taken
    idle_w: float | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None


NO_METER = Energy(provenance="unavailable", reason="not asked for: edgekit profile --energy measured")


class Window(Value, frozen=True, kw_only=True):
    """The snapshots of one measurement: the edges of trials in a row, and of idle stretches around them."""

    marks: tuple[Snapshot, ...]
    calls: tuple[int, ...]  # inferences between each two marks
    idle: tuple[tuple[Snapshot, Snapshot], ...] = ()  # before and after; empty where none was taken
    edge_s: float  # how long ago the counter may have last moved when an edge was read
    flags: tuple[str, ...] = ()


def reading(info: MeterInfo, window: Window) -> Energy:
    """The energy of one inference in a window, with its uncertainty, or None with the reason."""
    first, last = window.marks[0], window.marks[-1]
    seconds, joules = _seconds(first, last), _joules(info, first, last)
    if first.updates is None or last.updates is None:
        seen = int(seconds / info.update_period_s)
    else:
        seen = last.updates - first.updates
    found = Energy(
        provenance=info.provenance,
        meter=info.id,
        covers=info.covers,
        excludes=info.excludes,
        window_s=seconds,
        iterations=sum(window.calls),
        updates_seen=seen,
        flags=window.flags,
    )
    if not info.domains:
        return msgspec.structs.replace(found, reason=f"meter '{info.id}' measures nothing")
    if joules < 0:
        return _nothing(found, "went_backwards", "the counter was reset within the window")
    if joules < info.resolution_j:
        said = f"the counter did not move in {seconds:.3g} s: a longer window is needed"
        return _nothing(found, "below_resolution", said)
    if seen < LEAST_UPDATES:
        said = f"the counter moved {seen} times in {seconds:.3g} s, and a figure needs {LEAST_UPDATES}"
        return _nothing(found, "few_updates", f"{said}: a longer window is needed")
    flags = [*found.flags]
    if info.gain_uncertainty is None:
        flags.append("gain_unknown")
    gross, each_s = joules / found.iterations, seconds / found.iterations
    u_gross = math.hypot(info.gain_uncertainty or 0.0, _edge(window.edge_s, seconds), _trial_spread(info, window))
    found = msgspec.structs.replace(found, gross_j=gross, u_rel=u_gross, flags=tuple(flags))
    return _above_idle(found, info, window, gross, each_s, u_gross) if window.idle else found


def _nothing(found: Energy, flag: str, reason: str) -> Energy:
    return msgspec.structs.replace(found, flags=(*found.flags, flag), reason=reason)


def _above_idle(found: Energy, info: MeterInfo, window: Window, gross: float, each_s: float, u_gross: float) -> Energy:
    """Take the idle baseline off, unless it moved too much between before and after."""
    watts = [_joules(info, *stretch) / _seconds(*stretch) for stretch in window.idle]
    idle_w, drift = statistics.fmean(watts), max(watts) - min(watts)
    net = gross - idle_w * each_s
    if net <= 0 or drift * each_s > IDLE_DRIFT * net:
        flag = "idle_drift" if net > 0 else "not_above_idle"
        return msgspec.structs.replace(found, idle_w=idle_w, flags=(*found.flags, flag))
    edges = [w * _edge(info.update_period_s, _seconds(*stretch)) for w, stretch in zip(watts, window.idle, strict=True)]
    u_idle_w = math.hypot(drift / math.sqrt(12), *(edge / len(edges) for edge in edges))  # drift: uniform in between
    gain = info.gain_uncertainty or 0.0
    u_net = math.hypot(gain * net, math.sqrt(max(0.0, u_gross**2 - gain**2)) * gross, u_idle_w * each_s)
    return msgspec.structs.replace(found, net_j=net, u_rel=u_net / net, idle_w=idle_w)


def _edge(edge_s: float, seconds: float) -> float:
    """Relative 1 sigma of a difference whose two ends are each late by 0 to `edge_s`: a triangular distribution."""
    return edge_s / (math.sqrt(6) * seconds)


def _trial_spread(info: MeterInfo, window: Window) -> float:
    """Relative 1 sigma of the mean over trials; 0 where there is one."""
    each = [_joules(info, *ends) / n for ends, n in zip(pairwise(window.marks), window.calls, strict=True) if n]
    return statistics.stdev(each) / math.sqrt(len(each)) / statistics.fmean(each) if len(each) > 1 else 0.0


def _joules(info: MeterInfo, first: Snapshot, last: Snapshot) -> float:
    return math.fsum(last.joules[name] - first.joules[name] for name in info.domains)


def _seconds(first: Snapshot, last: Snapshot) -> float:
    return (last.t_ns - first.t_ns) / 1e9
