"""Exporters run in a process of their own: jobs cross unchanged, and a process that dies becomes a sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import isolation, registry
from edgekit.compression import CompressedModel, Quantization
from edgekit.dataset import Dataset
from edgekit.errors import EdgekitError, UnsupportedModel
from edgekit.exporting import ExportJob
from edgekit.graph import capture
from edgekit.source import load
from edgekit.types import Value

MODELS = Path(__file__).parent / "models.py"
PLUGIN = '''
"""An exporter that misbehaves as it is told."""
import os
import signal
import sys

from edgekit.errors import UnsupportedModel
from edgekit.types import Value

DISTRIBUTIONS = ()


class Options(Value, frozen=True, kw_only=True):
    act: str = "refuse"


def export(job, out, options, progress):
    progress("about to " + options.act)
    if options.act == "refuse":
        raise UnsupportedModel("no such op")
    if options.act == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if options.act == "crash":
        os.write(2, b"the toolchain's own words\\n")
        os.abort()
    if options.act == "leave":
        os._exit(7)
    if options.act == "fill memory":
        raise MemoryError
    if options.act == "print":
        print("a banner", flush=True)
        os.write(1, b"more from C++\\n")
        raise UnsupportedModel("after printing")
    raise KeyError("a bug")
'''


class Act(Value, frozen=True, kw_only=True):
    act: str


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An exporter of that name, installed for this process and its children."""
    info = tmp_path / "bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgekit.exporters]\nbad = bad_exporter\n")
    (tmp_path / "bad_exporter.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    registry._external.cache_clear()
    yield
    registry._external.cache_clear()


@pytest.fixture(scope="module")
def job() -> ExportJob:
    model = load(f"{MODELS}:mlp")
    return ExportJob.of(CompressedModel(model=model), capture(model), "fp32")


def test_a_job_is_the_same_after_crossing(tmp_path: Path) -> None:
    model = load(f"{MODELS}:two_inputs", dynamic=["batch=1:4"])
    samples = tuple({"tokens": np.full((1, 6), i), "offset": np.full((1, 8), i, np.float32)} for i in range(12))
    scheme = Quantization(scheme="dynamic", weight_dtype="int4", activation_dtype="int8", group_size=32)
    made = CompressedModel(model=model, quantization=scheme, calibration=Dataset("here", samples))
    job = ExportJob.of(made, capture(model), "int8-dynamic", keep_intermediates=True)
    job.save(tmp_path)
    back = ExportJob.load(tmp_path)
    for field in ("name", "inputs", "outputs", "precision", "quantization", "keep_intermediates"):
        assert getattr(back, field) == getattr(job, field)
    assert len(back.calibration) == 12
    for one, other in zip(job.calibration, back.calibration, strict=True):
        assert list(one) == list(other)
        assert all(one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one)
    feeds = {"tokens": torch.randint(0, 50, (3, 6)), "offset": torch.randn(3, 8)}
    expected, actual = job.program.module()(**feeds), back.program.module()(**feeds)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_modules_and_source_lines_survive_the_crossing(job: ExportJob, tmp_path: Path) -> None:
    job.save(tmp_path)
    for before, after in zip(job.program.graph.nodes, ExportJob.load(tmp_path).program.graph.nodes, strict=True):
        if before.op == "call_function":
            assert (
                list(before.meta["nn_module_stack"].values())[-1][0]
                == (list(after.meta["nn_module_stack"].values())[-1][0])
            )
            assert "models.py" in after.meta["stack_trace"]


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        ("refuse", UnsupportedModel, "^no such op$"),
        ("print", UnsupportedModel, "^after printing$"),
        ("be killed", EdgekitError, r"bad exporter was killed, most likely for memory: it had \d.* GB in use.*smaller"),
        ("crash", EdgekitError, "bad exporter crashed with signal 6.*the toolchain's own words"),
        ("leave", EdgekitError, "bad exporter left with code 7.*none"),
        ("fill memory", EdgekitError, "ran out of memory"),
        ("do something else", EdgekitError, "failed unexpectedly: KeyError: 'a bug'. Please report it"),
    ],
)
def test_however_the_process_ends_there_is_a_sentence(
    act: str, kind: type[EdgekitError], message: str, job: ExportJob, tmp_path: Path
) -> None:
    steps: list[str] = []
    with pytest.raises(kind, match=message):
        isolation.export("bad", job, tmp_path, Act(act=act), steps.append)
    said = [step for step in steps if " GB in use" not in step]
    assert said == ["hand the traced model to the bad exporter", f"about to {act}"]


@pytest.mark.usefixtures("misbehaving")
def test_the_memory_in_use_is_shown_while_a_step_takes_long(
    job: ExportJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "WATCH_S", 0.05)
    monkeypatch.setattr(isolation, "SHOW_S", 0.1)
    steps: list[str] = []
    with pytest.raises(UnsupportedModel):
        isolation.export("bad", job, tmp_path, Act(act="refuse"), steps.append)
    assert any(step.endswith(" GB in use") for step in steps)  # while it imports torch


@torch.library.custom_op("edgekit_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return twice(x)


def test_a_custom_op_is_refused_by_name_before_anything_runs(tmp_path: Path) -> None:
    model = load(Twice().eval(), torch.randn(2, 3))
    job = ExportJob.of(CompressedModel(model=model), capture(model), "fp32")
    with pytest.raises(UnsupportedModel, match=r"'edgekit_tests.twice.default' in .*is a custom op"):
        job.save(tmp_path)
