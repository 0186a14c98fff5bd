"""Arm's Vela, for Ethos-U NPUs: int8 TFLite in, TFLite out in which each stretch that the NPU runs is one op.

It is a program of its own, found where edgekit is installed or on the path. What it says of cycles and memory comes
from its model of the NPU, in the system that the device profile names: nothing is run.
Source: ethos-u-vela 5.2.0, OPTIONS.md and the columns of its summary file.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgekit.bundle import Compiled, CompilerEstimate, Delegation, Fallback, record_file
from edgekit.errors import EdgekitError, InvalidInput, ToolchainMissing, UnsupportedModel
from edgekit.exporters._tflite_file import module
from edgekit.profile import ComputeUnit, VelaTarget
from edgekit.runtimes._litert_delegation import origins
from edgekit.runtimes._litert_file import operators, parse_model

OPTIONS: dict[str, Any] = {"integer_io": True, "layout": "NHWC"}
CONFIG = "Arm/vela.ini"  # ships with Vela, and defines the systems that profiles name
NPU_OP = "CUSTOM"  # the only one that Vela writes is `ethos-u`
KIB = 1024
REASON = re.compile(r"operator: \w+, ofm: '(?P<output>.*)'\n(?:Reason: |\s*- )(?P<reason>.*)")


def compile(artifact: Path, unit: ComputeUnit, out: Path) -> Compiled:
    """Run Vela for the system of the profile. See `edgekit.compiling.DeviceCompiler`."""
    target = unit.vela
    if target is None:
        raise InvalidInput(
            f"unit '{unit.name}' of the device profile has no [unit.vela], which says what to compile for"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = _run(artifact, target, folder)
        (made,) = folder.glob("*_vela.tflite")
        (summary,) = folder.glob("*_summary_*.csv")
        path = shutil.copy(made, out / f"{artifact.stem}_vela.tflite")
        estimate = _estimate(summary)
    return Compiled(
        compiler="vela",
        version=_vela("--version").stdout.strip(),
        target={"accelerator_config": target.accelerator_config, "system_config": target.system_config,
                "memory_mode": target.memory_mode},
        delegation=_placement(artifact.read_bytes(), Path(path).read_bytes(), unit.name, log),
        estimate=estimate,
        **record_file(out, Path(path).name),
    )  # fmt: skip


def _run(artifact: Path, target: VelaTarget, out: Path) -> str:
    """What Vela says."""
    done = _vela(
        str(artifact), "--accelerator-config", target.accelerator_config, "--system-config", target.system_config,
        "--memory-mode", target.memory_mode, "--config", CONFIG, "--output-dir", str(out),
    )  # fmt: skip
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise EdgekitError(
            f"vela does not compile '{artifact}': {said[-1] if said else f'exit code {done.returncode}'}"
        )
    return done.stdout + done.stderr


def _vela(*arguments: str) -> subprocess.CompletedProcess[str]:
    if find_spec("ethosu"):
        program = [sys.executable, "-P", "-m", "ethosu.vela"]
    elif found := shutil.which("vela"):
        program = [found]
    else:
        raise ToolchainMissing("Ethos-U NPUs need Arm's compiler Vela: pip install 'edgekit[ethos-u]', or pipx install "
                               "ethos-u-vela where its pins are in the way")  # fmt: skip
    return subprocess.run([*program, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def _estimate(summary: Path) -> CompilerEstimate:
    """The one row of Vela's summary file."""
    with summary.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    used = {
        memory: round(KIB * float(row[f"{memory}_memory_used"]))
        for memory in ("sram", "dram", "on_chip_flash", "off_chip_flash")
    }
    return CompilerEstimate(
        cycles=int(row["cycles_total"]),
        latency_s=float(row["inference_time"]),
        memory_bytes={memory: size for memory, size in used.items() if size},
    )


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
