"""Which meter is read: the most trusted that sees the unit at work, and a sentence on each where none does."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from edgekit import meters
from edgekit.bundle import Bundle, Delegation
from edgekit.energy import HERE_IT_IS, MeterInfo, not_here
from edgekit.errors import InvalidInput, MeterMissing, UnknownName
from edgekit.meters import EnergyRequest, MeterFinding, choose, energy_request, parse_meter, survey, unit_of
from edgekit.profile import load_shipped
from edgekit.profile_writer import write_profile
from edgekit.runtimes.meters.model import Model
from edgekit.runtimes.meters.rapl import Rapl

MEASURED, ANY = EnergyRequest(mode="measured"), EnergyRequest(mode="any")


def finding(name: str, provenance: str, covers: tuple[str, ...], here: bool = True) -> MeterFinding:
    info = msgspec.convert(
        {
            "id": name,
            "provenance": provenance,
            "domains": ("x",),
            "covers": covers,
            "excludes": (),
            "update_period_s": 0.1,
            "resolution_j": 1e-3,
        },
        MeterInfo,
    )
    return MeterFinding(name=name, info=info, available=HERE_IT_IS if here else not_here("it is gone", "bring it back"))


def given(monkeypatch: pytest.MonkeyPatch, *found: MeterFinding) -> None:
    monkeypatch.setattr(meters, "survey", lambda: found)


def test_the_most_trusted_that_covers_the_unit_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch,
        finding("pi5_pmic", "measured.sampled", ("cpu", "dram")),
        finding("rapl", "measured.counter", ("cpu",)),
        finding("nvml", "measured.counter", ("gpu",)),
        finding("external_csv", "measured.external", ("cpu",), here=False),
        finding("macos_ioreport", "estimated.platform", ("cpu",)),
        finding("null", "unavailable", ()),
    )
    assert isinstance(choose(MEASURED, "cpu"), Rapl)
    assert isinstance(choose(MEASURED, "xnnpack"), Rapl)
    assert type(choose(MEASURED, "cuda")).__name__ == "Nvml"


def test_an_estimate_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, finding("macos_ioreport", "estimated.platform", ("cpu",)))
    assert type(choose(ANY, "cpu")).__name__ == "MacosIoreport"
    with pytest.raises(MeterMissing, match=r"macos_ioreport: it does not measure \(estimated.platform\)"):
        choose(MEASURED, "cpu")


def test_where_nothing_measures_each_meter_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch,
        finding("nvml", "measured.counter", ("gpu",)),
        finding("rapl", "measured.counter", ("cpu",), here=False),
        finding("model", "modelled.analytical", ("cpu",)),
    )
    with pytest.raises(MeterMissing) as error:
        choose(MEASURED, "cpu")
    assert str(error.value) == (
        "nothing here measures the energy of the cpu. nvml: it does not cover the cpu. "
        "rapl: it is gone; bring it back. model: it does not measure (modelled.analytical)"
    )
    assert error.value.exit_code == 3


def test_the_survey_has_every_meter_with_its_reason() -> None:
    found = {each.name: each for each in survey()}
    assert {"nvml", "rapl", "pi5_pmic", "hwmon", "jetson_ina3221", "android", "macos_ioreport"} <= {*found}
    assert {"external_csv", "serial", "model", "null"} <= {*found}
    assert all(each.available.ok or (each.available.reason and each.available.enable) for each in found.values())


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("rappl", UnknownName, "no meter is called 'rappl'. Did you mean 'rapl'"),
        ("rapl,rot=/x", UnknownName, "no option of meter 'rapl' is called 'rot'. Did you mean 'root'"),
        ("rapl,root", InvalidInput, "option 'root' of meter 'rapl' needs a value: root=..."),
        ("rapl,zone=core", InvalidInput, "meter 'rapl,zone=core': Invalid enum value 'core'"),
        ("nvml,device=first", InvalidInput, "meter 'nvml,device=first': Expected `int`"),
        ("", UnknownName, "no meter is called ''"),
    ],
)
def test_a_meter_that_is_spelt_wrong_is_answered_with_what_is_right(
    text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        parse_meter(text)
    assert str(caught.value).startswith(message)


def test_options_take_their_types() -> None:
    assert parse_meter("nvml,device=3").device == 3  # type: ignore[attr-defined]
    assert parse_meter("external_csv,path=a.csv,volts=5.1").volts == 5.1  # type: ignore[attr-defined]


def test_a_meter_that_cannot_see_the_unit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.runtimes.meters.pi5_pmic.Pi5Pmic.available", lambda self: HERE_IT_IS)
    asked = EnergyRequest(mode="measured", meter="pi5_pmic")
    with pytest.raises(
        InvalidInput, match="meter 'pi5_pmic' does not see the npu, where this model runs: it covers cpu"
    ):
        choose(asked, "npu")
    assert type(choose(asked, "xnnpack")).__name__ == "Pi5Pmic"


@pytest.mark.parametrize(
    ("mode", "meter", "request_"),
    [
        ("off", None, EnergyRequest()),
        ("off", "rapl", EnergyRequest(mode="measured", meter="rapl")),
        ("any", "model,device=raspberrypi4", EnergyRequest(mode="any", meter="model,device=raspberrypi4")),
    ],
)
def test_a_meter_alone_asks_for_a_measurement(mode: str, meter: str | None, request_: EnergyRequest) -> None:
    assert energy_request(mode, meter) == request_


def test_another_kind_of_figure_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"no kind of energy figure is called 'measure'. Did you mean 'measured'"):
        energy_request("measure", None)


def test_the_unit_is_what_the_manifest_says(small_conv_bundle: Bundle) -> None:
    assert unit_of(small_conv_bundle) == "cpu"
    found = Delegation(unit="cuda", units={"cuda": {"Conv": 1}}, partitions=1)
    moved = Bundle(small_conv_bundle.path, msgspec.structs.replace(small_conv_bundle.manifest, delegation=found))
    assert unit_of(moved) == "cuda"


def test_the_model_has_two_states() -> None:
    counter = Model(device="raspberrypi4").open()
    first = counter.read()
    time.sleep(0.3)
    rested = counter.read()
    end, busy = time.monotonic() + 0.5, time.process_time()
    while time.monotonic() < end:
        pass
    busy = time.process_time() - busy
    worked = counter.read()
    rest_s, work_s = (rested.t_ns - first.t_ns) / 1e9, (worked.t_ns - rested.t_ns) / 1e9
    assert rested.joules["device"] - first.joules["device"] == pytest.approx(3.06 * rest_s, rel=0.02)
    expected = 3.06 * work_s + (6.12 - 3.06) * busy / 4
    assert worked.joules["device"] - rested.joules["device"] == pytest.approx(expected, rel=0.02)
    assert counter.info.id == "model raspberrypi4"
    assert counter.info.provenance == "modelled.analytical"


def test_active_watts_of_some_threads_count_each_of_these(tmp_path: Path) -> None:
    profile = load_shipped("raspberrypi4")
    assert profile.power is not None
    calibrated = msgspec.structs.replace(profile, power=msgspec.structs.replace(profile.power, active_threads=1))
    write_profile(calibrated, tmp_path / "pi.toml")
    counter = Model(device=str(tmp_path / "pi.toml")).open()
    first, busy = counter.read(), time.process_time()
    while time.process_time() - busy < 0.3:
        pass
    last, busy = counter.read(), time.process_time() - busy
    expected = 3.06 * (last.t_ns - first.t_ns) / 1e9 + (6.12 - 3.06) * busy
    assert last.joules["device"] - first.joules["device"] == pytest.approx(expected, rel=0.02)


def test_a_board_names_its_own_profile(tmp_path: Path) -> None:
    name = tmp_path / "model"
    name.write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    assert Model(name_file=str(name)).info.id == "model raspberrypi4"
    name.write_bytes(b"Toaster\0")
    said = Model(name_file=str(name)).available()
    assert not said.ok
    assert said.reason is not None
    assert "no device is called 'Toaster'" in said.reason


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("raspberrypi5", "profile 'raspberrypi5' has no idle and active watts"),
        ("toaster", "no device is called 'toaster'"),
        ("", "this machine does not say which device it is"),
    ],
)
def test_a_model_without_watts_says_so(device: str, reason: str) -> None:
    said = Model(device=device, name_file="/nowhere").available()
    assert not said.ok
    assert (said.reason or "").startswith(reason)


def test_macs_are_read_through_the_package_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = {"cpu_total_mj": 1500, "gpu_mj": 300, "gpu_sram_mj": None, "ane_mj": 20, "dram_mj": 180}
    monitor = SimpleNamespace(get_cumulative_energy=lambda: SimpleNamespace(**millijoules))
    meter = parse_meter("macos_ioreport")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert meter.available().reason == "this is not macOS"
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", None)
    assert meter.available().enable == "pip install zeus-apple-silicon"
    package = SimpleNamespace(AppleEnergyMonitor=lambda: monitor)
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", package)  # it is built for Macs alone
    counter = meter.open()
    assert counter.info.provenance == "estimated.platform"
    assert sum(counter.read().joules[domain] for domain in counter.info.domains) == pytest.approx(2.0)
