"""RAPL from trees like the kernel's: nested zones, twins, wraps, and files that only root may read."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, MeterMissing
from edgekit.runtimes.meters.rapl import Rapl

RANGE_UJ = 262_143_328_850  # of a package on most models
DRAM_RANGE_UJ = 65_712_999_613


def zone(root: Path, folder: str, name: str, uj: int = 0, wraps_at: int = RANGE_UJ) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{uj}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A two-socket server, as /sys/class/powercap shows it: every zone in one flat folder."""
    powercap = tmp_path / "powercap"
    for socket in (0, 1):
        zone(powercap, f"intel-rapl:{socket}", f"package-{socket}", 1000)
        zone(powercap, f"intel-rapl:{socket}:0", "core", 400)
        zone(powercap, f"intel-rapl:{socket}:1", "dram", 300, DRAM_RANGE_UJ)
    (powercap / "intel-rapl").mkdir()  # the control type
    (powercap / "intel-rapl" / "enabled").write_text("1\n")
    (powercap / "dtpm").mkdir()
    return powercap


def put(path: Path, uj: int) -> None:
    path.joinpath("energy_uj").write_text(f"{uj}\n")


def test_packages_and_their_dram_count_and_cores_lie_within(root: Path) -> None:
    meter = Rapl(root=str(root))
    assert [each.name for each in meter.zones()] == ["package-0", "package-0 dram", "package-1", "package-1 dram"]
    assert meter.info.domains == ("package-0", "package-0 dram", "package-1", "package-1 dram")
    assert meter.info.covers == ("cpu", "graphics on its die", "dram")
    assert "gpu" in meter.info.excludes
    assert meter.available().ok


def test_a_zone_that_shows_up_twice_counts_once_and_the_registers_win(root: Path) -> None:
    zone(root, "intel-rapl-mmio:0", "package-0", 99)
    assert [each.path for each in Rapl(root=str(root)).zones() if each.name == "package-0"] == [
        str(root / "intel-rapl:0")
    ]


def test_memory_mapped_zones_count_where_there_are_no_others(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 99)
    assert [each.name for each in Rapl(root=str(tmp_path)).zones()] == ["package-0"]


def test_the_whole_platform_is_counted_only_when_asked_for(root: Path) -> None:
    zone(root, "intel-rapl:2", "psys", 5000)
    assert "psys" not in Rapl(root=str(root)).info.domains
    whole = Rapl(root=str(root), zone="psys")
    assert whole.info.domains == ("psys",)
    assert {"dram", "board"} <= {*whole.info.covers}
    assert not Rapl(root=str(root / "none"), zone="psys").available().ok


def test_without_dram_zones_memory_is_not_covered(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    info = Rapl(root=str(tmp_path)).info
    assert "dram" not in info.covers
    assert "dram" in info.excludes


def test_joules_are_differences_in_joules(root: Path) -> None:
    counter = Rapl(root=str(root)).open()
    try:
        assert set(counter.read().joules.values()) == {0.0}
        put(root / "intel-rapl:0", 3_501_000)
        put(root / "intel-rapl:1:1", 250_300)
        joules = counter.read().joules
    finally:
        counter.close()
    assert joules == {"package-0": 3.5, "package-0 dram": 0.0, "package-1": 0.0, "package-1 dram": 0.25}


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.integers(0, RANGE_UJ - 1), min_size=1, max_size=12), start=st.integers(0, RANGE_UJ - 1))
def test_a_counter_may_wrap_any_number_of_times(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], start: int
) -> None:
    folder = tmp_path_factory.mktemp("rapl")
    path, total = zone(folder, "intel-rapl:0", "package-0", start), 0
    counter = Rapl(root=str(folder)).open()
    try:
        for step in steps:
            total += step
            put(path, (start + total) % RANGE_UJ)
            assert counter.read().joules["package-0"] == pytest.approx(total / 1e6, rel=1e-12)
    finally:
        counter.close()


def test_a_thread_reads_before_a_counter_can_wrap_twice_and_ends_on_close(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0, wraps_at=200_000_000)  # 200 J: 0.1 s at 2000 W
    counter = Rapl(root=str(tmp_path)).open()
    try:
        for number in range(1, 8):
            put(path, number * 90_000_000 % 200_000_000)
            time.sleep(0.12)
        joules = counter.read().joules["package-0"]
    finally:
        counter.close()
    assert joules == 7 * 90
    assert "edgekit rapl" not in {thread.name for thread in threading.enumerate()}


def test_a_counter_that_cannot_be_read_says_how_to_open_it(root: Path) -> None:
    (root / "intel-rapl:1" / "energy_uj").unlink()
    said = Rapl(root=str(root)).available()
    assert said.reason == "package-1/energy_uj may be read by root only (CVE-2020-8694)"
    with pytest.raises(MeterMissing, match="CVE-2020-8694"):
        Rapl(root=str(root)).open()


def test_machines_without_powercap_or_zones_say_which_it_is(tmp_path: Path) -> None:
    assert (Rapl(root=str(tmp_path / "none")).available().reason or "").startswith("there is no ")
    (tmp_path / "intel-rapl").mkdir()
    assert "holds no package zone with a counter" in (Rapl(root=str(tmp_path)).available().reason or "")


@pytest.mark.parametrize("text", ["", "abc", "12x", "--3", "1.5"])
def test_files_that_hold_no_number_are_no_counters(tmp_path: Path, text: str) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj").write_text(text)
    assert not Rapl(root=str(tmp_path)).available().ok


def test_a_counter_that_disappears_is_named(root: Path) -> None:
    counter = Rapl(root=str(root)).open()
    (root / "intel-rapl:0" / "energy_uj").unlink()
    try:
        with pytest.raises(EdgekitError, match="meter 'rapl' lost package-0"):
            counter.read()
    finally:
        counter.close()
