"""The machines that measured, and the versions that exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.measurement import HostState
from edgekit.page.markup import NOTHING, Html, table, tag
from edgekit.page.subjects import Run, Subject
from edgekit.report import EMULATED

STATE: tuple[tuple[str, Callable[[HostState], str | None]], ...] = (
    ("machine", lambda state: state.machine),
    ("processor", lambda state: state.cpu),
    ("system", lambda state: state.system),
    ("Python", lambda state: state.python),
    ("cores", lambda state: str(state.cores)),
    ("affinity", lambda state: ", ".join(map(str, state.affinity)) if state.affinity else None),
    ("governor", lambda state: state.governor),
    ("clock now", lambda state: _gigahertz(state.clock_now_hz)),
    ("clock range", lambda state: _range(state)),
    ("temperature", lambda state: None if state.temperature_c is None else f"{state.temperature_c:.0f} °C"),
    ("power mode", lambda state: state.power_mode),
    ("power supply", lambda state: state.power_supply),
    (
        "throttling",
        lambda state: None if state.throttle_flags is None else ", ".join(state.throttle_flags) or "no flag",
    ),
    ("emulated", lambda state: EMULATED if state.emulated else "no"),
)


def environment(subjects: Sequence[Subject], runs: Sequence[Run]) -> Html:
    """State of the machine before and after each measurement, and the packages of each export."""
    return tag("div", *map(_state, runs), _versions(subjects), class_="cards")


def _state(run: Run) -> Html:
    measured = run.measured
    told = [(name, read(measured.before), read(measured.after)) for name, read in STATE]
    rows = [
        [name, before or "not shown", "the same" if before == after else after or "not shown"]
        for name, before, after in told
        if before or after
    ]
    silent = ", ".join(name for name, before, after in told if not before and not after)
    build = f", build {measured.runtime_build}" if measured.runtime_build else ""
    mark = tag("strong", EMULATED, class_="emulated") if run.emulated else NOTHING
    return tag(
        "article",
        tag("h3", f"{run.label}, {run.origin}"),
        tag("p", f"{measured.runtime} {measured.runtime_version}{build} ", mark, class_="where"),
        table("State of the machine", ["setting", "before", "after"], rows),
        tag("p", f"This machine does not show: {silent}.", class_="where") if silent else NOTHING,
        class_="card",
    )


def _versions(subjects: Sequence[Subject]) -> Html:
    names = list(dict.fromkeys(name for subject in subjects for name in subject.manifest.tool_versions))
    rows = [[name, *(subject.manifest.tool_versions.get(name, "not used") for subject in subjects)] for name in names]
    if not rows:
        return NOTHING
    return tag(
        "article",
        tag("h3", "Packages that exported"),
        table("Versions of packages", ["package", *(subject.label for subject in subjects)], rows),
        class_="card",
    )


def _gigahertz(clock_hz: float | None) -> str | None:
    return None if clock_hz is None else f"{clock_hz / 1e9:.2f} GHz"


def _range(state: HostState) -> str | None:
    low, high = _gigahertz(state.clock_min_hz), _gigahertz(state.clock_max_hz)
    return f"{low} to {high}" if low and high else None
