"""`edgekit analyze -d DEVICE` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from page_reader import Reader

from edgekit.cli.app import run

MODELS = Path(__file__).parent / "models.py"
CONV = f"{MODELS}:small_conv"


def said(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    capfd.readouterr()
    code = run(["analyze", *map(str, arguments), "-q"])
    return code, *capfd.readouterr()


def test_the_screen_shows_coverage_and_where_the_rest_stands(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capfd, "-m", f"{MODELS}:prompted", "-d", "coral-edgetpu")
    assert code == 0
    assert "coverage" in out
    assert "table estimate" in out
    assert "(models.py:" in out
    assert "fix: linear_to_conv (--fix)\n" in out
    assert "fix: attention_to_gated_conv (--fix --allow attention_to_gated_conv)\n" in out


def test_every_lists_what_runs_too(capfd: pytest.CaptureFixture[str]) -> None:
    short, every = (said(capfd, "-m", CONV, "-d", "rk3588-npu", *more)[1] for more in ((), ("--every",)))
    assert "runs: conv2d" not in short
    assert "runs: conv2d" in every


def test_json_is_one_document_with_every_op(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capfd, "-m", CONV, "-d", "hailo-8l", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["npu"] == "hailo-8l"
    assert found["basis"] == "table estimate"
    assert {op["op"] for op in found["placements"]} >= {"conv2d"}
    assert all(op["source"].startswith("models.py:") for op in found["placements"])


@pytest.mark.parametrize(("least", "code"), [(0, 0), (100, 1)])
def test_a_gate_on_coverage_is_the_exit_code(least: int, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    given = ("-m", f"{MODELS}:prompted", "-d", "coral-edgetpu", "--min-coverage", least)
    found, out, _ = said(capfd, *given)
    assert (found, "FAILED: coverage" in out) == (code, code == 1)
    assert said(capfd, *given, "--json")[0] == code


def test_samples_show_ranges_with_the_worst_channel(pixels_npz: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ("-m", CONV, "-d", "ethos-u85-256", "--data", pixels_npz)
    assert "w8a8 worst/total dB" in said(capfd, *given)[1]
    ranges = json.loads(said(capfd, *given, "--json")[1])["ranges"]
    assert set(ranges[0]["sqnr"]) == {"w8a8", "w8a16", "w4a16"}


def test_an_sqnr_says_which_ops_need_more_bits(
    pixels_npz: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "bits.html"
    given = ("-m", CONV, "-d", "ethos-u85-256", "--data", pixels_npz, "--min-sqnr")
    found = json.loads(said(capfd, *given, 200, "--json")[1])["bits"]  # nobody reaches that
    eight, sixteen = (point["total_db"] for point in found["curve"])
    assert (eight < sixteen, found["met"]) == (True, False)
    code, out, _ = said(capfd, *given, 200)
    assert (code, "FAILED: w8a8 gives " in out, out.endswith("200 is not reached\n")) == (1, True, True)
    code, out, _ = said(capfd, *given, (eight + sixteen) / 2, "--html", page)
    assert (code, f"bits: w8a8 gives {eight:.1f} dB, and w8a16 at " in out) == (0, True)
    assert "Ops that need more bits" in Reader(page.read_text()).said
    code, out, _ = said(capfd, *given, eight / 2)
    assert (code, "no op needs more bits" in out) == (0, True)


def test_the_page_is_written_once_and_replaced_when_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "audit.html"
    given = ("-m", CONV, "-d", "apple-ane", "--html", page)
    assert said(capfd, *given)[0] == 0
    assert "Apple Neural Engine" in Reader(page.read_text()).said
    code, _, err = said(capfd, *given)
    assert (code, "--force" in err) == (2, True)
    assert said(capfd, *given, "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("-d", "ethos-u86"), "Did you mean 'ethos-u85-256'?"),
        (("-d", "pixel8"), "'pixel8' has no NPU whose rules are known; these have: "),
        (("-d", "rk3588", "--min-coverage", "101"), "from 0 to 100"),
        (("-d", "rk3588", "--dtype", "int16"), "take int8, float16"),
        (("-d", "rk3588", "--format", "onnx"), "leave out --sites, --format and --save-repro"),
        (("--min-coverage", "90"), "add -d DEVICE"),
        (("--min-sqnr", "30"), "add -d DEVICE"),
        (("-d", "ethos-u55-128", "--min-sqnr", "30"), "chosen on samples: add --data"),
        (("-d", "coral-edgetpu", "--min-sqnr", "30", "--data", "PIXELS"), "Coral Edge TPU computes int8"),
        (("-d", "ethos-u55-128", "--min-sqnr", "0", "--data", "PIXELS"), "give decibels above 0, 200 at most"),
        (("-d", "ethos-u55-128", "--min-sqnr", "nan", "--data", "PIXELS"), "give decibels above 0, 200 at most"),
        (("-d", "rk3588", "--fix", "-o", "x", "--min-sqnr", "30"), "leave out --html, --dtype, --min-sqnr"),
        (("--fix", "-o", "fixed"), "add -d DEVICE"),
        (("-d", "rk3588", "-o", "fixed"), "add --fix -d DEVICE"),
        (("-d", "rk3588", "--fix"), "add -o OUT"),
        (("-d", "rk3588", "--data", "nowhere"), "no samples at 'nowhere'"),
    ],
)
def test_what_cannot_be_meant_is_said_with_the_fix(
    arguments: tuple[str, ...], answer: str, pixels_npz: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capfd, "-m", CONV, *(pixels_npz if each == "PIXELS" else each for each in arguments))
    assert (code, out) == (2, "")
    assert answer in err
