"""Charts as SVG: each is a function of its data, with its figures in the alternative text."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from edgekit.intervals import Interval
from edgekit.measurement import Latency, Sustained, Trial
from edgekit.page.axes import LEFT, RIGHT, WIDTH, Axis, axis, below, beside
from edgekit.page.markup import Html, escape, join, tag

BINS = 40
DOTS = 400  # more calls than these are drawn as a band from fastest to slowest with the median in it
TAIL = 4.0  # interquartile ranges above the median that an axis shows where no percentile asks for more
MOST_TRIALS = 60  # that are parted by lines
HEIGHT, FLOOR = 200, 165  # of a chart, and of the axis below it
TOP, UNDER_LABELS = 22, 50  # where data begins, also where the names of percentiles stand above it
LABEL = 78.0  # room that the name of a percentile takes


def histogram(latency: Latency) -> Html:
    """How many calls took how long, with the percentiles and their intervals; in ms."""
    low, high = shown_range(latency)
    across = axis(1e3 * low, 1e3 * high, LEFT, RIGHT)
    counts = [0] * BINS
    for time in latency.times_s:
        if time <= high:
            share = (1e3 * time - across.low) / (across.high - across.low)
            counts[min(BINS - 1, max(0, int(share * BINS)))] += 1
    up = axis(0, max(1, *counts), FLOOR, UNDER_LABELS)
    wide = (RIGHT - LEFT) / BINS
    bars = [
        tag("rect", x=LEFT + wide * at + 0.5, y=up.at(count), width=wide - 1, height=FLOOR - up.at(count), class_="bar")
        for at, count in enumerate(counts)
        if count
    ]
    lines = [
        _percentile_line(across, 10 + 13 * row, name, 1e3 * value, interval)
        for row, (name, value, interval) in enumerate(percentiles(latency))
    ]
    alt = f"Histogram of the time of {_number_of_calls(latency)}: {_percentile_text(latency)}"
    return drawing(alt, HEIGHT, *bars, *lines, beside(up, "calls", 3), below(across, FLOOR, "ms"))


def call_times(latency: Latency, trials: Sequence[Trial] = ()) -> Html:
    """The time of every call in order, in ms, with lines between trials: a machine that throttles shows as a rise."""
    low, high = shown_range(latency)
    calls = latency.calls or len(latency.times_s)
    across = axis(1, max(2, calls), LEFT, RIGHT)
    up = axis(1e3 * (low - 0.05 * (high - low)), 1e3 * high, FLOOR, TOP)
    times = [1e3 * time for time in latency.times_s]
    shapes = _dots(times, across, up) if len(times) <= DOTS else _band(times, across, up)
    ends = list(accumulate(trial.calls for trial in trials[:MOST_TRIALS]))[:-1]
    borders = [tag("path", d=f"M{across.at(end + 0.5):.1f} {TOP}V{FLOOR}", class_="border") for end in ends]
    quarter = max(1, len(times) // 4)
    medians = [
        tag("path", d=f"M{start:.1f} {up.at(median):.1f}h{(RIGHT - LEFT) / 4:.1f}", class_="median")
        for start, median in (
            (LEFT, statistics.median(times[:quarter])),
            (RIGHT - (RIGHT - LEFT) / 4, statistics.median(times[-quarter:])),
        )
    ]
    alt = (
        f"Time of {_number_of_calls(latency)} in order: the median of the last quarter is {latency.drift:.3f} times "
        "that of the first"
    )
    return drawing(alt, HEIGHT, beside(up, "ms"), *borders, *shapes, *medians, below(across, FLOOR, "call"))


def minutes(sustained: Sustained) -> Html:
    """The median of each minute of a sustained run, in ms; of every second one or fewer where they are very many."""
    every = -(-len(sustained.minutes_p50_s) // DOTS) or 1
    medians = [1e3 * p50 for p50 in sustained.minutes_p50_s[::every]]
    across = axis(0, max(1, every * len(medians)), LEFT, RIGHT)
    up = axis(min([0.0, *medians]), max([0.0, *medians]), FLOOR, TOP)
    steps = [
        f"{'L' if at else 'M'}{across.at(every * at):.1f} {up.at(p50):.1f}H{across.at(every * (at + 1)):.1f}"
        for at, p50 in enumerate(medians)
    ]
    first, last = 1e3 * sustained.minute_1_p50_s, 1e3 * sustained.final_p50_s
    alt = f"Median time of each minute: {first:.2f} ms at first, {last:.2f} ms at last"
    return drawing(
        alt, HEIGHT, beside(up, "ms"), tag("path", d="".join(steps), class_="line"), below(across, FLOOR, "min")
    )


def intervals(rows: Sequence[tuple[str, Latency]]) -> Html:
    """Percentiles of several runs on one axis from 0, each with its 95 % interval where there is one; in ms."""
    found = [(label, percentiles(latency)) for label, latency in rows]
    most = max(interval.high if interval else value for _, points in found for _, value, interval in points)
    across, shapes, y = axis(0, 1e3 * most, LEFT / 4, RIGHT), [], 4.0
    for label, points in found:
        shapes.append(tag("text", shortened(label), x=LEFT / 4, y=y + 10))
        shapes += [
            _point(across, y + 20, key, 1e3 * value, _in_ms(interval))
            for key, (_, value, interval) in enumerate(points)
        ]
        y += 32
    said = "; ".join(f"{label}: {_percentile_text(latency)}" for label, latency in rows)
    chart = drawing(said, y + 34, *shapes, below(across, y + 2, "ms"))
    return join([chart, keys([name for name, _, _ in max((points for _, points in found), key=len)])])


def ratios(rows: Sequence[tuple[str, float, Interval]]) -> Html:
    """Ratios of times with their intervals on one axis, and a line at 1, where two bundles are equally fast."""
    ends = [1.0, *(end for _, ratio, found in rows for end in (ratio, found.low, found.high))]
    across, shapes, y = axis(min(0.9, *ends), max(1.1, *ends), LEFT / 4, RIGHT), [], 4.0
    bottom = y + 32 * len(rows)
    shapes.append(tag("path", d=f"M{across.at(1):.1f} {y:.1f}V{bottom:.1f}", class_="border"))
    for label, ratio, found in rows:
        shapes.append(tag("text", shortened(label), x=across.start, y=y + 10, class_="label"))
        shapes.append(_point(across, y + 20, 0, ratio, found))
        y += 32
    said = [f"{label}: {ratio:.3f} ({found.low:.3f} to {found.high:.3f})" for label, ratio, found in rows]
    return drawing(f"Ratios of times: {'; '.join(said)}", y + 34, *shapes, below(across, y + 2, "times as long"))


def drawing(alt: str, height: float, *shapes: str, stretch: bool = False) -> Html:
    """A chart that screen readers read as one picture with a sentence; one without text may be stretched."""
    aspect = "none" if stretch else None
    box = f"0 0 {WIDTH} {height:.0f}"
    return tag("svg", *shapes, viewBox=box, preserveAspectRatio=aspect, role="img", aria_label=escape(alt))


def keys(texts: Iterable[str]) -> Html:
    """What each colour stands for."""
    keys = [tag("li", tag("span", class_=f"key part{at}"), text) for at, text in enumerate(texts)]
    return tag("ul", *keys, class_="keys")


def shortened(name: str, most: int = 50) -> str:
    """A name that fits into a drawing."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def percentiles(latency: Latency) -> list[tuple[str, float, Interval | None]]:
    """Name, seconds and interval of each percentile that there are samples for."""
    found = (
        ("p50", latency.p50_s, latency.p50_ci_s),
        ("p90", latency.p90_s, latency.p90_ci_s),
        ("p99", latency.p99_s, latency.p99_ci_s),
    )
    return [(name, value, interval) for name, value, interval in found if value is not None]


