"""x86 processors: the RAPL counters of Intel and AMD, as Linux shows them under /sys/class/powercap.

Zones nest (psys holds the package, the package its cores) and some appear twice, once through model-specific registers
and once through memory: packages and their DRAM count, each once. Counters wrap within minutes under load.
Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Literal

from edgekit import sysfs
from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, Snapshot, not_here, require
from edgekit.errors import EdgekitError
from edgekit.types import Value

MOST_W = 2000.0  # no processor draws more: a counter is read at least once before it can wrap at that power


class Zone(Value, frozen=True, kw_only=True):
    """One counter."""

    name: str  # "package-0", "package-0 dram", "psys"
    path: str
    wraps_at_uj: int


class Rapl(Value, frozen=True, kw_only=True):
    """`zone` psys counts the whole platform, where the firmware has it."""

    zone: Literal["package", "psys"] = "package"
    root: str = "/sys/class/powercap"

    @property
    def info(self) -> MeterInfo:
        """The processor packages and, where it is counted, their memory."""
        names = tuple(zone.name for zone in self.zones())
        dram = any(name.endswith(" dram") for name in names)
        whole = self.zone == "psys"
        return MeterInfo(
            id=f"rapl {self.zone}",
            provenance="measured.counter",
            domains=names or (self.zone,),
            covers=("cpu", "graphics on its die", *(("dram",) if dram or whole else ()), *(("board",) * whole)),
            excludes=(*(() if dram or whole else ("dram",)), *(() if whole else ("board",)), "gpu", "supply loss"),
            update_period_s=1e-3,
            resolution_j=61e-6,  # 2^-14 J, the unit of most models
            privileges="root, or read permission on energy_uj",
        )

    def zones(self) -> tuple[Zone, ...]:
        """The counters that add up, in the order of their names."""
        found: dict[str, Zone] = {}
        for path in sorted(sysfs.folders(Path(self.root)), key=lambda path: "mmio" in path.name):
            name, wraps_at = self._name(path), sysfs.read_number(path / "max_energy_range_uj")
            if name and wraps_at and name not in found:  # intel-rapl-mmio:0 is intel-rapl:0 once more
                found[name] = Zone(name=name, path=str(path), wraps_at_uj=int(wraps_at))
        return tuple(found[name] for name in sorted(found))

    def available(self) -> Availability:
        """Whether there are counters, and whether this user may read them."""
        zones = self.zones()
        if not zones:
            if not Path(self.root).is_dir():
                return not_here(f"there is no {self.root}", "only x86 Linux on bare metal has it")
            fix = "sudo modprobe intel_rapl_msr; virtual machines have no counters"
            return not_here(f"{self.root} holds no {self.zone} zone with a counter", fix)
        for zone in zones:
            if sysfs.read_number(Path(zone.path) / "energy_uj") is None:
                fix = f"sudo chmod a+r {self.root}/*/energy_uj, until the next boot"
                return not_here(f"{zone.name}/energy_uj may be read by root only (CVE-2020-8694)", fix)
        return HERE_IT_IS

    def open(self) -> Counter:
        """Start counting."""
        require("rapl", self.available())
        return _Counter(self.info, self.zones())

    def _name(self, path: Path) -> str | None:
        """What a zone is called here, None for those that lie within others."""
        name, parts = sysfs.read_text(path / "name"), path.name.split(":")
        if not name or not parts[0].startswith("intel-rapl") or len(parts) < 2:
            return None
        if self.zone == "psys":
            return name if name == "psys" else None
        if name == "dram" and len(parts) == 3:
            return f"{sysfs.read_text(path.with_name(':'.join(parts[:2])) / 'name')} dram"
        return name if name.startswith("package") else None


class _Counter(Counter):
    """Sums differences, so that a wrap is one; a thread reads while nobody else does."""

    def __init__(self, info: MeterInfo, zones: tuple[Zone, ...]) -> None:
        self._info, self._zones, self._lock = info, zones, threading.Lock()
        self._last, self._uj = self._raw(), dict.fromkeys((zone.name for zone in zones), 0)
        self._stop = threading.Event()
        self._wait_s = min(zone.wraps_at_uj for zone in zones) / 1e6 / MOST_W / 2
        self._thread = threading.Thread(target=self._keep_up, name="edgekit rapl", daemon=True)
        self._thread.start()

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        with self._lock:
            now, raw = time.monotonic_ns(), self._raw()
            for zone in self._zones:
                self._uj[zone.name] += (raw[zone.name] - self._last[zone.name]) % zone.wraps_at_uj
            self._last = raw
            return Snapshot(t_ns=now, joules={name: uj / 1e6 for name, uj in self._uj.items()})

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _keep_up(self) -> None:
        while not self._stop.wait(self._wait_s):
            self.read()

    def _raw(self) -> dict[str, int]:
        found = {zone.name: sysfs.read_number(Path(zone.path) / "energy_uj") for zone in self._zones}
        for name, value in found.items():
            if value is None:
                raise EdgekitError(f"meter 'rapl' lost {name}: its energy_uj can no longer be read")
        return {name: int(value) for name, value in found.items() if value is not None}


METER = Rapl
