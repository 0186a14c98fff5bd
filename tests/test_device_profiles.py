"""The shipped device profiles are well formed and make physical sense, and bad ones are refused with a clear reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import InvalidInput, UnknownName
from edgekit.profile import (
    SCHEMA,
    ComputeUnit,
    DeviceProfile,
    device_ids,
    find_device,
    load_profile,
    load_shipped,
    numbers,
)

EXPECTED = {
    "generic-x86",
    "h200",
    "jetson-orin-nano",
    "raspberrypi-zero2w",
    "raspberrypi4",
    "raspberrypi5",
    "rtx4090",
}
SUPPORTED_RUNTIMES = {("onnxruntime", "onnx"), ("litert", "tflite"), ("executorch", "executorch")}

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
    return [name for name in (profile.id, profile.title, profile.soc, *profile.aliases) if name]


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


def unit_peaks(profile: DeviceProfile) -> list[tuple[ComputeUnit, str, float]]:
    return [(unit, dtype, peak.value) for unit in profile.unit for dtype, peak in unit.peak_ops_per_s.items()]


# The shipped profiles: form


def test_the_promised_devices_ship() -> None:
    assert set(device_ids()) >= EXPECTED


def test_id_equals_the_file_name_and_schema_is_current(request: pytest.FixtureRequest, profile: DeviceProfile) -> None:
    assert profile.id == request.node.callspec.params["profile"]
    assert profile.schema == SCHEMA


def test_a_profile_survives_json(profile: DeviceProfile) -> None:
    assert DeviceProfile.from_json(profile.to_json()) == profile


def test_every_listed_source_is_cited_and_every_cited_one_is_listed(profile: DeviceProfile) -> None:
    assert {number.source for _, number in numbers(profile)} == set(profile.sources)


def test_every_source_is_a_citation_that_a_reader_can_follow(profile: DeviceProfile) -> None:
    for key, citation in profile.sources.items():
        assert len(citation) >= 15, key
        assert not citation.startswith(("fs:", "/", "file:")), key


def test_every_calculated_figure_says_how(profile: DeviceProfile) -> None:
    silent = [path for path, number in numbers(profile) if number.status == "calculated" and not number.note]
    assert silent == []


def test_a_profile_names_a_supported_runtime_for_onnx(profile: DeviceProfile) -> None:
    choices = [(choice.name, choice.format) for choice in profile.runtime]
    assert ("onnxruntime", "onnx") in choices
    assert set(choices) <= SUPPORTED_RUNTIMES
    assert len(set(choices)) == len(choices)


def test_units_levels_and_sensors_have_names_of_their_own(profile: DeviceProfile) -> None:
    for names in ([u.name for u in profile.unit], [m.name for m in profile.memory], [s.id for s in profile.sensor]):
        assert len(set(names)) == len(names)


def test_every_unit_says_which_dtypes_are_fast_and_pads_only_those(profile: DeviceProfile) -> None:
    for unit in profile.unit:
        assert unit.fast_dtypes, unit.name
        assert len(set(unit.fast_dtypes)) == len(unit.fast_dtypes)
        assert set(unit.channel_multiple) <= set(unit.fast_dtypes)
        assert all(multiple >= 1 for multiple in unit.channel_multiple.values())


def test_every_sensor_says_what_it_covers_and_what_it_cannot_see(profile: DeviceProfile) -> None:
    for sensor in profile.sensor:
        assert sensor.covers
        assert sensor.excludes
        assert not set(sensor.covers) & set(sensor.excludes)


# The shipped profiles: physical sense


def test_all_numbers_are_positive_and_finite(profile: DeviceProfile) -> None:
    assert [path for path, number in numbers(profile) if not 0 < number.value < float("inf")] == []


def test_clocks_are_between_a_tenth_and_ten_gigahertz(profile: DeviceProfile) -> None:
    assert all(1e8 <= unit.clock_hz.value <= 1e10 for unit in profile.unit if unit.clock_hz)


def test_core_counts_are_whole(profile: DeviceProfile) -> None:
    assert all(unit.cores.value.is_integer() for unit in profile.unit if unit.cores)


def test_memory_sizes_are_whole_bytes_and_usable_is_at_most_the_size(profile: DeviceProfile) -> None:
    for level in profile.memory:
        sizes = [number.value for number in (level.usable_bytes, level.size_bytes) if number]
        assert all(size.is_integer() for size in sizes), level.name
        assert sizes == sorted(sizes), level.name


def test_sustained_bandwidth_is_at_most_the_peak(profile: DeviceProfile) -> None:
    for level in profile.memory:
        if level.sustained_bytes_per_s and level.peak_bytes_per_s:
            assert level.sustained_bytes_per_s.value <= level.peak_bytes_per_s.value, level.name


def test_memory_grows_from_near_to_far_and_ends_in_main_memory(profile: DeviceProfile) -> None:
    sizes = [level.size_bytes.value for level in profile.memory if level.size_bytes]
    assert sizes == sorted(set(sizes))
    assert profile.memory[-1].name in {"dram", "vram"}


def test_idle_is_at_most_active_and_active_is_at_most_the_budget(profile: DeviceProfile) -> None:
    power = profile.power
    watts = [w.value for w in (power.idle_w, power.active_w, power.budget_w) if w] if power else []
    assert watts == sorted(watts)


def test_narrower_types_are_never_slower(profile: DeviceProfile) -> None:
    for unit in profile.unit:
        by_width = [unit.peak_ops_per_s[d].value for d in ("float32", "float16", "int8") if d in unit.peak_ops_per_s]
        assert by_width == sorted(by_width), unit.name


def test_ridge_points_are_between_1_and_2000_operations_per_byte(profile: DeviceProfile) -> None:
    bandwidth = profile.memory[-1].peak_bytes_per_s if profile.memory else None
    if bandwidth is not None:
        for unit, dtype, peak in unit_peaks(profile):
            assert 1 <= peak / bandwidth.value <= 2000, (unit.name, dtype)


def test_a_peak_needs_no_more_than_16384_operations_per_core_and_clock(profile: DeviceProfile) -> None:
    for unit, dtype, peak in unit_peaks(profile):
        if unit.cores and unit.clock_hz:
            assert 1 <= peak / (unit.cores.value * unit.clock_hz.value) <= 16384, dtype


def test_memory_bytes_prefers_what_a_program_can_use() -> None:
    assert load_shipped("raspberrypi5").memory_bytes == 7942 * 2**20
    assert load_shipped("raspberrypi4").memory_bytes == 8 * 2**30
    assert load_shipped("generic-x86").memory_bytes is None


def test_work_goes_to_the_gpu_first_where_there_is_one(profile: DeviceProfile) -> None:
    kinds = [unit.kind for unit in profile.unit]
    assert profile.main_unit.kind == ("gpu" if "gpu" in kinds else "cpu")


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
    ],
)
def test_a_device_is_found_by_the_name_people_use(name: str, device_id: str) -> None:
    assert find_device(name).id == device_id


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownName, match="no device is called 'rasberrypi5'") as refusal:
        find_device("rasberrypi5")
    assert "Did you mean 'raspberrypi5'?" in str(refusal.value)
    assert "jetson-orin-nano" in str(refusal.value)


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
