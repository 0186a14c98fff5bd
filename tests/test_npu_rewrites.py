"""Every exact rewrite on fifty random modules: it acts, and the answers stay."""

from __future__ import annotations

import pytest
import torch

from edgekit import registry
from edgekit.graph import capture
from edgekit.layered import layered
from edgekit.model import Model, name_outputs
from edgekit.npu.rewriting import REWRITES, fitted, load, proof
from edgekit.npu.rules import SCHEMA, NpuRules
from edgekit.source import load as load_model

SEEDS = 50
FLOAT64, FLOAT32 = 1e-12, 5e-6
RULES = NpuRules(
    schema=SCHEMA,
    id="any",
    title="An NPU that asks for everything",
    sources={},
    evidence={},
    dtypes=("int8",),
    static_shapes=True,
    max_rank=4,
    channel_multiple={"int8": 16},
)


def example(name: str, seed: int) -> Model:
    made = load(name).example(seed)
    return load_model(made.module.eval(), dict(made.inputs), dynamic=made.dynamic)


@pytest.mark.parametrize("name", registry.names(REWRITES))
def test_a_rewrite_acts_and_keeps_the_answers(name: str) -> None:
    for seed in range(SEEDS):
        model = example(name, seed)
        after = layered(capture(model))
        assert proof(load(name), after, RULES, model.example) <= FLOAT64, f"seed {seed}"
        outcomes = list(load(name).apply(after, RULES))
        after.tidy()
        assert [each for each in outcomes if each.reason is None], f"seed {seed}"
        with torch.no_grad():
            inputs = fitted(model.example, after)
            ours, theirs = name_outputs(after(**inputs)), name_outputs(model.module(**inputs))
        for key, right in theirs.items():
            error = (ours[key] - right).norm() / right.norm().clamp(min=1e-30)
            assert float(error) <= (0 if load(name).EXACTNESS == "bit-equal" else FLOAT32), f"seed {seed}: {key}"
