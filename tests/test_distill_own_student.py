"""Students of one's own: built by a factory or given as a module, checked against the site, and loaded again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgekit
from edgekit.cli.app import run
from edgekit.distill.architecture.own_student import build, own_student
from edgekit.distill.cutting.splicing import outside_sha256
from edgekit.distill.decoupled import distill
from edgekit.distill.distill_options import DistillOptions
from edgekit.distill.record import read_record
from edgekit.distill.refine import RefineOptions
from edgekit.distill.restoring import restore
from edgekit.distill.training.fit_options import FitOptions
from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.source import load
from tests.toy_distillation import CLASSIFIER_SITE, classifier

CODE = """
import torch
from torch import nn

class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1))
        self.head = nn.Linear(24, 5)

    def forward(self, pixels):
        return self.head(self.body(pixels / 2).mean((2, 3)))

def teacher():
    torch.manual_seed(0)
    return Teacher(), torch.randn(1, 3, 32, 32)

class Small(nn.Module):
    def __init__(self, site):
        super().__init__()
        [given], [wanted] = site.inputs, site.outputs
        self.conv = nn.Conv2d(given.shape[1], wanted.shape[1], 4, 4)

    def forward(self, input):
        return self.conv(input)

def small(site):
    return Small(site)

def no_module(site):
    return "a module"

def no_site():
    return nn.Identity()

def broken(site):
    raise KeyError("width")
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "nets.py"
    path.write_text(CODE)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pixels.npz"
    np.savez(path, pixels=np.random.default_rng(0).standard_normal((12, 3, 32, 32)).astype(np.float32))
    return path


def options(data: Path, **changes: Any) -> DistillOptions:
    fit = FitOptions(steps=4, batch=4, ema=0.0, evaluations=1)
    return DistillOptions(**{"site": "body", "data": str(data), "fit": fit, **changes})


