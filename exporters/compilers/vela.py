"""Arm's Vela, for Ethos-U NPUs: int8 TFLite in, TFLite out in which each stretch that the NPU runs is one op.

It is a program of its own, found where edgekit is installed or on the path. What it says of cycles and memory comes
from its model of the NPU, in the system that the device profile names: nothing is run.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgekit.bundle import Compiled, CompiledCheck, Delegation, Fallback
from edgekit.compiling import CompileJob, CompileResult
from edgekit.compression import Progress
from edgekit.errors import UnsupportedModel
from edgekit.exporters._tflite_file import module
from edgekit.exporters.compilers import _vela_program
from edgekit.runtimes._litert_delegation import origins
from edgekit.runtimes._litert_file import operators, parse_model
from edgekit.types import Precision

PRECISIONS: tuple[Precision, ...] = ("int8",)
OPTIONS: dict[str, Any] = {"integer_io": True, "layout": "NHWC"}
ENVIRONMENT = None
NPU_OP = "CUSTOM"  # the only one that Vela writes is `ethos-u`
REASON = re.compile(r"operator: \w+, ofm: '(?P<output>.*)'\n(?:Reason: |\s*- )(?P<reason>.*)")
CHECK = CompiledCheck(
    by=None,
    covers="the file that Vela read, in the runtime above",
    excludes="what Vela made of it, and the NPU",
)
missing = _vela_program.missing


def compile(job: CompileJob, out: Path, progress: Progress) -> CompileResult:
    """Run Vela for the system of the profile. See `edgekit.compiling.DeviceCompiler`."""
    target = _vela_program.target_of(job.unit)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = _vela_program.run(job.artifact, target, folder)
        (made,) = folder.glob("*_vela.tflite")
        path = out / f"{job.artifact.stem}_vela.tflite"
        shutil.copy(made, path)
        estimate = _vela_program.read_estimate(folder)
    compiled = Compiled(
        path=path.name,
        bytes=path.stat().st_size,
        compiler="vela",
        version=_vela_program.version(),
        precision="int8",
        target=_vela_program.words(target),
        delegation=_placement(job.artifact.read_bytes(), path.read_bytes(), job.unit.name, log),
        estimate=estimate,
        check=CHECK,
    )
    return CompileResult(compiled=compiled)


def _placement(given: bytes, made: bytes, npu: str, log: str) -> Delegation:
    """Where ops went: what is still an op of its own in the file that Vela wrote is for the host's CPU."""
    reasons = {found["output"]: found["reason"].strip() for found in REASON.finditer(log)}
    compiled = parse_model(made)
    left = [(kind, operator) for kind, operator in operators(compiled) if kind != NPU_OP]
    all_ops, cpu_ops = _counted(operators(parse_model(given))), _counted(left)
    partitions = sum(kind == NPU_OP for kind, _ in operators(compiled))
    if not partitions:
        raise UnsupportedModel(
            f"vela leaves every op to the CPU: {next(iter(reasons.values()), 'it does not say why')}"
        )
    units = {npu: dict(all_ops - cpu_ops)} | ({"cpu": dict(cpu_ops)} if cpu_ops else {})
    tensors = compiled.subgraphs[0].tensors

    def fallback(kind: str, operator: Any) -> Fallback:
        output = tensors[operator.outputs[0]].name.decode()
        reason = reasons.get(output, "vela gives no reason")
        where = module(compiled, kind, operator) or ("forward" if origins(output) else output)
        return Fallback(op=kind, where=where, reason=reason)

    return Delegation(unit=npu, units=units, partitions=partitions, fallbacks=tuple(fallback(*each) for each in left))


def _counted(ops: Iterable[tuple[str, Any]]) -> Counter[str]:
    return Counter(kind for kind, _ in ops)
