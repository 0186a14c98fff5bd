"""Small models of one op each, exported like any other model: what `edgekit calibrate` times on a device.

A model is a chain of equal kernels, so that what happens once in a call, entering and leaving a quantised graph
included, weighs little. Weights and inputs are random and the outputs mean nothing. They are the same each time, so
that a board that was calibrated before has them already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit import registry
from edgekit.bundle import (
    GOLDEN,
    MANIFEST,
    SCHEMA_VERSION,
    Artifact,
    Asset,
    Bundle,
    Manifest,
    record_file,
    write_golden,
)
from edgekit.compression import compress, silent
from edgekit.dataset import Dataset, random_samples
from edgekit.exporting import Exporter, ExportJob
from edgekit.graph import capture
from edgekit.planning import EXPORTERS, RECIPES, Plan
from edgekit.profile import DeviceProfile, OpClass
from edgekit.quiet import quiet_native
from edgekit.source import load
from edgekit.types import DType, Precision

CHAIN = 4
CREATED_UTC = "2026-11-22T00:00:00+00:00"  # of the models below, whenever they are built
PRECISION_OF: dict[DType, Precision] = {"float32": "fp32", "float16": "fp16", "int8": "int8"}
PRODUCTS: tuple[OpClass, ...] = ("conv", "dwconv", "gemm", "gemv")  # quantised recipes leave the others in float


@dataclass(frozen=True, eq=False, kw_only=True)
class Micromodel:
    """A chain of `kernels` kernels of `ops` operations each: 1 MAC = 2; one an element where nothing multiplies."""

    name: str
    op_class: OpClass
    ops: float
    kernels: int
    module: nn.Module
    example: Tensor


class _Chain(nn.Module):
    """Apply a step again and again, each time with the layer of its turn."""

    def __init__(self, layers: list[nn.Module], step: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last step."""
        start = x
        for layer in self.layers:
            x = self.step(layer, x, start)
        return x


def micromodels() -> list[Micromodel]:
    """One for each class and size; the small ones are of a size that models for boards are full of."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            *(_convolution("conv", channels, size, 1) for channels, size in ((16, 28), (64, 28), (128, 28))),
            *(_convolution("dwconv", channels, size, channels) for channels, size in ((64, 28), (256, 28))),
            *(_product("gemm", rows, width) for rows, width in ((64, 256), (128, 768))),
            *(_product("gemv", 1, width) for width in (256, 1024)),
            *(_attention(heads, length) for heads, length in ((4, 64), (8, 192))),
            *(_elementwise(rows) for rows in (128, 4096)),
            *(_layout(channels) for channels in (32, 256)),
            *(_gather(count) for count in (64, 2048)),
        ]


def chains() -> list[Micromodel]:
    """Chains of ops with next to nothing to compute, of two lengths: what one more op costs, and the call itself."""

    def chain(length: int) -> Micromodel:
        layers: list[nn.Module] = [nn.Sigmoid() if turn % 2 else nn.Tanh() for turn in range(length)]
        return _model("elementwise", 8, _Chain(layers, _layer), torch.ones(1, 8), f"chain of {length}", length)

    return [chain(length) for length in (4, 64)]


def build(model: Micromodel, format: str, dtype: DType, device: DeviceProfile, folder: Path) -> Bundle:
    """Export one into a new folder. Raises `UnsupportedModel`, `ToolchainMissing`."""
    exporter: Exporter = registry.load(EXPORTERS, format)
    precision = PRECISION_OF[dtype]
    loaded = load(model.module, model.example)
    samples = random_samples(loaded.example_arrays)
    folder.mkdir()
    with quiet_native():
        program = capture(loaded)
        passes = tuple(step for step in RECIPES[precision] if step.decides)
        made = compress(loaded, passes, device, program, calibration=Dataset("random", samples))
        job = ExportJob.of(made, program, precision)
        exported = exporter.export(job, folder, exporter.Options(), silent)
        with torch.no_grad():
            answer = model.module(model.example)
    write_golden(folder / GOLDEN, [(loaded.example_arrays, {loaded.outputs[0].name: answer.numpy()})])
    plan = Plan(device=device.id, format=format, precision=precision, passes=passes)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=model.name,
        source=loaded.source,
        device=device.id,
        plan=plan.record(),
        precision=exported.precision,
        inputs=exported.inputs or loaded.inputs,
        outputs=loaded.outputs,
        artifacts=(
            Artifact(
                format=format,
                runtime=exporter.RUNTIME,
                runtime_version_range=exporter.RUNTIME_VERSION_RANGE,
                **record_file(folder, exported.path),
            ),
        ),
        assets=(Asset(role="golden", **record_file(folder, GOLDEN)),),
        created_utc=CREATED_UTC,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(folder)


def _model(
    op_class: OpClass, ops: float, module: nn.Module, example: Tensor, name: str, kernels: int = CHAIN
) -> Micromodel:
    return Micromodel(name=name, op_class=op_class, ops=ops, kernels=kernels, module=module.eval(), example=example)


def _layer(layer: nn.Module, x: Tensor, start: Tensor) -> Tensor:
    return torch.as_tensor(layer(x))


def _convolution(op_class: OpClass, channels: int, size: int, groups: int) -> Micromodel:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False) for _ in range(CHAIN)
    ]
    ops = 2 * 9 * channels * (channels // groups) * size * size
    example = torch.randn(1, channels, size, size)
    return _model(op_class, ops, _Chain(layers, _layer), example, f"{op_class} {channels}x{size}x{size}")


def _product(op_class: OpClass, rows: int, width: int) -> Micromodel:
    layers: list[nn.Module] = [nn.Linear(width, width) for _ in range(CHAIN)]
    name = f"{op_class} {rows}x{width}x{width}"
    return _model(op_class, 2 * rows * width * width, _Chain(layers, _layer), torch.randn(rows, width), name)


def _attention(heads: int, length: int, width: int = 64) -> Micromodel:
    def step(layer: nn.Module, x: Tensor, start: Tensor) -> Tensor:
        return torch.softmax(x @ x.transpose(-1, -2) * width**-0.5, -1) @ x

    layers: list[nn.Module] = [nn.Identity() for _ in range(CHAIN)]
    ops = 2 * heads * length * length * width  # of each product; the softmax between them is small beside both
    example = torch.randn(1, heads, length, width)
    name = f"attention {heads}x{length}x{width}"
    return _model("attention", ops, _Chain(layers, step), example, name, 2 * CHAIN)


def _elementwise(rows: int, width: int = 256) -> Micromodel:
    """What models have most, in turns: a sum, a norm, an activation and a softmax, which cost unlike each other."""

    def step(layer: nn.Module, x: Tensor, start: Tensor) -> Tensor:
        return torch.softmax(nn.functional.gelu(layer(x + start)), -1)

    layers: list[nn.Module] = [nn.LayerNorm(width) for _ in range(CHAIN)]
    name = f"elementwise {rows}x{width}"
    return _model("elementwise", rows * width, _Chain(layers, step), torch.randn(1, rows, width), name, 4 * CHAIN)


def _layout(channels: int, size: int = 32) -> Micromodel:
    class Transpose(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1).contiguous()

    example = torch.randn(1, channels, size, size)
    return _model("layout", example.numel(), Transpose(), example, f"layout {channels}x{size}x{size}", 1)


def _gather(count: int, width: int = 256) -> Micromodel:
    table = nn.Embedding(4096, width)
    example = torch.randint(0, 4096, (1, count))
    return _model("gather", count * width, table, example, f"gather {count}x{width}", 1)
