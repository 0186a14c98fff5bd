"""Forecast of energy: a device draws its idle power all the time, and more while a unit works."""

from __future__ import annotations

from edgekit.cost.latency import Error, LatencyForecast
from edgekit.profile import Power
from edgekit.types import Value


class EnergyForecast(Value, frozen=True, kw_only=True):
    """The forecast of one call: idle power over all of it, active power over its kernels. Not measured."""

    joules: float
    kernels_j: tuple[float, ...]  # in the order of the latency forecast
    call_j: float  # between the kernels
    error: Error
    scope: str  # what the watts cover


def forecast_energy(latency: LatencyForecast, power: Power | None) -> EnergyForecast | str:
    """Joules of one call by the two-state model, or why the profile gives none."""
    if power is None or power.idle_w is None or power.active_w is None:
        return "the profile gives no idle and active watts"
    kernels = tuple(kernel.seconds * power.active_w.value for kernel in latency.kernels)
    call = latency.call_s * power.idle_w.value
    return EnergyForecast(
        joules=call + sum(kernels),
        kernels_j=kernels,
        call_j=call,
        error="analytical",
        scope=power.scope,
    )
