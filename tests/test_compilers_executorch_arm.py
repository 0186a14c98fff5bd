"""ExecuTorch's Arm backend in the loop of an export: what the NPU gets, and how far the integers were checked here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compilers import Pooled, Ranked, job_of, made

from edgekit import isolation
from edgekit.bundle import Bundle
from edgekit.compression import Quantization, silent
from edgekit.drafting import ExportOptions
from edgekit.environments import VARIABLE
from edgekit.errors import DelegationMissed, InvalidInput, ParityFailed, ToolchainMissing, UnsupportedModel
from edgekit.exporters.compilers import executorch_arm
from edgekit.parity import EXACT_DB
from edgekit.pipeline import export
from edgekit.report import cells, row
from edgekit.types import DynamicDim

DEVICE = "ethos-u85-256"
OPTIONS = ExportOptions(measure=False, format="executorch")
REASON = executorch_arm.missing()
toolchain = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture(scope="module")
def compiled(pixels_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(made(Pooled, pixels_npz), DEVICE, tmp_path_factory.mktemp("arm") / "out", OPTIONS)


@pytest.mark.toolchain
@toolchain
def test_all_but_the_casts_at_the_border_goes_to_the_npu(compiled: Bundle) -> None:
    found = compiled.manifest.compiled
    assert found is not None
    assert found.delegation is not None
    assert found.delegation.partitions == 1
    assert found.delegation.units["npu"]["aten.convolution"] == 2
    assert found.delegation.units["cpu"] == {
        "quantized_decomposed.quantize_per_tensor": 1,
        "quantized_decomposed.dequantize_per_tensor": 1,
    }
    assert [fallback.where for fallback in found.delegation.fallbacks] == ["input pixels", "output"]
    assert {fallback.reason for fallback in found.delegation.fallbacks} == {executorch_arm.BORDER}


@pytest.mark.toolchain
@toolchain
def test_the_check_says_what_ran_and_what_did_not(compiled: Bundle) -> None:
    found = compiled.manifest.compiled
    assert found is not None
    parity = found.check.parity
    assert parity is not None
    assert parity.ok
    assert parity.sqnr_db is not None
    assert 20 < parity.sqnr_db < EXACT_DB  # integers: equal to PyTorch's floats would mean that floats ran
    shown = dict(cells(row(compiled)))
    assert shown["checked"].startswith("Arm's TOSA reference model 20")
    assert "the NPU's commands, and the NPU" in shown["not checked"]
    assert shown["estimate"].endswith("not run]")
    assert compiled.manifest.measurements == ()


@pytest.mark.toolchain
@toolchain
def test_the_file_tells_nothing_of_this_machine_and_is_in_the_manifest(compiled: Bundle) -> None:
    found = compiled.manifest.compiled
    assert found is not None
    content = (compiled.path / found.path).read_bytes()
    assert content[4:6] == b"ET"
    assert b"EthosUBackend" in content
    assert not any(word in content for word in (b"/tmp", b"/home", b"/root", b"site-packages"))
    assert [asset.path for asset in compiled.manifest.assets if asset.role == "compiled"] == [found.path]


@pytest.mark.toolchain
@toolchain
def test_what_the_npu_leaves_is_named_with_module_line_and_reason(pixels_npz: Path, tmp_path: Path) -> None:
    model = made(Ranked, pixels_npz)
    with pytest.raises(DelegationMissed, match=r"% of the ops go to npu, the gate is 90 %"):
        export(model, DEVICE, tmp_path / "gated", replace(OPTIONS, min_delegated=90.0))
    bundle = export(model, DEVICE, tmp_path / "out", replace(OPTIONS, sqnr_db_min=10.0))
    assert bundle.manifest.compiled is not None
    placed = bundle.manifest.compiled.delegation
    assert placed is not None
    assert placed.partitions == 2
    (ranked,) = [each for each in placed.fallbacks if each.op == "aten.topk"]
    assert "compilers.py" in (ranked.source or "")
    assert ranked.reason != executorch_arm.BORDER
    assert bundle.manifest.compiled.check.parity is not None


@pytest.mark.toolchain
@toolchain
def test_a_gate_that_the_integers_miss_fails_the_export(pixels_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityFailed, match=r"SQNR \(dB\) is .*, the gate is 199") as missed:
        export(made(Pooled, pixels_npz), DEVICE, tmp_path / "out", replace(OPTIONS, sqnr_db_min=199.0))
    assert not (tmp_path / "out").exists()
    assert "PyTorch" in str(missed.value)


@pytest.mark.toolchain
@toolchain
def test_an_artifact_that_passes_does_not_excuse_the_compiled_one(
    pixels_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile = isolation.compile

    def spoilt(*given: object) -> object:
        result = compile(*given)  # type: ignore[arg-type]
        return replace(result, answers=tuple({"output": np.zeros((1, 10), np.float32)} for _ in result.answers or ()))

    monkeypatch.setattr(isolation, "compile", spoilt)
    with pytest.raises(ParityFailed, match=r"as executorch_arm makes it .* says Arm's TOSA reference model"):
        export(made(Pooled, pixels_npz), DEVICE, tmp_path / "out", OPTIONS)


def test_samples_to_quantise_with_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="needs samples to quantise with: give --calibration"):
        executorch_arm.compile(job_of(tmp_path, DEVICE), tmp_path, silent)


def test_layers_that_are_to_stay_float_are_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, DEVICE)
    kept = Quantization(scheme="static", weight_dtype="int8", activation_dtype="int8", keep_float=("head",))
    export = replace(job.export, quantization=kept, calibration=({"pixels": np.zeros((1, 3, 32, 32), np.float32)},))
    with pytest.raises(UnsupportedModel, match="an Ethos-U has no float, and head are to stay float"):
        executorch_arm.compile(replace(job, export=export), tmp_path, silent)


def test_a_profile_without_a_system_is_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, "raspberrypi5")
    export = replace(job.export, calibration=({"pixels": np.zeros((1, 3, 32, 32), np.float32)},))
    with pytest.raises(InvalidInput, match=r"has no \[unit\.vela\]"):
        executorch_arm.compile(replace(job, export=export), tmp_path, silent)


def test_a_missing_environment_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ToolchainMissing, match=r"Arm backend needs packages .* python -m pip install .*tosa-tools=="):
        isolation.compile("executorch_arm", job_of(tmp_path, DEVICE), tmp_path, silent)


def test_sizes_that_are_not_fixed_are_refused_with_the_option_to_leave_out(tmp_path: Path) -> None:
    job = job_of(tmp_path, DEVICE)
    dynamic = (DynamicDim(name="batch", minimum=1, maximum=8),)
    job = replace(job, export=replace(job.export, dynamic=dynamic))
    with pytest.raises(UnsupportedModel, match="compiles fixed sizes only: export 'Pooled' without --dynamic batch"):
        executorch_arm.compile(job, tmp_path, silent)
