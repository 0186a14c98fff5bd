"""NVIDIA Jetson: the INA3221 monitors of the module, sampled; every rail keeps the name that the board gave it.

`VDD_IN` feeds the whole module of Orin Nano, Orin NX and Xavier NX, `POM_5V_IN` that of Nano and TX2; other rails lie
behind it. `VDD_CPU_GPU_CV` is one rail for CPU, GPU and CV engines, and is not the CPU's energy.
Sources: Linux, Documentation/hwmon/ina3221.rst; NVIDIA's Jetson and DRIVE documentation.
"""

from __future__ import annotations

from pathlib import Path

from edgekit import sysfs
from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, not_here, require
from edgekit.runtimes.meters._rails import Rail, rails_of, watts_of
from edgekit.sampling import Sampler
from edgekit.types import Value

PERIOD_S = 0.1
WHOLE = ("VDD_IN", "POM_5V_IN")  # rails that feed a whole module
MODULE = ("cpu", "gpu", "npu", "dram", "module")
ENGINES = {"CPU": "cpu", "GPU": "gpu", "CV": "npu", "DDR": "dram", "VDDQ": "dram"}  # words in the names of rails


class JetsonIna3221(Value, frozen=True, kw_only=True):
    """`rails`: names with a plus between them; the one that feeds the module where there is one."""

    rails: str = ""
    hwmon_root: str = "/sys/class/hwmon"
    iio_root: str = "/sys/bus/i2c/drivers/ina3221x"  # JetPack 4

    @property
    def info(self) -> MeterInfo:
        """The chosen rails, and the engines in their names."""
        names = tuple(rail.name for rail in self.chosen())
        whole = any(name in WHOLE for name in names)
        words = {word for name in names for word in name.replace("-", "_").split("_")}
        engines = tuple(engine for word, engine in ENGINES.items() if word in words)
        return MeterInfo(
            id="jetson_ina3221 " + "+".join(names) if names else "jetson_ina3221",
            provenance="measured.sampled",
            domains=names,
            covers=MODULE if whole or not names else tuple(dict.fromkeys(engines)),
            excludes=("carrier board", "usb", "supply loss"),
            update_period_s=PERIOD_S,
            resolution_j=8e-3 * 8e-3 * PERIOD_S,  # 8 mV by 40 uV over 5 mOhm
        )

    def found(self) -> tuple[Rail, ...]:
        """Every named rail of every monitor. A driver may also show the sum of its shunts, which has no name."""
        chips = [chip for chip in sysfs.folders(Path(self.hwmon_root)) if sysfs.read_text(chip / "name") == "ina3221"]
        rails = [rail for chip in chips for rail in rails_of(chip) if not rail.name.startswith("in")]
        return tuple(rails or self._iio())

    def chosen(self) -> tuple[Rail, ...]:
        """The rails to count: those named, or the one that feeds the module."""
        wanted = {name for name in self.rails.split("+") if name} or set(WHOLE)
        return tuple(rail for rail in self.found() if rail.name in wanted)

    def available(self) -> Availability:
        """Whether this is a Jetson with a rail for the whole module, or with those that were named."""
        names = [rail.name for rail in self.found()]
        if not names:
            return not_here("there is no INA3221 under hwmon or iio", "it is part of Jetson modules, with their kernel")
        if missing := {name for name in self.rails.split("+") if name} - {*names}:
            return not_here(f"there is no rail {', '.join(sorted(missing))}", f"there are: {', '.join(names)}")
        if not self.chosen():
            said = f"no single rail feeds this module; there are: {', '.join(names)}"
            return not_here(said, "say which to count: --meter jetson_ina3221,rails=ONE+OTHER")
        return HERE_IT_IS

    def open(self) -> Counter:
        """Start to sample."""
        require("jetson_ina3221", self.available())
        return Sampler(self.info, watts_of(self.chosen()))

    def _iio(self) -> list[Rail]:
        found = []
        for path in sorted(Path(self.iio_root).glob("*/iio:device*/rail_name_*")):
            name, power = sysfs.read_text(path), path.with_name(f"in_power{path.name.rpartition('_')[2]}_input")
            if name and sysfs.read_number(power) is not None:
                found.append(Rail(name=name, paths=(str(power),), kind="watts", scale=1e-3))
        return found


METER = JetsonIna3221
