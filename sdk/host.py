"""Read the state of this machine that moves measurements: clocks, governor, temperature, memory."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

from edgekit.measurement import HostState

CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
THERMAL = Path("/sys/class/thermal/thermal_zone0/temp")


def host_state() -> HostState:
    """What the kernel says right now; None where it says nothing."""
    return HostState(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpu=_cpu_name(),
        cores=cores(),
        python=platform.python_version(),
        governor=_read(CPUFREQ / "scaling_governor"),
        clock_min_hz=_number(CPUFREQ / "scaling_min_freq", 1e3),
        clock_max_hz=_number(CPUFREQ / "scaling_max_freq", 1e3),
        clock_now_hz=_number(CPUFREQ / "scaling_cur_freq", 1e3) or _clock_now_hz(),
        temperature_c=_number(THERMAL, 1e-3),
    )


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss_bytes() -> int:
    """The most resident memory this program ever held."""
    for line in (_read(Path("/proc/self/status")) or "").splitlines():
        if line.startswith("VmHWM:"):  # getrusage would also count the program that started this one
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process, None where the kernel does not say or the process is gone."""
    for line in (_read(Path(f"/proc/{pid}/status")) or "").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


def available_memory_bytes() -> int | None:
    """Memory that can be taken without swapping, None where the kernel does not say."""
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cpu_name() -> str | None:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.processor() or None


def _clock_now_hz() -> float | None:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2]) * 1e6
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path, scale: float) -> float | None:
    text = _read(path)
    return float(text) * scale if text and text.lstrip("-").isdigit() else None
