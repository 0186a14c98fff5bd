"""The forecast of a plan in lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.report import megabytes, milliseconds

if TYPE_CHECKING:
    from edgekit.cost.forecast import Forecast
    from edgekit.cost.latency import LatencyForecast

SHOWN = 3  # classes of ops


def forecast_cells(found: Forecast) -> list[tuple[str, str]]:
    """Label and text of every line of a forecast: bytes, time, energy, each with how far to trust it."""
    memory = found.memory
    lines = [
        ("artifact", f"~{megabytes(memory.artifact_bytes)} (forecast)"),
        (
            "memory",
            f"~{megabytes(memory.weight_bytes)} weights + at most {megabytes(memory.peak_activation_bytes)} "
            "activations (forecast)",
        ),
        ("export", f"~{megabytes(memory.export_peak_bytes)} peak memory while exporting (forecast)"),
    ]
    if found.latency:
        lines += [("latency", _time_text(found.latency)), ("time goes to", _classes_text(found.latency))]
    if found.energy and found.latency and not found.latency.rank_only:
        text = f"~{1e3 * found.energy.joules:.3g} mJ a call (forecast, {found.energy.error}; {found.energy.scope})"
        lines.append(("energy", text))
    lines += [("no forecast", reason) for reason in found.missing]
    for each in found.vendor:
        lines.append((f"{each.runtime} {each.dtype}", _time_text(each)))
    if found.latency and found.latency.not_modelled:
        counts = ", ".join(f"{count}x {op}" for op, count in found.latency.not_modelled.items())
        lines.append(("not counted", f"{counts}: the model of costs does not know their time"))
    return lines


def _time_text(found: LatencyForecast) -> str:
    share = (
        sum(k.seconds for k in found.kernels if k.binding == found.binding)
        + (found.binding == "overhead") * found.call_s
    )
    binds = f"{found.binding} binds {share / found.seconds:.0%}"
    threads = f" with {found.threads} thread(s)" if found.threads else ""
    where = f"on the {found.unit}{threads} in {found.dtype}"
    if found.rank_only:
        return f"index {1e3 * found.seconds:.3g} {where}: ranks models on this unit, too far off for a time ({binds})"
    trust = "analytical" if found.error == "analytical" else f"9 of 10 held-out models within {found.error:.0%}"
    beyond = ", extrapolated" if found.extrapolated else ""
    return f"~{milliseconds(found.seconds)} {where} (forecast, {trust}{beyond}); {binds}"


def _classes_text(found: LatencyForecast) -> str:
    """The classes of ops that take most of the time."""
    seconds: dict[str, float] = {"the call itself": found.call_s}
    for kernel in found.kernels:
        seconds[kernel.op_class] = seconds.get(kernel.op_class, 0.0) + kernel.seconds
    most = sorted(seconds.items(), key=lambda pair: -pair[1])[:SHOWN]
    return ", ".join(f"{name} {spent / found.seconds:.0%}" for name, spent in most)
