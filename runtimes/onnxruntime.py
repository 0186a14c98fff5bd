"""onnxruntime on the CPU."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle, Delegation, Fallback
from edgekit.errors import BundleCorrupt, ToolchainMissing
from edgekit.op_profile import WARM_CALLS, OpEvent, OpProfile, call_seconds, summarize_ops, watched_calls
from edgekit.processing import Arrays
from edgekit.runtimes._onnx_modules import node_modules
from edgekit.session import CountedSession

FORMAT = "onnx"
UNIT = "cpu"  # the execution provider that edgekit opens sessions with
LAYOUT_OPS = {"Transpose", "ReorderInput", "ReorderOutput"}
HOLDERS = {"If", "Loop", "Scan"}  # their time is that of the ops within, which have events of their own
PROFILER = "onnxruntime's profiler"
KERNEL, RUN = "_kernel_time", "model_run"  # how its events are called
FUSED = re.compile(r"(_token_\d+|/\w+)+$")  # what the optimiser adds to the name of a node that it replaces
FLOAT_OPS = {"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "LSTM", "GRU"}
MICROSECOND = 1e-6
Event = dict[str, Any]


def load_backend() -> str:
    """Import onnxruntime and return its version."""
    return str(_package().__version__)


def open_session(bundle: Bundle, *, threads: int = 1) -> CountedSession:
    """Load the bundle's model into onnxruntime."""
    session = _open(bundle, _options(threads))
    names = [spec.name for spec in bundle.manifest.outputs]
    found = {output.name for output in session.get_outputs()}
    if missing := [name for name in names if name not in found]:
        raise BundleCorrupt(f"'{bundle.artifact_path}' has no output '{missing[0]}', which the manifest names")
    return CountedSession(bundle, partial(session.run, names))


def delegation(bundle: Bundle, feeds: Arrays) -> Delegation:
    """Run once with onnxruntime's profiler: the kernels of each execution provider, and the time of layout copies."""
    _, [kernels] = _profiled(bundle, feeds, 1, 1)
    units: dict[str, Counter[str]] = {}
    for event in kernels:
        units.setdefault(_unit(event), Counter())[event["args"]["op_name"]] += 1
    copies = [event for event in kernels if event["args"]["op_name"] in LAYOUT_OPS]
    floating = [_name(event) for event in kernels if event["args"]["op_name"] in FLOAT_OPS]
    return Delegation(
        unit=UNIT,
        units={unit: dict(ops.most_common()) for unit, ops in units.items()},
        layout_copies=len(copies),
        layout_copies_share=sum(e["dur"] for e in copies) / max(1, sum(e["dur"] for e in kernels)),
        float_islands=tuple(floating) if bundle.manifest.precision.quantized_ops else (),
        fallbacks=tuple(
            Fallback(op=e["args"]["op_name"], where=e["name"], reason=f"{UNIT} has no kernel for it")
            for e in kernels
            if _unit(e) != UNIT
        ),
    )


def time_ops(bundle: Bundle, feeds: Arrays, *, threads: int = 1) -> OpProfile:
    """The time of each node of the optimised graph, from onnxruntime's profiler."""
    calls, plain_s = watched_calls(partial(_open(bundle, _options(threads)).run, None, feeds))
    watched_s, inferences = _profiled(bundle, feeds, threads, WARM_CALLS + calls)
    modules = node_modules(bundle.artifact_path)
    events = [[_op(event, modules) for event in kernels] for kernels in inferences[WARM_CALLS:]]
    ops = [[op for op in each if op.op not in HOLDERS] for each in events]
    return summarize_ops(PROFILER, plain_s, watched_s[WARM_CALLS:], ops)


def _profiled(bundle: Bundle, feeds: Arrays, threads: int, calls: int) -> tuple[list[float], list[list[Event]]]:
    """Seconds and kernel events of each of some calls."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _open(bundle, options)
        times = call_seconds(lambda: session.run(None, feeds), calls)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    inferences: list[list[Event]] = [[]]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            inferences[-1].append(event)
        elif event["name"] == RUN:  # noted when a call ends
            inferences.append([])
    return times, inferences[:calls]


def _op(event: Event, modules: Mapping[str, str]) -> OpEvent:
    name = _name(event)
    module = modules.get(FUSED.sub("", name))
    seconds = event["dur"] * MICROSECOND
    return OpEvent(op=event["args"]["op_name"], name=name, unit=_unit(event), module=module, seconds=seconds)


def _name(event: Event) -> str:
    return str(event["name"]).removesuffix(KERNEL)


def _unit(event: Event) -> str:
    provider: str = event["args"]["provider"]
    return provider.removesuffix("ExecutionProvider").lower()


def _package() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ToolchainMissing("runtime 'onnxruntime' is not installed: pip install 'edgekit[onnxruntime]'") from error
    return onnxruntime


def _options(threads: int) -> Any:
    options = _package().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they also raise
    return options


def _open(bundle: Bundle, options: Any) -> Any:
    onnxruntime = _package()
    try:
        return onnxruntime.InferenceSession(bundle.artifact_path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception types share no public base
        raise BundleCorrupt(
            f"onnxruntime {onnxruntime.__version__} cannot load '{bundle.artifact_path}': {error}. The bundle asks for "
            f"{bundle.artifact.runtime_version_range}"
        ) from error
