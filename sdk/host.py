"""Read the state of this machine that moves measurements: clocks, governor, temperature, memory."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

from edgekit.measurement import HostState
from edgekit.sysfs import SYS, ask_tool, read_number, read_text
from edgekit.throttle import throttle_flags

PLAUSIBLE_C = (-40.0, 150.0)  # a zone without a sensor reads as -273 or as 0xffff
EMULATED = Path("/etc/edgekit-emulated")  # a root that only emulators run has this file


def host_state(tree: Path = SYS) -> HostState:
    """What the kernel says right now; None where it says nothing."""
    clock = tree / "devices/system/cpu/cpu0/cpufreq"
    return HostState(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpu=_cpu_name(),
        cores=cores(),
        python=platform.python_version(),
        governor=read_text(clock / "scaling_governor"),
        clock_min_hz=read_number(clock / "scaling_min_freq", 1e3),
        clock_max_hz=read_number(clock / "scaling_max_freq", 1e3),
        clock_now_hz=read_number(clock / "scaling_cur_freq", 1e3) or _clock_now_hz(),
        temperature_c=_temperature_c(tree),
        affinity=_affinity(),
        power_mode=_power_mode(tree),
        power_supply=_power_supply(tree),
        throttle_flags=throttle_flags(tree),
        emulated=EMULATED.exists() or "QEMU_CPU" in os.environ,
    )


def cores() -> int:
    """Cores this process may run on."""
    return len(_affinity() or ()) or os.cpu_count() or 1


def _affinity() -> tuple[int, ...] | None:
    """The cores themselves; None where the system does not say."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def peak_rss_bytes() -> int:
    """The most resident memory this program ever held."""
    for line in (read_text(Path("/proc/self/status")) or "").splitlines():
        if line.startswith("VmHWM:"):  # getrusage would also count the program that started this one
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process, None where the kernel does not say or the process is gone."""
    for line in (read_text(Path(f"/proc/{pid}/status")) or "").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


def available_memory_bytes() -> int | None:
    """Memory that can be taken without swapping, None where the kernel does not say."""
    for line in (read_text(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cpu_name() -> str | None:
    for line in (read_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.processor() or None


def _clock_now_hz() -> float | None:
    for line in (read_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2]) * 1e6
    return None


def _temperature_c(tree: Path) -> float | None:
    """The hottest thermal zone, which is what throttles first."""
    zones = [read_number(path, 1e-3) for path in tree.glob("class/thermal/thermal_zone*/temp")]
    return max((zone for zone in zones if zone and PLAUSIBLE_C[0] < zone < PLAUSIBLE_C[1]), default=None)


def _power_mode(tree: Path) -> str | None:
    """The Jetson's or the laptop's power mode."""
    said = ask_tool("nvpmodel", "-q") or ""
    for line in said.splitlines():
        name, colon, mode = line.partition(":")
        if colon and name.strip().endswith("Power Mode"):
            return f"nvpmodel {mode.strip()}"
    profile = read_text(tree / "firmware/acpi/platform_profile")
    return f"platform profile {profile}" if profile else None


def _power_supply(tree: Path) -> str | None:
    """The mains where they are connected; else the battery with its charge."""
    supplies = sorted(tree.glob("class/power_supply/*"))
    found = []
    for supply in supplies:
        if read_text(supply / "type") == "Battery" and read_text(supply / "scope") != "Device":  # a mouse has one too
            charge = read_number(supply / "capacity")
            level = "" if charge is None else f" {charge:.0f} %"
            found.append(f"battery{level}, {(read_text(supply / 'status') or 'state unknown').lower()}")
    if any(read_number(supply / "online") for supply in supplies):
        found.insert(0, "mains")
    return "; ".join(found) or None
