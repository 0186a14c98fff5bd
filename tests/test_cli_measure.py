"""`edgekit profile` and `edgekit compare` as a person or a script meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from edgekit.cli.options import seconds
from tests.test_cli import EDGEKIT, Said


def test_profile_gives_a_distribution_and_keeps_its_gates(bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    measured = Said(capfd, "profile", bundle_copy, "--calls", "40", "--json", "-q").json
    assert len(measured["latency"]["times_s"]) == 40
    assert measured["latency"]["p90_s"] is not None
    assert measured["latency"]["p99_s"] is None
    assert measured["load_s"] > 0
    assert measured["energy"]["gross_j"] is None
    assert measured["energy"]["reason"]
    said = Said(capfd, "profile", bundle_copy, "--calls", "40", "--trials", "1", "--max-latency-ms", "0.000001", "-q")
    assert said.code == 1
    assert "the limit is 1e-06 ms" in said.err


def test_profile_saves_what_it_prints_and_never_over_another_file(
    bundle_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, quick = tmp_path / "profile.json", ("--calls", "5", "--trials", "1", "-q")
    said = Said(capfd, "profile", bundle_copy, *quick, "--json", "-o", file)
    assert json.loads(file.read_text(encoding="utf-8")) == said.json
    again = Said(capfd, "profile", bundle_copy, *quick, "-o", file)
    assert (again.code, again.out) == (2, "")
    assert "is there already: choose another -o, or replace it with --force" in again.err
    assert Said(capfd, "profile", bundle_copy, *quick, "-o", file, "--force").code == 0
    assert json.loads(file.read_text(encoding="utf-8")) != said.json
    assert "is a folder: name a file" in Said(capfd, "profile", bundle_copy, *quick, "-o", tmp_path).err
    assert "cannot write" in Said(capfd, "profile", bundle_copy, *quick, "-o", tmp_path / "no" / "p.json").err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "profile.json"]


def test_a_sustained_run_holds_its_last_minute_to_the_gate(
    bundle_copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = Said(capfd, "profile", bundle_copy, "--sustained", "0.6s", "--max-latency-ms", "0.000001", "--json", "-q")
    assert said.code == 1
    assert "the last p50 is" in said.err
    assert said.json["sustained"]["lasted_s"] >= said.json["sustained"]["asked_s"] == 0.6


@pytest.mark.parametrize("text", ["", "ten", "10x", "-5s", "5 m", "nan", "1e3", "0s"])
def test_a_time_that_is_none_is_refused(bundle_copy: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    said = Said(capfd, "profile", bundle_copy, f"--sustained={text}", "-q")
    assert said.code == 2
    assert "give it as 90s, 10m or 1h" in said.err or "above 0 s" in said.err


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2m ", 120)])
def test_a_time_is_given_in_seconds_minutes_or_hours(text: str, expected: float) -> None:
    assert seconds(text) == expected


def test_ctrl_c_ends_a_sustained_run_with_what_it_reached(bundle_copy: Path) -> None:
    command = [*EDGEKIT, "profile", str(bundle_copy), "--sustained", "10m", "--json"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    assert run.stderr is not None
    for line in run.stderr:
        if "s left of 600" in line:
            break
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    reached = json.loads(out)
    assert 0 < reached["sustained"]["lasted_s"] < 600
    assert reached["latency"]["calls"] > 0


def test_the_control_is_part_of_the_profile(bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = Said(capfd, "profile", bundle_copy, "--calls", "5", "--trials", "1", "--aa", "--json", "-q")
    control = said.json["control"]
    assert control["holds"] == (control["ratio_ci"]["low"] <= 1 <= control["ratio_ci"]["high"])
    assert said.code == (0 if control["holds"] else 1)
    assert ("does not hold 1" in said.err) is not control["holds"]


def test_a_profile_with_ops_has_them_in_the_json_and_in_two_tables(
    bundle_copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quick = ("--calls", "2", "--trials", "1", "--ops", "-q")
    found = Said(capfd, "profile", bundle_copy, *quick, "--json").json["ops"]
    assert found["by"] == "onnxruntime's profiler"
    assert found["ops"][0]["op"].endswith("Conv")
    said = Said(capfd, "profile", bundle_copy, *quick).out
    assert re.search(r"^ops +\d+ ops, [\d.]+ ms by onnxruntime's profiler", said, re.MULTILINE)
    assert re.search(r"^op +unit +calls +ms +share", said, re.MULTILINE)
    assert re.search(r"^op +module +ms +share +name", said, re.MULTILINE)


def test_compare_of_a_bundle_with_itself_gives_no_winner(bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = Said(capfd, "compare", bundle_copy, bundle_copy, "--rounds", "1", "--aa", "--json", "-q")
    assert len(said.json) == 2  # the control first
    for found in said.json:
        assert found["ratio_ci"]["low"] <= found["ratio"] <= found["ratio_ci"]["high"]
        assert 0.5 < found["ratio"] < 2
        assert (found["rounds"], len(found["trial_ratios"])) == (1, 5)
    assert ("ok " if said.code == 0 else "FAILED") in said.err
