"""Device profiles: what a board can do, every number with its source and how far to trust it.

A profile is a TOML file in `device_profiles/`. Units are in the key names, SI inside; rates are dense (1 MAC = 2 ops).
What is not known is left out, and every reader must cope with that.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgekit.errors import InvalidInput, unknown_name
from edgekit.types import DType, Layout, Precision, Value

SCHEMA = "edgekit.profile/1"
PROFILES = "edgekit.device_profiles"
MOST_FRACTION = 1.2  # of a peak: published peaks are now and then below what kernels reach

OpClass = Literal["conv", "dwconv", "gemm", "gemv", "attention", "elementwise", "layout", "gather"]


class Number(Value, frozen=True, kw_only=True):
    """A figure, where it was found, and how it was found.

    `source` is a key of the profile's `sources` table.
    `status`: vendor documentation, a standard, measured, a secondary page, calculated from other figures, or unsure.
    """

    value: float
    source: str
    status: Literal["vendor", "standard", "measured", "secondary", "calculated", "unsure"]
    note: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise ValueError(f"a figure must be positive and finite, not {self.value}: leave out what is not known")


class VelaTarget(Value, frozen=True, kw_only=True):
    """Arguments of Arm's compiler Vela, word for word."""

    source: str
    accelerator_config: str
    system_config: str
    memory_mode: str


class HtpTarget(Value, frozen=True, kw_only=True):
    """What Qualcomm's compilers ask about a Hexagon Tensor Processor."""

    source: str
    soc_id: int
    htp_arch: int
    vtcm_mb: int


class RknnTarget(Value, frozen=True, kw_only=True):
    """What Rockchip's RKNN-Toolkit2 is told to compile for, word for word."""

    source: str
    target_platform: str


Sourced = Number | VelaTarget | HtpTarget | RknnTarget


class ComputeUnit(Value, frozen=True, kw_only=True):
    """An engine that work can be scheduled on."""

    name: str
    kind: Literal["cpu", "gpu", "npu"]
    cores: Number | None = None
    clock_hz: Number | None = None
    isa: tuple[str, ...] = ()
    peak_ops_per_s: dict[DType, Number] = {}  # dense, 1 MAC = 2 ops
    fast_dtypes: tuple[DType, ...] = ()  # dtypes with native arithmetic, the fastest first
    layout: Layout | None = None
    channel_multiple: dict[DType, int] = {}
    npu: str | None = None  # an architecture in `device_profiles/npus/`, or a path to a TOML file of such rules
    vela: VelaTarget | None = None
    htp: HtpTarget | None = None
    rknn: RknnTarget | None = None


class Memory(Value, frozen=True, kw_only=True):
    """One level of memory, listed from near to far; the last one is main memory."""

    name: str
    kind: str | None = None
    unit: str | None = None  # the only unit that reaches it; None: main memory and what lies before it
    size_bytes: Number | None = None
    usable_bytes: Number | None = None
    peak_bytes_per_s: Number | None = None
    sustained_bytes_per_s: Number | None = None


class Link(Value, frozen=True, kw_only=True):
    """What carries tensors between the host and a unit that has its own memory."""

    name: str
    unit: str
    peak_bytes_per_s: Number | None = None  # in one direction


class Power(Value, frozen=True, kw_only=True):
    """Power of the whole device unless `scope` says otherwise."""

    scope: str
    idle_w: Number | None = None
    active_w: Number | None = None
    active_threads: int | None = None  # of the processor, at work then; None: all its cores
    budget_w: Number | None = None


class Sensor(Value, frozen=True, kw_only=True):
    """A built-in way to read energy or power: what it covers and what it cannot see."""

    id: str
    kind: Literal["counter", "sampled_power", "platform_estimate"]
    covers: tuple[str, ...]
    excludes: tuple[str, ...] = ()
    period_s: Number | None = None
    needs: tuple[str, ...] = ()


class Compiler(Value, frozen=True, kw_only=True):
    """A vendor's compiler: it turns a model that edgekit exports into a format that edgekit does not write."""

    name: str
    reads: str  # the export format it takes
    precision: Precision  # it wants the model in; fp32 where it quantises by itself


class RuntimeChoice(Value, frozen=True, kw_only=True):
    """A runtime that serves this device; the first listed is tried first."""

    name: str
    format: str
    unit: str | None = None  # it runs on; the main unit where left out
    compiler: Compiler | None = None
    note: str | None = None


class EfficiencyPoint(Value, frozen=True, kw_only=True):
    """What part of a unit's peak kernels of one size reach."""

    ops: float  # of one kernel on padded shapes, 1 MAC = 2 ops
    fraction: float  # of the unit's peak in that dtype, of its highest peak where that one is not known

    def __post_init__(self) -> None:
        if not 0 < self.ops < float("inf"):
            raise ValueError(f"ops must be positive and finite, not {self.ops}")
        if not 0 < self.fraction <= MOST_FRACTION:
            raise ValueError(f"a fraction of the peak must be above 0 and at most {MOST_FRACTION}, not {self.fraction}")


