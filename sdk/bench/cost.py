"""Fit the model of costs to measured latencies of public models, and say how far off it is on families left out."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgekit.bench._public_models import PUBLIC, PublicModel, trace
from edgekit.bench._scaling import Point, Size, held_out_scaling, read_sizes
from edgekit.compression import Progress, silent
from edgekit.cost.fitting import Fit, Hardware, HeldOut, Sample, fit, held_out
from edgekit.cost.forecast import STORED
from edgekit.cost.kernels import Work, work
from edgekit.cost.latency import is_rank_only
from edgekit.errors import InvalidInput
from edgekit.profile import MOST_FRACTION, Calibration, ComputeUnit, EfficiencyPoint, OpClass
from edgekit.toolchains import versions
from edgekit.types import DType, Value

# Measured runtimes are all one compiler behind different doors; a graph may have come through either of a pair.
RUNTIMES = {
    "qnn_dlc": "qnn", "qnn_context_binary": "qnn", "tflite": "litert", "onnx": "onnxruntime",
    "precompiled_qnn_onnx": "onnxruntime",
}  # fmt: skip
DTYPES: dict[str, DType] = {"float": "float16", "w8a8": "int8", "w8a16": "int16"}  # float runs in float16 there
NPU = Hardware(channel_multiple=32, on_chip_bytes=8 << 20)  # Hexagon: groups of 32 channels, 8 MB of VTCM
SPLITS = 20
LEAST_GRAPHS = 8
COLUMNS = ("model", "component", "precision", "device", "runtime", "ms", "gpu", "cpu", "unit")


class Row(NamedTuple):
    """One measurement: a graph on a device."""

    model: str
    component: str
    precision: str
    device: str
    runtime: str
    seconds: float
    on_npu: bool  # all of it


class Graph(NamedTuple):
    """What a public model computes."""

    family: str
    work: Work


class DeviceFit(Value, frozen=True, kw_only=True):
    """One device, runtime and dtype: what was fitted to all graphs, and the errors on families left out."""

    device: str
    runtime: str
    dtype: DType
    fit: Fit
    held_out: HeldOut
    size_only: HeldOut | None = None  # the errors when only parameters and pixels are known, over more models

    @property
    def rank_only(self) -> bool:
        """Whether the errors are too large for forecasts to name a time."""
        return is_rank_only(self.held_out.median, self.held_out.spearman)


class CostFit(Value, frozen=True, kw_only=True):
    """All fits of one file of measurements."""

    measurements: int
    graphs: int
    families: int
    splits: int
    fits: tuple[DeviceFit, ...]
    versions: dict[str, str]


def run(data: Path, pages: Path | None = None, progress: Progress = silent) -> CostFit:
    """Trace all public models, fit every device and runtime of the file. Takes minutes, most for the tracing.

    `pages` is a JSON file of what is known of models besides, for the baseline that knows sizes only.
    """
    rows, sizes = read_rows(data), read_sizes(pages) if pages else {}
    graphs = trace_graphs({(row.model, row.component) for row in rows}, progress)
    return fit_devices(rows, graphs, sizes, progress)


def trace_graphs(
    wanted: set[tuple[str, str]], progress: Progress = silent, public: Sequence[PublicModel] = PUBLIC
) -> dict[tuple[str, str | None], Graph]:
    """Kernels of the public models that were measured, by model and component."""
    models = {model for model, _ in wanted}
    found: dict[tuple[str, str | None], Graph] = {}
    for each in public:
        if each.model in models:
            progress(f"trace {each.model} {each.component or ''}".rstrip())
            found[each.model, each.component] = Graph(each.family, work(trace(each)))
    return found


def fit_devices(
    rows: Sequence[Row],
    graphs: Mapping[tuple[str, str | None], Graph],
    sizes: Mapping[str, Size],
    progress: Progress = silent,
) -> CostFit:
    """One joint fit of all dtypes for each device and runtime with enough graphs."""
    found: list[DeviceFit] = []
    for device in sorted({row.device for row in rows}):
        for runtime in dict.fromkeys(RUNTIMES.values()):
            progress(f"fit {device} {runtime}")
            samples = device_samples(rows, graphs, device, runtime)
            if len(samples) < LEAST_GRAPHS:
                continue
            fits, errors = fit(samples, NPU), held_out(samples, NPU, SPLITS)
            found += [
                DeviceFit(
                    device=device,
                    runtime=runtime,
                    dtype=dtype,
                    fit=fits[dtype],
                    held_out=errors[dtype],
                    size_only=held_out_scaling(_points(rows, graphs, sizes, device, runtime, dtype), SPLITS),
                )
                for dtype in DTYPES.values()
                if dtype in fits and dtype in errors
            ]
    return CostFit(
        measurements=len(rows),
        graphs=len(graphs),
        families=len({graph.family for graph in graphs.values()}),
        splits=SPLITS,
        fits=tuple(found),
        versions=versions(("edgekit", "numpy", "torch", "torchvision", "timm", "transformers", "diffusers")),
    )


def device_samples(
    rows: Sequence[Row], graphs: Mapping[tuple[str, str | None], Graph], device: str, runtime: str
) -> list[Sample]:
    """The measured graphs of one device and runtime that ran on the NPU alone, in the dtypes that are modelled."""
    found: dict[tuple[str, str, str], Sample] = {}
    for row in rows:
        known = graphs.get((row.model, row.component)) or graphs.get((row.model, None))
        mine = (row.device, RUNTIMES.get(row.runtime)) == (device, runtime)
        if known and mine and row.on_npu and row.precision in DTYPES:
            key = (row.model, row.component, row.precision)
            name = f"{row.model} {row.component}"
            found[key] = Sample(name, known.family, STORED[DTYPES[row.precision]], known.work, row.seconds)
    return list(found.values())


def _points(
    rows: Sequence[Row],
    graphs: Mapping[tuple[str, str | None], Graph],
    sizes: Mapping[str, Size],
    device: str,
    runtime: str,
    dtype: DType,
) -> list[Point]:
    """The measured models of known size; one without a graph is of the family that its name begins with."""
    found: dict[str, Point] = {}
    for row in rows:
        mine = (row.device, RUNTIMES.get(row.runtime), DTYPES.get(row.precision)) == (device, runtime, dtype)
        if mine and row.on_npu and row.model in sizes:
            known = graphs.get((row.model, None))
            family = known.family if known else row.model.partition("_")[0].rstrip("0123456789")
            found[row.model] = Point(family, sizes[row.model], row.seconds)
    return list(found.values())


def read_rows(data: Path) -> list[Row]:
    """Measurements from a CSV file. Raises `InvalidInput` that names the line and the field."""
    try:
        with data.open(newline="", encoding="utf-8") as stream:
            lines = csv.DictReader(stream)
            if missing := [name for name in COLUMNS if name not in (lines.fieldnames or ())]:
                raise InvalidInput(f"'{data}' has no column {', '.join(missing)}: it needs {', '.join(COLUMNS)}")
            rows = [_row(line, f"'{data}', line {number}") for number, line in enumerate(lines, start=2)]
    except OSError as error:
        raise InvalidInput(f"cannot read the measurements '{data}': {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"'{data}' is not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise InvalidInput(f"'{data}' holds no measurements")
    return rows


def _row(line: Mapping[str, str | None], where: str) -> Row:
    short = [name for name in COLUMNS if line.get(name) is None]
    if short:
        raise InvalidInput(f"{where}: no {short[0]}")
    texts = {name: str(line[name]) for name in COLUMNS}
    try:
        milliseconds = float(texts["ms"])
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise InvalidInput(f"{where}: ms is '{texts['ms']}', and a latency is a positive number")
    return Row(
        model=texts["model"],
        component=texts["component"],
        precision=texts["precision"],
        device=texts["device"],
        runtime=texts["runtime"],
        seconds=milliseconds / 1e3,
        on_npu=texts["unit"] == "NPU" and not texts["gpu"] and not texts["cpu"],
    )


def table(found: CostFit) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: a device and runtime a row, a dtype a column."""
    columns = ["device", "runtime", *DTYPES.values()]
    cells = {(each.device, each.runtime, each.dtype): each for each in found.fits}
    places = dict.fromkeys((each.device, each.runtime) for each in found.fits)
    return columns, [[*place, *(_cell(cells.get((*place, dtype))) for dtype in DTYPES.values())] for place in places]


