"""A profile that was written is the profile that is read, whatever its words hold, and no file is left half-written."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, InvalidInput
from edgekit.profile import Calibration, DeviceProfile, EfficiencyPoint, device_ids, load_profile, load_shipped
from edgekit.profile_writer import check_path, profile_toml, toml, write_profile

PLAIN = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text())
VALUES = st.recursive(PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)))


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_any_table_survives_toml(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml(table)) == table


@given(st.dictionaries(st.text(min_size=1), st.lists(st.dictionaries(st.text(), VALUES, min_size=1), max_size=3)))
def test_lists_of_tables_survive_toml(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml(table)) == table


def test_not_a_number_survives_toml() -> None:
    assert tomllib.loads(toml({"x": float("nan")}))["x"] != tomllib.loads(toml({"x": 1.0}))["x"]
    assert "nan" in toml({"x": float("nan")})


def test_what_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="TOML has no NoneType"):
        toml({"x": None})


@pytest.mark.parametrize("device_id", device_ids())
def test_every_shipped_profile_survives_writing(device_id: str, tmp_path: Path) -> None:
    profile = load_shipped(device_id)
    write_profile(profile, tmp_path / "copy.toml")
    assert load_profile(tmp_path / "copy.toml") == profile


def test_a_calibrated_profile_survives_writing_and_its_curves_keep_to_one_line_each(tmp_path: Path) -> None:
    profile = load_shipped("raspberrypi5")
    points = (EfficiencyPoint(ops=1e6, fraction=0.25), EfficiencyPoint(ops=1e9, fraction=1 / 3))
    made = Calibration(
        runtime='odd "name"\n',
        runtime_version="1",
        unit="cpu",
        host="a\\b \x00 \u2028 é",
        date="2026-11-22",
        threads=4,
        efficiency={"int8": {"conv": points, "gemm": points}, "float32": {"gemv": points}},
        op_overhead_s=3e-7,
        call_overhead_s=0,
        held_out_p90={"conv": 0.3, "model": 0.2},
        source="a test",
    )
    calibrated = msgspec.structs.replace(profile, calibration=(made, made))
    write_profile(calibrated, tmp_path / "copy.toml")
    assert load_profile(tmp_path / "copy.toml") == calibrated
    assert "conv = [{ ops = 1e+06, fraction = 0.25 }, " in profile_toml(calibrated)


def test_a_profile_of_nothing_but_a_unit_is_written_short() -> None:
    profile = DeviceProfile.from_json(
        '{"schema": "edgekit.profile/1", "id": "a", "title": "A", "family": "cuda", "sources": {},'
        ' "unit": [{"name": "gpu", "kind": "gpu"}]}'
    )
    written = profile_toml(profile).splitlines()[1:]
    assert [line for line in written if line] == [
        'schema = "edgekit.profile/1"', 'id = "a"', 'title = "A"', 'family = "cuda"', "[[unit]]", 'name = "gpu"',
        'kind = "gpu"',
    ]  # fmt: skip


def test_a_path_that_could_not_be_found_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"does not end in \.toml"):
        check_path(tmp_path / "mine.json")
    with pytest.raises(InvalidInput, match="there is no folder"):
        check_path(tmp_path / "none" / "mine.toml")
    check_path(tmp_path / "MINE.TOML")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    target.mkdir()
    (target / "kept").touch()
    with pytest.raises(EdgekitError, match="cannot write"):
        write_profile(load_shipped("h200"), target)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine.toml", "kept"]
