"""The shipped device profiles are well formed and make physical sense."""

from __future__ import annotations

import pytest

from edgekit.npu.rules import npu_rules
from edgekit.profile import (
    SCHEMA,
    ComputeUnit,
    DeviceProfile,
    device_ids,
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


@pytest.fixture(params=device_ids())
def profile(request: pytest.FixtureRequest) -> DeviceProfile:
    return load_shipped(request.param)


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


def test_a_runtime_that_edgekit_opens_is_on_the_cpu_or_says_that_it_is_opened_there(profile: DeviceProfile) -> None:
    for choice in profile.runtime:
        if choice.name in RUNTIME_OF.values() and profile.unit_of(choice).kind != "cpu":
            assert "edgekit itself opens it on the CPU" in (choice.note or ""), choice.name


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


def test_every_npu_names_its_architecture_whose_channels_are_those_of_the_profile(profile: DeviceProfile) -> None:
    for unit in profile.unit:
        assert (unit.npu is not None) == (unit.kind == "npu"), unit.name
        assert (unit.vela is not None) == (profile.family == "ethos-u")
        if unit.npu is not None:
            rules = npu_rules(unit.npu)
            assert rules.dtypes[0] == unit.fast_dtypes[0]
            assert rules.channel_multiple == unit.channel_multiple


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
