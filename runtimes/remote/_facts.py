"""What a board says about itself before anything is sent to it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.errors import EdgekitError, InvalidInput, ToolchainMissing

OLDEST_PYTHON = (3, 11)
HOT_C = 80.0  # a Raspberry Pi slows down from here
# Plain sh, as Android's mksh and Debian's dash both read it; what a board lacks stays empty.
SCRIPT = """
echo machine=$(uname -m)
echo system=$(uname -s)
echo glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null)
echo python=$(python3 -V 2>&1)
echo disk=$(df -Pk . | tail -n 1)
echo memory=$(grep MemAvailable /proc/meminfo)
echo governor=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)
echo temperature=$(cat /sys/class/thermal/thermal_zone0/temp 2>/dev/null)
"""


@dataclass(frozen=True)
class Facts:
    """A board as its shell describes it. None: it does not say."""

    machine: str  # "aarch64"
    system: str
    glibc: tuple[int, ...] | None
    python: tuple[int, ...]  # empty where there is none
    disk_bytes: int | None  # free in the home folder
    memory_bytes: int | None  # available
    governor: str | None
    temperature_c: float | None

    def __str__(self) -> str:
        known = [
            self.machine,
            f"glibc {_dotted(self.glibc)}" if self.glibc else None,
            f"Python {_dotted(self.python)}" if self.python else None,
            f"{self.disk_bytes / 1e9:.1f} GB of disk free" if self.disk_bytes is not None else None,
            f"{self.memory_bytes / 1e9:.1f} GB of memory free" if self.memory_bytes is not None else None,
            f"governor {self.governor}" if self.governor else None,
            f"{self.temperature_c:.0f} °C{', hot' if self.temperature_c >= HOT_C else ''}"
            if self.temperature_c
            else None,
        ]
        return ", ".join(word for word in known if word)


def parse_facts(text: str) -> Facts:
    """The answers to `SCRIPT`. Raises `EdgekitError` where the board's shell answered something else."""
    said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if not said.get("machine") or not said.get("system"):
        raise EdgekitError(f"the board's shell does not answer as a POSIX shell: {text.strip()[:200] or 'nothing'}")
    disk = said.get("disk", "").split()
    memory, temperature = _numbers(said.get("memory", "")), said.get("temperature", "")
    return Facts(
        machine=said["machine"],
        system=said["system"],
        glibc=_numbers(said.get("glibc", "")) or None,
        python=_numbers(said["python"]) if re.fullmatch(r"Python \d+\.\d+\S*", said.get("python", "")) else (),
        disk_bytes=int(disk[3]) * 1024 if len(disk) > 3 and disk[3].isdigit() else None,
        memory_bytes=memory[0] * 1024 if memory else None,
        governor=said.get("governor") or None,
        temperature_c=int(temperature) / 1000 if temperature.lstrip("-").isdigit() else None,
    )


def check_python(name: str, board: Facts) -> None:
    """Raise where the board cannot take wheels."""
    if board.system != "Linux":
        raise InvalidInput(f"{name} runs {board.system}, and boards are measured on Linux")
    if board.python[:2] < OLDEST_PYTHON:
        found = f"has Python {_dotted(board.python)}" if board.python else "has no python3"
        raise ToolchainMissing(f"{name} {found}, and the runtime half needs {_dotted(OLDEST_PYTHON)} or newer")
    if board.glibc is None:
        raise ToolchainMissing(f"{name} has no glibc, for which the backends' wheels are made")


def check_room(name: str, board: Facts, disk_bytes: int, memory_bytes: int) -> None:
    """Raise where what is to be sent does not fit."""
    for what, wanted, free in (("disk", disk_bytes, board.disk_bytes), ("memory", memory_bytes, board.memory_bytes)):
        if free is not None and wanted > free:
            raise InvalidInput(f"{name} has {free / 1e6:.0f} MB of {what} free, and {wanted / 1e6:.0f} MB are needed")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
