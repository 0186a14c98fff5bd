"""Energy with where it comes from. What a meter read, what a platform estimates and what a model says never meet."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.energy import Energy
from edgekit.page.markup import NOTHING, Html, bullets, join, table, tag
from edgekit.page.subjects import Run
from edgekit.report import EMULATED

COLUMNS = ["measurement", "mJ a call above idle", "idle included", "± 1 sigma", "source", "covers", "excludes",
           "window", "flags"]  # fmt: skip
NUMBERS = {1, 2, 3}


def joules(runs: Sequence[Run]) -> Html:
    """A table for each kind of source, and the reason for every figure that is missing."""
    read = [
        _readings("Measured by a meter", "measured", runs),
        _readings("Estimated by the platform, not measured", "estimated", runs),
        _readings("Modelled by a meter that models, not measured", "modelled", runs),
        _modelled(runs),
    ]
    missing = [
        f"{_name(run)}: {run.measured.energy.reason or 'no reason was recorded'} [{run.measured.energy.provenance}]"
        for run in runs
        if run.measured.energy.gross_j is None
    ]
    none = join([tag("p", "No figure, and why:"), bullets(missing)]) if missing else NOTHING
    return tag("section", *read, none) if runs else tag("p", "Nothing was measured.")


def _readings(title: str, kind: str, runs: Sequence[Run]) -> Html:
    rows = [
        _cells(run, run.measured.energy)
        for run in runs
        if run.measured.energy.provenance.startswith(kind) and run.measured.energy.gross_j is not None
    ]
    return table(title, COLUMNS, rows, NUMBERS) if rows else NOTHING


def _cells(run: Run, energy: Energy) -> list[str]:
    window = f"{energy.iterations} calls in {_figure(energy.window_s)} s, {energy.updates_seen} updates"
    return [
        _name(run),
        _figure(energy.net_j, 1e3),
        _figure(energy.gross_j, 1e3),
        "unknown" if energy.u_rel is None else f"{100 * energy.u_rel:.2g} %",
        " ".join(filter(None, (energy.provenance, energy.meter))),
        ", ".join(energy.covers) or "not said",
        ", ".join(energy.excludes) or "not said",
        window if energy.idle_w is None else f"{window}, idle {energy.idle_w:.3g} W",
        ", ".join(energy.flags) or "none",
    ]


def _modelled(runs: Sequence[Run]) -> Html:
    rows = [
        [_name(run), _figure(run.measured.modelled_energy_j, 1e3), run.measured.modelled_energy_note or "not said"]
        for run in runs
        if run.measured.modelled_energy_j is not None or run.measured.modelled_energy_note
    ]
    columns = ["measurement", "mJ a call, modelled", "by"]
    return table("Modelled from power figures and time, not measured", columns, rows, {1}) if rows else NOTHING


def _figure(value: float | None, scale: float = 1) -> str:
    return "none" if value is None else f"{scale * value:.4g}"


def _name(run: Run) -> str:
    return f"{run.label}, {run.origin}" + (f" ({EMULATED})" if run.emulated else "")
