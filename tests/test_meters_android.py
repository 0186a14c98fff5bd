"""A phone's power monitors and fuel gauge, through a stand-in for adb that answers as a phone does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EdgekitError
from edgekit.runtimes.meters._perfetto import rails_j
from edgekit.runtimes.meters.android import Android

ADB = """#!{python}
import json, pathlib, sys
phone = json.loads(pathlib.Path({state!r}).read_text())
assert sys.argv[1:3] == ["-s", "PHONE1"], sys.argv
if phone.get("gone"):
    sys.exit("error: device 'PHONE1' not found")
command = sys.argv[4:]
if command[:2] == ["-T", "perfetto"]:
    assert "collect_power_rails: true" in sys.stdin.read()
    sys.stdout.buffer.write(bytes.fromhex(phone["trace"]))
elif command == ["dumpsys", "battery"]:
    print("Current Battery Service state:")
    for line in phone["battery"]:
        print("  " + line)
elif command == ["cmd", "battery", "get", "-f", "current_now"]:
    print(phone["current"])
else:
    sys.exit("unknown command")
"""
UNPLUGGED = ["AC powered: false", "USB powered: false", "Wireless powered: false", "level: 80", "voltage: 4000"]


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def trace(*readings: dict[str, int], names: tuple[str, ...] = ()) -> bytes:
    """Packets of a perfetto trace: other data, the rails' names, and microwatt-seconds at growing times."""
    names = names or tuple(readings[0])
    rails = b"".join(field(1, field(1, k) + field(2, name.encode()) + field(4, 1)) for k, name in enumerate(names))
    packets = [field(8, 123456) + field(6, b"clock"), field(40, rails)]
    for number, reading in enumerate(readings):
        data = b"".join(
            field(2, field(1, names.index(name)) + field(2, 1000 + 250 * number) + field(3, uj))
            for name, uj in reading.items()
        )
        packets.append(field(8, 77) + field(40, data))
    return b"".join(field(1, packet) for packet in packets)


PIXEL = {"S4M_VDD_CPUCL0": 4_000_000, "S2M_VDD_CPUCL2": 6_000_000, "S10M_VDD_TPU": 9_000_000}


@pytest.fixture
def phone(tmp_path: Path) -> Callable[..., Android]:
    """Sets what the phone says, and gives its meter."""
    adb, state = tmp_path / "adb", tmp_path / "phone.json"
    adb.write_text(ADB.format(python=sys.executable, state=str(state)))
    adb.chmod(0o755)

    def set_up(options: dict[str, str] | None = None, **said: object) -> Android:
        known = {"trace": "", "battery": UNPLUGGED, "current": "-300000"} | said
        state.write_text(json.dumps(known))
        return Android(serial="PHONE1", adb=str(adb), **(options or {}))  # type: ignore[arg-type]

    return set_up


def test_the_newest_reading_of_every_rail_is_in_joules() -> None:
    older = {name: uj - 1_000_000 for name, uj in PIXEL.items()}
    assert rails_j(trace(older, PIXEL)) == {name: uj / 1e6 for name, uj in PIXEL.items()}
    assert rails_j(b"") == {}
    assert rails_j(field(1, field(8, 5))) == {}


def test_cpu_rails_count_unless_others_are_named(phone: Callable[..., Android]) -> None:
    meter = phone(trace=trace(PIXEL).hex())
    assert meter.available().ok
    counter = meter.open()
    assert counter.info.id == "android monitors"
    assert counter.info.domains == ("S4M_VDD_CPUCL0", "S2M_VDD_CPUCL2")
    assert counter.info.covers == ("cpu",)
    assert counter.info.runs_on == "client"
    first = counter.read()
    phone(trace=trace({name: uj + 500_000 for name, uj in PIXEL.items()}).hex())
    last = counter.read()
    assert sum(last.joules.values()) - sum(first.joules.values()) == pytest.approx(1.0)
    tpu = phone({"rails": "S10M_VDD_TPU"}, trace=trace(PIXEL).hex()).open()
    assert tpu.read().joules == {"S10M_VDD_TPU": 9.0}
    assert tpu.info.covers == ("S10M_VDD_TPU",)


