"""How long calls take: their distribution, how it changed over the run, and what the measurement itself was like."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.measurement import Latency, Trial
from edgekit.page.charts import call_times, histogram, intervals, minutes, shown_range
from edgekit.page.markup import NOTHING, Html, bullets, folded, join, pairs, table, tag
from edgekit.page.overview import machine_text, where_text
from edgekit.page.subjects import Run
from edgekit.report import latency_text, milliseconds
from edgekit.report_measurement import control_text, measurement_cells, sustained_text
from edgekit.throttle import THROTTLING_DRIFT


def speed(runs: Sequence[Run]) -> Html:
    """Every measurement: several of them on one axis first, then each with its calls."""
    if not runs:
        return tag("p", "Nothing was measured: edgekit profile OUT -o profile.json, then --measurement profile.json.")
    return join([_side_by_side(runs) if len(runs) > 1 else NOTHING, *map(_one, runs)])


def _side_by_side(runs: Sequence[Run]) -> Html:
    rows = [[f"{run.label}, {run.origin}", *_cells(run), machine_text(run)] for run in runs]
    columns = ["measurement", "p50 ms", "95 % interval", "p90 ms", "p99 ms", "calls", "load ms", "first run ms", "on"]
    labels = [f"{run.label}, {run.origin}{' (emulated)' if run.emulated else ''}" for run in runs]
    chart = intervals([(label, run.measured.latency) for label, run in zip(labels, runs, strict=True)])
    told = (
        "Median and percentiles with their 95 % intervals. Two medians whose intervals overlap are not told apart. "
        "Runs at different times also differ by what else the machine did: edgekit compare takes turns."
    )
    figure = tag("figure", chart, tag("figcaption", told))
    shown = table("All measurements", columns, rows, {1, 2, 3, 4, 5, 6, 7})
    return tag("section", tag("h3", "Side by side"), shown, figure)


def _cells(run: Run) -> list[str]:
    measured, latency, found = run.measured, run.measured.latency, run.measured.latency.p50_ci_s
    return [
        f"{1e3 * latency.p50_s:.2f}" + (" emulated" if run.emulated else ""),
        f"{1e3 * found.low:.2f} to {1e3 * found.high:.2f}" if found else "too few calls",
        *("too few calls" if value is None else f"{1e3 * value:.2f}" for value in (latency.p90_s, latency.p99_s)),
        str(latency.calls or len(latency.times_s)),
        f"{1e3 * measured.load_s:.1f}",
        f"{1e3 * measured.first_run_s:.1f}",
    ]


def _one(run: Run) -> Html:
    measured = run.measured
    parts = [_charts(measured.latency, "Time of a call", measured.trials)]
    if measured.sustained:
        told = f"Median of each minute, without a pause: {sustained_text(measured.sustained)}."
        parts.append(tag("div", tag("figure", minutes(measured.sustained), tag("figcaption", told)), class_="figures"))
    if measured.generation:
        told = f"{measured.generation.texts} texts after a prompt of {measured.generation.prompt_tokens} tokens."
        parts += [tag("h4", "Between two tokens"), tag("p", told), _charts(measured.generation.inter_token, "Time")]
    cells = [(label, value) for label, value in measurement_cells(measured) if "energy" not in label]
    return tag(
        "section",
        tag("h3", f"{run.label}, {run.origin}"),
        tag("p", where_text(run), class_="where"),
        bullets(_signs(run), "bad"),
        *parts,
        folded("All figures of this measurement", pairs(cells)),
    )


def _signs(run: Run) -> list[str]:
    """What makes the figures of a run doubtful."""
    measured, signs = run.measured, [*run.measured.throttled]
    if not measured.warm:
        signs.append("the warm-up reached no steady median")
    if measured.control and not measured.control.holds:
        signs.append(f"A/A control {control_text(measured.control)}")
    return signs


def _charts(latency: Latency, what: str, trials: Sequence[Trial] = ()) -> Html:
    _, high = shown_range(latency)
    beyond = sum(time > high for time in latency.times_s)
    off = f" {beyond} calls lie beyond, the slowest at {milliseconds(max(latency.times_s))}." if beyond else ""
    steady = "and did not drift" if latency.drift <= THROTTLING_DRIFT else "and rose: throttled, or a busy machine"
    borders = f" Vertical lines part {len(trials)} trials." if len(trials) > 1 else ""
    over_time = (
        f"Calls in order. The bars mark the first and the last quarter's medians: {latency.drift:.3f} times, {steady}."
    )
    shown = tag("figure", histogram(latency), tag("figcaption", f"{what}: {latency_text(latency)}.{off}"))
    series = tag("figure", call_times(latency, trials), tag("figcaption", over_time + borders))
    return tag("div", shown, series, class_="figures")
