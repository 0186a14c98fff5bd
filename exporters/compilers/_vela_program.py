"""Arm's Vela as a program: how it is found, called and read, for whatever it compiles.

Source: ethos-u-vela 5.2.0, OPTIONS.md and the columns of its summary file.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from edgekit.bundle import CompilerEstimate
from edgekit.errors import EdgekitError, InvalidInput, ToolchainMissing
from edgekit.profile import ComputeUnit, VelaTarget

CONFIG = "Arm/vela.ini"  # ships with Vela, and defines the systems that profiles name
KIB = 1024
REASONS = 3  # lines of an error that are shown
MEMORIES = ("sram", "dram", "on_chip_flash", "off_chip_flash")


def missing() -> str | None:
    """Why Vela cannot run here, with what brings it; None where it can."""
    if _program():
        return None
    return (
        "Ethos-U NPUs need Arm's compiler Vela: pip install 'edgekit[ethos-u]', or pipx install ethos-u-vela where its "
        "pins are in the way"
    )


def target_of(unit: ComputeUnit) -> VelaTarget:
    """What the profile says to compile for. Raises `InvalidInput` where it says nothing."""
    if unit.vela is None:
        raise InvalidInput(
            f"unit '{unit.name}' of the device profile has no [unit.vela], which says what to compile for"
        )
    return unit.vela


def words(target: VelaTarget) -> dict[str, str]:
    """The target in Vela's words."""
    return {
        "accelerator_config": target.accelerator_config,
        "system_config": target.system_config,
        "memory_mode": target.memory_mode,
    }


def run(model: Path, target: VelaTarget, out: Path, *more: str) -> str:
    """Compile `model` into the folder `out`; what Vela says. Raises `EdgekitError` with its last words."""
    named = [each for name, value in words(target).items() for each in (f"--{name.replace('_', '-')}", value)]
    done = _call(str(model), *named, "--config", CONFIG, "--output-dir", str(out), *more)
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        first = next((i for i, line in enumerate(said) if "Error: " in line), len(said) - 1)  # reasons follow it
        why = " ".join(said[first : first + REASONS]) or f"exit code {done.returncode}"
        raise EdgekitError(f"vela does not compile '{model}': {why}")
    return done.stdout + done.stderr


def version() -> str:
    """Vela's own."""
    return _call("--version").stdout.strip()


def read_estimate(folder: Path) -> CompilerEstimate:
    """The one row of the summary file that Vela left in `folder`. Raises `EdgekitError` for anything else."""
    try:
        (path,) = folder.glob("*_summary_*.csv")
        with path.open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        used = {memory: round(KIB * float(row[f"{memory}_memory_used"])) for memory in MEMORIES}
        cycles, latency = int(row["cycles_total"]), float(row["inference_time"])
    except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
        raise EdgekitError(f"vela's summary is not as version 5 writes it: {type(error).__name__}: {error}") from error
    if cycles < 0 or not 0 <= latency < float("inf") or min(used.values()) < 0:
        raise EdgekitError(f"vela's summary expects {cycles} cycles and {latency} s, which cannot be")
    return CompilerEstimate(
        cycles=cycles, latency_s=latency, memory_bytes={memory: size for memory, size in used.items() if size}
    )


def _call(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = _program()
    if program is None:
        raise ToolchainMissing(missing())
    return subprocess.run([*program, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def _program() -> list[str] | None:
    if find_spec("ethosu"):
        return [sys.executable, "-P", "-m", "ethosu.vela"]
    return [found] if (found := shutil.which("vela")) else None
