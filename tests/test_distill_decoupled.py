"""The verb `distill` and the folders that it writes: made, loaded, stopped and gone on with, altered, missed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import edgekit
from edgekit.cli.app import run
from edgekit.distill.card import Card
from edgekit.distill.cutting.site import find_site
from edgekit.distill.cutting.splicing import outside_sha256
from edgekit.distill.decoupled import distill
from edgekit.distill.distill_options import DistillOptions
from edgekit.distill.record import read_record
from edgekit.distill.refine import RefineOptions
from edgekit.distill.scenes import scenes, write_scenes
from edgekit.distill.toy_sam import save_toy_sam
from edgekit.distill.training.fit_options import FitOptions
from edgekit.errors import CorruptWeights, GateMissed, InvalidInput, OutputExists
from edgekit.source import load, parse_source
from tests.processes import finished, torchrun
from tests.toy_distillation import thin_toy_sam

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
FIT = FitOptions(steps=4, batch=4, ema=0.0, evaluations=1, seed=1)
OWN_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1))
        self.head = nn.Linear(24, 5)

    def forward(self, pixels):
        return self.head(self.body(pixels / 2).mean((2, 3)))

def make():
    torch.manual_seed(0)
    return Net(), torch.randn(1, 3, 32, 32)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_scenes(scenes(14, seed=3), folder / "images", folder / "truth")
    return folder


def options_of(made: Path, **changes: Any) -> DistillOptions:
    wanted: dict[str, Any] = {"site": "vision_encoder", "params": 0.15, "data": str(made / "images"), "fit": FIT}
    return DistillOptions(**(wanted | changes))


@pytest.fixture(scope="module")
def distilled(thin_sam: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages with ground truth."""
    out = tmp_path_factory.mktemp("distilled") / "small"
    chosen = options_of(data, truth=str(data / "truth"), refine=RefineOptions(steps=2, batch=2))
    assert distill(str(thin_sam), out, chosen) is not None
    return out


@pytest.fixture
def copied(distilled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(distilled, tmp_path / "small"))


def test_a_folder_needs_nothing_else_and_holds_what_it_says(distilled: Path, thin_sam: Path) -> None:
    assert sorted(path.name for path in distilled.iterdir()) == [
        "card.html", "card.json", "config.json", "distilled.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    assert [path.name for path in distilled.parent.iterdir()] == ["small"]
    record = read_record(distilled)
    assert record.site.path == "sam.vision_encoder"
    assert record.student.params <= 0.15 * record.site.params
    assert record.fit.steps == 4
    assert record.refine is not None
    card = Card.from_json((distilled / "card.json").read_bytes())
    assert {"untrained student", "mean embedding", "stage 1 alone", "more steps of stage 1"} == set(card.controls)
    assert card.quality is not None
    assert card.images == 7
    assert str(thin_sam.parent) not in (distilled / "card.html").read_text()


def test_the_model_is_the_teacher_with_another_encoder(distilled: Path, thin_sam: Path) -> None:
    whole, small = load(str(thin_sam)), load(str(distilled))
    record = read_record(distilled)
    assert small.source.kind == "distilled"
    assert (small.inputs, small.outputs) == (whole.inputs, whole.outputs)
    assert (small.preprocess, small.segmentation) == (whole.preprocess, whole.segmentation)
    assert small.warnings == ()
    assert not any(module.training for module in small.module.modules())
    path = record.site.path
    assert outside_sha256(small.module, path) == outside_sha256(whole.module, path) == record.outside_sha256
    assert small.weight_bytes < whole.weight_bytes
    assert whole.segmentation is not None
    feeds = {
        "pixel_values": np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32),
        **whole.segmentation.prompt([(20.0, 20.0)], None),
    }
    assert not np.allclose(small(feeds)["pred_masks"], whole(feeds)["pred_masks"])
    assert np.isfinite(small(feeds)["pred_masks"]).all()


