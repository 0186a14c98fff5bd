"""Device profiles: what a board can do, every number with its source and how far to trust it.

A profile is a TOML file in `device_profiles/`. Units are in the key names, SI inside; rates are dense (1 MAC = 2 ops).
What is not known is left out, and every reader must cope with that.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgekit.errors import InvalidInput, unknown_name
from edgekit.types import DType, Layout, Value

SCHEMA = "edgekit.profile/1"
PROFILES = "edgekit.device_profiles"


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


class Memory(Value, frozen=True, kw_only=True):
    """One level of memory, listed from near to far."""

    name: str
    kind: str | None = None
    size_bytes: Number | None = None
    usable_bytes: Number | None = None
    peak_bytes_per_s: Number | None = None
    sustained_bytes_per_s: Number | None = None


class Power(Value, frozen=True, kw_only=True):
    """Power of the whole device unless `scope` says otherwise."""

    scope: str
    idle_w: Number | None = None
    active_w: Number | None = None
    budget_w: Number | None = None


class Sensor(Value, frozen=True, kw_only=True):
    """A built-in way to read energy or power: what it covers and what it cannot see."""

    id: str
    kind: Literal["counter", "sampled_power", "platform_estimate"]
    covers: tuple[str, ...]
    excludes: tuple[str, ...] = ()
    period_s: Number | None = None
    needs: tuple[str, ...] = ()


class RuntimeChoice(Value, frozen=True, kw_only=True):
    """A runtime that serves this device; the first listed is tried first."""

    name: str
    format: str
    note: str | None = None


class DeviceProfile(Value, frozen=True, kw_only=True):
    """Everything the planner knows about a device."""

    schema: Literal["edgekit.profile/1"]
    id: str
    title: str
    family: str  # "arm64-linux", "x86_64-linux", "cuda"
    soc: str | None = None
    aliases: tuple[str, ...] = ()
    sources: dict[str, str]
    unit: tuple[ComputeUnit, ...]
    memory: tuple[Memory, ...] = ()
    power: Power | None = None
    sensor: tuple[Sensor, ...] = ()
    runtime: tuple[RuntimeChoice, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> float | None:
        """Bytes of main memory that a program can use, or the whole if that is all that is known."""
        for level in reversed(self.memory):
            if found := level.usable_bytes or level.size_bytes:
                return found.value
        return None

    @property
    def main_unit(self) -> ComputeUnit:
        """The unit work goes to first: the first one listed."""
        return self.unit[0]


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
        if wanted in {_plain(n) for n in (profile.id, profile.title, profile.soc or profile.id, *profile.aliases)}:
            return profile
    raise unknown_name("device", name, (p.id for p in profiles), {a: p.id for p in profiles for a in p.aliases})


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


def numbers(value: Any, path: str = "") -> list[tuple[str, Number]]:
    """Every `Number` inside a profile with the path that leads to it."""
    if isinstance(value, Number):
        return [(path, value)]
    if isinstance(value, msgspec.Struct):
        return [n for f in value.__struct_fields__ for n in numbers(getattr(value, f), f"{path}.{f}".lstrip("."))]
    if isinstance(value, dict):
        return [n for key, item in value.items() for n in numbers(item, f"{path}.{key}")]
    if isinstance(value, tuple):
        return [n for index, item in enumerate(value) for n in numbers(item, f"{path}[{index}]")]
    return []


def _parse(text: str, origin: str) -> DeviceProfile:
    try:
        profile = msgspec.convert(tomllib.loads(text), DeviceProfile)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"device profile '{origin}' is not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise InvalidInput(f"device profile '{origin}' does not follow {SCHEMA}: {error}") from error
    if not profile.unit:
        raise InvalidInput(f"device profile '{origin}' lists no [[unit]]; it needs at least one")
    for path, number in numbers(profile):
        if number.source not in profile.sources:
            raise InvalidInput(
                f"device profile '{origin}': {path} cites source '{number.source}', which is not in its [sources] table"
            )
    return profile


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
