"""Did the machine slow itself down? What its sensors raise as flags, and what the times alone tell.

A flag is a short text. One that ends in "since boot" is history: it counts only when it was not there before. Sources:
the bits of `vcgencmd get_throttled` (Raspberry Pi documentation), nvmlClocksEventReasons (NVML API reference), the
kernel's Documentation/ABI for thermal zones, cooling devices and core_throttle_count.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.sysfs import SYS, ask_tool, read_number, read_text

SINCE_BOOT = "since boot"
THROTTLING_DRIFT = 1.05  # last quarter's median over the first's
PI_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
PI_HISTORY = 16  # the same bits, of what happened since boot
GPU_BITS = {2: "power cap", 3: "hardware slowdown", 5: "software thermal slowdown", 6: "hardware thermal slowdown",
            7: "power brake"}  # fmt: skip


def throttle_flags(tree: Path = SYS) -> tuple[str, ...] | None:
    """The flags that are raised now; None on a machine where no sensor tells."""
    sensors = (_raspberry_pi(tree), _trip_points(tree), _cooling(tree), _cores(tree), _gpus())
    told = [flags for flags in sensors if flags is not None]
    return tuple(flag for flags in told for flag in flags) if told else None


def throttling(before: tuple[str, ...] | None, after: tuple[str, ...] | None) -> tuple[str, ...]:
    """The signs that a machine slowed down between two readings of its flags."""
    old, new = before or (), after or ()
    now = [flag for flag in (*old, *new) if not flag.endswith(SINCE_BOOT)]
    risen = [f"{flag}, which rose meanwhile" for flag in new if flag.endswith(SINCE_BOOT) and flag not in old]
    return tuple(dict.fromkeys([*now, *risen]))


def slowed(drift: float) -> tuple[str, ...]:
    """The sign that needs no sensor: the median of the last quarter of the calls over that of the first."""
    return (f"calls became {drift - 1:.0%} slower from first to last quarter",) if drift > THROTTLING_DRIFT else ()


def _raspberry_pi(tree: Path) -> list[str] | None:
    """The firmware's bits, from the kernel or else from its own tool: hexadecimal, after `throttled=` from the tool."""
    platform = tree / "devices/platform"
    files = [*platform.glob("*firmware*/get_throttled"), *platform.glob("*/*firmware*/get_throttled")]
    text = read_text(files[0]) if files else ask_tool("vcgencmd", "get_throttled")
    try:
        bits = int((text or "").removeprefix("throttled="), 16)
    except ValueError:
        return None
    now = [name for bit, name in PI_BITS.items() if bits >> bit & 1]
    return now + [f"{name} {SINCE_BOOT}" for bit, name in PI_BITS.items() if bits >> PI_HISTORY + bit & 1]


def _trip_points(tree: Path) -> list[str] | None:
    """Thermal zones at or above the temperature from which the kernel cools by slowing down."""
    found, told = [], False
    for kind in sorted(tree.glob("class/thermal/thermal_zone*/trip_point_*_type")):
        if read_text(kind) not in {"passive", "hot", "critical"}:
            continue
        now = read_number(kind.parent / "temp", 1e-3)
        trip = read_number(kind.with_name(kind.name.replace("_type", "_temp")), 1e-3)
        if now is None or trip is None or trip <= 0:  # an unused trip point stands at 0 or below
            continue
        told = True
        if now >= trip:
            name = read_text(kind.parent / "type") or kind.parent.name
            found.append(f"{name} at its {read_text(kind)} trip point of {trip:.0f} C")
    return found if told else None


def _cooling(tree: Path) -> list[str] | None:
    """Cooling devices that work by lowering a processor's clock."""
    clocks = [
        device
        for device in sorted(tree.glob("class/thermal/cooling_device*"))
        if "cpufreq" in (kind := read_text(device / "type") or "") or kind == "Processor"
    ]
    working = [f"{read_text(device / 'type')} lowered" for device in clocks if read_number(device / "cur_state")]
    return list(dict.fromkeys(working)) if clocks else None


def _cores(tree: Path) -> list[str] | None:
    """How often x86 cores slowed down for heat."""
    counts = [read_number(path) for path in tree.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")]
    events = sum(count for count in counts if count)
    return ([f"{events:.0f} core thermal events {SINCE_BOOT}"] if events else []) if counts else None


def _gpus() -> list[str] | None:
    """Why NVIDIA GPUs run below their clocks."""
    said = ask_tool("nvidia-smi", "--query-gpu=index,clocks_throttle_reasons.active", "--format=csv,noheader")
    found, told = [], False
    for line in (said or "").splitlines():
        index, _, mask = line.partition(",")
        try:
            bits = int(mask, 16)
        except ValueError:  # "[N/A]"
            continue
        told = True
        found += [f"gpu {index}: {name}" for bit, name in GPU_BITS.items() if bits >> bit & 1]
    return found if told else None
