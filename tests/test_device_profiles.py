"""The shipped device profiles are well formed and make physical sense, and bad ones are refused with a clear reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import InvalidInput, UnknownName
from edgekit.profile import (
    SCHEMA,
    Calibration,
    ComputeUnit,
    DeviceProfile,
    device_ids,
    find_device,
    load_profile,
    load_shipped,
    numbers,
    sourced,
)

EXPECTED = {
    "coral-edge-tpu",
    "core-ultra-155h",
    "core-ultra-lunar-lake",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-2048",
    "ethos-u85-256",
    "generic-x86",
    "h200",
    "hailo-8l",
    "iphone15-pro",
    "jetson-orin-nano",
    "pixel8",
    "pixel9",
    "raspberrypi-zero2w",
    "raspberrypi4",
    "raspberrypi5",
    "rk3588",
    "rtx4090",
    "sa8295p",
    "snapdragon-8-gen-3",
}
FAMILIES = {"arm64-linux", "x86_64-linux", "cuda", "android", "ios", "ethos-u", "accelerator"}
RUNTIME_OF = {"onnx": "onnxruntime", "tflite": "litert", "executorch": "executorch"}

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
    assert {value.source for _, value in sourced(profile)} == set(profile.sources)


def test_every_source_is_a_citation_that_a_reader_can_follow(profile: DeviceProfile) -> None:
    for key, citation in profile.sources.items():
        assert len(citation) >= 15, key
        assert not citation.startswith(("fs:", "/", "file:")), key


def test_every_calculated_figure_says_how(profile: DeviceProfile) -> None:
    silent = [path for path, number in numbers(profile) if number.status == "calculated" and not number.note]
    assert silent == []


def test_every_runtime_names_a_format_that_edgekit_writes_or_says_what_feeds_it(profile: DeviceProfile) -> None:
    assert profile.family in FAMILIES
    assert profile.runtime
    for choice in profile.runtime:
        assert choice.format, choice.name
        if choice.format in RUNTIME_OF:
            assert choice.name == RUNTIME_OF[choice.format]
        elif choice.compiler is not None:
            assert choice.compiler.reads in RUNTIME_OF
        else:
            assert choice.note, choice.name
    assert len(set(profile.runtime)) == len(profile.runtime)


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
    sizes = [level.size_bytes.value for level in profile.memory if level.size_bytes and level.unit is None]
    assert sizes == sorted(set(sizes))
    assert profile.memory[-1].name in {"dram", "vram", "flash"}
    assert profile.memory[-1].unit is None


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


def test_work_goes_first_to_the_unit_of_the_first_runtime(profile: DeviceProfile) -> None:
    assert profile.unit_of(profile.runtime[0]) is profile.main_unit


def test_memory_of_one_unit_is_not_main_memory() -> None:
    assert load_shipped("coral-edge-tpu").memory_bytes is None
    assert load_shipped("ethos-u85-256").memory_bytes is None
    assert load_shipped("core-ultra-155h").memory_bytes is None  # its caches have a size, its laptops differ
    assert load_shipped("pixel8").memory_bytes == 8 * 2**30


# What accelerators ask for


def test_every_npu_says_what_it_asks_of_a_graph(profile: DeviceProfile) -> None:
    for unit in profile.unit:
        assert (unit.rules is not None) == (unit.kind == "npu"), unit.name
        if unit.rules is not None:
            assert unit.rules.static_shapes or unit.rules.native_layout
            assert unit.rules.max_rank is None or 2 <= unit.rules.max_rank <= 8
            assert unit.rules.align_bytes in (None, 16, 32, 64)
        assert (unit.vela is not None) == (profile.family == "ethos-u")


def test_ethos_profiles_carry_the_arguments_of_vela() -> None:
    vela = load_shipped("ethos-u65-512").main_unit.vela
    assert vela is not None
    assert vela.accelerator_config == "ethos-u65-512"
    assert (vela.system_config, vela.memory_mode) == ("Ethos_U65_High_End", "Dedicated_Sram_384KB")
    for device_id in (d for d in device_ids() if d.startswith("ethos-")):
        found = load_shipped(device_id).main_unit.vela
        assert found is not None
        assert found.accelerator_config == device_id
        assert found.system_config.startswith(f"Ethos_{device_id.split('-')[1].upper()}_")


@pytest.mark.parametrize(("device_id", "htp"), [("snapdragon-8-gen-3", (57, 75, 8)), ("sa8295p", (39, 68, 8))])
def test_snapdragon_profiles_carry_what_qualcomms_compilers_ask(device_id: str, htp: tuple[int, int, int]) -> None:
    found = load_shipped(device_id).main_unit.htp
    assert found is not None
    assert (found.soc_id, found.htp_arch, found.vtcm_mb) == htp
    vtcm = next(level for level in load_shipped(device_id).memory if level.name == "vtcm")
    assert vtcm.size_bytes is not None
    assert vtcm.size_bytes.value == htp[2] * 2**20


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
