"""onnxruntime on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle, Delegation, Fallback
from edgekit.errors import BundleCorrupt, ToolchainMissing
from edgekit.processing import Arrays
from edgekit.session import CountedSession

FORMAT = "onnx"
UNIT = "cpu"  # the execution provider that edgekit opens sessions with
LAYOUT_OPS = {"Transpose", "ReorderInput", "ReorderOutput"}
FLOAT_OPS = {"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "LSTM", "GRU"}


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
    with tempfile.TemporaryDirectory() as folder:
        options = _options(1)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _open(bundle, options)
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    units: dict[str, Counter[str]] = {}
    for event in kernels:
        units.setdefault(_unit(event), Counter())[event["args"]["op_name"]] += 1
    copies = [event for event in kernels if event["args"]["op_name"] in LAYOUT_OPS]
    floating = [event["name"] for event in kernels if event["args"]["op_name"] in FLOAT_OPS]
    return Delegation(
        unit=UNIT,
        units={unit: dict(ops.most_common()) for unit, ops in units.items()},
        layout_copies=len(copies),
        layout_copies_share=sum(e["dur"] for e in copies) / max(1, sum(e["dur"] for e in kernels)),
        float_islands=tuple(name.removesuffix("_kernel_time") for name in floating)
        if bundle.manifest.precision.quantized_ops
        else (),
        fallbacks=tuple(
            Fallback(op=e["args"]["op_name"], where=e["name"], reason=f"{UNIT} has no kernel for it")
            for e in kernels
            if _unit(e) != UNIT
        ),
    )


def _unit(event: dict[str, Any]) -> str:
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