def _cell(found: DeviceFit | None) -> str:
    if found is None:
        return "-"
    errors = found.held_out
    text = f"{errors.median:.0%}, {errors.p90:.0%}, {errors.spearman:.2f} ({errors.graphs})"
    return text + (" rank only" if found.rank_only else "")


def summary(found: CostFit) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: a runtime and dtype a row, over all devices."""
    columns = [
        "runtime",
        "dtype",
        "devices",
        "graphs",
        "median error",
        "9 of 10 within",
        "rank correlation",
        "median error, size only",
        "time shown",
    ]
    rows = []
    for runtime in dict.fromkeys(RUNTIMES.values()):
        for dtype in DTYPES.values():
            mine = [each for each in found.fits if (each.runtime, each.dtype) == (runtime, dtype)]
            if mine:
                errors = [each.held_out for each in mine]
                figures = [
                    _span([each.graphs for each in errors], "{:.0f}"),
                    _span([each.median for each in errors], "{:.0%}"),
                    _span([each.p90 for each in errors], "{:.0%}"),
                    _span([each.spearman for each in errors], "{:.2f}"),
                    _span([each.size_only.median for each in mine if each.size_only], "{:.0%}"),
                    f"{sum(not each.rank_only for each in mine)} of {len(mine)}",
                ]
                rows.append([runtime, dtype, str(len(mine)), *figures])
    return columns, rows


def _span(values: Sequence[float], form: str) -> str:
    """The median with the smallest and the largest."""
    if not values:
        return "-"
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def calibrations(found: CostFit, device: str, runtime: str, unit: ComputeUnit, date: str) -> list[Calibration]:
    """The fits of one device and runtime as its profile keeps them: one a dtype, since each has its own errors."""
    highest = max(number.value for number in unit.peak_ops_per_s.values())
    return [
        Calibration(
            runtime=runtime,
            runtime_version="as AI Hub ran it",
            unit=unit.name,
            host=device,
            date=date,
            threads=1,
            efficiency={each.dtype: _efficiency(each, unit, highest)},
            op_overhead_s=_short(each.fit.op_overhead_s),
            call_overhead_s=_short(each.fit.call_overhead_s),
            bytes_per_s=_short(each.fit.bytes_per_s),
            held_out_p90={"model": _short(each.held_out.p90)},
            held_out_median=_short(each.held_out.median),
            held_out_spearman=_short(each.held_out.spearman),
            source="fitted by tests/fit_cost.py to perf.yaml files of qualcomm/ai-hub-models at b61a0090, BSD-3-Clause",
        )
        for each in found.fits
        if (each.device, each.runtime) == (device, runtime)
    ]


def _efficiency(found: DeviceFit, unit: ComputeUnit, highest: float) -> dict[OpClass, tuple[EfficiencyPoint, ...]]:
    """One fraction from the smallest kernel seen to the largest."""
    known = unit.peak_ops_per_s.get(found.dtype)
    peak = known.value if known else highest
    return {
        kind: tuple(
            EfficiencyPoint(ops=ops, fraction=_short(min(rate / peak, MOST_FRACTION)))
            for ops in dict.fromkeys(found.fit.ranges[kind])
        )
        for kind, rate in found.fit.rates.items()
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}")
