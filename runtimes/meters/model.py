"""No meter but a model: idle power all the time, and active power while cores are busy, from the device profile.

E = P_idle t + (P_active - P_idle) t_busy, where t_busy is this process's CPU time over the number of cores that
were at work when P_active was measured. What it gives never stands where a measured figure does.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from edgekit import sysfs
from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, Snapshot, not_here, require
from edgekit.errors import EdgekitError
from edgekit.profile import DeviceProfile, find_device
from edgekit.types import Value


class Model(Value, frozen=True, kw_only=True):
    """`device` is the profile of this machine; boards name themselves."""

    device: str = ""
    name_file: str = "/proc/device-tree/model"

    @property
    def info(self) -> MeterInfo:
        """Whatever the watts of the profile are of."""
        profile = self._profile() if self.available().ok else None
        measured = profile is not None and profile.power is not None and all(
            watts and watts.status == "measured" for watts in (profile.power.idle_w, profile.power.active_w)
        )  # fmt: skip
        return MeterInfo(
            id=f"model {profile.id}" if profile else "model",
            provenance="modelled.calibrated" if measured else "modelled.analytical",
            domains=("device",),
            covers=(profile.power.scope,) if profile and profile.power else (),
            excludes=(),
            update_period_s=1e-3,
            resolution_j=1e-9,
        )

    def available(self) -> Availability:
        """Whether it is known what this machine is, and what it draws."""
        try:
            profile = self._profile()
        except EdgekitError as error:
            return not_here(str(error), "name its profile, if it has one: --meter model,device=ID")
        if profile is None:
            return not_here("this machine does not say which device it is", "if you know: --meter model,device=ID")
        if not (profile.power and profile.power.idle_w and profile.power.active_w):
            return not_here(f"profile '{profile.id}' has no idle and active watts", "measure them: edgekit calibrate")
        if profile.main_unit.kind != "cpu":
            return not_here(f"how busy a {profile.main_unit.kind} is cannot be told from here", "measure it with nvml")
        return HERE_IT_IS

    def open(self) -> Counter:
        """Start to count CPU time."""
        require("model", self.available())
        return _TwoStates(self.info, self._profile())

    def _profile(self) -> DeviceProfile | None:
        board = (sysfs.read_text(Path(self.name_file)) or "").rstrip("\0").partition(" Rev ")[0]
        name = self.device or board
        return find_device(name) if name else None


class _TwoStates(Counter):
    def __init__(self, info: MeterInfo, profile: DeviceProfile | None) -> None:
        if profile is None or profile.power is None or not (profile.power.idle_w and profile.power.active_w):
            raise EdgekitError("the profile lost its watts")
        self._info, self._idle_w = info, profile.power.idle_w.value
        self._active_w, cores = profile.power.active_w.value, profile.main_unit.cores
        self._cores = profile.power.active_threads or (cores.value if cores else os.cpu_count() or 1)

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        now, busy_s = time.monotonic_ns(), time.process_time() / self._cores
        return Snapshot(
            t_ns=now, joules={"device": self._idle_w * now / 1e9 + (self._active_w - self._idle_w) * busy_s}
        )


METER = Model
