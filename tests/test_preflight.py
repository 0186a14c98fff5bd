"""What stands in the way of an export is named with its source line before, and after, converting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.cli.app import run
from edgekit.drafting import ExportOptions
from edgekit.errors import InvalidInput, UnsupportedModel
from edgekit.pipeline import export
from edgekit.preflight import analyze
from edgekit.repro import save_repro
from edgekit.source import load

MODELS = Path(__file__).parent / "models.py"
LINE = "return torch.linalg.qr(x)[0]  # the line"


class Odd(nn.Module):
    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        x = x * scale
        return torch.linalg.qr(x)[0]  # the line


class Around(nn.Module):
    """A model whose inner part no format has an op for, called with a number besides its tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.part, self.after = nn.Linear(8, 8), nn.ModuleDict({"odd": Odd()}), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.part["odd"](self.before(x), 2.0))


def around() -> tuple[nn.Module, torch.Tensor]:
    return Around().eval(), torch.randn(8, 8)


def line() -> int:
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    return 1 + next(number for number, each in enumerate(text) if each.strip() == LINE)


def test_an_op_without_a_function_needs_a_rewrite_at_its_line() -> None:
    found = analyze(load(*around()), "onnx")
    [blocking] = [op for op in found.ops if op.verdict == "needs a rewrite"]
    assert (blocking.op, blocking.module) == ("aten.linalg_qr.default", "part.odd")
    assert blocking.source == f"test_preflight.py:{line()}"
    assert blocking.fix
    assert not found.converts
    assert {op.module for op in found.ops if op.op == "aten.linear.default"} == {"before", "after"}


def test_a_model_that_converts_has_no_complaint() -> None:
    found = analyze(load(f"{MODELS}:small_conv"), "onnx")
    assert found.converts
    assert {op.verdict for op in found.ops} <= {"converts", "decomposed"}
    assert {op.module for op in found.ops} >= {"stem", "norm", "depthwise", "head"}


def test_a_branch_on_values_is_not_traced_and_says_where() -> None:
    found = analyze(load(f"{MODELS}:branching"), "onnx")
    assert found.ops == ()
    assert "models.py" in (found.error or "")
    assert "torch.where" in (found.error or "")


def test_an_export_that_fails_says_the_same(tmp_path: Path) -> None:
    expected = rf"Needs a rewrite: aten.linalg_qr.default in part.odd \(test_preflight.py:{line()}\)"
    with pytest.raises(UnsupportedModel, match=expected):
        export(load(*around()), "raspberrypi5", tmp_path / "out", ExportOptions(format="onnx", precision="fp32"))


def test_the_smallest_failing_part_becomes_a_script_that_fails_alone(tmp_path: Path) -> None:
    tried: list[str] = []
    assert save_repro(load(*around()), "onnx", tmp_path / "repro", progress=tried.append) == "part.odd"
    assert tried[0] == "try the whole model"
    ran = subprocess.run([sys.executable, str(tmp_path / "repro/repro.py")], capture_output=True, text=True)
    assert ran.returncode != 0
    assert "linalg_qr" in ran.stderr


def test_a_part_that_cannot_be_traced_becomes_a_script_too(tmp_path: Path) -> None:
    assert save_repro(load(f"{MODELS}:branching"), "onnx", tmp_path / "repro") == ""
    ran = subprocess.run([sys.executable, str(tmp_path / "repro/repro.py")], capture_output=True, text=True)
    assert ran.returncode != 0
    assert "data-dependent" in ran.stderr


def test_a_model_that_converts_leaves_no_script(tmp_path: Path) -> None:
    assert save_repro(load(f"{MODELS}:mlp"), "onnx", tmp_path / "repro") is None
    assert not (tmp_path / "repro").exists()


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(InvalidInput, match="is not empty"):
        save_repro(load(f"{MODELS}:mlp"), "onnx", tmp_path)


def test_the_command_exits_1_when_something_is_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", "-m", f"{__file__}:around", "--format", "onnx", "-q"]) == 1
    shown = capsys.readouterr().out
    assert f"at part.odd (test_preflight.py:{line()})" in shown
    assert "1 needs a rewrite" in shown
    assert run(["analyze", "-m", f"{MODELS}:mlp", "--format", "onnx", "-q", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["format"] == "onnx"
    assert {op["verdict"] for op in found["ops"]} <= {"converts", "decomposed"}
