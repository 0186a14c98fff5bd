"""What converts: every architecture to every format, in float and in 8 bits, with parity and delegation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from edgekit import registry
from edgekit.bench._architectures import RANDOM
from edgekit.bundle import Bundle
from edgekit.compression import Progress, silent
from edgekit.drafting import ExportOptions
from edgekit.errors import EdgekitError, ToolchainMissing, UnsupportedModel, unknown_name
from edgekit.graph import attention_ops, capture, op_counts
from edgekit.model import Model
from edgekit.pipeline import export
from edgekit.planning import EXPORTERS
from edgekit.processing import Array
from edgekit.quiet import quiet
from edgekit.source import load
from edgekit.types import Precision, Value

REAL = ("efficientnet_lite0", "minilm_l6")
DEVICE = "raspberrypi5"
CALIBRATION_SAMPLES = 40
EIGHT_BITS = "8 bits"
# What toolchains cannot do yet, by a part of their reason: where they track it.
UPSTREAM = {
    "Missing out variants: {'quantized_decomposed": "https://github.com/pytorch/executorch/issues/22071",
}


class Cell(Value, frozen=True, kw_only=True):
    """One model in one format and precision."""

    model: str
    weights: Literal["real", "random"]
    format: str
    precision: Precision
    status: Literal["ok", "misses its gate", "refused"]
    reason: str | None = None
    upstream: str | None = None  # an issue of the toolchain's project
    sqnr_db: float | None = None
    cosine_min: float | None = None
    model_bytes: int | None = None
    delegated_share: float | None = None
    unit: str | None = None
    partitions: int | None = None
    fallbacks: tuple[str, ...] = ()  # op types
    seconds: float


def names() -> tuple[str, ...]:
    """The models of the matrix."""
    return (*REAL, *RANDOM)


def run(models: Sequence[str] = (), formats: Sequence[str] = (), progress: Progress = silent) -> list[Cell]:
    """Export all that is named (everything, when nothing is) and collect the cells. Takes a minute or two a model."""
    for name in models:
        if name not in names():
            raise unknown_name("model of the matrix", name, names())
    cells = []
    for name in models or names():
        for format in formats or registry.names(EXPORTERS):
            cells += _cells(name, format, progress)
    return cells


def _cells(name: str, format: str, progress: Progress) -> list[Cell]:
    try:
        model = _load(name)
        program = capture(model)
        attention = attention_ops(program) + op_counts(program)["lstm"]
    except UnsupportedModel as error:
        return [_refused(name, format, "fp32", error, 0.0)]
    except RuntimeError as error:
        return [_refused(name, format, "fp32", UnsupportedModel(str(error)), 0.0)]
    precisions: tuple[Precision, ...] = ("fp32", "int8-dynamic" if attention else "int8")
    return [_cell(model, name, format, precision, progress) for precision in precisions]


def _load(name: str) -> Model:
    if name in REAL:
        return load(f"zoo:{name}")
    torch.manual_seed(0)
    with quiet():
        module, example = RANDOM[name]()
    for layer in module.modules():  # weights as they are drawn for training let signals die out in a deep stack
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
            layer.running_var.uniform_(0.5, 2.0)
    return load(module, example)


def _cell(model: Model, name: str, format: str, precision: Precision, progress: Progress) -> Cell:
    def step(text: str) -> None:
        progress(f"{name} {format} {precision}: {text}")

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = None if name in REAL else _random_data(model, Path(folder))
        options = ExportOptions(format=format, precision=precision, calibration=data, force=True, measure=False)
        try:
            bundle = export(model, DEVICE, Path(folder) / "out", options, progress=step)
        except ToolchainMissing:
            raise
        except EdgekitError as error:
            return _refused(name, format, precision, error, time.monotonic() - start)
        return _made(bundle, name, format, time.monotonic() - start)


def _random_data(model: Model, folder: Path) -> str:
    """Inputs like the example, their scale and contrast different from sample to sample."""
    rng = np.random.default_rng(0)

    def like(array: Array) -> Array:
        drawn = [array * rng.uniform(0.3, 1.2) + rng.normal(0, 0.1, array.shape) for _ in range(CALIBRATION_SAMPLES)]
        return np.concatenate(drawn).astype(array.dtype)

    np.savez(folder / "samples.npz", **{key: like(array) for key, array in model.example_arrays.items()})  # type: ignore[arg-type]
    return str(folder / "samples.npz")


def _made(bundle: Bundle, name: str, format: str, seconds: float) -> Cell:
    manifest = bundle.manifest
    parity, where = manifest.parity, manifest.delegation
    return Cell(
        model=name,
        weights="real" if name in REAL else "random",
        format=format,
        precision=manifest.precision.name,
        status="ok" if parity and parity.ok else "misses its gate",
        reason=None if parity is None or parity.ok else "; ".join(parity.misses),
        sqnr_db=parity.sqnr_db if parity else None,
        cosine_min=parity.cosine_min if parity else None,
        model_bytes=bundle.model_bytes,
        delegated_share=where.delegated_share if where else None,
        unit=where.unit if where else None,
        partitions=where.partitions if where else None,
        fallbacks=tuple(sorted({fallback.op for fallback in where.fallbacks})) if where else (),
        seconds=seconds,
    )


def _refused(name: str, format: str, precision: Precision, error: EdgekitError, seconds: float) -> Cell:
    reason = str(error).replace(str(Path(__file__).parents[1]), "edgekit")  # results name no folder of this machine
    return Cell(
        model=name,
        weights="real" if name in REAL else "random",
        format=format,
        precision=precision,
        status="refused",
        reason=reason,
        upstream=next((link for part, link in UPSTREAM.items() if part in reason), None),
        seconds=seconds,
    )


def table(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: a model a row, a format and precision a column."""
    formats = list(dict.fromkeys(cell.format for cell in cells))
    columns = [f"{format} {bits}" for format in formats for bits in ("fp32", EIGHT_BITS)]
    rows = []
    for model in dict.fromkeys(cell.model for cell in cells):
        mine = {(c.format, "fp32" if c.precision == "fp32" else EIGHT_BITS): c for c in cells if c.model == model}
        shown = [_short(mine.get((format, bits))) for format in formats for bits in ("fp32", EIGHT_BITS)]
        rows.append([model, *shown])
    return ["model", *columns], rows


def _short(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    if cell.status == "refused":
        return "refused"
    sqnr = "no parity" if cell.sqnr_db is None else f"{cell.sqnr_db:.0f} dB"
    share = "" if cell.delegated_share is None else f", {100 * cell.delegated_share:.0f} %"
    return f"{sqnr}{share}{'' if cell.status == 'ok' else ' (misses)'}"