class Calibration(Value, frozen=True, kw_only=True):
    """What one runtime reached on one unit of a device: measured there, or fitted to measurements of others."""

    runtime: str
    runtime_version: str
    unit: str  # the name of one of the profile's units
    host: str
    date: str  # "2026-11-22"
    threads: int
    efficiency: dict[DType, dict[OpClass, tuple[EfficiencyPoint, ...]]]  # points in ascending order of ops
    op_overhead_s: float  # what one more op costs beside its arithmetic
    call_overhead_s: float  # what one call costs beside its ops
    bytes_per_s: float | None = None  # that kernels got from main memory; None: what the profile says
    held_out_p90: dict[OpClass | Literal["model"], float] = {}  # relative error of predictions on data not fitted on
    held_out_median: float | None = None  # of whole models
    held_out_spearman: float | None = None  # rank correlation of whole models
    source: str

    def __post_init__(self) -> None:
        figures = {"op_overhead_s": self.op_overhead_s, "call_overhead_s": self.call_overhead_s}
        figures |= {f"held_out_p90.{name}": error for name, error in self.held_out_p90.items()}
        for name, figure in figures.items():
            if not 0 <= figure < float("inf"):
                raise ValueError(f"{name} must be 0 or more, not {figure}")
        for dtype, classes in self.efficiency.items():
            for op_class, points in classes.items():
                sizes = [point.ops for point in points]
                if not sizes or sizes != sorted(set(sizes)):
                    raise ValueError(f"efficiency.{dtype}.{op_class} needs points in ascending order of ops")


class DeviceProfile(Value, frozen=True, kw_only=True):
    """Everything the planner knows about a device."""

    schema: Literal["edgekit.profile/1"]
    id: str
    title: str
    family: str  # "arm64-linux", "x86_64-linux", "cuda", "android", "ios", "ethos-u", "accelerator" on any host
    soc: str | None = None
    aliases: tuple[str, ...] = ()
    sources: dict[str, str]
    unit: tuple[ComputeUnit, ...]
    memory: tuple[Memory, ...] = ()
    link: tuple[Link, ...] = ()
    power: Power | None = None
    sensor: tuple[Sensor, ...] = ()
    runtime: tuple[RuntimeChoice, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Everything the device is called: id, title, SoC and aliases."""
        return (self.id, self.title, *((self.soc,) if self.soc else ()), *self.aliases)

    @property
    def memory_bytes(self) -> float | None:
        """Bytes of main memory that a program can use, or the whole if that is all that is known."""
        found = (self.memory[-1].usable_bytes or self.memory[-1].size_bytes) if self.memory else None
        return found.value if found else None

    @property
    def main_unit(self) -> ComputeUnit:
        """The unit work goes to first: the first one listed."""
        return self.unit[0]

    def unit_of(self, choice: RuntimeChoice) -> ComputeUnit:
        """The unit that a runtime runs on."""
        return next((unit for unit in self.unit if unit.name == choice.unit), self.main_unit)


def device_ids() -> tuple[str, ...]:
    """The ids of the profiles that ship with edgekit."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in files(PROFILES).iterdir() if p.name.endswith(".toml")))


def find_device(name: str) -> DeviceProfile:
    """A profile by id, alias, SoC or title, however it is spelt, or by path to a TOML file.

    Raises `UnknownName` with the nearest names, `InvalidInput` for a bad file.
    """
    if name.lower().endswith(".toml"):
        return load_profile(Path(name))
    wanted = _plain(name)
    profiles = [load_shipped(device_id) for device_id in device_ids()]
    for profile in profiles:
        if wanted in map(_plain, profile.names):
            return profile
    raise unknown_name("device", name, (p.id for p in profiles), {alias: p.id for p in profiles for alias in p.names})


@cache
def load_shipped(device_id: str) -> DeviceProfile:
    """A profile that ships with edgekit, by its exact id."""
    return _parse(files(PROFILES).joinpath(f"{device_id}.toml").read_text(encoding="utf-8"), device_id)


def load_profile(path: Path) -> DeviceProfile:
    """A profile from a TOML file of the user's own."""
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InvalidInput(f"cannot read device profile '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"device profile '{path}' is not UTF-8 text") from error


def numbers(profile: DeviceProfile) -> list[tuple[str, Number]]:
    """Every `Number` inside a profile with the path that leads to it."""
    return [(path, value) for path, value in sourced(profile) if isinstance(value, Number)]


def sourced(value: Any, path: str = "") -> list[tuple[str, Sourced]]:
    """Everything inside a profile that cites its `sources`, with the path that leads to it."""
    if isinstance(value, Sourced):
        return [(path, value)]
    if isinstance(value, msgspec.Struct):
        return [n for f in value.__struct_fields__ for n in sourced(getattr(value, f), f"{path}.{f}".lstrip("."))]
    if isinstance(value, dict):
        return [n for key, item in value.items() for n in sourced(item, f"{path}.{key}")]
    if isinstance(value, tuple):
        return [n for index, item in enumerate(value) for n in sourced(item, f"{path}[{index}]")]
    return []


def _parse(text: str, origin: str) -> DeviceProfile:
    profile = DeviceProfile.from_toml(text, SCHEMA, f"device profile '{origin}'")
    if problem := _dangling(profile):
        raise InvalidInput(f"device profile '{origin}' {problem}")
    return profile


def _dangling(profile: DeviceProfile) -> str | None:
    """The first name in a profile that leads nowhere, in words."""
    if not profile.unit:
        return "lists no [[unit]]; it needs at least one"
    units = {unit.name for unit in profile.unit}
    for table in ("memory", "link", "runtime", "calibration"):
        for index, row in enumerate(getattr(profile, table)):
            if row.unit is not None and row.unit not in units:
                return f"names unit '{row.unit}' in {table}[{index}], and its units are {', '.join(sorted(units))}"
    for path, value in sourced(profile):
        if value.source not in profile.sources:
            return f"cites source '{value.source}' at {path}, which is not in its [sources] table"
    return None


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
