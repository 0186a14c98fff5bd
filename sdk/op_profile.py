"""The time of single ops in one inference, as the profiler of a runtime tells it.

A profiler slows what it watches, and `slowdown` says how much: of the fastest inferences, since what else the machine
did only makes them slower. Of an op's times the median over inferences is kept.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from edgekit.types import Value

WARM_CALLS = 3
LEAST_CALLS, MOST_CALLS, WATCHED_S = 5, 50, 3.0  # inferences that are watched, and the time they may take


class OpTime(Value, frozen=True, kw_only=True):
    """One op of the graph, or all of a type and unit where `by_type` added them up."""

    op: str  # its type in the words of the runtime: "QLinearConv", "Convolution (NHWC, QC8) IGEMM"
    name: str | None = None  # the runtime's name for this one
    unit: str  # that ran it: "cpu", "xnnpack", "portable"
    module: str | None = None  # the path of its PyTorch module; None where the runtime does not keep it
    source: str | None = None  # "model.py:41"
    calls: int  # in one inference
    seconds: float  # in one inference
    share: float  # of the time of all ops


class OpProfile(Value, frozen=True, kw_only=True):
    """How the time of an inference splits over its ops; the slowest op first."""

    by: str  # who measured: "onnxruntime's profiler"
    reason: str | None = None  # why there is no op here
    inferences: int = 0  # that were watched
    plain_s: float | None = None  # the fastest inference before, in the same process, unwatched
    watched_s: float | None = None  # the fastest inference while the profiler watched
    ops: tuple[OpTime, ...] = ()

    @property
    def slowdown(self) -> float | None:
        """How many times longer an inference takes while it is watched."""
        return self.watched_s / self.plain_s if self.watched_s and self.plain_s else None

    @property
    def ops_s(self) -> float:
        """Seconds of all ops in one inference."""
        return sum(op.seconds for op in self.ops)


@dataclass(frozen=True, kw_only=True)
class OpEvent:
    """What a profiler noted of one call of an op."""

    op: str
    unit: str
    seconds: float
    name: str | None = None
    module: str | None = None
    source: str | None = None


def no_ops(by: str, reason: str) -> OpProfile:
    """The profile of a runtime that cannot tell."""
    return OpProfile(by=by, reason=reason)


def call_seconds(call: Callable[[], object], calls: int) -> list[float]:
    """Seconds of each of some calls."""
    times = []
    for _ in range(calls):
        before = perf_counter()
        call()
        times.append(perf_counter() - before)
    return times


def watched_calls(call: Callable[[], object]) -> tuple[int, float]:
    """Warm up, and say how many inferences to watch and what the fastest of as many takes unwatched, in seconds."""
    call_s = min(call_seconds(call, WARM_CALLS))
    calls = max(LEAST_CALLS, min(MOST_CALLS, int(WATCHED_S / call_s)))
    return calls, min(call_seconds(call, calls))


def summarize_ops(
    by: str, plain_s: float, watched_s: Sequence[float], inferences: Sequence[Sequence[OpEvent]]
) -> OpProfile:
    """The profile of the events of each watched inference; a reason and no figure where these tell nothing."""
    if not any(inferences):
        return no_ops(by, f"{by} noted no op")
    seconds: dict[OpEvent, list[float]] = {}
    calls: Counter[OpEvent] = Counter()
    for number, events in enumerate(inferences):
        for event in events:
            same = replace(event, seconds=0.0)
            seconds.setdefault(same, [0.0] * len(inferences))[number] += event.seconds
            calls[same] += 1
    medians = {event: statistics.median(each) for event, each in seconds.items()}
    whole = sum(medians.values())
    if not whole:
        return no_ops(by, "each op took less time than its clock tells apart")
    ops = [
        OpTime(op=event.op, name=event.name, unit=event.unit, module=event.module, source=event.source,
               calls=max(1, round(calls[event] / len(inferences))), seconds=median, share=median / whole)
        for event, median in medians.items()
    ]  # fmt: skip
    return OpProfile(
        by=by,
        inferences=len(inferences),
        plain_s=plain_s,
        watched_s=min(watched_s),
        ops=tuple(sorted(ops, key=lambda op: -op.seconds)),
    )


def by_type(ops: Sequence[OpTime]) -> list[OpTime]:
    """The ops of each type and unit added up, the slowest first."""
    groups: dict[tuple[str, str], list[OpTime]] = {}
    for each in ops:
        groups.setdefault((each.op, each.unit), []).append(each)
    summed = [
        OpTime(op=op, unit=unit, calls=sum(o.calls for o in own), seconds=sum(o.seconds for o in own),
               share=sum(o.share for o in own))
        for (op, unit), own in groups.items()
    ]  # fmt: skip
    return sorted(summed, key=lambda each: -each.seconds)
