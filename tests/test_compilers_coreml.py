"""Core ML packages made where nothing can run them: what is read back from them, and what the manifest admits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compilers import Pooled, job_of, made
from torch import Tensor, nn

from edgekit import isolation
from edgekit.bundle import Bundle
from edgekit.compression import silent
from edgekit.drafting import ExportOptions
from edgekit.errors import BundleCorrupt, DelegationMissed, EdgekitError, ToolchainMissing, UnsupportedModel
from edgekit.exporters.compilers import coreml
from edgekit.pipeline import export
from edgekit.report import cells, row
from edgekit.source import load
from edgekit.toolchains import Toolchain

DEVICE = "iphone15-pro"
OPTIONS = ExportOptions(measure=False)
REASON = coreml.missing()
toolchain = pytest.mark.skipif(REASON is not None, reason=REASON or "")


class Fitted(nn.Module):
    """A least-squares fit, for which coremltools has no conversion."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.linalg.qr(pixels).R


@pytest.fixture(scope="module")
def compiled(pixels_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(made(Pooled, pixels_npz), DEVICE, tmp_path_factory.mktemp("coreml") / "out", OPTIONS)


@pytest.mark.toolchain
@toolchain
def test_the_package_lies_beside_an_artifact_that_runs_here(compiled: Bundle) -> None:
    found = compiled.manifest.compiled
    assert found is not None
    assert (compiled.artifact.format, found.path, found.precision) == ("onnx", "model.mlpackage", "fp16")
    files = {asset.path: asset.bytes for asset in compiled.manifest.assets if asset.role == "compiled"}
    assert set(files) == {
        "model.mlpackage/Manifest.json",
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    }
    assert found.bytes == sum(files.values())


@pytest.mark.toolchain
@toolchain
def test_nothing_is_claimed_that_was_not_seen(compiled: Bundle) -> None:
    found = compiled.manifest.compiled
    assert found is not None
    assert (found.delegation, found.estimate, found.check.by, found.check.parity) == (None, None, None, None)
    shown = dict(cells(row(compiled)))
    assert "inputs and outputs as the model's, weights float16" in shown["checked"]
    assert "3 conv" in shown["checked"]
    assert shown["not checked"].startswith("what it answers, since only macOS and iOS run it")
    assert "estimate" not in shown


@pytest.mark.toolchain
@toolchain
def test_a_package_that_was_altered_is_refused(compiled: Bundle) -> None:
    path = compiled.path / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(BundleCorrupt, match=r"weight\.bin' was altered"):
            Bundle.open(compiled.path)
    finally:
        path.write_bytes(content)


@pytest.mark.toolchain
@toolchain
def test_a_gate_on_placement_has_nothing_to_judge(pixels_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(DelegationMissed, match=r"nothing to judge: coreml does not know where ops will run\. Leave it"):
        export(made(Pooled, pixels_npz), DEVICE, tmp_path / "out", replace(OPTIONS, min_delegated=50.0))


@pytest.mark.toolchain
@toolchain
def test_a_package_of_another_precision_is_not_passed_off(tmp_path: Path) -> None:
    job = job_of(tmp_path, DEVICE, "fp32")
    found = coreml.compile(job, tmp_path, silent).compiled
    assert (found.precision, "weights float32" in found.check.covers) == ("fp32", True)
    asked = replace(job.export, precision="fp16")
    with pytest.raises(EdgekitError, match="weights FLOAT32, where fp16 was asked for"):
        coreml.read_back(tmp_path / coreml.PACKAGE, asked)
    renamed = replace(job.export, outputs=job_of(tmp_path, DEVICE, "fp32").export.inputs)
    with pytest.raises(EdgekitError, match=r"has outputs \{'output'.*\}, and the model has \{'pixels'"):
        coreml.read_back(tmp_path / coreml.PACKAGE, renamed)


@pytest.mark.toolchain
@toolchain
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"not a model", None])
def test_a_package_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    package = tmp_path / "model.mlpackage"
    if content is not None:
        (package / "Data/com.apple.CoreML").mkdir(parents=True)
        (package / "Data/com.apple.CoreML/model.mlmodel").write_bytes(content)
    with pytest.raises(EdgekitError, match=r"model\.mlpackage'"):
        coreml.read_back(package, job_of(tmp_path, DEVICE, "fp16").export)


@pytest.mark.toolchain
@toolchain
def test_an_op_that_coremltools_lacks_is_named(tmp_path: Path) -> None:
    model = load(Fitted().eval(), torch.randn(1, 4, 4))
    with pytest.raises(UnsupportedModel, match=r"coremltools cannot convert 'Fitted': .*qr"):
        coreml.compile(job_of(tmp_path, DEVICE, "fp16", model), tmp_path, silent)


def test_a_missing_coremltools_comes_with_the_pip_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = Toolchain(package="coremltools", minimum="99", below=None, extra="coreml", purpose="a test")
    monkeypatch.setattr("edgekit.toolchains.TOOLCHAINS", (old,))
    with pytest.raises(ToolchainMissing, match=r"compiler 'coreml' needs coremltools.*: pip install"):
        isolation.compile("coreml", job_of(tmp_path, DEVICE, "fp16"), tmp_path, silent)
