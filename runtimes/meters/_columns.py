"""Tables that power loggers write: which column is time, current, voltage or power, in which unit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgekit.errors import InvalidInput
from edgekit.types import Value

QUANTITIES = {  # quantity -> words that name it, the unit of SI
    "time": (("time", "timestamp", "t"), "s"),
    "current": (("current", "amps", "i", "curr"), "a"),
    "voltage": (("voltage", "volt", "volts", "bus", "u", "v"), "v"),
    "power": (("power", "watts", "p"), "w"),
}
PREFIXES = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3, "": 1.0}


class Column(Value, frozen=True, kw_only=True):
    """Where a quantity stands, and what a value is worth in SI units."""

    index: int
    scale: float


def columns(header: Sequence[str], origin: str, volts: float | None = None) -> dict[str, Column]:
    """Quantity -> column, from names such as `Timestamp(ms)`, `current (A)` or `power_mw`.

    Raises `InvalidInput` unless there is a power, or a current with a voltage, in the table or given as `volts`.
    """
    found: dict[str, Column] = {}
    for index, title in enumerate(header):
        words = [word for word in re.split(r"[^a-zµμ]+", title.strip().strip("#").lower()) if word]
        for quantity, (names, unit) in QUANTITIES.items():
            scale = _scale(words[-1], unit) if len(words) > 1 else None
            if scale is not None and quantity not in found and any(word in names for word in words[:-1]):
                found[quantity] = Column(index=index, scale=scale)
    if "power" not in found and not ("current" in found and ("voltage" in found or volts)):
        told = ", ".join(title.strip() for title in header)
        raise InvalidInput(
            f"'{origin}' has the columns {told}: it needs power_w, or current_a and voltage_v, with their units as in "
            "current (mA); where the voltage is constant, add volts=5.1"
        )
    return found


def watts(row: Any, where: dict[str, Column], volts: float | None) -> Any:
    """The power of one row, or of a whole table of columns; `row` is indexed by column."""
    if "power" in where:
        return row[where["power"].index] * where["power"].scale
    potential = row[where["voltage"].index] * where["voltage"].scale if "voltage" in where else volts or 0.0
    return row[where["current"].index] * where["current"].scale * potential


def _scale(word: str, unit: str) -> float | None:
    return PREFIXES.get(word.removesuffix(unit)) if word.endswith(unit) else None
