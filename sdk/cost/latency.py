"""Forecast of time: each kernel takes its overhead and the longer of its arithmetic and its memory traffic.

Source: the roofline of Williams et al. (CACM 52-4, 2009), on padded shapes, with what classes of ops reach of the peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import msgspec

from edgekit.cost.kernels import Kernel, Work
from edgekit.profile import Calibration, ComputeUnit, DeviceProfile, EfficiencyPoint, OpClass
from edgekit.types import DType, Precision, Value

Resource = Literal["compute", "memory", "overhead"]
Error = float | Literal["analytical"]  # relative, exceeded by one held-out prediction in ten; or never compared
MOST_MEDIAN, LEAST_SPEARMAN = 0.25, 0.9  # on held-out models; beyond, a forecast ranks models and says no time

# Nobody measured these: what kernels may be expected to reach where no calibration says it. Most reach more.
ASSUMED: dict[OpClass, float] = {
    "conv": 0.3, "dwconv": 0.05, "gemm": 0.3, "gemv": 0.1, "attention": 0.1, "elementwise": 0.05, "layout": 0.02,
    "gather": 0.02,
}  # fmt: skip
ASSUMED_OP_S = 5e-6
ASSUMED_CALL_S = 50e-6
ASSUMED_CLOCK_HZ = 2e9
ASSUMED_BYTES_PER_S = 10e9
OPS_PER_CYCLE: dict[str, dict[DType, int]] = {  # of a core that issues one vector instruction a cycle
    "neon": {"float32": 8, "int8": 8},
    "fp16": {"float16": 16},
    "dotprod": {"int8": 32},
    "i8mm": {"int8": 64},
    "avx2": {"float32": 16, "int8": 32},
}


class Numbers(NamedTuple):
    """What a precision multiplies in, and the bytes of a weight and of an activation."""

    dtype: DType
    weight_bytes: float
    activation_bytes: float


NUMBERS: dict[Precision, Numbers] = {
    "fp32": Numbers("float32", 4, 4),
    "lossless": Numbers("float32", 4, 4),  # decoded when it is opened
    "fp16": Numbers("float16", 2, 2),
    "int8": Numbers("int8", 1, 1),
    "int8-dynamic": Numbers("int8", 1, 4),
    "int8-weight-only": Numbers("float32", 1, 4),
    "w4a8": Numbers("int8", 0.5, 4),
}


class Roofline(Value, frozen=True, kw_only=True):
    """All that the forecast needs to know of one unit and one runtime, for one dtype."""

    unit: str
    runtime: str | None  # None: not calibrated
    dtype: DType
    threads: int | None = None  # of a processor
    peak_ops_per_s: float
    bytes_per_s: float
    efficiency: dict[OpClass, tuple[EfficiencyPoint, ...]] = {}  # of the peak, over the size of a kernel
    channel_multiple: int = 1
    on_chip_bytes: float = 0  # activations that fit are not moved through main memory
    op_overhead_s: float = ASSUMED_OP_S
    call_overhead_s: float = ASSUMED_CALL_S
    held_out_p90: dict[OpClass | Literal["model"], float] = {}
    rank_only: bool = False

    def rate(self, op_class: OpClass, ops: float) -> float:
        """Operations per second of a kernel of this size; between two fitted sizes on a line in logarithms."""
        points = self.efficiency.get(op_class, ())
        return self.peak_ops_per_s * (_between(points, ops) if points else ASSUMED[op_class])

    def covers(self, op_class: OpClass, ops: float) -> bool:
        """Whether kernels of this size were fitted."""
        points = self.efficiency.get(op_class, ())
        return bool(points) and points[0].ops <= ops <= points[-1].ops


class KernelTime(Value, frozen=True, kw_only=True):
    """The forecast of one kernel."""

    op: str
    module: str
    op_class: OpClass
    seconds: float
    binding: Resource
    error: Error
    extrapolated: bool  # its size was not fitted


class LatencyForecast(Value, frozen=True, kw_only=True):
    """The forecast of one call; not measured."""

    seconds: float
    binding: Resource  # that most of the time goes to
    error: Error
    extrapolated: bool  # kernels that were not fitted take a tenth of the time or more
    rank_only: bool  # held-out errors are too large for a time: compare forecasts of this device with each other only
    unit: str
    runtime: str | None  # whose calibration was used
    dtype: DType
    threads: int | None  # of a processor
    call_s: float  # of `seconds`: what is not part of a kernel
    kernels: tuple[KernelTime, ...]
    not_modelled: dict[str, int] = {}  # op -> how often; their time is not in `seconds`


def forecast_latency(work: Work, roofline: Roofline, numbers: Numbers) -> LatencyForecast:
    """Sum of all kernels, what a call costs beside them, and its inputs and outputs through main memory."""
    kernels = tuple(_kernel_time(kernel, roofline, numbers) for kernel in work.kernels)
    call_s = roofline.call_overhead_s + work.boundary * numbers.activation_bytes / roofline.bytes_per_s
    seconds = call_s + sum(kernel.seconds for kernel in kernels)
    by_resource: dict[Resource, float] = {"overhead": call_s, "compute": 0.0, "memory": 0.0}
    for kernel in kernels:
        by_resource[kernel.binding] += kernel.seconds
    outside = sum(kernel.seconds for kernel in kernels if kernel.extrapolated)
    return LatencyForecast(
        seconds=seconds,
        binding=max(by_resource, key=by_resource.__getitem__),
        error=roofline.held_out_p90.get("model", "analytical"),
        extrapolated=bool(roofline.efficiency) and outside >= 0.1 * seconds,
        rank_only=roofline.rank_only,
        unit=roofline.unit,
        runtime=roofline.runtime,
        dtype=roofline.dtype,
        threads=roofline.threads,
        call_s=call_s,
        kernels=kernels,
        not_modelled=work.not_modelled,
    )


def find_roofline(device: DeviceProfile, unit: ComputeUnit, runtime: str, dtype: DType) -> Roofline | str:
    """The roofline of a unit, or why its profile gives none. A calibration of this runtime and dtype comes first."""
    found = find_calibration(device, unit, runtime, dtype)
    peak = unit.peak_ops_per_s.get(dtype)
    if peak is None and found:
        peak = max(unit.peak_ops_per_s.values(), key=lambda number: number.value, default=None)
    rate = peak.value if peak else _rate_of_isa(unit, dtype)
    if rate is None:
        return f"the profile of {device.title} gives no {dtype} rate of its {unit.name}"
    known = [level for level in device.memory if level.unit in (None, unit.name)]
    main = next((level for level in reversed(known) if level.unit is None), None)
    bandwidth = main and (main.sustained_bytes_per_s or main.peak_bytes_per_s)
    near = [level.size_bytes.value for level in known if level is not main and level.size_bytes]
    roofline = Roofline(
        unit=unit.name,
        runtime=None,
        dtype=dtype,
        threads=(int(unit.cores.value) if unit.cores else 1) if unit.kind == "cpu" else None,
        peak_ops_per_s=rate,
        bytes_per_s=bandwidth.value if bandwidth else ASSUMED_BYTES_PER_S,
        channel_multiple=unit.channel_multiple.get(dtype, 1),
        on_chip_bytes=max(near, default=0),
    )
    return msgspec.structs.replace(roofline, **_calibrated(found, unit, roofline)) if found else roofline


def find_calibration(device: DeviceProfile, unit: ComputeUnit, runtime: str, dtype: DType) -> Calibration | None:
    """The last calibration of a unit with this runtime and dtype."""
    mine = [each for each in device.calibration if (each.unit, each.runtime) == (unit.name, runtime)]
    return next((each for each in reversed(mine) if dtype in each.efficiency), None)


def native(unit: ComputeUnit, numbers: Numbers) -> Numbers:
    """What a unit computes instead: an engine without float32 runs float models in float16."""
    if numbers.dtype == "float32" and "float32" not in unit.fast_dtypes and "float16" in unit.fast_dtypes:
        return Numbers("float16", min(numbers.weight_bytes, 2), 2)
    return numbers


def traffic_bytes(kernel: Kernel, numbers: Numbers, on_chip_bytes: float) -> float:
    """Bytes through main memory: weights always, activations where they do not fit beside the unit."""
    activations = (kernel.read + kernel.written) * numbers.activation_bytes
    return kernel.weights * numbers.weight_bytes + (activations if activations > on_chip_bytes else 0)


def _kernel_time(kernel: Kernel, roofline: Roofline, numbers: Numbers) -> KernelTime:
    ops = kernel.padded_ops(roofline.channel_multiple)
    compute_s = ops / roofline.rate(kernel.op_class, ops)
    memory_s = traffic_bytes(kernel, numbers, roofline.on_chip_bytes) / roofline.bytes_per_s
    parts: dict[Resource, float] = {"compute": compute_s, "memory": memory_s, "overhead": roofline.op_overhead_s}
    return KernelTime(
        op=kernel.op,
        module=kernel.module,
        op_class=kernel.op_class,
        seconds=roofline.op_overhead_s + max(compute_s, memory_s),
        binding=max(parts, key=parts.__getitem__),
        error=roofline.held_out_p90.get(kernel.op_class, "analytical"),
        extrapolated=not roofline.covers(kernel.op_class, ops),
    )


def _calibrated(found: Calibration, unit: ComputeUnit, roofline: Roofline) -> dict[str, Any]:
    return {
        "runtime": found.runtime,
        "threads": found.threads if roofline.threads else None,
        "efficiency": _curves(found, unit, roofline),
        "bytes_per_s": found.bytes_per_s or roofline.bytes_per_s,
        "op_overhead_s": found.op_overhead_s,
        "call_overhead_s": found.call_overhead_s,
        "held_out_p90": found.held_out_p90,
        "rank_only": is_rank_only(found.held_out_median, found.held_out_spearman),
    }


def _curves(found: Calibration, unit: ComputeUnit, roofline: Roofline) -> dict[OpClass, tuple[EfficiencyPoint, ...]]:
    """The curves of a dtype; classes that were measured in float32 only run at the same rate."""
    curves, peak = dict(found.efficiency[roofline.dtype]), unit.peak_ops_per_s.get("float32")
    for kind, points in found.efficiency.get("float32", {}).items():
        if kind not in curves and peak:
            share = peak.value / roofline.peak_ops_per_s
            curves[kind] = tuple(EfficiencyPoint(ops=point.ops, fraction=point.fraction * share) for point in points)
    return curves


def _rate_of_isa(unit: ComputeUnit, dtype: DType) -> float | None:
    """What a processor's instructions give, one core and a low clock where the profile says neither."""
    per_cycle = max((OPS_PER_CYCLE[isa].get(dtype, 0) for isa in unit.isa if isa in OPS_PER_CYCLE), default=0)
    cores = unit.cores.value if unit.cores else 1
    return per_cycle * cores * (unit.clock_hz.value if unit.clock_hz else ASSUMED_CLOCK_HZ) or None


def is_rank_only(median: float | None, spearman: float | None) -> bool:
    """Whether errors on held-out models are known and too large for the forecast to name a time."""
    return (median or 0) > MOST_MEDIAN or (1 if spearman is None else spearman) < LEAST_SPEARMAN


def _between(points: Sequence[EfficiencyPoint], ops: float) -> float:
    """The fraction at a size: a line between points in logarithms, the nearest point outside of them."""
    if ops <= points[0].ops:
        return points[0].fraction
    for low, high in pairwise(points):
        if ops <= high.ops:
            share = math.log(ops / low.ops) / math.log(high.ops / low.ops)
            return float(low.fraction * (high.fraction / low.fraction) ** share)
    return points[-1].fraction
