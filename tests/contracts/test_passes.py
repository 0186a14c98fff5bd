"""Every pass, by existing, goes through these."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekit import registry
from edgekit.compression import PASSES, CompressedModel, Pass, PassContext, pass_name
from edgekit.dataset import load_dataset
from edgekit.errors import InvalidInput
from edgekit.passes.int8_static import Int8Static
from edgekit.planning import Plan, plan_from_record
from edgekit.profile import find_device
from edgekit.source import load

MODELS = Path(__file__).parents[1] / "models.py"
NAMES = registry.names(PASSES)
NEED_INT8 = ("correct_bias",)
OTHER_MODELS = {"lossless": "bf16_mlp", "rewrite_for_npu": "mlp"}


@pytest.fixture(scope="module")
def context(pixels_npz: Path) -> PassContext:
    model = load(f"{MODELS}:small_conv")
    data = load_dataset(str(pixels_npz), model.inputs, None, {})
    return PassContext(device=find_device("sa8295p"), calibration=data)


@pytest.fixture
def before(context: PassContext, request: pytest.FixtureRequest) -> CompressedModel:
    name = request.node.callspec.params["name"]
    if name in OTHER_MODELS:
        return CompressedModel(model=load(f"{MODELS}:{OTHER_MODELS[name]}"))
    model = CompressedModel(model=load(f"{MODELS}:small_conv"), calibration=context.calibration)
    return Int8Static().apply(model, context) if name in NEED_INT8 else model


@pytest.mark.parametrize("name", NAMES)
def test_the_file_name_is_the_public_name_and_defaults_are_plain_data(name: str) -> None:
    step = registry.load(PASSES, name).PASS()
    assert isinstance(step, Pass)
    assert pass_name(step) == name
    plan = Plan(device="x", format="onnx", precision="int8", passes=(step,))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan_from_record(plan.record()) == plan


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_it_touches_leaves_a_change(name: str, before: CompressedModel, context: PassContext) -> None:
    after = registry.load(PASSES, name).PASS().apply(before, context)
    added = [change for change in after.changes if change not in before.changes]
    assert added
    assert {change.step for change in added} == {name}
    assert all(change.before == change.after for change in added if change.reason)
    old, new = before.model.module.state_dict(), after.model.module.state_dict()
    altered = {n for n in old if n not in new or not torch.equal(old[n], new[n])}
    touched = {change.tensor for change in added} | {c.after.removeprefix("folded into ") + ".weight" for c in added}
    touched |= {t.removesuffix("weight") + "bias" for t in touched}
    assert altered <= touched


@pytest.mark.parametrize("name", NAMES)
def test_the_model_it_was_given_stays_as_it_was(name: str, before: CompressedModel, context: PassContext) -> None:
    state = {n: t.clone() for n, t in before.model.module.state_dict().items()}
    registry.load(PASSES, name).PASS().apply(before, context)
    assert all(torch.equal(state[n], t) for n, t in before.model.module.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_applying_it_again_to_the_same_model_gives_the_same(
    name: str, before: CompressedModel, context: PassContext
) -> None:
    step = registry.load(PASSES, name).PASS()
    first, second = step.apply(before, context), step.apply(before, context)
    assert first.changes == second.changes
    assert first.quantization == second.quantization


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused_with_the_name(name: str) -> None:
    text = f'{{"device": "x", "format": "onnx", "precision": "fp32", "passes": [{{"pass": "{name}", "colour": 1}}]}}'
    with pytest.raises(InvalidInput, match=f"pass '{name}' does not take.*colour"):
        Plan.from_json(text)
