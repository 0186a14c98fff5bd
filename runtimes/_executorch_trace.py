"""How the time of a call splits, from the trace (ETDump) that ExecuTorch's runtime writes of every op it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.quiet import quiet_native
from edgekit.runtimes._executorch_file import LAYOUT_OPS

CALLS = 3  # the last one counts, with warm caches
WHOLE = "Method::execute"
XNNPACK_COPY = "Transpose"  # how its ops that only move data are called in a trace


def layout_copies_share(path: Path, method: str, inputs: Sequence[Any]) -> float | None:
    """The share of a call's time in ops that only move data; `inputs` are torch tensors in the method's order.

    None where this build of the runtime writes no traces, or cannot read them.
    """
    try:
        return _share(_last_call(path, method, inputs))
    except (ImportError, RuntimeError, OSError, AttributeError):
        return None


def _last_call(path: Path, method: str, inputs: Sequence[Any]) -> list[Any]:
    """The profiled events of the last of `CALLS` calls."""
    with quiet_native():
        from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc
        from executorch.extension.pybindings import portable_lib

        module = portable_lib._load_for_executorch(str(path), enable_etdump=True)
        for _ in range(CALLS):
            module.run_method(method, tuple(inputs))
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace"
            module.write_etdump_result_to_file(str(trace))
            runs = deserialize_from_etdump_flatcc(trace.read_bytes()).run_data
    return [event.profile_event for event in runs[-1].events if event.profile_event] if runs else []


def _share(events: Sequence[Any]) -> float | None:
    whole = sum(event.end_time - event.start_time for event in events if event.name == WHOLE)
    copies = sum(event.end_time - event.start_time for event in events if _moves(event))
    return copies / whole if whole else None


def _moves(event: Any) -> bool:
    """Whether an event is a transpose inside a delegate, or a call of a portable kernel that copies."""
    if event.name is None:
        return str(event.delegate_debug_id_str or "").startswith(XNNPACK_COPY)
    return any(f"_call_{op}." in event.name for op in LAYOUT_OPS)