def shown_range(latency: Latency) -> tuple[float, float]:
    """The times that charts show, in seconds: all but single calls that would squeeze the rest into a corner."""
    times = sorted(latency.times_s)
    spread = times[len(times) * 3 // 4] - times[len(times) // 4]
    wanted = [times[len(times) // 2] + TAIL * spread]
    for _, value, interval in percentiles(latency):
        wanted += [value, interval.high if interval else value]
    return times[0], times[bisect_right(times, max(wanted)) - 1]


def _percentile_line(across: Axis, y: float, name: str, value: float, interval: Interval | None) -> Html:
    x = across.at(value)
    band = []
    if interval:
        left, right = across.at(1e3 * interval.low), across.at(1e3 * interval.high)
        band = [
            tag(
                "rect",
                x=left,
                y=UNDER_LABELS,
                width=max(0.5, right - left),
                height=FLOOR - UNDER_LABELS,
                class_="interval",
            )
        ]
    to_the_left = x > RIGHT - LABEL
    label = tag("text", f"{name} {value:.2f} ms", x=x - 4 if to_the_left else x + 4, y=y,
                text_anchor="end" if to_the_left else "start", class_="label")  # fmt: skip
    return tag("g", *band, tag("path", d=f"M{x:.1f} {y - 7:.1f}V{FLOOR}", class_="mark"), label)


def _in_ms(interval: Interval | None) -> Interval | None:
    return interval and Interval(low=1e3 * interval.low, high=1e3 * interval.high)


def _point(across: Axis, y: float, key: int, value: float, interval: Interval | None) -> Html:
    point = tag("circle", cx=across.at(value), cy=y, r=4, class_=f"part{key}")
    if interval is None:
        return point
    ends = (across.at(interval.low), across.at(interval.high))
    return join([tag("path", d=f"M{ends[0]:.1f} {y:.1f}H{ends[1]:.1f}", class_="whisker"), point])


def _dots(times: Sequence[float], across: Axis, up: Axis) -> list[Html]:
    every = (across.high - 1) / max(1, len(times) - 1)
    inside = "".join(_dot(across.at(1 + every * at), up.at(time)) for at, time in enumerate(times) if time <= up.high)
    beyond = "".join(_dot(across.at(1 + every * at), TOP - 5) for at, time in enumerate(times) if time > up.high)
    return [tag("path", d=inside, class_="dots"), tag("path", d=beyond, class_="dots beyond")]


def _dot(x: float, y: float) -> str:
    return f"M{x:.1f} {y:.1f}h0"


def _band(times: Sequence[float], across: Axis, up: Axis) -> list[Html]:
    """From the fastest to the slowest call of each of 300 stretches, and the median in it."""
    size = -(-len(times) // 300)
    stretches = [times[at : at + size] for at in range(0, len(times), size)]
    xs = [LEFT + (RIGHT - LEFT) * (at + 0.5) / len(stretches) for at in range(len(stretches))]
    beyond = "".join(_dot(x, TOP - 5) for x, s in zip(xs, stretches, strict=True) if max(s) > up.high)
    spans = "".join(f"M{x:.1f} {up.at(min(s)):.1f}V{up.at(max(s)):.1f}" for x, s in zip(xs, stretches, strict=True))
    middle = " ".join(f"{x:.1f},{up.at(statistics.median(s)):.1f}" for x, s in zip(xs, stretches, strict=True))
    return [
        tag("path", d=spans, class_="span"),
        tag("polyline", points=middle, class_="line"),
        tag("path", d=beyond, class_="dots beyond"),
    ]


def _number_of_calls(latency: Latency) -> str:
    return f"{latency.calls or len(latency.times_s)} calls"


def _percentile_text(latency: Latency) -> str:
    return join([f"{name} {1e3 * value:.2f} ms" for name, value, _ in percentiles(latency)], ", ")
