"""ExecuTorch's Arm backend, the second road to Ethos-U NPUs: PyTorch's graph in, a .pte out whose pieces the NPU runs.

It quantises the float program by its own rules, so that the integers differ from those of the artifact beside it, which
is quantised for CPUs. Nothing here can run its commands; Arm's TOSA reference model runs what they were made of.
Source: executorch 1.5, backends/arm; the TOSA specification 1.0.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.fx import Node

from edgekit.bundle import Compiled, CompiledCheck, Delegation, Fallback
from edgekit.compiling import CompileJob, CompileResult
from edgekit.compression import Progress
from edgekit.environments import environment_missing
from edgekit.errors import UnsupportedModel
from edgekit.exporters._executorch_delegation import edge_op
from edgekit.exporters.compilers import _vela_program
from edgekit.exporting import ExportJob
from edgekit.graph import module_path, op_nodes, source_line
from edgekit.types import Precision

PRECISIONS: tuple[Precision, ...] = ("int8",)
OPTIONS: dict[str, Any] = {}
ENVIRONMENT = "executorch-arm"
FILE = "model_ethos_u.pte"
CASTS = "quantized_decomposed."  # between float and int8: within a piece they are part of the ops beside them
BORDER = "a cast between the NPU's int8 and float32, which an end of the program or the op beside it has"


def missing() -> str | None:
    """Why it cannot run here. See `edgekit.compiling.DeviceCompiler`."""
    return environment_missing(ENVIRONMENT, "ExecuTorch's Arm backend")


def compile(job: CompileJob, out: Path, progress: Progress) -> CompileResult:
    """Quantise, lower, and check bit by bit. See `edgekit.compiling.DeviceCompiler`."""
    from edgekit.exporters.compilers import _arm_program

    job.require_fixed_sizes("ExecuTorch's Arm backend")
    _require_integers(job.export)
    target = _vela_program.target_of(job.unit)
    with tempfile.TemporaryDirectory() as folder:
        lowered = _arm_program.lower(job.export, target, Path(folder), progress)
    delegation = _placement(lowered, job.unit.name)
    progress(f"run the TOSA reference model on {len(job.samples)} samples")
    answers = _arm_program.reference_answers(lowered, job.export, job.samples)
    estimate = _arm_program.total(lowered.pieces)
    _arm_program.write(lowered, out / FILE)
    compiled = Compiled(
        path=FILE,
        bytes=(out / FILE).stat().st_size,
        compiler="executorch_arm",
        version=f"{version('executorch')} with vela {_vela_program.version()}",
        precision="int8",
        target=_vela_program.words(target),
        delegation=delegation,
        estimate=estimate,
        check=CompiledCheck(
            by=f"Arm's TOSA reference model {version('tosa-tools')}",
            covers="the integers of every op that the NPU gets, as TOSA defines them, with PyTorch for the others",
            excludes="Vela's translation of them into the NPU's commands, and the NPU",
        ),
    )
    return CompileResult(compiled=compiled, answers=answers)


def _require_integers(job: ExportJob) -> None:
    """Raise `UnsupportedModel` where not everything can be quantised."""
    if not job.calibration:
        raise UnsupportedModel("ExecuTorch's Arm backend needs samples to quantise with: give --calibration")
    if job.quantization and (kept := (*job.quantization.keep_float, *job.quantization.float_products)):
        raise UnsupportedModel(f"an Ethos-U has no float, and {', '.join(kept)} are to stay float: quantise them too")


def _placement(lowered: Any, npu: str) -> Delegation:
    """Ops by unit, counted as PyTorch's graph has them when Arm's backend takes it over."""
    on_npu = Counter(
        name
        for piece in lowered.pieces.values()
        for node in op_nodes(piece.lowered.original_module.graph)
        if not (name := edge_op(node)).startswith(CASTS)
    )
    left = op_nodes(lowered.program.graph)
    fallbacks = tuple(_fallback(node, lowered.reasons.get(node.name)) for node in left)
    if not on_npu:
        why = next((f"{each.op} at {each.where}: {each.reason}" for each in fallbacks if each.reason != BORDER), "")
        raise UnsupportedModel(f"ExecuTorch's Arm backend leaves every op to the CPU. {why}")
    cpu = dict(Counter(edge_op(node) for node in left))
    return Delegation(
        unit=npu,
        units={npu: dict(on_npu)} | ({"cpu": cpu} if cpu else {}),
        partitions=len(lowered.pieces),
        fallbacks=fallbacks,
    )


def _fallback(node: Node, reason: str | None) -> Fallback:
    op = edge_op(node)
    unsaid = BORDER if op.startswith(CASTS) else "Arm's partitioner left it out and does not say why"
    return Fallback(op=op, where=_place(node), source=source_line(node), reason=reason or unsaid)


def _place(node: Node) -> str:
    """The module's path. Of a cast, which has none: the end of the program that it serves, or the op beside it."""
    if not edge_op(node).startswith(CASTS):
        return module_path(node) or "forward"
    if sources := [source for source in node.all_input_nodes if source.op == "placeholder"]:
        return f"input {sources[0].name}"
    if any(user.op == "output" for user in node.users):
        return "output"
    return next((path for other in (*node.users, *node.all_input_nodes) if (path := module_path(other))), "forward")
