"""What sensors say of throttling, read from folders like those of the kernel and from tools on the PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.host import host_state
from edgekit.throttle import slowed, throttle_flags, throttling


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", encoding="utf-8")
    return root


def tool(folder: Path, name: str, says: str, code: int = 0) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nprintf '%b' '{says}'\nexit {code}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of the PATH, whose tools hide this machine's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("vcgencmd", "nvidia-smi", "nvpmodel"):
        tool(folder, name, "", 1)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


FIRMWARE = "devices/platform/soc/soc:firmware/get_throttled"
ZONE = "class/thermal/thermal_zone0/"


@pytest.mark.parametrize("file", [FIRMWARE, "devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"])
def test_a_raspberry_pi_tells_what_holds_now_and_what_did_since_boot(tmp_path: Path, tools: Path, file: str) -> None:
    flags = throttle_flags(tree(tmp_path, {file: "50005"}))
    assert flags == ("under-voltage", "throttled", "under-voltage since boot", "throttled since boot")


def test_without_the_kernels_file_its_tool_is_asked(tmp_path: Path, tools: Path) -> None:
    tool(tools, "vcgencmd", "throttled=0x80008\\n")
    assert throttle_flags(tmp_path) == ("soft temperature limit", "soft temperature limit since boot")
    tool(tools, "vcgencmd", "throttled=0x0\\n")
    assert throttle_flags(tmp_path) == ()


@pytest.mark.parametrize("text", ["", "?", "error 1", "throttled=", "0x"])
def test_nonsense_from_the_firmware_is_no_sensor(tmp_path: Path, tools: Path, text: str) -> None:
    assert throttle_flags(tree(tmp_path, {FIRMWARE: text})) is None


@pytest.mark.parametrize(
    ("temp", "kind", "trip", "flags"),
    [
        (85000, "passive", 85000, ("cpu-thermal at its passive trip point of 85 C",)),
        (84999, "passive", 85000, ()),
        (99000, "critical", 95000, ("cpu-thermal at its critical trip point of 95 C",)),
        (50000, "active", 40000, None),  # a fan goes on: nothing becomes slower
        (50000, "passive", 0, None),  # not in use
        (50000, "passive", "?", None),
    ],
)
def test_a_thermal_zone_at_its_trip_point_is_a_flag(
    tmp_path: Path, tools: Path, temp: int, kind: str, trip: object, flags: tuple[str, ...] | None
) -> None:
    files = {"temp": temp, "type": "cpu-thermal", "trip_point_0_type": kind, "trip_point_0_temp": trip}
    assert throttle_flags(tree(tmp_path, {ZONE + name: text for name, text in files.items()})) == flags


def test_a_cooling_device_that_lowers_clocks_is_a_flag_and_a_fan_is_not(tmp_path: Path, tools: Path) -> None:
    device = "class/thermal/cooling_device"
    files = {f"{device}0/type": "pwm-fan", f"{device}0/cur_state": 4}
    assert throttle_flags(tree(tmp_path, files)) is None
    files |= {f"{device}1/type": "cpufreq-cpu0", f"{device}1/cur_state": 0}
    assert throttle_flags(tree(tmp_path, files)) == ()
    files |= {f"{device}1/cur_state": 2}
    assert throttle_flags(tree(tmp_path, files)) == ("cpufreq-cpu0 lowered",)


def test_x86_cores_count_their_thermal_events(tmp_path: Path, tools: Path) -> None:
    counts = {f"devices/system/cpu/cpu{n}/thermal_throttle/core_throttle_count": n * 3 for n in range(3)}
    assert throttle_flags(tree(tmp_path, counts)) == ("9 core thermal events since boot",)
    assert throttle_flags(tree(tmp_path, dict.fromkeys(counts, 0))) == ()


def test_nvidia_gpus_give_their_reasons(tmp_path: Path, tools: Path) -> None:
    tool(tools, "nvidia-smi", "0, 0x0000000000000001\\n1, 0x0000000000000064\\n2, [N/A]\\n")
    assert throttle_flags(tmp_path) == (
        "gpu 1: power cap",
        "gpu 1: software thermal slowdown",
        "gpu 1: hardware thermal slowdown",
    )
    tool(tools, "nvidia-smi", "No devices were found\\n")
    assert throttle_flags(tmp_path) is None


def test_a_machine_without_sensors_says_so(tmp_path: Path, tools: Path) -> None:
    assert throttle_flags(tmp_path) is None


FLAGS = st.lists(st.sampled_from(["a", "b", "a since boot", "b since boot"]), unique=True).map(tuple)


@given(FLAGS, FLAGS)
def test_what_holds_now_counts_always_and_history_only_when_it_is_new(
    before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    signs = throttling(before, after)
    assert {sign for sign in signs if "since" not in sign} == ({"a", "b"} & {*before, *after})
    for flag in ("a since boot", "b since boot"):
        assert (f"{flag}, which rose meanwhile" in signs) == (flag in after and flag not in before)
    assert throttling(before, None) == tuple(flag for flag in before if "since" not in flag)


@pytest.mark.parametrize(("drift", "signs"), [(1.0, 0), (0.5, 0), (1.05, 0), (1.051, 1), (3.0, 1)])
def test_calls_that_slow_down_by_more_than_5_percent_are_a_sign(drift: float, signs: int) -> None:
    assert len(slowed(drift)) == signs


def test_the_state_of_a_board_is_read_from_its_files(tmp_path: Path, tools: Path) -> None:
    tool(tools, "nvpmodel", "NV Power Mode: MAXN_SUPER\\n2\\n")
    files: dict[str, object] = {ZONE + "temp": 51234, "class/thermal/thermal_zone1/temp": 61500,
                                "class/thermal/thermal_zone2/temp": -273000, FIRMWARE: "0"}  # fmt: skip
    frequency = "devices/system/cpu/cpu0/cpufreq/"
    files |= {frequency + "scaling_governor": "ondemand", frequency + "scaling_min_freq": 1500000,
              frequency + "scaling_max_freq": 2400000, frequency + "scaling_cur_freq": 1800000}  # fmt: skip
    state = host_state(tree(tmp_path, files))
    assert (state.governor, state.clock_min_hz, state.clock_max_hz, state.clock_now_hz) == (
        "ondemand",
        1.5e9,
        2.4e9,
        1.8e9,
    )
    assert state.temperature_c == 61.5  # the hottest zone that has a sensor
    assert state.power_mode == "nvpmodel MAXN_SUPER"
    assert state.throttle_flags == ()
    assert state.power_supply is None
    assert state.affinity == tuple(sorted(os.sched_getaffinity(0)))


def test_the_mains_and_the_battery_are_told_apart(tmp_path: Path, tools: Path) -> None:
    battery, mains = "class/power_supply/BAT0/", "class/power_supply/AC/"
    files: dict[str, object] = {
        battery + "type": "Battery",
        battery + "capacity": 83,
        battery + "status": "Discharging",
        mains + "type": "Mains",
        mains + "online": 0,
        "class/power_supply/mouse/type": "Battery",
        "class/power_supply/mouse/scope": "Device",
        "firmware/acpi/platform_profile": "balanced",
    }
    state = host_state(tree(tmp_path, files))
    assert (state.power_supply, state.power_mode) == ("battery 83 %, discharging", "platform profile balanced")
    files |= {mains + "online": 1, battery + "status": "Charging"}
    assert host_state(tree(tmp_path, files)).power_supply == "mains; battery 83 %, charging"
