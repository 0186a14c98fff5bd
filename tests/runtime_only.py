"""`make runtime-only`: install what a board installs into a fresh environment, and use a bundle there without torch.

It needs the package index, so it is no part of `make test`; `.ci/run` calls both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPORTING = Path(sys.executable).with_name("edgekit")


def run(*command: object, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    return subprocess.run([str(c) for c in command], check=True, text=True, stdout=subprocess.PIPE, env=clean).stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for format, extra in (("onnx", "onnxruntime"), ("tflite", "litert")):
            print(f"{format} with edgekit[{extra}] alone: {serve(format, extra, Path(name) / format)}", flush=True)


def serve(format: str, extra: str, folder: Path) -> str:
    """Export here, install one extra over there, and verify, run and profile with that alone."""
    bundle, venv = folder / "out", folder / "venv"
    run(EXPORTING, "export", "-m", "zoo:efficientnet_lite0", "-d", "raspberrypi5", "--precision", "int8",
        "--format", format, "-o", bundle, "-q", "--no-measure")  # fmt: skip
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin/python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt",
        f"{ROOT}[{extra}]")  # fmt: skip
    python, edgekit = venv / "bin/python", venv / "bin/edgekit"
    found = run(python, "-P", "-c", "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('onnx'))")
    assert found.strip() == "None None", found
    assert json.loads(run(edgekit, "verify", bundle, "--json"))["ok"]
    photo = ROOT / "sdk/data/photos/coffee.jpg"
    answers = json.loads(run(edgekit, "run", bundle, "--input", photo, "--json"))["answers"]
    label = answers[0]["labels"][0]["label"]
    assert label == "espresso", answers
    measured = json.loads(run(edgekit, "profile", bundle, "--calls", "60", "--json", "--quiet"))
    assert measured["latency"]["p50_s"] > 0
    run(edgekit, "report", bundle, "-o", folder / "report.html")
    assert "efficientnet_lite0" in (folder / "report.html").read_text(encoding="utf-8")
    missing = subprocess.run([str(edgekit), "export", "-m", "x.py:f", "-d", "pi5", "-o", "x"], capture_output=True,
                             text=True, check=False)  # fmt: skip
    assert missing.returncode == 3, missing
    assert "pip install 'edgekit[onnx]'" in missing.stderr, missing
    size = sum(p.stat().st_size for p in venv.rglob("*") if p.is_file() and "/pip" not in str(p)) / 1e6
    return (
        f"verify ok, label {label}, p50 {1e3 * measured['latency']['p50_s']:.2f} ms, "
        f"{measured['peak_rss_bytes'] / 1e6:.0f} MB resident, {size:.0f} MB installed, no torch"
    )


if __name__ == "__main__":
    main()
