"""Arm's Vela in the loop of an export: what it compiles, what it leaves to the CPU, and what it says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from compilers import Pooled, Wavy, job_of, made

from edgekit import isolation
from edgekit.bundle import Bundle
from edgekit.compression import silent
from edgekit.drafting import ExportOptions
from edgekit.errors import BundleCorrupt, DelegationMissed, EdgekitError, InvalidInput, ToolchainMissing
from edgekit.exporters._tflite_file import parse_model
from edgekit.exporters.compilers import _vela_program, vela
from edgekit.inference import delegation
from edgekit.pipeline import export
from edgekit.profile import find_device
from edgekit.report import cells, row
from edgekit.runtimes._litert_file import operators

pytestmark = pytest.mark.toolchain
pytest.importorskip("ethosu.vela", reason="Vela is not installed: pip install 'edgekit[ethos-u]'")
OPTIONS = ExportOptions(measure=False)
DEVICE = "ethos-u85-256"


@pytest.fixture(scope="module")
def compiled(pixels_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(made(Pooled, pixels_npz), DEVICE, tmp_path_factory.mktemp("vela") / "out", OPTIONS)


def test_every_op_goes_to_the_npu_and_the_file_holds_it(compiled: Bundle) -> None:
    found = compiled.manifest.compiled
    assert found is not None
    assert found.delegation is not None
    assert found.delegation.delegated_share == 1
    assert found.delegation.fallbacks == ()
    (held,) = operators(parse_model((compiled.path / found.path).read_bytes()))
    assert held[0] == vela.NPU_OP
    given = [kind for kind, _ in operators(parse_model(compiled.artifact_path.read_bytes()))]
    assert found.delegation.units == {"npu": {kind: given.count(kind) for kind in given}}
    assert found.target["accelerator_config"] == DEVICE
    assert found.version.startswith("5.")


def test_the_estimate_is_never_a_measurement(compiled: Bundle) -> None:
    found = compiled.manifest.compiled
    assert found is not None
    assert found.estimate is not None
    clock = find_device(DEVICE).main_unit.clock_hz
    assert clock is not None
    assert found.estimate.cycles > 0
    assert found.estimate.latency_s == pytest.approx(found.estimate.cycles / clock.value)
    assert found.estimate.memory_bytes["sram"] > 1000
    assert compiled.manifest.measurements == ()
    shown = dict(cells(row(compiled)))
    assert "[estimated by vela" in shown["estimate"]
    assert shown["checked"] == "the file that Vela read, in the runtime above"
    assert shown["not checked"] == "what Vela made of it, and the NPU"
    assert shown["ops go to"].startswith("npu")


def test_a_compiled_file_that_was_altered_is_refused(compiled: Bundle) -> None:
    assert compiled.manifest.compiled is not None
    path = compiled.path / compiled.manifest.compiled.path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(BundleCorrupt, match=r"model_vela\.tflite' was altered"):
            Bundle.open(compiled.path)
    finally:
        path.write_bytes(content)


def test_what_the_cpu_gets_is_named_with_its_module_line_and_reason(pixels_npz: Path, tmp_path: Path) -> None:
    model = made(Wavy, pixels_npz)
    with pytest.raises(DelegationMissed, match=r"% of the ops go to npu, the gate is 100 %: .*COS"):
        export(model, DEVICE, tmp_path / "gated", replace(OPTIONS, min_delegated=100.0))
    assert not (tmp_path / "gated").exists()
    bundle = export(model, DEVICE, tmp_path / "out", OPTIONS)
    assert bundle.manifest.compiled is not None
    placed = bundle.manifest.compiled.delegation
    assert placed is not None
    assert 0 < placed.delegated_share < 1
    assert placed.partitions == 2
    reasons = {fallback.op: fallback for fallback in placed.fallbacks}
    assert reasons["COS"].reason == "Unsupported opType"
    assert reasons["DEQUANTIZE"].where == "first"
    assert "compilers.py" in (reasons["DEQUANTIZE"].source or "")
    assert delegation(bundle, bundle.golden()[0][0]).unit == "xnnpack"  # the artifact itself still runs here


def test_a_missing_vela_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_vela_program, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainMissing, match=r"pip install 'edgekit\[ethos-u\]'"):
        isolation.compile("vela", job_of(tmp_path, DEVICE), tmp_path, silent)


def test_a_profile_without_a_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"has no \[unit\.vela\]"):
        vela.compile(job_of(tmp_path, "raspberrypi5"), tmp_path, silent)


def test_a_file_that_vela_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"no model")
    with pytest.raises(EdgekitError, match=r"vela does not compile '.*model\.tflite'"):
        vela.compile(job_of(tmp_path, DEVICE), tmp_path, silent)
