"""Rockchip's toolkit in the loop of an export, with its simulator in the place of the NPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from compilers import Pooled, job_of, made

from edgekit import isolation
from edgekit.bundle import Bundle
from edgekit.compression import silent
from edgekit.drafting import ExportOptions
from edgekit.environments import VARIABLE
from edgekit.errors import EdgekitError, InvalidInput, ToolchainMissing
from edgekit.exporters.compilers import rknn
from edgekit.pipeline import export
from edgekit.report import cells, row

DEVICE = "rk3588"
OPTIONS = ExportOptions(measure=False)
REASON = rknn.missing()
toolchain = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture(scope="module")
def compiled(pixels_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(made(Pooled, pixels_npz), DEVICE, tmp_path_factory.mktemp("rknn") / "out", OPTIONS)


@pytest.mark.toolchain
@toolchain
def test_the_simulator_answers_like_pytorch_and_is_named(compiled: Bundle) -> None:
    found = compiled.manifest.compiled
    assert found is not None
    assert (found.path, found.precision, found.target) == ("model.rknn", "int8", {"target_platform": "rk3588"})
    assert found.check.parity is not None
    assert found.check.parity.ok
    assert found.check.parity.samples == 32
    shown = dict(cells(row(compiled)))
    assert shown["checked"].startswith(f"RKNN's simulator {found.version}: ok  SQNR")
    assert shown["not checked"].startswith("the NPU and its driver")


@pytest.mark.toolchain
@toolchain
def test_placement_and_cycles_come_from_the_builds_own_table(compiled: Bundle) -> None:
    found = compiled.manifest.compiled
    assert found is not None
    assert found.delegation is not None
    assert found.estimate is not None
    assert found.delegation.units["npu"]["ConvClip"] == 2
    assert found.estimate.cycles > 1000
    assert found.estimate.latency_s is None
    assert set(found.estimate.memory_bytes) == {"internal", "weight"}
    assert compiled.manifest.measurements == ()
    assert all(fallback.where in ("", "body.3", "pool", "head") for fallback in found.delegation.fallbacks)


@pytest.mark.toolchain
@toolchain
def test_the_artifact_stays_float_and_the_samples_that_ranges_came_from_are_recorded(compiled: Bundle) -> None:
    assert (compiled.manifest.precision.name, compiled.artifact.format) == ("fp32", "onnx")
    assert compiled.manifest.calibration is not None
    assert compiled.manifest.calibration.samples > 0
    assert b"/tmp" not in (compiled.path / "model.rknn").read_bytes()


@pytest.mark.toolchain
@toolchain
def test_a_file_that_the_toolkit_cannot_read_is_named_with_its_words(tmp_path: Path) -> None:
    job = replace(job_of(tmp_path, DEVICE, "fp32"), artifact=tmp_path / "model.onnx")
    job.artifact.write_bytes(b"no model")
    with pytest.raises(EdgekitError, match="RKNN-Toolkit2"):
        isolation.compile("rknn", job, tmp_path, silent)


def test_a_profile_without_a_platform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"has no \[unit\.rknn\]"):
        rknn.compile(job_of(tmp_path, "raspberrypi5", "fp32"), tmp_path, silent)


def test_a_missing_environment_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ToolchainMissing, match=r"RKNN-Toolkit2 needs packages in a folder of their own"):
        isolation.compile("rknn", job_of(tmp_path, DEVICE, "fp32"), tmp_path, silent)
