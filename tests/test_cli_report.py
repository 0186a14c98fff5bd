"""`edgekit report`: bundles and saved results in, one file out."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import Reader
from pages import comparison, measurement

from edgekit.cli.app import run
from edgekit.errors import InvalidInput
from edgekit.measurement import Measurement
from edgekit.page.subjects import find_bundles, read_results


def saved(folder: Path) -> Path:
    """A bundle on disk with real files, beside a measurement of it."""
    from test_bundle import make

    root = make(folder / "out" / "onnx")
    (folder / "profile.json").write_text(measurement(artifact_sha256=None, bundle=str(root)).to_json())
    return root


def test_the_command_writes_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    target = tmp_path / "report.html"
    arguments = ["report", str(tmp_path / "out"), "--measurement", str(tmp_path / "profile.json"), "-o", str(target)]
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"page": str(target), "bytes": target.stat().st_size, "bundles": [str(tmp_path / "out/onnx")],
                    "measurements": 1, "comparisons": 0}  # fmt: skip
    said = Reader(target.read_text(encoding="utf-8")).said
    assert "onnx fp32, profile.json" in said
    assert run(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert run([*arguments, "--force"]) == 0
    assert "1 bundle(s) on one page" in capsys.readouterr().out


def test_what_compare_saved_is_on_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    (tmp_path / "compare.json").write_bytes(msgspec.json.encode([comparison(), comparison(ratio=1.0)]))
    target = tmp_path / "report.html"
    arguments = ["report", str(tmp_path / "out"), "--measurement", str(tmp_path / "compare.json"), "-o", str(target)]
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["measurements"], told["comparisons"]) == (0, 2)
    said = Reader(target.read_text(encoding="utf-8")).said
    assert "out/tflite is 1.89x as fast as out/onnx" in said
    assert "no difference shown between out/onnx and out/tflite" in said


def test_what_is_no_measurement_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "profile.json"
    with pytest.raises(InvalidInput, match=r"profile\.json.*edgekit profile OUT -o.*edgekit compare OUT OTHER -o"):
        read_results(wrong)
    wrong.write_text('{"error": "BundleCorrupt"}')
    with pytest.raises(InvalidInput, match="not a valid Measurement"):
        read_results(wrong)
    wrong.write_text(measurement().to_json().replace('"load_s": 0.21', '"load_s": NaN'))
    with pytest.raises(InvalidInput, match="not valid JSON"):
        read_results(wrong)
    wrong.write_text('[{"error": "BundleCorrupt"}]')
    with pytest.raises(InvalidInput, match="is no measurement: Object contains unknown field `error`"):
        read_results(wrong)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_a_damaged_measurement_is_an_error_with_a_sentence(noise: bytes) -> None:
    whole = measurement().to_json().encode()
    for text in (noise, whole[: len(noise) * 7] + noise):
        with pytest.raises(InvalidInput):
            Measurement.from_json(text)


def test_a_folder_without_bundles_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a bundle"):
        find_bundles([tmp_path])
