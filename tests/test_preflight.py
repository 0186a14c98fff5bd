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


BRANCHING = """
from torch import nn


class Part(nn.Module):
    def forward(self, x, pair, *, scale, mode):
        if x.sum() > 0:
            return x
        return x * scale + pair[0] - pair[1]


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, x):
        return self.part(-x.abs(), (x, 2), scale=0.5, mode=None)


def br():
    return Whole().eval()
"""


def test_the_script_loads_the_model_again_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.py").write_text(BRANCHING)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments = ["-m", "m.py:br", "--input", "x:float32:2x3", "--format", "onnx", "--save-repro", "repro", "-q"]
    assert run(["analyze", *arguments]) == 1
    assert "repro/repro.py fails like 'part'" in capsys.readouterr().out
    script = (tmp_path / "repro/repro.py").read_text()
    assert f"edgekit.load('{tmp_path}/m.py:br', inputs=['x:float32:2x3'])" in script
    assert "args = (tensors[0], (tensors[1], 2, ), )" in script
    assert "kwargs = {'scale': 0.5, 'mode': None, }" in script
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "repro/repro.py")], cwd=tmp_path / "elsewhere", capture_output=True, text=True
    )
    assert ran.returncode != 0
    assert "data-dependent" in ran.stderr


def test_the_whole_model_has_a_name_in_the_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "repro")
    assert run(["analyze", "-m", f"{MODELS}:branching", "--format", "onnx", "--save-repro", out, "-q"]) == 1
    assert "fails like the whole model" in capsys.readouterr().out
    assert (tmp_path / "repro/repro.py").read_text().startswith("# The whole branching: torch.export cannot trace it.")


def test_an_argument_that_cannot_be_stored_is_left_to_fill_in(tmp_path: Path) -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor, by: object, limit: float) -> torch.Tensor:
            if x.sum() > 0:
                return x
            return x.clamp(max=limit)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x, range(3), float("inf"))  # type: ignore[no-any-return]

    assert save_repro(load(Outer().eval(), torch.ones(2)), "onnx", tmp_path / "repro") == "inner"
    script = (tmp_path / "repro/repro.py").read_text()
    assert "args = (tensors[0], ..., float('inf'), )" in script
    assert "Left out: range" in script
    compile(script, "repro.py", "exec")


def test_a_reason_with_quotes_and_backslashes_stays_a_comment(tmp_path: Path) -> None:
    class Raising(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_exporting():
                raise ValueError("quotes \"\"\" and ''' and a \\U backslash")
            return x

    assert save_repro(load(Raising().eval(), torch.ones(2)), "onnx", tmp_path / "repro") == ""
    script = (tmp_path / "repro/repro.py").read_text()
    assert '# quotes """ and' in script
    compile(script, "repro.py", "exec")