def test_the_same_seed_gives_the_same_student_and_another_another(thin_sam: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit = msgspec.structs.replace(FIT, seed=seed, steps=1)
        distill(str(thin_sam), tmp_path / name, options_of(data, fit=fit))
        found.append(read_record(tmp_path / name).sha256)
    assert found[0] == found[1] != found[2]


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been_stopped(
    thin_sam: Path, data: Path, tmp_path: Path
) -> None:
    fit = msgspec.structs.replace(FIT, steps=6, evaluations=6)
    chosen = options_of(data, fit=fit)
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        if text.startswith("step 3 "):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        distill(str(thin_sam), tmp_path / "small", chosen, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["small.partial"]
    assert said[-1] == f"stopped: the same command goes on from '{tmp_path / 'small.partial'}'"
    said.clear()
    distill(str(thin_sam), tmp_path / "small", chosen, progress=said.append)
    assert not any(text.startswith("step 1 ") for text in said)
    distill(str(thin_sam), tmp_path / "other", chosen)
    assert read_record(tmp_path / "small").sha256 == read_record(tmp_path / "other").sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "small"]


def test_a_missed_gate_leaves_no_model_and_what_was_learnt(thin_sam: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(GateMissed, match=r"R2 of the embeddings is -?\d.*, below 0.99"):
        distill(str(thin_sam), tmp_path / "small", options_of(data, min_r2=0.99))
    assert [path.name for path in tmp_path.iterdir()] == ["small.partial"]
    said: list[str] = []
    distill(str(thin_sam), tmp_path / "small", options_of(data, min_r2=-1e9), progress=said.append)
    assert not any(text.startswith("step ") for text in said)


def test_a_teacher_of_ones_own_code_is_built_again_where_it_is_trusted(tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(OWN_CODE)
    samples = tmp_path / "samples.npz"
    np.savez(samples, pixels=np.random.default_rng(0).standard_normal((12, 3, 32, 32)).astype(np.float32))
    chosen = DistillOptions(site="body", params=0.9, data=str(samples), fit=FIT)
    card = distill(f"{code}:make", tmp_path / "small", chosen)
    assert card is not None
    assert list(card.agreement) == ["images"]
    with pytest.raises(InvalidInput, match=r"needs its teacher's own code, '.*net.py:make', and did not run it"):
        load(str(tmp_path / "small"))
    small = load(str(tmp_path / "small"), trust_remote_code=True)
    whole = load(f"{code}:make")
    assert outside_sha256(small.module, "body") == outside_sha256(whole.module, "body")
    code.write_text(OWN_CODE.replace("24, 5", "24, 6"))
    with pytest.raises(CorruptWeights, match=r"'head.weight' is torch.float32\[5, 24\], and in the model"):
        load(str(tmp_path / "small"), trust_remote_code=True)


def test_a_vit_classifier_keeps_its_labels_and_head(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    vit = tmp_path / "vit"
    transformers.ViTForImageClassification(config).save_pretrained(vit)
    card = distill(str(vit), tmp_path / "small", options_of(data, site="vit", params=14_000, student="tiny-vit"))
    assert card is not None
    assert card.task == "classification"
    small = load(str(tmp_path / "small"))
    assert small.logits == "logits"
    assert small.assets["labels.txt"] == b"cat\ndog"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "vision_encodr"}, "vision_encoder"),
        ({"student": "npu-cnv"}, "npu-conv"),
        ({"neck": "nek"}, r"has no module 'nek' to end with; it has patch_embed, layers, neck"),
        ({"task": "segment_anythin"}, "segment_anything"),
        ({"data": "nowhere"}, "no images at 'nowhere'"),
        ({"truth": "nowhere"}, "'nowhere' is no folder"),
    ],
)
def test_what_cannot_be_done_is_said_before_work_or_names_what_is_wrong(
    thin_sam: Path, data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        distill(str(thin_sam), tmp_path / "small", options_of(data, **changes))
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": 0}, "not 0"),
        ({"params": float("nan")}, "not nan"),
        ({"judged_share": 1}, "not 1"),
    ],
)
def test_options_out_of_range_are_refused(data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        options_of(data, **changes)


def test_teachers_that_say_the_same_of_every_image_and_few_images_are_refused(
    thin_sam: Path, data: Path, tmp_path: Path
) -> None:
    same = thin_toy_sam()
    with torch.no_grad():
        same.vision_encoder.neck.layer_norm2.weight.zero_()
    (tmp_path / "same").mkdir()
    save_toy_sam(same, tmp_path / "same")
    with pytest.raises(InvalidInput, match=r"is the same for every image"):
        distill(str(tmp_path / "same"), tmp_path / "small", options_of(data))
    few = tmp_path / "few"
    few.mkdir()
    image = next((data / "images").iterdir())
    for index in range(5):
        shutil.copyfile(image, few / f"{index}.png")
    with pytest.raises(InvalidInput, match=r"has 1 distinct images: 4 is the least"):
        distill(str(thin_sam), tmp_path / "small", options_of(data, data=str(few)))
    assert not (tmp_path / "small").exists()
    assert not (tmp_path / "small.partial").exists()


def test_a_model_that_no_folder_can_name_is_refused(distilled: Path, data: Path, tmp_path: Path) -> None:
    given = load(thin_toy_sam())
    with pytest.raises(InvalidInput, match=r"is a module, which a folder cannot name"):
        distill(given, tmp_path / "small", options_of(data))
    with pytest.raises(InvalidInput, match=r"is a distilled, which a folder cannot name"):
        distill(str(distilled), tmp_path / "small", options_of(data))


def test_a_folder_that_is_there_stays_unless_force_replaces_a_distilled_one(
    distilled: Path, thin_sam: Path, data: Path, copied: Path
) -> None:
    with pytest.raises(OutputExists, match=r"is there already"):
        distill(str(thin_sam), copied, options_of(data))
    before = read_record(copied).sha256
    distill(str(thin_sam), copied, options_of(data, force=True))
    assert read_record(copied).sha256 != before
    (copied / "distilled.json").unlink()
    with pytest.raises(OutputExists, match=r"holds no distilled.json, so --force will not replace it"):
        distill(str(thin_sam), copied, options_of(data, force=True))


def edit(path: Path, place: str, value: Any) -> None:
    content = json.loads(path.read_text())
    *outer, last = place.split(".")
    inner = content
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("schema_version", 1, "has schema version 1, this edgekit reads 2"),
        ("source.kind", "distilled", "names a teacher of kind 'distilled'"),
        ("source.kind", "nothing", "names a teacher of kind 'nothing'"),
        ("source.kind", "python", "needs its teacher's own code"),
        ("source.kind", 3, r"distilled.json': not a valid Distilled"),
        ("site.path", "sam.nothing", "does not fit its teacher"),
        ("site.path", "", "does not fit its teacher"),
        ("site.inputs", [], "does not fit its teacher"),
        ("site.outputs", [], "does not fit its teacher"),
        ("student.name", "../../evil", "does not fit its teacher"),
        ("student.options", {}, "does not fit its teacher"),
        ("student.options.widths", [1 << 40], "does not fit its teacher"),
        ("student.params", 1 << 60, "is too small for a student of"),
        ("student.params", 7, "does not fit its teacher"),
        (
            "student.source",
            {"kind": "python", "ref": "os:system"},
            "needs its student's own code, 'os:system', and did",
        ),
        ("student.source", {"kind": "zoo", "ref": "Net"}, "is a Net that a program gave as a module, which no folder"),
        ("options", {}, r"distilled.json': not a valid Distilled.*`site`"),
        ("options.fit.precision", "fp8", r"distilled.json': not a valid Distilled"),
        ("options.neck", "nothing", "does not fit its teacher"),
        ("sha256", "0" * 64, "was altered: its weights are not those that were distilled"),
    ],
)
def test_a_record_that_was_altered_is_refused(copied: Path, place: str, value: Any, message: str) -> None:
    edit(copied / "distilled.json", place, value)
    with pytest.raises(InvalidInput, match=message):
        load(str(copied))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_record_that_is_none_is_refused(copied: Path, content: bytes) -> None:
    (copied / "distilled.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"distilled.json'"):
        load(str(copied))


def test_weights_that_were_altered_cut_or_lost_are_refused(copied: Path) -> None:
    weights = copied / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(CorruptWeights, match=r"was altered"):
        load(str(copied))
    weights.write_bytes(original[:-8])
    with pytest.raises(CorruptWeights, match=r"cannot be read"):
        load(str(copied))
    weights.unlink()
    with pytest.raises(InvalidInput, match=r"model.safetensors' is missing"):
        load(str(copied))


def test_a_folder_names_its_kind(distilled: Path, thin_sam: Path) -> None:
    assert parse_source(str(distilled)).kind == "distilled"
    assert parse_source(str(thin_sam)).kind == "huggingface"


def test_the_command_prints_the_card_and_the_model_is_exported_in_parts(
    thin_sam: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    out = tmp_path / "small"
    asked = ["distill", "-m", str(thin_sam), "--site", "vision_encoder", "--params", "0.15", "--data",
             str(data / "images"), "-o", str(out), "--steps", "2", "--batch", "4", "--seed", "3", "-q"]  # fmt: skip
    assert run([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((out / "card.json").read_text())
    assert run(asked) == 2
    assert "is there already" in capsys.readouterr().err
    assert run([*asked, "--force", "--min-agreement", "1.01"]) == 1
    assert "missed" in capsys.readouterr().err
    assert read_record(out).fit.steps == 2
    assert run(["export", "-m", str(out), "-d", "raspberrypi5", "-o", str(tmp_path / "out"), "--precision", "fp32",
                "--no-measure", "--json", "-q"]) == 0  # fmt: skip
    parts = json.loads(capsys.readouterr().out)["parts"]
    sizes = {name: part["rows"][0]["model_bytes"] for name, part in parts.items()}
    assert sizes["encoder"] < 200_000  # of the teacher's 630,000
    photo = np.zeros((90, 120, 3), np.uint8)
    with edgekit.open_session(tmp_path / "out") as session:
        assert session.segment(photo, [(60, 40)]).mask.shape == (90, 120)  # type: ignore[union-attr]


def test_several_processes_write_one_folder(thin_sam: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    edgekit = ["--no-python", sys.executable, "-P", "-c", "from edgekit.cli import main; main()"]
    command = [*edgekit, "distill", "-m", str(thin_sam), "--site", "vision_encoder", "--params", "0.15", "--data",
               str(data / "images"), "-o", str(out), "--steps", "2", "--batch", "4", "--refine", "1",
               "--json"]  # fmt: skip
    done = finished(torchrun(2, *command), timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == json.loads((out / "card.json").read_text())  # one card
    record = read_record(out)
    assert record.fit.processes == 2
    assert record.refine is not None
    assert record.refine.steps == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert load(str(out)).source.kind == "distilled"


def test_embeddings_are_kept_in_a_folder_where_one_is_named(thin_sam: Path, data: Path, tmp_path: Path) -> None:
    chosen = options_of(data, cache=str(tmp_path / "cache"), fit=msgspec.structs.replace(FIT, steps=1))
    said: list[str] = []
    distill(str(thin_sam), tmp_path / "a", chosen, progress=said.append)
    assert any(text.startswith("teacher: ") for text in said)
    said.clear()
    distill(str(thin_sam), tmp_path / "b", chosen, progress=said.append)
    assert not any(text.startswith("teacher: ") for text in said)
    whole = load(str(thin_sam))
    site = find_site(whole, "vision_encoder")
    assert read_record(tmp_path / "b").site == site
    hashed = hashlib.sha256((tmp_path / "a" / "model.safetensors").read_bytes()).hexdigest()
    assert hashed == hashlib.sha256((tmp_path / "b" / "model.safetensors").read_bytes()).hexdigest()