def test_a_rail_that_is_not_there_is_answered_with_those_that_are(phone: Callable[..., Android]) -> None:
    said = phone({"rails": "VDD_NPU"}, trace=trace(PIXEL).hex()).available()
    assert said.reason == "no rail VDD_NPU; there are: S4M_VDD_CPUCL0, S2M_VDD_CPUCL2, S10M_VDD_TPU"


def test_a_phone_without_monitors_has_its_fuel_gauge_and_says_so(phone: Callable[..., Android]) -> None:
    counter = phone().open()
    try:
        assert counter.info.id == "android battery"
        assert counter.info.provenance == "measured.sampled"
        assert counter.info.domains == ("battery",)
        first = counter.read()
        time.sleep(0.5)
        last = counter.read()
    finally:
        counter.close()
    seconds = (last.t_ns - first.t_ns) / 1e9
    assert last.joules["battery"] - first.joules["battery"] == pytest.approx(0.3 * 4.0 * seconds, rel=1e-6)


def test_monitors_that_were_asked_for_are_not_replaced_by_the_gauge(phone: Callable[..., Android]) -> None:
    said = phone({"source": "monitors"}).available()
    assert said.reason == "no power monitor of its CPU; there are: none"


def test_a_phone_that_charges_has_no_reading(phone: Callable[..., Android]) -> None:
    plugged = [line.replace("USB powered: false", "USB powered: true") for line in UNPLUGGED]
    said = phone(battery=plugged).available()
    assert said.reason == "the phone is powered by USB: its battery's current is not its load"
    assert "Wi-Fi" in (said.enable or "")


@pytest.mark.parametrize("current", ["-406", "0", "99000000"])
def test_a_current_in_another_unit_is_not_guessed_at(phone: Callable[..., Android], current: str) -> None:
    assert phone(current=current).available().reason == f"current_now is {current}: no phone's current in microamperes"


@pytest.mark.parametrize("said", [{"current": ""}, {"current": "Error: unknown"}, {"battery": ["level: 80"]}])
def test_a_phone_that_tells_no_current_or_voltage_says_so(
    phone: Callable[..., Android], said: dict[str, object]
) -> None:
    assert phone(**said).available().reason == "the phone does not tell its battery's current and voltage"


def test_a_phone_that_is_gone_is_named_in_adbs_words(phone: Callable[..., Android]) -> None:
    said = phone(gone=True).available()
    assert said.reason == "adb -s PHONE1: error: device 'PHONE1' not found"


def test_a_rail_that_disappears_is_named(phone: Callable[..., Android]) -> None:
    counter = phone(trace=trace(PIXEL).hex()).open()
    phone(trace="")
    with pytest.raises(EdgekitError, match="meter 'android' lost rail S4M_VDD_CPUCL0"):
        counter.read()


def test_adb_and_a_serial_number_are_needed(tmp_path: Path) -> None:
    assert Android().available().reason == "no phone is named"
    missing = Android(serial="X", adb=str(tmp_path / "adb")).available()
    assert missing.reason == f"'{tmp_path / 'adb'}' is not installed"


@given(st.binary(max_size=80))
def test_bytes_that_are_no_trace_are_refused_or_hold_no_rails(data: bytes) -> None:
    try:
        found = rails_j(data)
    except EdgekitError as error:
        assert str(error).startswith("the phone's perfetto sent")  # noqa: PT017
        return
    assert all(joules >= 0 for joules in found.values())


@given(st.integers(0, 200))
def test_a_trace_that_is_cut_short_never_gives_other_joules(at: int) -> None:
    whole = trace(PIXEL)
    try:
        found = rails_j(whole[: min(at, len(whole) - 1)])
    except EdgekitError:
        return
    assert set(found.items()) <= set(rails_j(whole).items())
