"""Module and source line of ops that ran outside of a delegate, from what the exporter said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgekit.bundle import Fallback
from edgekit.op_profile import OpEvent


def placed(events: Sequence[OpEvent], unit: str, fallbacks: Sequence[Fallback]) -> list[OpEvent]:
    """The events of one inference; those of `unit` get their places where they are the fallbacks, one by one in order.

    A profiler names ops and not modules; the manifest lists what the delegate left in the order it runs. ExecuTorch's
    trace leaves the namespace of an op out, so the last part of a name decides and the manifest's is kept.
    """
    noted = [event.op for event in events if event.unit == unit]
    if noted != [fallback.op.rpartition(".")[2] for fallback in fallbacks]:
        return list(events)
    places = iter(fallbacks)
    return [_at(event, next(places)) if event.unit == unit else event for event in events]


def _at(event: OpEvent, place: Fallback) -> OpEvent:
    return replace(event, op=place.op, module=place.where, source=place.source)
