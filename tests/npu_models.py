"""Small models for tests of adaptations, and one adaptation at work in a traced one."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from edgekit.dataset import Dataset
from edgekit.distill.training.fit_options import FitOptions
from edgekit.graph import capture, op_counts
from edgekit.layered import LayeredModule, layered
from edgekit.model import Model
from edgekit.npu.adaptation import load
from edgekit.npu.blocks import values
from edgekit.npu.rules import SCHEMA, NpuRules, OpRule
from edgekit.source import load as load_model

QUICK = FitOptions(steps=60, batch=8, lr=3e-3, weight_decay=0.0, ema=0.9, heldout_share=0.1, patience=0)
WIDTH, LENGTH = 8, 6


def rules(*ops: OpRule) -> NpuRules:
    return NpuRules(schema=SCHEMA, id="any", title="Any NPU", sources={}, evidence={}, dtypes=("int8",), ops=ops)


def wants(op: str, fix: str) -> NpuRules:
    return rules(OpRule(ops=(op,), refused="it has no unit for that", fix=fix, source="test"))


def tokens(count: int = 32, shape: tuple[int, ...] = (1, LENGTH, WIDTH)) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset("tokens", tuple({"input": rng.standard_normal(shape, np.float32)} for _ in range(count)))


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 24), activation, nn.Linear(24, WIDTH))


def traced(module: nn.Module, data: Dataset) -> Model:
    torch.manual_seed(0)
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    sample = {name: torch.from_numpy(array) for name, array in data.samples[0].items()}
    return load_model(module.eval(), sample)


def changed(name: str, model: Model, data: Dataset, which: NpuRules | None = None) -> LayeredModule:
    """The model after one adaptation at all its places, without repair."""
    edited = copy.deepcopy(layered(capture(model)))  # the traced one shares the model's weights
    adaptation = load(name)
    for site in list(adaptation.sites(edited, which or rules())):
        adaptation.apply(edited, site, lambda node: values(edited, [node], data.samples)[node.name])
    edited.tidy()
    return edited


def ops_of(module: nn.Module, data: Dataset) -> set[str]:
    return set(op_counts(capture(traced_as_is(module, data))))


def traced_as_is(module: nn.Module, data: Dataset) -> Model:
    return load_model(module, {name: torch.from_numpy(array) for name, array in data.samples[0].items()})
