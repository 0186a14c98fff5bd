"""A profile is found by any of its names or by its path, and a bad file is refused with a clear reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import InvalidInput, UnknownName
from edgekit.profile import (
    SCHEMA,
    Calibration,
    DeviceProfile,
    device_ids,
    find_device,
    load_profile,
    load_shipped,
    numbers,
)

GOOD = """
schema = "edgekit.profile/1"
id = "board"
title = "Board"
family = "arm64-linux"

[sources]
manual = "Board reference manual, revision 3"

[[unit]]
name = "cpu"
kind = "cpu"
clock_hz = { value = 1e9, source = "manual", status = "vendor" }
"""
CLOCK = 'clock_hz = { value = 1e9, source = "manual", status = "vendor" }'
UNIT = GOOD[GOOD.index("[[unit]]") :]


@pytest.fixture(params=device_ids())
def profile(request: pytest.FixtureRequest) -> DeviceProfile:
    return load_shipped(request.param)


def names_of(profile: DeviceProfile) -> list[str]:
    return list(profile.names)


def plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def spellings(name: str) -> Iterator[str]:
    yield name
    yield name.upper()
    yield name.lower()
    yield name.replace(" ", "-")
    yield name.replace("-", "_")
    yield name.replace(" ", "").replace("-", "")
    yield f"  {name} "


# Finding a profile by name


def test_no_two_profiles_share_a_name() -> None:
    owners = Counter(name for d in device_ids() for name in {plain(n) for n in names_of(load_shipped(d))})
    assert [name for name, count in owners.items() if count > 1] == []


def test_no_alias_repeats_a_name_that_is_found_anyway(profile: DeviceProfile) -> None:
    names = [plain(name) for name in (profile.id, *profile.aliases)]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_a_device_is_found_by_each_name_in_odd_spellings(profile: DeviceProfile) -> None:
    for name in names_of(profile):
        for spelling in spellings(name):
            assert find_device(spelling).id == profile.id, spelling


@pytest.mark.parametrize(
    ("name", "device_id"),
    [
        ("Raspberry Pi 5", "raspberrypi5"),
        ("RPI-5", "raspberrypi5"),
        ("bcm2712", "raspberrypi5"),
        ("BCM2711", "raspberrypi4"),
        ("Raspberry Pi Zero 2 W", "raspberrypi-zero2w"),
        ("Jetson Orin Nano", "jetson-orin-nano"),
        ("x86_64", "generic-x86"),
        ("GeForce RTX 4090", "rtx4090"),
        ("H200", "h200"),
        ("pi 5", "raspberrypi5"),
        ("orin nano", "jetson-orin-nano"),
        ("Snapdragon 8 Gen 3", "snapdragon-8-gen-3"),
        ("SM8650", "snapdragon-8-gen-3"),
        ("s24", "snapdragon-8-gen-3"),
        ("Galaxy S24", "snapdragon-8-gen-3"),
        ("SA8295P ADP", "sa8295p"),
        ("Pixel 8", "pixel8"),
        ("Tensor G4", "pixel9"),
        ("iPhone 15 Pro", "iphone15-pro"),
        ("A17 Pro", "iphone15-pro"),
        ("Ethos-U55-128", "ethos-u55-128"),
        ("Edge TPU", "coral-edge-tpu"),
        ("Hailo 8L", "hailo-8l"),
        ("Lunar Lake", "core-ultra-lunar-lake"),
        ("Orange Pi 5", "rk3588"),
    ],
)
def test_a_device_is_found_by_the_name_people_use(name: str, device_id: str) -> None:
    assert find_device(name).id == device_id


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownName, match="no device is called 'rasberrypi5'") as refusal:
        find_device("rasberrypi5")
    assert "Did you mean 'raspberrypi5'?" in str(refusal.value)
    assert "jetson-orin-nano" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Snapdragon 8 Gen 4", "snapdragon-8-gen-3"),
        ("galaxy s25", "snapdragon-8-gen-3"),
        ("pixel 8a", "pixel8"),
        ("rk3568", "rk3588"),
        ("Hailo-8", "hailo-8l"),
        ("Core Ultra 7 165H", "core-ultra-155h"),
        ("BCM2713", "raspberrypi5"),
        ("ethos-u55-265", "ethos-u55-256"),
    ],
)
def test_a_near_miss_in_any_of_a_devices_names_leads_to_it(name: str, nearest: str) -> None:
    with pytest.raises(UnknownName, match=f"Did you mean '{nearest}'"):
        find_device(name)


@pytest.mark.parametrize("name", ["", "  ", "!?"])
def test_a_name_without_letters_or_digits_is_unknown(name: str) -> None:
    with pytest.raises(UnknownName):
        find_device(name)


# A profile of the user's own


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal_of(path: Path) -> str:
    with pytest.raises(InvalidInput) as refusal:
        load_profile(path)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


def test_a_file_of_the_users_own_is_found_by_its_path(tmp_path: Path) -> None:
    found = find_device(str(write(tmp_path, GOOD)))
    assert (found.id, found.main_unit.name, found.memory_bytes) == ("board", "cpu", None)
    assert [path for path, _ in numbers(found)] == ["unit[0].clock_hz"]


@pytest.mark.parametrize(
    ("old", "new", "problems"),
    [
        ('id = "board"', "id = board", ["not valid TOML", "line 3"]),
        ('"manual", status', '"hearsay", status', ["unit[0].clock_hz", "'hearsay'", "[sources]"]),
        ('family = "arm64-linux"', 'family = "arm64-linux"\ncolour = "red"', ["unknown field `colour`", SCHEMA]),
        ("clock_hz", "clock_ghz", ["unknown field `clock_ghz`", "$.unit"]),
        ("value = 1e9", 'value = "fast"', ["Expected `float`, got `str`", "$.unit[0].clock_hz.value"]),
        ('kind = "cpu"', 'kind = "tpu"', ["Invalid enum value 'tpu'", "$.unit[0].kind"]),
        ('status = "vendor"', 'status = "true"', ["Invalid enum value 'true'", "$.unit[0].clock_hz.status"]),
        ('title = "Board"', "", ["missing required field `title`"]),
        (UNIT, "", ["missing required field `unit`"]),
        (SCHEMA, "edgekit.profile/9", ["edgekit.profile/9", "$.schema"]),
    ],
    ids=[
        "bad TOML",
        "unknown source",
        "unknown key",
        "unknown key in a unit",
        "wrong type",
        "unknown kind",
        "unknown status",
        "missing key",
        "no unit",
        "other schema",
    ],
)
def test_a_bad_file_is_refused_by_name_and_reason(tmp_path: Path, old: str, new: str, problems: list[str]) -> None:
    assert old in GOOD
    message = refusal_of(write(tmp_path, GOOD.replace(old, new)))
    assert [problem for problem in problems if problem not in message] == []


@pytest.mark.parametrize(
    ("figure", "problem"),
    [
        ('clock_hz = { value = 1e9, status = "vendor" }', "missing required field `source`"),
        ("clock_hz = { value = 1e9 }", "missing required field `source`"),
        ("clock_hz = 1e9", "got `float`"),
    ],
)
def test_a_figure_without_a_source_is_refused(tmp_path: Path, figure: str, problem: str) -> None:
    message = refusal_of(write(tmp_path, GOOD.replace(CLOCK, figure)))
    assert problem in message
    assert "$.unit[0].clock_hz" in message


def test_an_empty_list_of_units_is_refused(tmp_path: Path) -> None:
    message = refusal_of(write(tmp_path, GOOD.replace(UNIT, "").replace("[sources]", "unit = []\n[sources]")))
    assert "no [[unit]]" in message


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"
    assert "cannot read" in refusal_of(path)
    with pytest.raises(InvalidInput, match="No such file"):
        find_device(str(path))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert "cannot read" in refusal_of(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00id")
    assert "not UTF-8" in refusal_of(path)


# Calibrations

CALIBRATED = (
    GOOD
    + """
