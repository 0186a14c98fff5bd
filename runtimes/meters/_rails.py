"""Rails that hwmon drivers measure: their names, and how to read each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from edgekit import sysfs
from edgekit.errors import EdgekitError
from edgekit.types import Value

Kind = Literal["joules", "watts", "volts and amperes"]
SOURCES: tuple[tuple[Kind, tuple[str, ...]], ...] = (  # of a channel, the best first
    ("joules", ("energy{}_input",)),
    ("watts", ("power{}_input",)),
    ("watts", ("power{}_average",)),
    ("volts and amperes", ("in{}_input", "curr{}_input")),
)


class Rail(Value, frozen=True, kw_only=True):
    """One channel of a sensor chip, under the name that the board gave it."""

    name: str
    paths: tuple[str, ...]  # one file of joules or watts, or one of volts and one of amperes
    kind: Kind
    scale: float = 1e-6  # from the product of the files to SI: the kernel shows microunits, or two of milliunits

    def value(self) -> float:
        """Joules so far, or watts now. Raises `EdgekitError` when the sensor is gone."""
        product = self.scale
        for path in self.paths:
            found = sysfs.read_number(Path(path))
            if found is None:
                raise EdgekitError(f"rail '{self.name}' can no longer be read: {path}")
            product *= found
        return product


def rails_of(chip: Path) -> list[Rail]:
    """Every rail of one hwmon folder: an energy counter if it has one, else power, else volts times amperes."""
    names = {path.name for path in sysfs.folders(chip)}
    found = []
    for channel in sorted({digits(name) for name in names if name.endswith(("_input", "_average"))}):
        for kind, files in SOURCES:
            paths = [chip / name.format(channel) for name in files]
            if all(sysfs.read_number(path) is not None for path in paths):
                label = next((text for path in paths if (text := sysfs.read_text(_label(path)))), _stem(paths[0]))
                found.append(Rail(name=label, paths=tuple(map(str, paths)), kind=kind))
                break
    return found


def digits(name: str) -> int:
    """The channel in a file's name: 2 of `in2_input`."""
    return int("".join(c for c in name.partition("_")[0] if c.isdigit()) or 0)


def watts_of(rails: Iterable[Rail]) -> Callable[[], dict[str, float]]:
    """A function that reads all rails."""
    chosen = tuple(rails)
    return lambda: {rail.name: rail.value() for rail in chosen}


def _label(path: Path) -> Path:
    return path.with_name(f"{_stem(path)}_label")


def _stem(path: Path) -> str:
    return path.name.partition("_")[0]
