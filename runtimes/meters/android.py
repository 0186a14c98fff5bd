"""A phone over adb: its power monitors where it has them, else its fuel gauge.

Power monitors (On Device Power Monitor, Pixel 6 and later) count microwatt-seconds per rail; perfetto reads them. The
fuel gauge reports the battery's current, of the whole phone, and only while nothing charges it.
Sources: perfetto's android.power data source and power_rails.proto; Android's power monitor documentation.
"""

from __future__ import annotations

import subprocess
import time
from typing import Literal

import msgspec

from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, Snapshot, not_here, require
from edgekit.errors import EdgekitError
from edgekit.runtimes.meters._perfetto import rails_j
from edgekit.sampling import Sampler
from edgekit.types import Value

TRACE = """buffers { size_kb: 1024 } duration_ms: 600
data_sources { config { name: "android.power"
android_power_config { battery_poll_ms: 250 collect_power_rails: true } } }"""
LIMIT_S = 15.0
GAUGE_S = 1.0
LEAST_A, MOST_A = 0.01, 20.0  # of a phone that is awake; outside, the unit is not microamperes


class Android(Value, frozen=True, kw_only=True):
    """`rails`: names with a plus between them; those of the CPU when left out. `source` auto prefers power monitors."""

    serial: str = ""
    rails: str = ""
    source: Literal["auto", "monitors", "battery"] = "auto"
    adb: str = "adb"

    @property
    def info(self) -> MeterInfo:
        """What power monitors give; `open` says which source it is."""
        return MeterInfo(
            id="android monitors",
            provenance="measured.counter",
            domains=(),
            covers=("cpu",),
            excludes=("gpu", "npu", "dram", "display", "radios"),
            update_period_s=0.5,
            resolution_j=1e-6,
            privileges="adb",
            runs_on="client",
        )

    def available(self) -> Availability:
        """Whether the phone answers and one of its sources can be read."""
        if not self.serial:
            return not_here("no phone is named", "--meter android,serial=SERIAL, as `adb devices` lists it")
        try:
            self._source()
        except FileNotFoundError:
            return not_here(f"'{self.adb}' is not installed", "install Android's platform tools")
        except (OSError, subprocess.SubprocessError, EdgekitError) as error:
            return not_here(str(error), "use a Pixel 6 or later, or unplug the phone and use adb over Wi-Fi")
        return HERE_IT_IS

    def open(self) -> Counter:
        """Read monitors at the edges of a window, or sample the fuel gauge every second."""
        require("android", self.available())
        names = self._source()
        if names:
            return _Monitors(self, names)
        whole = msgspec.structs.replace(
            self.info, id="android battery", provenance="measured.sampled", domains=("battery",),
            covers=("cpu", "gpu", "npu", "dram", "display", "radios"), excludes=("charger",), update_period_s=GAUGE_S,
            resolution_j=1e-3,
        )  # fmt: skip
        return Sampler(whole, lambda: {"battery": self.battery_w()})

    def monitors_j(self) -> dict[str, float]:
        """Joules so far by rail; empty where the phone has no power monitors."""
        return rails_j(self._adb("shell", "-T", "perfetto", "--txt", "-c", "-", "-o", "-", text=TRACE))

    def battery_w(self) -> float:
        """What the battery gives now. Raises `EdgekitError` while it charges or where the unit is not plain."""
        state: dict[str, str] = {}
        for line in self._adb("shell", "dumpsys", "battery").decode(errors="replace").splitlines():
            key, _, value = line.strip().partition(": ")
            state.setdefault(key, value)
        plugged = [kind for kind in ("AC", "USB", "Wireless", "Dock") if state.get(f"{kind} powered") == "true"]
        if plugged:
            raise EdgekitError(f"the phone is powered by {', '.join(plugged)}: its battery's current is not its load")
        said = self._adb("shell", "cmd", "battery", "get", "-f", "current_now").decode(errors="replace").split()
        try:
            amperes, volts = abs(int(said[0])) * 1e-6, int(state["voltage"]) * 1e-3
        except (IndexError, KeyError, ValueError) as error:
            raise EdgekitError("the phone does not tell its battery's current and voltage") from error
        if not LEAST_A <= amperes <= MOST_A:
            raise EdgekitError(f"current_now is {said[0]}: no phone's current in microamperes")
        return amperes * volts

    def _source(self) -> tuple[str, ...]:
        """The rails to count, or none for the fuel gauge. Raises `EdgekitError` where neither can be read."""
        found = {} if self.source == "battery" else self.monitors_j()
        wanted = {name for name in self.rails.split("+") if name}
        if missing := wanted - {*found}:
            raise EdgekitError(f"no rail {', '.join(sorted(missing))}; there are: {', '.join(found) or 'none'}")
        names = tuple(name for name in found if name in wanted or (not wanted and "CPU" in name.upper()))
        if self.source == "monitors" and not names:
            raise EdgekitError(f"no power monitor of its CPU; there are: {', '.join(found) or 'none'}")
        if not names:
            self.battery_w()
        return names

    def _adb(self, *arguments: str, text: str = "") -> bytes:
        command = [self.adb, "-s", self.serial, *arguments]
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=LIMIT_S, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().partition("\n")[0]
            raise EdgekitError(f"adb -s {self.serial}: {said or f'code {done.returncode}'}")
        return done.stdout


class _Monitors(Counter):
    def __init__(self, options: Android, names: tuple[str, ...]) -> None:
        self._options, self._names = options, names
        covers = names if options.rails else ("cpu",)
        self._info = msgspec.structs.replace(options.info, domains=names, covers=covers)

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        found = self._options.monitors_j()
        if missing := [name for name in self._names if name not in found]:
            raise EdgekitError(f"meter 'android' lost rail {missing[0]}")
        return Snapshot(t_ns=time.monotonic_ns(), joules={name: found[name] for name in self._names})


METER = Android
