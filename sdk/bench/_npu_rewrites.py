"""What every exact rewrite changes, in float64 and in float32, over fifty random modules each: the worst of them."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit import registry
from edgekit.bench._npu_figure import Figure
from edgekit.compression import Progress
from edgekit.graph import capture
from edgekit.layered import layered
from edgekit.npu.rewriting import REWRITES, change, fitted, load, proof
from edgekit.npu.rules import NpuRules
from edgekit.source import load as load_model

MODULES = 50
BARS = {"float64": 1e-12, "float32": 5e-6}
RULES = NpuRules(
    schema="edgekit.npu/1",
    id="any",
    title="An NPU that asks for everything",
    sources={},
    evidence={},
    dtypes=("int8",),
    static_shapes=True,
    max_rank=4,
    channel_multiple={"int8": 16},
)


def figures(progress: Progress) -> Iterator[Figure]:
    """Two figures for every rewrite."""
    for name in registry.names(REWRITES):
        progress(name)
        errors = [errors_of(name, seed) for seed in range(MODULES)]
        for dtype, bar in BARS.items():
            yield Figure(
                name=f"{name}: largest error of the outputs in {dtype}",
                value=max(each[dtype] for each in errors),
                bar=bar,
                at_most=True,
                how=f"{MODULES} random modules",
            )


def errors_of(name: str, seed: int) -> dict[str, float]:
    """Relative errors on one random module; infinite where the rewrite did not act."""
    step = load(name)
    drawn = step.example(seed)
    model = load_model(drawn.module.eval(), dict(drawn.inputs), dynamic=drawn.dynamic)
    edited = layered(capture(model))
    exact = proof(step, edited, RULES, model.example)
    acted = [each for each in step.apply(edited, RULES) if each.reason is None]
    edited.tidy()
    if not acted:
        return dict.fromkeys(BARS, float("inf"))
    return {"float64": exact, "float32": change(model.module, edited, fitted(model.example, edited))}
