"""A measurement for people: every figure with its unit, and what to make of it."""

from __future__ import annotations

from edgekit.measurement import Control, HostState, Latency, Measurement, Sustained
from edgekit.report import EMULATED, energy_text, generation_cells, latency_text, megabytes, milliseconds
from edgekit.report_ops import ops_text

UNSTEADY_CV = 0.05  # of trials: repeatable runs stay below, as MLPerf Mobile asks


def measurement_cells(measured: Measurement) -> list[tuple[str, str]]:
    """Label and text of every line of a measurement."""
    state, latency, made = measured.before, measured.latency, measured
    warm = "steady" if made.warm else "NOT steady: the machine is busy or throttling"
    build = f" ({made.runtime_build})" if made.runtime_build else ""
    lines = [
        *((("EMULATED", EMULATED),) if state.emulated else ()),
        ("bundle", f"{made.bundle}  {made.runtime} {made.runtime_version}{build}, {made.threads} thread(s)"),
        ("load", f"{milliseconds(made.load_s)}, first run {milliseconds(made.first_run_s)}"),
        ("warm-up", f"{made.warmup_runs} calls, {warm}"),
        ("latency", f"{latency_text(latency)}  over {latency.calls or len(latency.times_s)} calls"),
        *_tail_cells(latency),
        *_trial_cells(made),
        *_sustained_cells(made.sustained),
        *(generation_cells(made.generation) if made.generation else ()),
        *((("ops", ops_text(made.ops)),) if made.ops else ()),
        ("drift", f"last quarter / first quarter = {latency.drift:.3f}"),
        ("throttled", "; ".join(made.throttled) or _no_sign(state)),
        *_control_cells(made.control),
        *_overhead_cells(made),
        ("peak memory", f"{megabytes(made.peak_rss_bytes)} resident"),
        *energy_cells(made),
        ("machine", f"{state.cpu or state.machine}, {_cores(state)}, {state.system}"),
        ("state", _state_text(state, made.after)),
        ("model", _model_text(made)),
    ]
    return [*lines, *(("note", note) for note in _notes(made))]


def control_text(control: Control) -> str:
    """The ratio of a bundle to itself, and what follows where its interval misses 1."""
    interval = f"{control.ratio:.3f} ({control.ratio_ci.low:.3f} to {control.ratio_ci.high:.3f})"
    if control.holds:
        return f"ok  the bundle against itself: {interval} holds 1"
    return (
        f"FAILED: the bundle against itself: {interval} does not hold 1. One in twenty does so by chance; "
        "if it does again, this machine is too busy now for its comparisons to be trusted"
    )


def over(what: str, value: float, limit: float | None, unit: str) -> list[str]:
    """The sentence of a gate that was missed; nothing where it was kept, or where none was asked for."""
    if limit is None or value <= limit:
        return []
    return [f"{what} is {value:.2f} {unit}, the limit is {limit:g} {unit}"]


def _tail_cells(latency: Latency) -> list[tuple[str, str]]:
    found = [
        f"{name} {1e3 * interval.low:.2f} to {1e3 * interval.high:.2f} ms"
        for name, interval in (("p90", latency.p90_ci_s), ("p99", latency.p99_ci_s))
        if interval
    ]
    return [("tail", f"95 % intervals: {', '.join(found)}")] if found else []


def _trial_cells(measured: Measurement) -> list[tuple[str, str]]:
    trials = measured.trials
    if len(trials) < 2 or measured.trial_cv is None:
        return []
    medians, processes = [trial.p50_s for trial in trials], len({trial.process for trial in trials})
    where = "one process" if processes == 1 else f"{processes} processes"
    span = f"p50 {1e3 * min(medians):.2f} to {milliseconds(max(medians))}, CV {measured.trial_cv:.1%}"
    lines = [("trials", f"{len(trials)} in {where}: {span}")]
    if found := measured.mean_ci_s:
        interval = f"({1e3 * found.low:.2f} to {1e3 * found.high:.2f} over trials)"
        lines.append(("mean", f"{milliseconds(measured.latency.mean_s)} {interval}"))
    return lines


def sustained_text(found: Sustained) -> str:
    """The first minute beside the last, and how long the run was."""
    window = "minute" if found.window_s == 60 else f"{found.window_s:.0f} s"
    cut = f", interrupted of {found.asked_s:.0f} s" if found.lasted_s < found.asked_s else ""
    change = found.final_p50_s / found.minute_1_p50_s
    text = f"first {window} p50 {milliseconds(found.minute_1_p50_s)}, last {milliseconds(found.final_p50_s)}"
    return f"{text} ({change:.3f}x) over {found.lasted_s:.0f} s{cut}"


def _sustained_cells(found: Sustained | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    lines = [("sustained", sustained_text(found))]
    if found.joules is not None:
        window = "minute" if found.window_s == 60 else f"{found.window_s:.0f} s"
        watts = [f"{each:.3g} W" if each else "too short to tell" for each in (found.minute_1_w, found.final_w)]
        lines.append(("power", f"first {window} {watts[0]}, last {watts[1]}, {found.joules:.4g} J over the run"))
    return lines


def _control_cells(control: Control | None) -> list[tuple[str, str]]:
    return [("A/A control", control_text(control))] if control else []


def _overhead_cells(measured: Measurement) -> list[tuple[str, str]]:
    if measured.overhead_s is None:
        return []
    share = measured.overhead_s / measured.latency.p50_s
    return [("overhead", f"edgekit's session around an empty model: {1e6 * measured.overhead_s:.0f} us, {share:.2%}")]


def energy_cells(measured: Measurement) -> list[tuple[str, str]]:
    """What a meter read, and in a line of its own what a model says where one was asked for."""
    read = ("energy", energy_text(measured.energy))
    if measured.modelled_energy_note is None:
        return [read]
    joules = measured.modelled_energy_j
    figure = "none: " if joules is None else f"~{1e3 * joules:.3g} mJ by "
    return [read, ("modelled energy", figure + measured.modelled_energy_note)]


def _no_sign(state: HostState) -> str:
    return "no" if state.throttle_flags is not None else "no sign in the times; this machine has no sensor that tells"


def _cores(state: HostState) -> str:
    return f"{state.cores} core" if state.cores == 1 else f"{state.cores} cores"


def _state_text(before: HostState, after: HostState) -> str:
    clocks, heat = "clocks not shown by this machine", "temperature not shown"
    if before.clock_now_hz and after.clock_now_hz:
        clocks = f"{before.clock_now_hz / 1e9:.2f} GHz before, {after.clock_now_hz / 1e9:.2f} after"
    if before.temperature_c is not None and after.temperature_c is not None:
        heat = f"{before.temperature_c:.0f} C before, {after.temperature_c:.0f} after"
    power = ((before.power_mode, after.power_mode), (before.power_supply, after.power_supply))
    extras = [was if was == now else f"{was} before, {now} after" for was, now in power if was]
    return ", ".join([f"governor {before.governor or 'not shown'}", clocks, heat, *extras])


def _model_text(measured: Measurement) -> str:
    digest = f" sha256 {measured.artifact_sha256[:12]}" if measured.artifact_sha256 else ""
    return f"{measured.artifact}{digest}, input {measured.input_source or 'not recorded'}"


def _notes(measured: Measurement) -> list[str]:
    notes = []
    if measured.latency.p99_s is None:
        notes.append("a p99 needs 299 calls, a p90 29: more --calls")
    if (measured.trial_cv or 0) > UNSTEADY_CV:
        notes.append(f"trials differ by a CV of {measured.trial_cv:.0%}, above 5 %: the machine is busy or not steady")
    return notes
