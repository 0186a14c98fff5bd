"""One command, several formats: a bundle each, one table, and a failure of one loses none of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.bundle import REPORT, Bundle
from edgekit.cli.app import run
from edgekit.errors import OutputExists, UnknownName
from edgekit.multiformat import check_folder, choose_formats, write_page
from edgekit.planning import EXPORTERS

MODELS = Path(__file__).parent / "models.py"
FORMATS = registry.names(EXPORTERS)


def test_formats_are_named_by_a_list_or_all() -> None:
    assert choose_formats("all") == FORMATS
    assert choose_formats("tflite,onnx,tflite") == ("tflite", "onnx")
    with pytest.raises(UnknownName, match=r"no export format is called 'onxx'.*'onnx'"):
        choose_formats("tflite,onxx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two linear layers in every format, and the JSON that the command printed."""
    folder = tmp_path_factory.mktemp("formats")
    arguments = [
        "export",
        "-m",
        f"{MODELS}:mlp",
        "-d",
        "raspberrypi5",
        "--format",
        "all",
        "--precision",
        "int8-dynamic",
    ]
    with pytest.MonkeyPatch.context() as patch, (folder / "report.json").open("w") as stream:
        patch.setattr("sys.stdout", stream)
        assert run([*arguments, "-o", str(folder / "out"), "--json", "-q"]) == 0
    return folder


def test_every_format_is_a_bundle_of_its_own_measured_in_one_run(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    assert [row["format"] for row in report["rows"]] == list(FORMATS)
    for row in report["rows"]:
        bundle = Bundle.open(exported / "out" / row["format"])
        assert bundle.manifest.parity is not None
        assert bundle.manifest.parity.ok
        assert row["measurement"]["latency"]["p50_s"] > 0
        assert row["delegation"]["units"]
        assert row["against_float"]["float_p50_s"] > 0
        assert bool(row["against_float"].get("reason")) == (row["against_float"]["ratio_ci"]["high"] >= 1)
    assert not list((exported / "out").glob("*.partial"))


def test_one_page_shows_all_formats_measured_in_turns(exported: Path) -> None:
    text = (exported / "out" / REPORT).read_text(encoding="utf-8")
    for name in FORMATS:
        assert f"{name} int8-dynamic, measured in turns" in text
        assert (exported / "out" / name / REPORT).is_file()
    assert "Compared in turns" in text


def test_a_page_that_is_there_is_left_unless_forced(exported: Path, tmp_path: Path) -> None:
    bundles = [Bundle.open(exported / "out" / name) for name in FORMATS]
    file = tmp_path / REPORT
    file.write_text("mine")
    assert write_page(file, bundles, [], force=False) == [
        f"'{file}' is there already and was left: edgekit report {tmp_path} -o FILE"
    ]
    assert file.read_text() == "mine"
    assert write_page(file, bundles, [], force=True) == []
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "cannot write" in write_page(tmp_path / "no" / REPORT, bundles, [], force=False)[0]


def test_compare_takes_the_bundles(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundles = [str(exported / "out" / name) for name in FORMATS]
    assert run(["compare", *bundles, "--rounds", "1", "-q"]) == 0
    assert all(name in capsys.readouterr().out for name in FORMATS[:1])


def test_a_format_that_cannot_loses_none_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "-m", f"{MODELS}:mlp", "-d", "raspberrypi5", "--format", "all", "--precision", "fp16"]
    assert run([*arguments, "-o", str(tmp_path / "out"), "--no-measure", "-q"]) == 1
    shown = capsys.readouterr().out
    assert "executorch  FAILED: executorch has no fp16" in shown
    assert Bundle.open(tmp_path / "out" / "onnx").manifest.precision.name == "fp16"


def test_what_is_wrong_for_all_formats_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "-m", f"{MODELS}:mlp", "-d", "raspberrypi5", "--format", "all", "-o", str(tmp_path / "out")]
    assert run([*arguments, "--precision", "int9", "-q"]) == 2
    assert capsys.readouterr().err.count("no precision is called 'int9'") == 1
    assert run([*arguments, "--option", "layout=NHWC", "-q"]) == 2
    assert "must name one of the formats: executorch.layout=NHWC" in capsys.readouterr().err


def test_a_folder_that_is_a_bundle_is_not_filled_with_others(small_conv_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OutputExists, match="is a bundle; several formats"):
        check_folder(small_conv_bundle.path, FORMATS, force=True)
    (tmp_path / "onnx").mkdir()
    with pytest.raises(OutputExists, match="there already"):
        check_folder(tmp_path, FORMATS, force=False)


def test_min_delegated_and_no_fallback_gate_where_ops_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "-d", "raspberrypi5", "--precision", "fp32", "--no-measure", "-q"]
    whole = [*arguments, "-m", f"{MODELS}:mlp", "--format", "onnx"]
    assert run([*whole, "-o", str(tmp_path / "whole"), "--no-fallback"]) == 0
    assert run([*whole, "-o", str(tmp_path / "odd"), "--min-delegated", "101"]) == 2
    assert "between 0 and 100, not 101" in capsys.readouterr().err
    parts = [*arguments, "-m", f"{MODELS}:two_inputs", "--format", "executorch"]  # XNNPACK has no embedding
    assert run([*parts, "-o", str(tmp_path / "parts"), "--no-fallback"]) == 1
    said = capsys.readouterr().err
    assert "% of the ops ran on xnnpack, the gate is 100 %" in said
    assert "1x aten.embedding at table (models.py:" in said
    assert not (tmp_path / "parts").exists()
    assert run([*parts, "-o", str(tmp_path / "parts"), "--min-delegated", "20"]) == 0
