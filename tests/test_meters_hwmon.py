"""hwmon chips and Jetson's INA3221 from trees like the kernel's: rails keep their names, and none counts twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgekit.energy import Counter
from edgekit.errors import EdgekitError, MeterMissing
from edgekit.runtimes.meters.hwmon import Hwmon
from edgekit.runtimes.meters.jetson_ina3221 import JetsonIna3221


def chip(root: Path, folder: str, name: str, **files: object) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    for file, content in files.items():
        (path / file).write_text(f"{content}\n")
    return path


def orin_nano(root: Path) -> Path:
    """The INA3221 of an Orin Nano, as JetPack 5 and 6 show it; channel 7 is the sum of shunts, without current."""
    return chip(
        root, "hwmon1", "ina3221",
        in1_label="VDD_IN", in1_input=5000, curr1_input=1200, curr1_crit=7784,
        in2_label="VDD_CPU_GPU_CV", in2_input=5000, curr2_input=400,
        in3_label="VDD_SOC", in3_input=5000, curr3_input=300,
        in7_label="sum of shunt voltages", in7_input=12,
    )  # fmt: skip


def watts(counter: Counter, seconds: float = 0.3) -> float:
    """Mean power over a while."""
    try:
        first = counter.read()
        time.sleep(seconds)
        last = counter.read()
    finally:
        counter.close()
    joules = sum(last.joules[name] - first.joules[name] for name in counter.info.domains)
    return joules / (last.t_ns - first.t_ns) * 1e9


def test_a_single_rail_is_sampled(tmp_path: Path) -> None:
    chip(tmp_path, "hwmon0", "acpitz", temp1_input=45000)
    chip(tmp_path, "hwmon1", "ina226", power1_input=3_250_000, in1_input=5100, curr1_input=640)
    meter = Hwmon(root=str(tmp_path))
    assert meter.available().ok
    assert meter.info.id == "hwmon ina226/power1"
    assert (meter.info.domains, meter.info.covers) == (("ina226/power1",), ("ina226/power1",))
    assert meter.info.provenance == "measured.sampled"
    assert watts(meter.open()) == pytest.approx(3.25)


def test_an_energy_counter_is_read_and_not_sampled(tmp_path: Path) -> None:
    path = chip(tmp_path, "hwmon3", "ina228", energy1_input=5_000_000, power1_input=1_000_000)
    meter = Hwmon(root=str(tmp_path))
    assert meter.info.provenance == "measured.counter"
    counter = meter.open()
    assert counter.read().joules == {"ina228/energy1": 5.0}
    (path / "energy1_input").write_text("7500000\n")
    assert counter.read().joules == {"ina228/energy1": 7.5}
    counter.close()


def test_volts_times_amperes_where_a_chip_knows_no_more(tmp_path: Path) -> None:
    chip(tmp_path, "hwmon0", "ina219", in1_input=5000, curr1_input=700, in1_label="USB")
    meter = Hwmon(root=str(tmp_path))
    assert meter.info.domains == ("ina219/USB",)
    assert watts(meter.open()) == pytest.approx(3.5)


def test_average_power_where_there_is_no_other(tmp_path: Path) -> None:
    chip(tmp_path, "hwmon0", "amdgpu", power1_average=42_500_000, power1_label="slowPPT")
    meter = Hwmon(root=str(tmp_path))
    assert meter.info.domains == ("amdgpu/slowPPT",)
    assert watts(meter.open(), 0.1) == pytest.approx(42.5)


def test_several_rails_are_never_added_up_unasked(tmp_path: Path) -> None:
    chip(tmp_path, "hwmon0", "ina226", power1_input=3_000_000)
    chip(tmp_path, "hwmon1", "amdgpu", power1_average=9_000_000)
    said = Hwmon(root=str(tmp_path)).available()
    assert said.reason == "there are several rails: ina226/power1, amdgpu/power1"
    assert said.enable == "say which to count: --meter hwmon,rails=ONE+OTHER"
    chosen = Hwmon(root=str(tmp_path), rails="ina226/power1+amdgpu/power1")
    assert chosen.available().ok
    assert watts(chosen.open(), 0.1) == pytest.approx(12)


def test_chips_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for number in (4, 5):
        chip(tmp_path, f"hwmon{number}", "ina226", power1_input=number * 1_000_000)
    assert [rail.name for rail in Hwmon(root=str(tmp_path)).found()] == ["hwmon4/ina226/power1", "hwmon5/ina226/power1"]
    assert watts(Hwmon(root=str(tmp_path), rails="hwmon5/ina226/power1").open(), 0.1) == pytest.approx(5)


def test_counters_and_sensors_are_not_mixed(tmp_path: Path) -> None:
    chip(tmp_path, "hwmon0", "ina228", energy1_input=1)
    chip(tmp_path, "hwmon1", "ina226", power1_input=1)
    said = Hwmon(root=str(tmp_path), rails="ina228/energy1+ina226/power1").available()
    assert said.reason == "some of these rails have a counter and some do not"


def test_a_rail_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    chip(tmp_path, "hwmon0", "ina226", power1_input=3_000_000)
    with pytest.raises(MeterMissing, match=r"there is no rail VDD; there are: ina226/power1"):
        Hwmon(root=str(tmp_path), rails="VDD").open()


@pytest.mark.parametrize("content", ["", "abc", "1.5"])
def test_chips_without_numbers_have_no_rails(tmp_path: Path, content: str) -> None:
    chip(tmp_path, "hwmon0", "ina226", power1_input=content)
    assert Hwmon(root=str(tmp_path)).available().reason == f"no chip in {tmp_path} measures power or energy"


def test_a_sensor_that_goes_away_is_named(tmp_path: Path) -> None:
    path = chip(tmp_path, "hwmon0", "ina228", energy1_input=1)
    counter = Hwmon(root=str(tmp_path)).open()
    (path / "energy1_input").unlink()
    with pytest.raises(EdgekitError, match="rail 'ina228/energy1' can no longer be read"):
        counter.read()


def jetson(root: Path, rails: str = "") -> JetsonIna3221:
    return JetsonIna3221(rails=rails, hwmon_root=str(root), iio_root=str(root / "iio"))


def test_the_rail_that_feeds_a_jetson_counts_and_those_behind_it_do_not(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    meter = jetson(tmp_path)
    assert [rail.name for rail in meter.found()] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    assert meter.info.domains == ("VDD_IN",)
    assert {"cpu", "gpu", "npu", "dram"} <= {*meter.info.covers}
    assert "carrier board" in meter.info.excludes
    assert watts(meter.open()) == pytest.approx(6.0)


def test_a_combined_rail_keeps_its_name_and_covers_all_that_it_feeds(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    meter = jetson(tmp_path, "VDD_CPU_GPU_CV")
    assert meter.info.id == "jetson_ina3221 VDD_CPU_GPU_CV"
    assert meter.info.domains == ("VDD_CPU_GPU_CV",)
    assert meter.info.covers == ("cpu", "gpu", "npu")
    assert watts(meter.open(), 0.1) == pytest.approx(2.0)


def test_a_jetson_without_a_rail_for_the_module_asks_which_to_count(tmp_path: Path) -> None:
    chip(
        tmp_path, "hwmon0", "ina3221",
        in1_label="VDD_GPU_SOC", in1_input=19000, curr1_input=200,
        in2_label="VDD_CPU_CV", in2_input=19000, curr2_input=100,
    )  # fmt: skip
    said = jetson(tmp_path).available()
    assert said.reason == "no single rail feeds this module; there are: VDD_GPU_SOC, VDD_CPU_CV"
    assert said.enable == "say which to count: --meter jetson_ina3221,rails=ONE+OTHER"
    both = jetson(tmp_path, "VDD_GPU_SOC+VDD_CPU_CV")
    assert both.info.covers == ("cpu", "gpu", "npu")
    assert watts(both.open(), 0.1) == pytest.approx(5.7)


def test_jetpack_4_shows_rails_in_milliwatts(tmp_path: Path) -> None:
    device = tmp_path / "iio" / "6-0040" / "iio:device0"
    device.mkdir(parents=True)
    for number, (name, power) in enumerate([("POM_5V_IN", 2532), ("POM_5V_GPU", 320), ("POM_5V_CPU", 480)]):
        (device / f"rail_name_{number}").write_text(f"{name}\n")
        (device / f"in_power{number}_input").write_text(f"{power}\n")
    meter = jetson(tmp_path)
    assert meter.info.domains == ("POM_5V_IN",)
    assert watts(meter.open(), 0.1) == pytest.approx(2.532)


def test_boards_without_an_ina3221_are_no_jetsons(tmp_path: Path) -> None:
    chip(tmp_path, "hwmon0", "ina226", power1_input=3_000_000)
    assert jetson(tmp_path).available().reason == "there is no INA3221 under hwmon or iio"


def test_the_generic_meter_leaves_a_jetsons_rails_to_their_own(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    assert Hwmon(root=str(tmp_path)).found() == ()
