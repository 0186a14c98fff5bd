"""How the time of a call splits, from the trace (ETDump) that ExecuTorch's runtime writes of every op it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.op_profile import WARM_CALLS, OpEvent, call_seconds
from edgekit.quiet import quiet_native
from edgekit.runtimes._executorch_file import LAYOUT_OPS

WHOLE = "Method::execute"
XNNPACK_COPY = "Transpose"  # how its ops that only move data are called in a trace
KERNEL = "native_call_"  # begins the event of a portable kernel; `OPERATOR_CALL` is the same with its arguments' checks
NANOSECOND = 1e-9


def traced_calls(path: Path, method: str, inputs: Sequence[Any], calls: int) -> tuple[list[float], list[list[Any]]]:
    """Seconds and profiled events of each of some calls with warm caches; `inputs` are torch tensors.

    Raises `ImportError`, `RuntimeError`, `OSError` or `AttributeError` where this build of the runtime writes no
    traces, or cannot read them.
    """
    with quiet_native():
        from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc
        from executorch.extension.pybindings import portable_lib

        module = portable_lib._load_for_executorch(str(path), enable_etdump=True)
        times = call_seconds(lambda: module.run_method(method, tuple(inputs)), WARM_CALLS + calls)
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace"
            module.write_etdump_result_to_file(str(trace))
            runs = deserialize_from_etdump_flatcc(trace.read_bytes()).run_data
    events = [[event.profile_event for event in run.events if event.profile_event] for run in runs]
    executed = [each for each in events if any(event.name == WHOLE for event in each)]  # others loaded the program
    return times[WARM_CALLS:], executed[WARM_CALLS:]


def layout_copies_share(path: Path, method: str, inputs: Sequence[Any]) -> float | None:
    """The share of a call's time in ops that only move data; None where there is no trace."""
    try:
        _, [events] = traced_calls(path, method, inputs, 1)
    except (ImportError, RuntimeError, OSError, AttributeError, ValueError):
        return None
    whole = sum(_seconds(event) for event in events if event.name == WHOLE)
    return sum(_seconds(event) for event in events if _moves(event)) / whole if whole else None


def op_events(events: Sequence[Any]) -> list[OpEvent]:
    """The ops of one traced call: XNNPACK's by its own names, and portable kernels."""
    found = []
    for event in events:
        place = f"instruction {event.instruction_id}"
        if event.name is None:
            op, _, number = str(event.delegate_debug_id_str).partition(" #")  # XNNPACK counts the ops of a type
            found.append(OpEvent(op=op, name=f"#{number} of {place}", unit="xnnpack", seconds=_seconds(event)))
        elif event.name.startswith(KERNEL):
            op = event.name.removeprefix(KERNEL).rpartition(".")[0]
            found.append(OpEvent(op=op, name=place, unit="portable", seconds=_seconds(event)))
    return found


def _seconds(event: Any) -> float:
    return float(event.end_time - event.start_time) * NANOSECOND


def _moves(event: Any) -> bool:
    """Whether an event is a transpose inside a delegate, or a call of a portable kernel that copies."""
    if event.name is None:
        return str(event.delegate_debug_id_str or "").startswith(XNNPACK_COPY)
    return any(f"_call_{op}." in event.name for op in LAYOUT_OPS)
