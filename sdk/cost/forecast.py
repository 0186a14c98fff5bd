"""Forecast of everything a plan costs on a device: bytes, time and energy, before any work."""

from __future__ import annotations

from torch.export import ExportedProgram

from edgekit import registry
from edgekit.compression import CompressedModel
from edgekit.cost.energy import EnergyForecast, forecast_energy
from edgekit.cost.kernels import Work, work
from edgekit.cost.latency import NUMBERS, LatencyForecast, Numbers, find_roofline, forecast_latency, native
from edgekit.cost.memory import MemoryForecast, forecast_memory
from edgekit.planning import EXPORTERS, Plan
from edgekit.profile import DeviceProfile
from edgekit.types import DType, Value

STORED: dict[DType, Numbers] = {
    "float32": Numbers("float32", 4, 4),
    "float16": Numbers("float16", 2, 2),
    "int16": Numbers("int16", 1, 2),
    "int8": Numbers("int8", 1, 1),
}  # as vendors' compilers quantise: int16 is activations over int8 weights


class Forecast(Value, frozen=True, kw_only=True):
    """Predicted from shapes, dtypes and the device's profile; nothing in it is measured."""

    memory: MemoryForecast
    latency: LatencyForecast | None  # of one call, in the runtime of the plan
    energy: EnergyForecast | None
    missing: tuple[str, ...] = ()  # what is not forecast, and why
    vendor: tuple[LatencyForecast, ...] = ()  # what the device's vendor's compiler would make of the model


def forecast(
    compressed: CompressedModel, program: ExportedProgram, plan: Plan, device: DeviceProfile, weights: int
) -> Forecast:
    """What exporting and running `compressed` will take; `weights` are the bytes before any pass."""
    counted = work(program)
    runtime = registry.load(EXPORTERS, plan.format).RUNTIME
    choice = next((each for each in device.runtime if each.format == plan.format), None)
    unit = device.unit_of(choice) if choice else device.main_unit
    numbers = native(unit, NUMBERS[plan.precision])
    roofline = find_roofline(device, unit, runtime, numbers.dtype)
    latency: LatencyForecast | None = None
    energy: EnergyForecast | None = None
    missing: tuple[str, ...] = ()
    if isinstance(roofline, str):
        missing = (f"latency: {roofline}",)
    else:
        latency = forecast_latency(counted, roofline, numbers)
        spent = forecast_energy(latency, device.power)
        energy, missing = (None, (f"energy: {spent}",)) if isinstance(spent, str) else (spent, ())
    return Forecast(
        memory=forecast_memory(compressed, program, weights),
        latency=latency,
        energy=energy,
        missing=missing,
        vendor=_vendor(counted, device),
    )


def _vendor(counted: Work, device: DeviceProfile) -> tuple[LatencyForecast, ...]:
    """The model in every dtype that a runtime behind a vendor's compiler was calibrated in."""
    found = []
    for choice in device.runtime:
        unit = device.unit_of(choice)
        mine = [each for each in device.calibration if (each.runtime, each.unit) == (choice.name, unit.name)]
        if choice.compiler is None:
            continue
        for dtype in dict.fromkeys(dtype for each in mine for dtype in each.efficiency if dtype in STORED):
            roofline = find_roofline(device, unit, choice.name, dtype)
            if not isinstance(roofline, str):
                found.append(forecast_latency(counted, roofline, STORED[dtype]))
    return tuple(found)
