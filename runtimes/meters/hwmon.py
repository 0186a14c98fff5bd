"""Sensor chips under /sys/class/hwmon (INA226, INA228, amdgpu, ...): their energy counters, or watts that are sampled.

A chip does not say what its rails feed, and one may lie behind another: rails keep their own names, `covers` holds
these alone, and where there are several you say which to count.
Source: Linux, Documentation/hwmon/sysfs-interface.rst (microwatts, microjoules, millivolts, milliamperes).
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from edgekit import sysfs
from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, Snapshot, not_here, require
from edgekit.runtimes.meters._rails import Rail, rails_of, watts_of
from edgekit.sampling import Sampler
from edgekit.types import Value

PERIOD_S = 0.1
OWN_METER = {"ina3221"}  # on Jetson boards


class Hwmon(Value, frozen=True, kw_only=True):
    """`rails`: names with a plus between them, as `edgekit doctor` lists them."""

    rails: str = ""
    root: str = "/sys/class/hwmon"

    @property
    def info(self) -> MeterInfo:
        """The chosen rails."""
        return self._info(self.chosen())

    def _info(self, chosen: tuple[Rail, ...]) -> MeterInfo:
        names = tuple(rail.name for rail in chosen)
        counted = bool(chosen) and all(rail.kind == "joules" for rail in chosen)
        return MeterInfo(
            id="hwmon " + "+".join(names) if names else "hwmon",
            provenance="measured.counter" if counted else "measured.sampled",
            domains=names,
            covers=names,
            excludes=(),
            update_period_s=PERIOD_S,
            resolution_j=1e-6 if counted else 1e-6 * PERIOD_S,
        )

    def found(self) -> tuple[Rail, ...]:
        """Every rail of every chip, named after both."""
        rails = []
        for chip in sysfs.folders(Path(self.root)):
            name = sysfs.read_text(chip / "name") or chip.name
            if name not in OWN_METER:
                rails += [(chip.name, msgspec.structs.replace(r, name=f"{name}/{r.name}")) for r in rails_of(chip)]
        names = [rail.name for _, rail in rails]
        return tuple(
            rail if names.count(rail.name) == 1 else msgspec.structs.replace(rail, name=f"{folder}/{rail.name}")
            for folder, rail in rails
        )

    def chosen(self) -> tuple[Rail, ...]:
        """The rails to count: those named, or the only one there is."""
        return self._chosen(self.found())

    def _chosen(self, found: tuple[Rail, ...]) -> tuple[Rail, ...]:
        wanted = {name for name in self.rails.split("+") if name}
        if wanted:
            return tuple(rail for rail in found if rail.name in wanted)
        return found if len(found) == 1 else ()

    def available(self) -> Availability:
        """Whether there is a rail, and whether it is clear which to count."""
        found = self.found()
        names, chosen = ", ".join(rail.name for rail in found), self._chosen(found)
        if not found:
            return not_here(
                f"no chip in {self.root} measures power or energy", "fit an INA226 or INA228 with its driver"
            )
        if missing := {name for name in self.rails.split("+") if name} - {rail.name for rail in found}:
            return not_here(f"there is no rail {', '.join(sorted(missing))}", f"there are: {names}")
        if not chosen:
            return not_here(f"there are several rails: {names}", "say which to count: --meter hwmon,rails=ONE+OTHER")
        if len({rail.kind == "joules" for rail in chosen}) > 1:
            return not_here("some of these rails have a counter and some do not", "choose rails of one kind")
        return HERE_IT_IS

    def open(self) -> Counter:
        """Read counters, or start to sample watts."""
        require("hwmon", self.available())
        chosen = self.chosen()
        info = self._info(chosen)
        return _Counter(info, chosen) if info.provenance == "measured.counter" else Sampler(info, watts_of(chosen))


class _Counter(Counter):
    def __init__(self, info: MeterInfo, rails: tuple[Rail, ...]) -> None:
        self._info, self._rails = info, rails

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        return Snapshot(t_ns=time.monotonic_ns(), joules={rail.name: rail.value() for rail in self._rails})


METER = Hwmon
