"""The main job from model to bundle, and everything that may go wrong on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgekit.bundle import REPORT, Bundle
from edgekit.drafting import ExportOptions, draft
from edgekit.errors import GateMissed, InvalidInput, OutputExists, ParityFailed, PlanInfeasible, UnsupportedModel
from edgekit.inference import answer, open_session, prepare
from edgekit.page.document import page
from edgekit.pipeline import export, with_page
from edgekit.planning import Plan
from edgekit.source import load
from edgekit.verification import verify

MODELS = Path(__file__).parent / "models.py"
QUICK = ExportOptions(precision="fp32", measure=False)


def options(**changes: object) -> ExportOptions:
    return ExportOptions(**{"measure": False, "precision": "fp32", **changes})  # type: ignore[arg-type]


def test_a_bundle_says_what_it_is_and_verifies_alone(small_conv_bundle: Bundle) -> None:
    manifest = small_conv_bundle.manifest
    assert manifest.name == "small_conv"
    assert manifest.device == "raspberrypi5"
    assert [str(spec) for spec in manifest.inputs] == ["pixels: float32[1, 3, 32, 32]"]
    assert [str(spec) for spec in manifest.outputs] == ["output: float32[1, 10]"]
    assert manifest.precision.weight_bytes["float32"] == small_conv_bundle_weights()
    assert manifest.parity is not None
    assert manifest.parity.ok
    assert manifest.parity.sqnr_db is not None
    assert manifest.parity.sqnr_db > 100
    assert manifest.delegation is not None
    assert manifest.delegation.units["cpu"]["Conv"] == 2
    assert set(manifest.tool_versions) >= {"edgekit", "torch", "onnx", "onnxruntime"}
    assert verify(small_conv_bundle).ok


def small_conv_bundle_weights() -> int:
    """Bytes after BatchNorm went into the stem: two kernels and their biases, the head, the two ends of the clamp."""
    return 4 * (16 * 3 * 9 + 16 + 16 * 9 + 16 + 10 * 16 + 10 + 2)


def test_golden_outputs_are_pytorchs(small_conv_bundle: Bundle) -> None:
    model = load(f"{MODELS}:small_conv")
    for feeds, expected in small_conv_bundle.golden():
        np.testing.assert_array_equal(model(feeds)["output"], expected["output"])


def test_the_artifact_holds_no_path_of_the_machine_that_exported(small_conv_bundle: Bundle) -> None:
    content = small_conv_bundle.artifact_path.read_bytes()
    assert b"edgekit.module" in content
    assert str(Path(torch.__file__).parents[1]).encode() not in content
    assert str(MODELS.parent).encode() not in content


def test_the_page_beside_the_manifest_is_of_it_and_says_nothing_of_where_it_was_made(
    bundle_copy: Path, small_conv_bundle: Bundle
) -> None:
    text = (bundle_copy / REPORT).read_text(encoding="utf-8")
    made = Bundle.open(bundle_copy).manifest
    assert text == page([Bundle(Path("out"), made)])
    assert str(small_conv_bundle.path.parent) not in text
    assert ".partial" not in text
    (bundle_copy / REPORT).write_text("something else")
    assert Bundle.open(bundle_copy).manifest == made  # the manifest does not vouch for it
    (bundle_copy / REPORT).unlink()
    assert verify(Bundle.open(bundle_copy)).ok


def test_figures_that_no_page_can_draw_cost_the_page_and_not_the_bundle(
    small_conv_bundle: Bundle, tmp_path: Path
) -> None:
    made = small_conv_bundle.manifest
    overflowing = msgspec.structs.replace(made, parity=msgspec.structs.replace(made.parity, max_abs=1e30))
    found = with_page(overflowing, "out", tmp_path)
    assert found.warnings[-1].startswith("no report.html: 'out' holds a number that is not within 1e+15 of 0")
    assert list(tmp_path.iterdir()) == []
    assert with_page(made, "out", tmp_path) == made


def test_the_same_export_twice_gives_the_same_artifact(small_conv_bundle: Bundle, tmp_path: Path) -> None:
    again = export(f"{MODELS}:small_conv", "raspberrypi5", tmp_path / "out", QUICK)
    assert again.artifact.sha256 == small_conv_bundle.artifact.sha256
    assert again.manifest.source == small_conv_bundle.manifest.source


def test_static_int8_keeps_the_answers_and_says_what_it_did(tmp_path: Path, pixels_npz: Path) -> None:
    given = options(precision="int8", calibration=str(pixels_npz), sqnr_db_min=25.0)
    bundle = export(f"{MODELS}:small_conv", "raspberrypi5", tmp_path / "out", given)
    manifest = bundle.manifest
    assert manifest.precision.quantized_ops == 3
    assert manifest.precision.float_ops == 0
    assert manifest.precision.weight_bytes["int8"] == 16 * 3 * 9 + 16 * 9 + 10 * 16 + (16 + 16 + 10)  # zero points
    assert manifest.calibration is not None
    assert manifest.calibration.samples == 48  # every fourth sample is kept to verify with
    steps = {(change.tensor, change.step): change for change in manifest.changes}
    assert steps["stem.weight", "int8_static"].after == "int8 per_channel axis 0"
    assert "accumulator" in (steps["stem.bias", "int8_static"].reason or "")
    assert "folded into stem" in steps["norm.running_var", "fold_batch_norm"].after
    assert "shifted" in steps["depthwise.bias", "correct_bias"].after


def test_the_original_model_is_left_as_it_was(tmp_path: Path, pixels_npz: Path) -> None:
    model = load(f"{MODELS}:small_conv")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    draft(model, "raspberrypi5", options(precision="int8", calibration=str(pixels_npz)))
    after = model.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic"])
def test_linear_models_in_fewer_bits(precision: str, tmp_path: Path) -> None:
    bundle = export(f"{MODELS}:mlp", "generic-x86", tmp_path / "out", options(precision=precision))
    held = bundle.manifest.precision.weight_bytes
    assert held.get("float16" if precision == "fp16" else "int8", 0) >= 16 * 32 + 32 * 4
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.ok


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    bundle = export(f"{MODELS}:two_inputs", "raspberrypi5", tmp_path / "out", QUICK)
    assert [spec.name for spec in bundle.manifest.inputs] == ["tokens", "offset"]
    assert [spec.name for spec in bundle.manifest.outputs] == ["mean", "mixed"]


def test_a_dynamic_batch_is_verified_at_both_ends(tmp_path: Path) -> None:
    model = load(f"{MODELS}:small_conv", dynamic=["batch=1:8"])
    bundle = export(model, "raspberrypi5", tmp_path / "out", QUICK)
    assert bundle.manifest.inputs[0].shape == ("batch", 3, 32, 32)
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.synthetic_samples == 5


def test_a_model_that_misses_parity_leaves_nothing_and_names_the_module(tmp_path: Path) -> None:
    with pytest.raises(ParityFailed, match=r"first module that diverges is first.*--force") as caught:
        export(f"{MODELS}:overflowing", "raspberrypi5", tmp_path / "out", options(precision="fp16"))
    assert isinstance(caught.value, GateMissed)
    assert list(tmp_path.iterdir()) == []


def test_force_keeps_a_model_that_misses_parity_and_marks_it(tmp_path: Path) -> None:
    bundle = export(f"{MODELS}:overflowing", "raspberrypi5", tmp_path / "out", options(precision="fp16", force=True))
    parity = bundle.manifest.parity
    assert parity is not None
    assert not parity.ok
    assert parity.misses
    assert "first" in (parity.first_divergent or "")
    assert not verify(bundle).ok


def test_an_existing_output_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists, match="--force"):
        export("no_such_file.py:factory", "raspberrypi5", tmp_path / "out", QUICK)


def test_force_never_replaces_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExists, match=r"holds no manifest\.json"):
        export(f"{MODELS}:mlp", "raspberrypi5", tmp_path, options(force=True))
    assert (tmp_path / "thesis.txt").exists()


def test_a_failed_forced_export_keeps_the_old_bundle(bundle_copy: Path) -> None:
    with pytest.raises(UnsupportedModel):
        export(f"{MODELS}:branching", "raspberrypi5", bundle_copy, options(force=True))
    assert verify(Bundle.open(bundle_copy)).ok
    assert not bundle_copy.with_name("bundle.partial").exists()


def test_static_int8_without_samples_says_how_to_give_some(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"--calibration .*builtin:.*int8-dynamic"):
        export(f"{MODELS}:small_conv", "raspberrypi5", tmp_path / "out", options(precision="int8"))


def test_few_calibration_samples_are_warned_of(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(0, 1, (8, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "few.npz", pixels=samples)
    made = draft(load(f"{MODELS}:small_conv"), "raspberrypi5",
                 options(precision="int8", calibration=str(tmp_path / "few.npz")))  # fmt: skip
    assert any("only 6 calibration samples" in warning for warning in made.warnings)


def test_a_dead_activation_is_warned_of(tmp_path: Path) -> None:
    np.savez(tmp_path / "black.npz", pixels=np.full((40, 3, 32, 32), 0.5, np.float32))
    given = options(precision="int8", calibration=str(tmp_path / "black.npz"), force=True)
    bundle = export(f"{MODELS}:small_conv", "raspberrypi5", tmp_path / "out", given)
    assert any("never changes" in warning and "pixels" in warning for warning in bundle.manifest.warnings)


def test_memory_limits_are_kept(tmp_path: Path) -> None:
    with pytest.raises(PlanInfeasible, match="--max-memory-mb allows 0"):
        draft(load(f"{MODELS}:small_conv"), "raspberrypi5", options(max_memory_mb=0.001))


def test_a_model_too_large_for_the_board_is_refused_before_any_work() -> None:
    large = torch.nn.Linear(1, 1)
    large.weight = torch.nn.Parameter(torch.zeros(150_000_000, 1))
    large.bias = None
    with pytest.raises(PlanInfeasible, match="Raspberry Pi Zero 2 W allows"):
        draft(load(large, torch.zeros(1, 1)), "raspberrypi-zero2w", options())


def test_verification_on_random_inputs_only_is_warned_of(small_conv_bundle: Bundle) -> None:
    assert any("--samples" in warning for warning in small_conv_bundle.manifest.warnings)


def test_an_answer_that_never_changes_is_warned_of(tmp_path: Path) -> None:
    class Deaf(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0 + 1

    bundle = export(load(Deaf().eval(), torch.randn(1, 4)), "raspberrypi5", tmp_path / "out", QUICK)
    assert any("'output' is the same for every sample" in warning for warning in bundle.manifest.warnings)


def test_a_plan_runs_as_written(tmp_path: Path, pixels_npz: Path) -> None:
    made = draft(load(f"{MODELS}:small_conv"), "raspberrypi5", options(precision="int8", calibration=str(pixels_npz)))
    text = made.plan.to_json().replace('"per_channel": true', '"per_channel": false')
    plan = Plan.from_json(text)
    given = options(plan=plan, precision="auto", calibration=str(pixels_npz), sqnr_db_min=0.0)
    bundle = export(f"{MODELS}:small_conv", "raspberrypi5", tmp_path / "out", given)
    assert bundle.manifest.plan == plan.record()
    assert any(change.after == "int8 per_tensor" for change in bundle.manifest.changes)


def test_a_plan_beside_a_precision_is_refused(tmp_path: Path) -> None:
    plan = draft(load(f"{MODELS}:mlp"), "raspberrypi5", options()).plan
    with pytest.raises(InvalidInput, match="give the plan, or --precision"):
        draft(load(f"{MODELS}:mlp"), "raspberrypi5", options(plan=plan, precision="fp16"))


def test_a_limit_on_lost_labels_needs_labels() -> None:
    with pytest.raises(InvalidInput, match="--max-drop counts top-1 answers"):
        draft(load(f"{MODELS}:mlp"), "raspberrypi5", options(max_drop=1.0))


def test_a_fixed_batch_above_one_is_calibrated_too(tmp_path: Path, pixels_npz: Path) -> None:
    module = load(f"{MODELS}:small_conv").module
    given = options(precision="int8", calibration=str(pixels_npz))
    bundle = export(load(module, torch.rand(4, 3, 32, 32)), "raspberrypi5", tmp_path / "out", given)
    assert bundle.manifest.inputs[0].shape[0] == 4


def test_a_folder_that_only_looks_like_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "data").write_text("precious")
    export(f"{MODELS}:mlp", "raspberrypi5", tmp_path / "out", QUICK)
    assert (tmp_path / "out.partial" / "data").read_text() == "precious"


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: p.symlink_to(p.parent / "elsewhere")])
def test_a_file_or_link_is_never_replaced(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(OutputExists, match="never replaced"):
        export(f"{MODELS}:mlp", "raspberrypi5", tmp_path / "out", options(force=True))


def test_a_factory_may_bring_preprocessing_and_labels(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch, edgekit\n"
        "from edgekit.processing import ClassLabels, ImagePreprocess\n"
        "def net():\n"
        "    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
        "    return edgekit.Loaded(module=model.eval(), example=torch.rand(1, 3, 8, 8),\n"
        "        preprocess=ImagePreprocess(input='input', height=8, width=8),\n"
        "        postprocess=ClassLabels(output='output', top=1), assets={'labels.txt': b'red\\ngreen\\nblue'})\n"
    )
    bundle = export(f"{tmp_path / 'net.py'}:net", "raspberrypi5", tmp_path / "out", QUICK)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    with open_session(bundle) as session:
        assert answer(bundle, session.run(prepare(bundle, red)))["labels"][0]["label"] == "red"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The file size limit of a child process stands for the end of the disk: writes fail half-way, as there."""
    program = (
        "import resource, sys, edgekit; from edgekit import EdgekitError, ExportOptions, export\n"
        f"m = edgekit.load({str(MODELS)!r} + ':small_conv')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: export(m, 'raspberrypi5', sys.argv[1], ExportOptions(precision='fp32', measure=False))\n"
        "except EdgekitError as error: print(type(error).__name__, error)"
    )
    run = [sys.executable, "-P", "-c", program, str(tmp_path / "out")]
    result = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.stdout.startswith("InvalidInput the disk is full"), result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_measurement_is_of_a_fresh_process(tmp_path: Path) -> None:
    bundle = export(f"{MODELS}:mlp", "generic-x86", tmp_path / "out", ExportOptions(precision="fp32"))
    measured = bundle.manifest.measurements[0]
    assert len(measured.latency.times_s) == 60
    assert measured.latency.p99_s is None  # 60 samples do not bound it
    assert measured.peak_rss_bytes < 200e6  # no torch in there
    assert measured.energy.gross_j is None
    assert measured.energy.reason
    json.loads(bundle.manifest.to_json())
