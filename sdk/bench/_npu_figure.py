"""One figure of `edgekit bench npu`."""

from __future__ import annotations

from edgekit.types import Value


class Figure(Value, frozen=True, kw_only=True):
    """A claim as a number, and what it has to reach."""

    name: str  # "efficientnet_lite0 on ethos-u85-256: MACs on the NPU"
    value: float
    unit: str = ""
    bar: float
    at_most: bool = False  # else it has to be at least the bar
    how: str = ""  # over what, and known from where

    @property
    def ok(self) -> bool:
        """Whether the bar is met; NaN meets none."""
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    @property
    def shown(self) -> str:
        """The value with its unit, and how it came about."""
        return f"{self.value:.4g}{f' {self.unit}' * bool(self.unit)}" + (f" ({self.how})" if self.how else "")
