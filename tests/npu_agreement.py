"""What Vela does with each op of a trace, beside what the audit says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.bundle import Compiled
from edgekit.compiling import CompileJob
from edgekit.compression import silent
from edgekit.exporters import tflite
from edgekit.exporters._tflite_file import parse_model
from edgekit.exporters.compilers import vela
from edgekit.exporting import ExportJob
from edgekit.model import Model
from edgekit.npu.auditing.audit import placed_nodes
from edgekit.npu.rules import rules_of
from edgekit.processing import Arrays
from edgekit.profile import find_device
from edgekit.runtimes._litert_delegation import BORDERS, origins
from edgekit.runtimes._litert_file import operators
from edgekit.source import load
from tests.tflite_jobs import STATIC, job_of

DEVICES = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
SAMPLES = 4
Case = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


class Ops(nn.Module):
    """Every case a branch of its own, with inputs of its own."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({name: as_module(made) for name, (made, _) in cases.items()})
        self.counts = {name: len(given) for name, (_, given) in cases.items()}

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {
            name: branch(*(inputs[f"{name}_{index}"] for index in range(self.counts[name])))
            for name, branch in self.branches.items()
        }


class Classifier(nn.Module):
    """A transformers ViT of two layers with random weights."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
        self.vit = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8))

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(pixel_values=x).logits


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, made: Callable[..., Tensor]) -> None:
        super().__init__()
        self.made = made

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.made(*inputs)


def as_module(made: Callable[..., Tensor]) -> nn.Module:
    return made if isinstance(made, nn.Module) else Called(made)


def model_of(cases: Mapping[str, Case]) -> Model:
    """One model of all cases."""
    inputs = {f"{name}_{i}": each for name, (_, given) in cases.items() for i, each in enumerate(given)}
    return load(Ops(cases).eval(), inputs)


def int8_file(model: Model, out: Path, samples: Sequence[Arrays] = ()) -> tuple[ExportJob, Path]:
    """A model as int8 TFLite the way Vela's exports are made, calibrated on random samples where none are given."""
    numbers = np.random.default_rng(0)

    def sample() -> dict[str, Any]:
        return {name: numbers.standard_normal(each.shape).astype(np.float32) if each.is_floating_point()
                else each.numpy() for name, each in model.example.items()}  # fmt: skip

    job = job_of(model, STATIC, tuple(samples) or tuple(sample() for _ in range(SAMPLES)))
    return job, out / tflite.export(job, out, tflite.Options(**vela.OPTIONS), silent).path


def compile_for(job: ExportJob, artifact: Path, device: str, out: Path) -> Compiled:
    """What Vela makes for a device."""
    unit = find_device(device).main_unit
    return vela.compile(CompileJob(export=job, artifact=artifact, unit=unit, samples=()), out, silent).compiled


def left_to_cpu(job: ExportJob, artifact: Path, device: str, out: Path) -> set[str]:
    """The tensors that those ops write which Vela leaves to the CPU."""
    compiled = compile_for(job, artifact, device, out)
    made = parse_model((out / compiled.path).read_bytes())
    names = made.subgraphs[0].tensors
    return {names[op.outputs[0]].name.decode() for kind, op in operators(made) if kind != vela.NPU_OP}


def disagreements(job: ExportJob, artifact: Path, device: str, out: Path) -> list[str]:
    """Ops that Vela and the audit place apart, in words. What the converter folded away has no say."""
    left, parsed = left_to_cpu(job, artifact, device, out), parse_model(artifact.read_bytes())
    answers = dict(zip((f"serving_default_{s.name}_output" for s in job.outputs), answered(job.program), strict=True))
    kinds: dict[int, dict[str, bool]] = {}
    for kind, operator in operators(parsed):
        name = parsed.subgraphs[0].tensors[operator.outputs[0]].name.decode()
        if kind not in BORDERS and (made := [index for index, _ in origins(name)] or answers.get(name, [])):
            kinds.setdefault(made[-1], {})[kind] = name not in left
    numbered = {node: index for index, node in enumerate(job.program.graph.nodes)}
    found = []
    for nodes, placed in placed_nodes(job.program, rules_of(find_device(device))):
        theirs = {kind: on_npu for node in nodes for kind, on_npu in kinds.get(numbered[node], {}).items()}
        if theirs and all(theirs.values()) != (placed.verdict == "runs"):
            words = ", ".join(f"{kind} on {'npu' if on_npu else 'cpu'}" for kind, on_npu in theirs.items())
            found.append(f"{placed.op} in '{placed.module}': audit: {placed.verdict} ({placed.reason}); vela: {words}")
    return found


def answered(program: ExportedProgram) -> list[list[int]]:
    """For each output of a program, the node that gives it."""
    numbered = {node.name: index for index, node in enumerate(program.graph.nodes)}
    return [[numbered[name]] for name in program.graph_signature.user_outputs if isinstance(name, str)]


def image(op: Callable[..., Tensor], channels: int = 8) -> nn.Module:
    """An op behind a convolution."""
    return nn.Sequential(nn.Conv2d(channels, channels, 1), as_module(op))


def rows(op: Callable[..., Tensor], size: int = 16) -> nn.Module:
    """An op behind a linear layer."""
    return nn.Sequential(nn.Linear(size, size), as_module(op))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
