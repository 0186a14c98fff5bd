"""A model that was rewritten for an NPU is a folder that loads like any other model, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit import pipeline
from edgekit.bundle import Bundle
from edgekit.cli.app import run
from edgekit.drafting import ExportOptions
from edgekit.errors import EdgekitError, InvalidInput, OutputExists, UnknownName, UnsupportedModel
from edgekit.graph import capture, module_path, op_counts, op_nodes, source_line
from edgekit.npu.fixing import FixOptions, fix
from edgekit.npu.folder import PROGRAM, read_rewritten
from edgekit.source import REWRITTEN, load, parse_source

MODELS = Path(__file__).with_name("models.py")
MLP, CONV = f"{MODELS}:mlp", f"{MODELS}:small_conv"
NPU = "qcom-htp-v68"


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixed") / "mlp"
    fix(MLP, NPU, folder)
    return folder


@pytest.fixture
def copied(fixed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fixed, tmp_path / "copied"))


def altered(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    record = json.loads((folder / REWRITTEN).read_text(encoding="utf-8"))
    change(record)
    (folder / REWRITTEN).write_text(json.dumps(record), encoding="utf-8")
    return str(folder)


def test_it_answers_like_its_original_and_every_op_keeps_its_module_and_line(fixed: Path) -> None:
    original, model = load(MLP), load(str(fixed))
    assert model.source.kind == "rewritten"
    assert (model.inputs, model.outputs) == (original.inputs, original.outputs)
    feeds = original.example_arrays
    for name, right in original(feeds).items():
        assert np.allclose(model(feeds)[name], right, atol=1e-6)
    places = {(module_path(node), source_line(node)) for node in op_nodes(capture(model).graph)}
    assert ("first", "models.py:34") in places
    assert any("conv2d" in str(node.target) for node in op_nodes(capture(model).graph))


def test_the_record_names_the_original_and_what_was_done(fixed: Path) -> None:
    record, _ = read_rewritten(fixed)
    assert record.source == load(MLP).source
    assert (record.device, record.npu) == ("sa8295p", NPU)
    log = {each.name: each for each in record.log}
    assert log["linear_to_conv"].done == ("first (models.py:34)", "second (models.py:34)")
    assert all(each.error is None or each.error <= 1e-12 for each in record.log)
    assert {path.name for path in fixed.iterdir()} == {PROGRAM, REWRITTEN, "audit.json", "audit.html"}


def test_assets_preprocessing_and_data_come_along(tmp_path: Path) -> None:
    fix("zoo:minilm_l6", "apple-ane", tmp_path / "minilm")
    original, model = load("zoo:minilm_l6"), load(str(tmp_path / "minilm"))
    for name in ("preprocess", "postprocess", "assets", "calibration", "evaluation", "dynamic"):
        assert getattr(model, name) == getattr(original, name), name
    assert model.assets


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_it_is_exported_and_verified_like_any_other(format: str, fixed: Path, tmp_path: Path) -> None:
    options = ExportOptions(format=format, precision="fp32", measure=False)
    bundle = pipeline.export(str(fixed), "raspberrypi5", tmp_path / "out", options)
    assert bundle.manifest.parity
    assert bundle.manifest.parity.ok
    assert bundle.manifest.source.kind == "rewritten"


def test_a_plan_for_an_npus_compiler_rewrites_first_and_the_manifest_says_what_it_did(
    pixels_npz: Path, tmp_path: Path
) -> None:
    options = ExportOptions(format="tflite", precision="int8", calibration=str(pixels_npz), measure=False)
    made = pipeline.export(CONV, "coral-edge-tpu", tmp_path / "out", options)
    manifest = Bundle.open(made.path).manifest
    assert manifest.plan.passes[0] == {"pass": "rewrite_for_npu", "npu": "coral-edgetpu", "rewrites": []}
    steps = {change.tensor: change.after for change in manifest.changes if change.step == "rewrite_for_npu"}
    assert not [change for change in manifest.changes if "takes no batch" in (change.reason or "")]
    assert any(place.startswith("head (models.py:") and "1x1 convolutions" in after for place, after in steps.items())


@pytest.mark.parametrize("path", ["../model.pt2", "/etc/passwd", "assets/../../x", "C:x"])
def test_files_outside_the_folder_are_refused(path: str, copied: Path) -> None:
    extra = {"path": path, "bytes": 1, "sha256": "0" * 64}
    with pytest.raises(EdgekitError, match="not a path in the folder"):
        load(altered(copied, lambda record: record["files"].append(extra)))


def test_a_link_that_leaves_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    shutil.move(copied / PROGRAM, tmp_path / "elsewhere.pt2")
    (copied / PROGRAM).symlink_to(tmp_path / "elsewhere.pt2")
    with pytest.raises(EdgekitError, match="not a path in the folder"):
        load(str(copied))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record.update(schema_version=9), "schema version 9"),
        (lambda record: record.update(files=[]), f"does not name {PROGRAM} first"),
        (lambda record: record.update(log="all of it"), "log"),
        (lambda record: record["files"][0].update(sha256="0" * 64), "was altered"),
        (lambda record: record["files"][0].update(bytes=1), "another size"),
        (lambda record: record["files"].append({"path": "assets/x", "bytes": 0, "sha256": ""}), "missing"),
    ],
)
def test_records_that_do_not_fit_are_refused(change: Callable[[Any], object], said: str, copied: Path) -> None:
    with pytest.raises(EdgekitError, match=said):
        load(altered(copied, change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"files": 1}', b"[" * 100_000])
def test_a_record_that_is_none_is_refused(content: bytes, copied: Path) -> None:
    (copied / REWRITTEN).write_bytes(content)
    with pytest.raises(InvalidInput):
        load(str(copied))


def test_a_program_that_was_cut_is_refused(copied: Path) -> None:
    content = (copied / PROGRAM).read_bytes()
    (copied / PROGRAM).write_bytes(content[: len(content) // 2])
    with pytest.raises(EdgekitError, match="cut or replaced"):
        load(str(copied))


def test_a_folder_names_its_kind(fixed: Path) -> None:
    assert parse_source(str(fixed)).kind == "rewritten"


def test_a_folder_that_is_there_stays_unless_force_replaces_a_rewritten_one(fixed: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExists, match="--force"):
        fix(MLP, NPU, fixed)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists, match=f"holds no {REWRITTEN}"):
        fix(MLP, NPU, other, FixOptions(force=True))
    assert (other / "mine.txt").read_text() == "mine"


def test_what_cannot_be_fixed_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no NPU whose rules are known"):
        fix(MLP, "raspberrypi5", tmp_path / "out")
    with pytest.raises(UnsupportedModel, match=r"models.py:\d+"):
        fix(f"{MODELS}:branching", NPU, tmp_path / "out")
    with pytest.raises(UnknownName, match="activations"):
        fix(MLP, NPU, tmp_path / "out", FixOptions(allow=("activations",)))
    assert not list(tmp_path.iterdir())


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.two(nn.functional.relu(self.one(self.norm(input))))


def test_what_is_allowed_is_adapted_and_then_rewritten_again(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).standard_normal((32, 4, 8)).astype(np.float32)
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / tokens.std(-1, keepdims=True)
    np.savez(tmp_path / "tokens.npz", input=tokens)
    model = load(Normed().eval(), torch.from_numpy(tokens[:1]))
    options = FixOptions(allow=("norm",), data=str(tmp_path / "tokens.npz"))
    done = fix(model, "coral-edgetpu", tmp_path / "out", options)
    assert [(record.name, record.kept) for record in done.adapted] == [("norm_to_batch_norm", True)]
    assert "fold_batch_norm_forward" in [record.name for record in done.log if record.done]
    assert not {"layer_norm", "batch_norm"} & set(op_counts(capture(load(str(tmp_path / "out")))))


def test_words_and_samples_are_checked_before_any_work(tmp_path: Path) -> None:
    said: list[str] = []
    for allow, error in (("activations", UnknownName), ("norm", InvalidInput)):
        with pytest.raises(error):
            fix(load(MLP), NPU, tmp_path / "out", FixOptions(allow=(allow,)), progress=said.append)
    assert said == []


def test_the_command_says_what_was_done_where_and_what_comes_next(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["analyze", "-m", MLP, "-d", NPU, "--fix", "-o", str(tmp_path / "out"), "-q"]) == 0
    said = capfd.readouterr().out
    assert "linear_to_conv: linear layers as 1x1 convolutions: 2 places, float64 error" in said
    assert "at first (models.py:34)" in said
    assert f"Next:  edgekit export -m {tmp_path / 'out'} -d {NPU}" in said
    assert run(["analyze", "-m", MLP, "-d", NPU, "--fix", "-o", str(tmp_path / "out"), "--force", "--json", "-q"]) == 0
    assert json.loads(capfd.readouterr().out)["log"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-d", NPU, "--fix"], "add -o OUT"),
        (["-d", NPU, "-o", "x"], "add --fix"),
        (["--fix", "-o", "x"], "add -d DEVICE"),
        (["-d", NPU, "--allow", "act"], "add --fix"),
    ],
)
def test_options_that_lack_another_say_which(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["analyze", "-m", MLP, *arguments, "-q"]) == 2
    assert said in capfd.readouterr().err