@pytest.fixture(scope="module")
def distilled(code: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages with the factory's student."""
    out = tmp_path_factory.mktemp("distilled") / "small"
    chosen = options(data, student=f"{code}:small", refine=RefineOptions(steps=1, batch=2))
    assert distill(f"{code}:teacher", out, chosen) is not None
    return out


def test_a_factory_of_ones_own_is_named_and_run_again_only_where_it_is_trusted(distilled: Path, code: Path) -> None:
    record = read_record(distilled)
    assert record.student.name == "small"
    assert record.student.source is not None
    assert (record.student.source.kind, record.student.source.ref) == ("python", f"{code}:small")
    assert record.student.params == 24 * 3 * 16 + 24
    assert record.options.student == f"{code}:small"
    assert record.refine is not None
    with pytest.raises(InvalidInput, match=r"needs its teacher's own code, '.*nets.py:teacher', and did not run it"):
        load(str(distilled))
    again, whole = load(str(distilled), trust_remote_code=True), load(f"{code}:teacher")
    assert outside_sha256(again.module, "body") == outside_sha256(whole.module, "body") == record.outside_sha256
    untrained = build(f"{code}:small", record.site).state_dict()["conv.weight"]
    assert again.module.state_dict()["body.student.conv.weight"].shape == untrained.shape
    assert not torch.equal(again.module.state_dict()["body.student.conv.weight"], untrained)


def test_the_students_code_is_asked_for_beside_a_teacher_that_needs_none(tmp_path: Path, code: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=2,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    student = tmp_path / "tokens.py"
    student.write_text(
        "from torch import nn\n"
        "class Tokens(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 32, 8, 8)\n"
        "    def forward(self, pixel_values):\n"
        "        return nn.functional.pad(self.conv(pixel_values).flatten(2), (1, 0)).transpose(1, 2)\n"
        "make = lambda site: Tokens()\n"
    )
    np.savez(tmp_path / "x.npz", pixel_values=np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype("f4"))
    chosen = options(tmp_path / "x.npz", site="vit", student=f"{student}:make")
    distill(str(tmp_path / "vit"), tmp_path / "out", chosen)
    with pytest.raises(InvalidInput, match=r"needs its student's own code, '.*tokens.py:make', and did not run it"):
        load(str(tmp_path / "out"))
    assert load(str(tmp_path / "out"), trust_remote_code=True).source.kind == "distilled"
    student.unlink()
    with pytest.raises(InvalidInput, match=r"the student of '.*out' cannot be built again: no file '.*tokens.py'"):
        load(str(tmp_path / "out"), trust_remote_code=True)


class Small(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, 4)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return {"output": self.conv(input)}


def test_a_module_is_trained_in_place_and_its_folder_is_opened_with_one_like_it(
    code: Path, data: Path, tmp_path: Path
) -> None:
    net, out = Small(), tmp_path / "small"
    before = net.conv.weight.detach().clone()
    assert distill(f"{code}:teacher", out, options(data), student=net) is not None
    assert not torch.equal(net.conv.weight, before)
    record = read_record(out)
    assert record.student.source is not None
    assert (record.student.source.kind, record.student.source.ref) == ("module", "Small")
    assert record.options.student == "module:Small"
    message = r"is a Small that a program gave as a module, which no folder can build: give one to edgekit.distill.rest"
    with pytest.raises(InvalidInput, match=message):
        load(str(out), trust_remote_code=True)
    again = edgekit.distill.restore(out, Small(), trust_remote_code=True)
    assert torch.equal(again.module.get_submodule("body.student.conv").weight, net.conv.weight)
    assert again.source.sha256 == record.sha256
    with pytest.raises(InvalidInput, match=r"needs its teacher's own code"):
        restore(out, Small())
    with pytest.raises(InvalidInput, match=r"does not fit its teacher .* 'output' is float32\[1, 23, 8, 8\]"):
        restore(out, Small(23), trust_remote_code=True)
    other = Small()
    other.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(CorruptWeights, match=r"differ in 1 weights, among them 'body.student.scale'"):
        restore(out, other, trust_remote_code=True)
    with pytest.raises(InvalidInput, match=r"is no folder of edgekit distill: it has no distilled.json"):
        restore(tmp_path, Small())


def test_the_same_seed_builds_the_same_student_and_moves_nobodys_draws(code: Path) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (build(f"{code}:small", CLASSIFIER_SITE, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(one["conv.weight"], same["conv.weight"])
    assert not torch.equal(one["conv.weight"], other["conv.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nets.py:no_module", r"factory '.*nets.py:no_module' returned a str; a student's must return a torch.nn.Mod"),
        ("nets.py:no_site", r"no_site\(\) takes 0 positional arguments but 1 was given"),
        ("nets.py:broken", r"raised KeyError: 'width'"),
        ("nets.py:smal", r"Did you mean 'small'?"),
        ("net.py:small", r"no file '.*net.py'"),
    ],
)
def test_a_factory_that_makes_no_student_is_named(code: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build(str(code.parent / name), CLASSIFIER_SITE)


class Answering(nn.Module):
    """Gives whatever a function makes of the site's output of its own."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.conv, self.answer = nn.Conv2d(3, 8, 4, 4), answer

    def forward(self, input: Tensor) -> Any:
        return self.answer(self.conv(input))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: {"features": x}, "the student gives features; what the rest reads is 'output: float32[1, 8, 4, 4]'"),
        (lambda x: {"output": x, "more": x}, "the student gives output, more; what the rest reads is"),
        (lambda x: {"output": [x]}, "the student returns a dict: let it return a dict of tensors by name"),
        (lambda x: None, "the student returns a NoneType"),
        (lambda x: x[:, :7], "'output' is float32[1, 7, 4, 4] at batch 1; the site's is 'output: float32[1, 8, 4, 4]'"),
        (lambda x: x[:1], "'output' is float32[1, 8, 4, 4] at batch 2"),
        (lambda x: x.double(), "'output' is float64[1, 8, 4, 4]"),
        (lambda x: x * torch.nan, "the student's output 'output' is NaN or Inf on the model's own example"),
        (lambda x: x / 0, "is NaN or Inf"),
        (lambda x: x.view(1, 8, 4, 4), "the student fails at batch 2 of what the site takes by name (input: float32"),
        (lambda x: {}["width"], "the student fails at batch 1"),
    ],
)
def test_a_student_that_answers_otherwise_than_the_site_is_refused(answer: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        own_student(Answering(answer), classifier(), CLASSIFIER_SITE)


def test_a_student_with_nothing_to_train_or_other_arguments_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no parameter of the student can be trained: call requires_grad_"):
        own_student(Answering(lambda x: x).requires_grad_(False), classifier(), CLASSIFIER_SITE)
    with pytest.raises(InvalidInput, match="got an unexpected keyword argument 'input'"):
        own_student(nn.CosineSimilarity(), classifier(), CLASSIFIER_SITE)


@pytest.mark.parametrize("changes", [{"params": 0.5}, {"neck": "2"}])
def test_sizes_and_necks_are_no_business_of_ones_own_student(
    code: Path, data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match=r"(params|neck) is for students that edgekit builds, and '.*' is your own"):
        options(data, student=f"{code}:small", **changes)
    with pytest.raises(InvalidInput, match=r"and 'module:Small' is your own"):
        distill(f"{code}:teacher", tmp_path / "small", options(data, **changes), student=Small())


def test_the_command_takes_a_factory(code: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ["distill", "-m", f"{code}:teacher", "--site", "body", "--data", str(data), "-o", str(tmp_path / "out"),
             "--steps", "2", "--batch", "4", "-q"]  # fmt: skip
    assert run([*asked, "--student", f"{code}:no_module"]) == 2
    assert "a student's must return a torch.nn.Module" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert run([*asked, "--student", f"{code}:small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["student_params"] == 24 * 3 * 16 + 24
    assert run([*asked, "--student", f"{code}:small", "--force"]) == 0
    assert capsys.readouterr().out.endswith(" -d raspberrypi5 -o out --trust-remote-code\n")