[[calibration]]
runtime = "onnxruntime"
runtime_version = "1.31.0"
unit = "cpu"
host = "lab"
date = "2026-11-22"
threads = 4
op_overhead_s = 3e-6
call_overhead_s = 0
source = "edgekit calibrate"
held_out_p90 = { conv = 0.3, model = 0.25 }

[calibration.efficiency.int8]
conv = [{ ops = 1e6, fraction = 0.1 }, { ops = 1e8, fraction = 0.6 }]
"""
)


def test_a_calibration_is_read_with_its_efficiency_per_dtype_and_op_class(tmp_path: Path) -> None:
    (found,) = load_profile(write(tmp_path, CALIBRATED)).calibration
    assert [(point.ops, point.fraction) for point in found.efficiency["int8"]["conv"]] == [(1e6, 0.1), (1e8, 0.6)]
    assert found.held_out_p90 == {"conv": 0.3, "model": 0.25}
    assert Calibration.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("fraction = 0.1", "fraction = 1.3", "above 0 and at most 1.2, not 1.3"),
        ("fraction = 0.1", "fraction = 0", "above 0 and at most 1.2, not 0"),
        ("fraction = 0.1", "fraction = nan", "above 0 and at most 1.2, not nan"),
        ("ops = 1e6", "ops = -1", "ops must be positive and finite"),
        ("ops = 1e6", "ops = 1e9", "efficiency.int8.conv needs points in ascending order of ops"),
        ("op_overhead_s = 3e-6", "op_overhead_s = -3e-6", "op_overhead_s must be 0 or more"),
        ("call_overhead_s = 0", "call_overhead_s = inf", "call_overhead_s must be 0 or more"),
        ("model = 0.25", "model = -0.25", "held_out_p90.model must be 0 or more"),
        ("model = 0.25", "modle = 0.25", "modle"),
        (
            'unit = "cpu"\nhost',
            'unit = "npu"\nhost',
            "names unit 'npu' in calibration[0], and its units are cpu",
        ),
        ("efficiency.int8", "efficiency.int4", "Invalid enum value 'int4'"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in CALIBRATED
    assert problem in refusal_of(write(tmp_path, CALIBRATED.replace(old, new)))
