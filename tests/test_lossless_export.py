"""`--precision lossless`: a bf16 checkpoint becomes a bundle a third as large that runs as its float32 self does."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from weights import layer

from edgekit import registry
from edgekit.benchmark import measure
from edgekit.bundle import MANIFEST, Bundle, record_file
from edgekit.cli.app import run
from edgekit.drafting import ExportOptions, draft
from edgekit.errors import BundleCorrupt, CorruptWeights, ParityFailed, UnsupportedModel
from edgekit.inference import open_session, sample_feeds
from edgekit.lossless_artifact import PackedFile, pack
from edgekit.pipeline import export
from edgekit.planning import EXPORTERS
from edgekit.source import load
from edgekit.verification import verify

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

MODELS = Path(__file__).parent / "models.py"
LOSSLESS = ExportOptions(precision="lossless", measure=False)
BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
        "vocab_size": 500, "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT as transformers saves it in bfloat16, with weights of realistic spread."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**BERT)).to(torch.bfloat16)
    for seed, parameter in enumerate(model.parameters()):
        if parameter.dim() == 2:
            parameter.data = torch.from_numpy(layer(*parameter.shape, seed=seed)).view(torch.bfloat16)
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=registry.names(EXPORTERS))
def bundle(folder: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp(request.param) / "out"
    return export(str(folder), "raspberrypi5", out, replace(LOSSLESS, format=request.param))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    given = replace(LOSSLESS, format="onnx")
    return export(f"{MODELS}:bf16_mlp", "raspberrypi5", tmp_path_factory.mktemp("mlp") / "out", given)


def test_a_bfloat16_folder_is_loaded_as_float32_of_the_same_values(folder: Path) -> None:
    for parameter in load(str(folder)).module.parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, parameter.to(torch.bfloat16).float())


def test_the_bundle_says_what_is_stored_and_what_is_loaded(bundle: Bundle) -> None:
    plain, precision = bundle.artifact.unpacked, bundle.manifest.precision
    assert plain is not None
    assert bundle.artifact.path == f"{plain.path}.lossless"
    assert precision.name == bundle.manifest.plan.precision == "lossless"
    assert precision.weight_bytes["float32"] > 0.9 * 4 * plain.weights
    assert precision.quantized_ops == 0
    assert plain.bits_per_weight is not None
    assert plain.bits_per_weight < 12
    assert bundle.model_bytes < 0.5 * plain.bytes
    coded = {change.tensor: change for change in bundle.manifest.changes if change.reason is None}
    assert {change.after for change in coded.values()} == {"bfloat16 in df11x"}
    kept = {change.reason for change in bundle.manifest.changes if change.reason}
    assert any("too few" in str(reason) for reason in kept)


def test_it_answers_like_pytorch_and_holds_the_exported_file(bundle: Bundle) -> None:
    parity = verify(bundle, threads=2)
    assert parity.ok
    assert parity.sqnr_db is not None
    assert parity.sqnr_db > 90


def test_nothing_stays_open_or_mapped_but_what_the_runtime_holds(bundle: Bundle) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_session(bundle) as session:
        session.run(sample_feeds(bundle))
        opened = len(os.listdir("/proc/self/fd"))
        if bundle.artifact.format == "onnx":
            assert "memfd:edgekit" not in Path("/proc/self/maps").read_text()
    assert opened - before <= 1  # ExecuTorch keeps its own


def test_where_files_in_memory_are_unknown_a_temporary_one_is_made_and_removed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = sample_feeds(bundle)
    with open_session(bundle) as session:
        expected = session.run(feeds)
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_session(bundle) as session:
        found = session.run(feeds)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert list(tmp_path.iterdir()) == []


def altered(bundle: Bundle, out: Path, **changes: object) -> Bundle:
    """A copy whose manifest agrees with its files, but for these fields of the model file that was packed."""
    if not out.exists():
        shutil.copytree(bundle.path, out)
    plain = msgspec.structs.replace(bundle.artifact.unpacked, **changes)
    artifact = msgspec.structs.replace(bundle.artifact, **record_file(out, bundle.artifact.path), unpacked=plain)
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=(artifact,))
    (out / MANIFEST).write_text(manifest.to_json())
    return Bundle.open(out)


def test_a_file_that_holds_another_model_file_fails_to_verify(mlp: Bundle, tmp_path: Path) -> None:
    wrong = altered(mlp, tmp_path / "out", sha256="0" * 64)
    with pytest.raises(BundleCorrupt, match=r"onnx\.lossless' does not hold the 'model\.onnx' that was exported"):
        verify(wrong)
    assert run(["verify", str(wrong.path), "-q"]) == 2


def test_damage_that_the_manifest_agrees_with_is_found_when_it_is_opened(mlp: Bundle, tmp_path: Path) -> None:
    shutil.copytree(mlp.path, tmp_path / "out")
    path = tmp_path / "out" / mlp.artifact.path
    file = PackedFile.open(path)
    begin = min(entry.begin for entries in file.stored.values() for entry in entries if entry.name.endswith(".sm"))
    content = bytearray(path.read_bytes())
    content[8 + len(file.file.header) + begin] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleCorrupt, match="altered"):
        Bundle.open(tmp_path / "out")
    with pytest.raises(CorruptWeights, match=r"piece \d+ of '.*model\.onnx\.lossless' .*crc32"):
        open_session(altered(mlp, tmp_path / "out"))


def test_what_the_runtime_cannot_open_is_named_by_the_file_that_is_there(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "out")
    (tmp_path / "model").write_bytes(b"not a model at all")
    pack(tmp_path / "model", tmp_path / "out" / bundle.artifact.path, "auto")
    with pytest.raises(BundleCorrupt, match=f"cannot load '{tmp_path}/out/{bundle.artifact.path}'"):
        open_session(altered(bundle, tmp_path / "out"))


def test_the_forecast_knows_what_is_stored_and_what_is_loaded(folder: Path) -> None:
    model = load(str(folder))
    made = draft(model, "raspberrypi5", LOSSLESS)
    assert made.plan.precision == "lossless"
    assert made.forecast.memory.weight_bytes == model.weight_bytes
    assert 0.3 * model.weight_bytes < made.forecast.memory.artifact_bytes - (200 << 10) < 0.45 * model.weight_bytes


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mlp", r"'mlp' has little to gain from lossless: .*100% of its bytes\. .* of its 676 weights are bf16"),
        ("small_conv", r"'small_conv' has little to gain .* Take --precision fp32, or export a checkpoint that was"),
        ("bf16_conv", r"'bf16_conv' in onnx has little to gain .*Converting left 0 weights .* Take --precision fp32"),
    ],
)
def test_a_model_with_little_to_gain_is_refused(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        export(f"{MODELS}:{model}", "raspberrypi5", tmp_path / "out", replace(LOSSLESS, format="onnx"))
    assert list(tmp_path.iterdir()) == []


def test_onnx_weights_that_need_a_second_file_are_refused_before_any_work(tmp_path: Path) -> None:
    given = replace(LOSSLESS, format="onnx", options=("external_data_bytes=10000",))
    with pytest.raises(UnsupportedModel, match=r"above external_data_bytes=10000, .*lossless packs only one: take"):
        export(f"{MODELS}:bf16_mlp", "raspberrypi5", tmp_path / "out", given)


def test_a_missed_gate_names_the_first_module_of_a_packed_file(tmp_path: Path) -> None:
    given = replace(LOSSLESS, format="onnx", sqnr_db_min=199.0)
    with pytest.raises(ParityFailed, match=r"at lossless does not answer like PyTorch.*first module that diverges is"):
        export(f"{MODELS}:bf16_mlp", "raspberrypi5", tmp_path / "out", given)


def test_the_commands_show_and_measure_it(mlp: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    plain = mlp.artifact.unpacked
    assert plain is not None
    assert run(["verify", str(mlp.path), "-q"]) == 0
    assert "packed  ok  it holds the model.onnx that was exported" in capsys.readouterr().out
    assert run(["inspect", str(mlp.path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    sizes = f"size {mlp.model_bytes / 1e6:.2f} MB, {plain.bytes / 1e6:.2f} MB when loaded: 0.01 M bf16 weights in 10."
    assert sizes in shown
    assert measure(mlp, calls=2).latency.p50_s > 0


def test_export_times_it_alone_since_it_is_the_float_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "-m", f"{MODELS}:bf16_mlp", "-d", "raspberrypi5", "--precision", "lossless"]
    assert run([*arguments, "--format", "onnx", "-o", str(tmp_path / "out"), "--json", "-q"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["measurement"]["load_s"] > 0
    assert row["against_float"] is None
    assert row["float_ops"] == 0
    assert row["unpacked"]["bytes"] > row["model_bytes"]
