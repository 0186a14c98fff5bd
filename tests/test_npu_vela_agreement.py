"""The audit and Vela place every op alike: one-op models at and beyond each limit, and the models of the zoo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekit.dataset import load_dataset
from edgekit.errors import EdgekitError, ToolchainMissing, UnsupportedModel
from edgekit.graph import capture
from edgekit.npu.adapting import adapt
from edgekit.npu.auditing.audit import audit, place_ops
from edgekit.npu.rewriting import rewrite
from edgekit.npu.rules import npu_rules, rules_of
from edgekit.profile import find_device
from edgekit.source import load
from tests.language_models import save_folder
from tests.npu_agreement import DEVICES, Case, Classifier, compile_for, disagreements, int8_file, left_to_cpu, model_of
from tests.npu_one_ops import GROUPS, NOT_COMPILED, NOT_COMPILED_BELOW_U85, NOT_EXPORTED, PRODUCTS, masked

pytestmark = pytest.mark.toolchain
pytest.importorskip("ethosu.vela", reason="Vela is not installed: pip install 'edgekit[ethos-u]'")
ANCHOR = {"anchor": PRODUCTS["linear"]}  # a weight, so that there is something to quantise
# Other names of the same ops, which traces of PyTorch 2.13 do not have and stored programs may.
SAME_AS = {
    "_to_copy": "to",
    "_unsafe_view": "view",
    "bitwise_or": "__or__",
    "concat": "cat",
    "constant_pad_nd": "pad",
    "reflection_pad2d": "pad",
    "replication_pad2d": "pad",
    "zeros_like": "ones_like",
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_op_is_placed_as_vela_places_it(group: str, tmp_path: Path) -> None:
    job, artifact = int8_file(model_of(GROUPS[group] | ANCHOR), tmp_path)
    found = {device: disagreements(job, artifact, device, tmp_path) for device in DEVICES}
    assert found == {device: [] for device in DEVICES}


@pytest.mark.parametrize(
    ("name", "devices"),
    [*((name, DEVICES) for name in NOT_COMPILED), *((name, DEVICES[:2]) for name in NOT_COMPILED_BELOW_U85)],
)
def test_what_vela_does_not_compile_at_all_does_not_run(name: str, devices: tuple[str, ...], tmp_path: Path) -> None:
    case = (NOT_COMPILED | NOT_COMPILED_BELOW_U85)[name]
    job, artifact = int8_file(model_of({name: case} | ANCHOR), tmp_path)
    for device in devices:
        with pytest.raises(EdgekitError, match="vela does not compile"):
            compile_for(job, artifact, device, tmp_path)
        placed = place_ops(job.program, rules_of(find_device(device)))
        assert [each.op for each in placed if each.verdict != "runs" and each.module.startswith(f"branches.{name}")]


@pytest.mark.slow
def test_every_op_of_efficientnet_is_placed_as_vela_places_it(tmp_path: Path) -> None:
    job, artifact = int8_file(load("zoo:efficientnet_lite0"), tmp_path)
    found = {device: disagreements(job, artifact, device, tmp_path) for device in DEVICES}
    assert found == {device: [] for device in DEVICES}


@pytest.mark.slow
def test_every_op_of_minilm_is_placed_as_vela_places_it(tmp_path: Path) -> None:
    model = load("zoo:minilm_l6")  # its sentences are shorter than its tensors
    data = load_dataset(str(model.calibration), model.inputs, model.preprocess, model.assets)
    device = find_device(DEVICES[-1])
    masked = [each.op for each in audit(model, device).placements if each.fix == "finite_input_masks"]
    assert masked == ["add", "softmax"] * 6
    adapted = adapt(model, rules_of(device), allow=["finite_input_masks"], data=data)
    assert [(each.kept, each.model_db) for each in adapted.log] == [(True, 200.0)]  # to the bit
    job, artifact = int8_file(adapted.model, tmp_path, data.samples[:4])
    found = {device: disagreements(job, artifact, device, tmp_path) for device in DEVICES}
    assert found == {device: [] for device in DEVICES}


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "270M"])
def test_every_op_of_a_gemma_is_placed_as_vela_places_it(size: str, tmp_path: Path) -> None:
    """The real one takes eight minutes and 9 GB of memory."""
    try:
        model = load("zoo:gemma3_270m" if size == "270M" else str(save_folder(tmp_path / "gemma", "Gemma3")))
    except ToolchainMissing as error:
        pytest.skip(str(error))
    static = rewrite(model, npu_rules("ethos-u85"), only=["static_shapes", "fold_constants", "drop_no_ops"]).model
    job, artifact = int8_file(static, tmp_path)
    found = {device: disagreements(job, artifact, device, tmp_path) for device in DEVICES}
    assert found == {device: [] for device in DEVICES}


@pytest.mark.slow
def test_a_vision_transformer_runs_whole_after_the_rewrites_that_the_audit_names(tmp_path: Path) -> None:
    device = find_device("ethos-u55-128")
    model = load(Classifier().eval(), torch.randn(1, 3, 32, 32))
    named = {each.fix for each in audit(model, device).placements if each.verdict == "needs a rewrite"}
    assert named == {"attention_to_matmul"}
    rewritten = rewrite(model, rules_of(device), only=["drop_no_ops", "fold_constants", *named]).model
    assert audit(rewritten, device).coverage_ops == 1
    job, artifact = int8_file(rewritten, tmp_path)
    assert left_to_cpu(job, artifact, device.id, tmp_path) == set()


@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_what_cannot_be_exported_at_all_does_not_run(name: str, tmp_path: Path) -> None:
    model = model_of({name: NOT_EXPORTED[name]} | ANCHOR)
    with pytest.raises(UnsupportedModel):
        int8_file(model, tmp_path)
    for device in DEVICES:
        placed = place_ops(capture(model), rules_of(find_device(device)))
        assert [each.op for each in placed if each.verdict != "runs"] == [name]


@pytest.mark.parametrize(("way", "case"), masked(torch.finfo(torch.float32).min).items())
def test_a_mask_that_leaves_no_steps_is_neither_exported_nor_run(way: str, case: Case, tmp_path: Path) -> None:
    model = model_of({way: case} | ANCHOR)
    with pytest.raises(UnsupportedModel, match=r"numbers from -3\.4e\+38 to .*analyze --fix --allow finite_input"):
        int8_file(model, tmp_path)
    for device in DEVICES:
        placed = place_ops(capture(model), rules_of(find_device(device)))
        assert "softmax" in [each.op for each in placed if each.verdict == "needs a rewrite"]


@pytest.mark.parametrize("npu", ["ethos-u55", "ethos-u65", "ethos-u85"])
def test_every_op_of_the_rules_was_compiled(npu: str) -> None:
    rules = npu_rules(npu)
    cases = [*GROUPS.values(), NOT_COMPILED, NOT_EXPORTED]
    placed = [each for group in cases for each in place_ops(capture(model_of(group)), rules)]
    compiled = {op for each in placed for op in (each.op, *each.folded)}
    ruled = {op for rule in rules.ops for op in rule.ops}
    assert sorted(op for op in ruled if SAME_AS.get(op, op) not in compiled) == []
