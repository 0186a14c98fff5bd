"""Where a value lies in a drawing, and the round numbers beside it."""

from __future__ import annotations

import math

from edgekit.page.markup import Html, tag
from edgekit.types import Value

WIDTH = 360  # units of a chart: near a phone's pixels, so that text keeps its size there
LEFT, RIGHT = 40.0, 344.0  # of the area that shows data


class Axis(Value, frozen=True, kw_only=True):
    """A line from `low` at `start` to `high` at `end`; `high` is above `low`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies; one beyond the axis lies at its end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def axis(low: float, high: float, start: float, end: float) -> Axis:
    """An axis that holds both values, also where they are equal or so near that no step lies between them."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.05 * max(abs(low), abs(high)) or 1.0
        low, high = low - room, high + room
    return Axis(low=low, high=high, start=start, end=end)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, at most `most` + 1."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((times * power for times in (1, 2, 5) if times * power >= rough), 10 * power)
    first = math.ceil(low / step)
    return [(first + number) * step for number in range(math.floor(high / step) - first + 1)]


def tick_label(value: float, step: float) -> str:
    """A number with the digits that a step of the axis needs."""
    if max(abs(value), step) >= 1e6 or step < 1e-4:
        return f"{value:.3g}"
    return f"{value:.{max(0, -math.floor(math.log10(step)))}f}"


def below(across: Axis, y: float, unit: str) -> Html:
    """A horizontal axis at height `y`: line, ticks, numbers and what they count."""
    marks = ticks(across.low, across.high)
    step = marks[1] - marks[0] if len(marks) > 1 else across.high - across.low
    lines = [
        tag("g", tag("path", d=f"M{across.at(mark):.1f} {y:.1f}v4", class_="axis"),
            tag("text", tick_label(mark, step), x=across.at(mark), y=y + 15, text_anchor="middle"))
        for mark in marks
    ]  # fmt: skip
    line = tag("path", d=f"M{across.start:.1f} {y:.1f}H{across.end:.1f}", class_="axis")
    return tag("g", line, *lines, tag("text", unit, x=across.end, y=y + 29, text_anchor="end", class_="unit"))


def beside(up: Axis, unit: str, most: int = 4) -> Html:
    """A vertical axis at the left, with a faint line across for each number."""
    marks = ticks(up.low, up.high, most)
    step = marks[1] - marks[0] if len(marks) > 1 else up.high - up.low
    lines = [
        tag("g", tag("path", d=f"M{LEFT:.1f} {up.at(mark):.1f}H{RIGHT:.1f}", class_="grid"),
            tag("text", tick_label(mark, step), x=LEFT - 5, y=up.at(mark) + 3.5, text_anchor="end"))
        for mark in marks
    ]  # fmt: skip
    return tag("g", *lines, tag("text", unit, x=2, y=up.end - 8, class_="unit"))
