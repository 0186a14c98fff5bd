"""Energy on the command line: measured or not at all, and a model in a field of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.bundle import Bundle
from edgekit.cli.app import run
from edgekit.meters import METERS

BRIEF = ("--calls", "10", "--trials", "1", "--quiet", "--json")
WATTS = 20.0


def said(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict, str]:  # type: ignore[type-arg]
    capfd.readouterr()
    code = run([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, json.loads(out), err


@pytest.fixture
def powercap(tmp_path: Path) -> Iterator[Path]:
    """A processor package that counts 20 W, once a millisecond or as often as this machine lets it."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    start, stop = time.monotonic(), threading.Event()

    def count() -> None:
        while True:
            (zone / "next").write_text(f"{round(1e6 * WATTS * (time.monotonic() - start))}\n")
            (zone / "next").rename(zone / "energy_uj")
            if stop.wait(0.001):
                return

    thread = threading.Thread(target=count)
    thread.start()
    yield tmp_path / "powercap"
    stop.set()
    thread.join()


def test_measured_fails_where_nothing_measures_and_lists_every_meter(
    small_conv_bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    if Path("/sys/class/powercap/intel-rapl:0").exists():
        pytest.skip("this machine has RAPL counters")
    code, answer, err = said(capfd, "profile", small_conv_bundle.path, "--energy", "measured", *BRIEF)
    assert code == 3
    assert answer["error"] == "MeterMissing"
    assert answer["message"].startswith("nothing here measures the energy of the cpu. ")
    assert all(f"{name}: " in answer["message"] for name in registry.names(METERS))
    assert "Traceback" not in err


def test_any_says_why_there_is_neither_measurement_nor_model(
    small_conv_bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = f"rapl,root={small_conv_bundle.path}"
    code, answer, _ = said(capfd, "profile", small_conv_bundle.path, "--energy", "any", "--meter", missing, *BRIEF)
    assert code == 0
    assert answer["energy"]["provenance"] == "unavailable"
    assert answer["energy"]["gross_j"] is None
    assert "cannot be read here" in answer["energy"]["reason"]
    assert answer["modelled_energy_j"] is None
    assert answer["modelled_energy_note"]


def test_a_model_never_fills_the_measured_field(small_conv_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    model = ("--energy", "any", "--meter", "model,device=raspberrypi4")
    code, answer, _ = said(capfd, "profile", small_conv_bundle.path, *model, *BRIEF)
    assert code == 0
    assert answer["energy"]["gross_j"] is None or answer["energy"]["provenance"].startswith("measured")
    assert "modelled.analytical" in answer["modelled_energy_note"]
    assert answer["modelled_energy_j"] > 0.5 * 3.06 * answer["latency"]["p50_s"]  # idle watts and more


def test_energy_is_off_unless_asked_for(small_conv_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    _, answer, _ = said(capfd, "profile", small_conv_bundle.path, *BRIEF)
    assert answer["energy"]["reason"] == "not asked for: edgekit profile --energy measured"
    assert answer["modelled_energy_note"] is None


@pytest.mark.slow
def test_a_counter_of_the_kernel_is_read_by_the_process_that_runs_the_model(
    small_conv_bundle: Bundle, powercap: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, answer, _ = said(capfd, "profile", small_conv_bundle.path, "--meter", f"rapl,root={powercap}", *BRIEF)
    assert code == 0
    energy = answer["energy"]
    assert energy["provenance"] == "measured.counter"
    assert energy["meter"] == "rapl package"
    assert energy["gross_j"] * energy["iterations"] / energy["window_s"] == pytest.approx(WATTS, rel=0.03)
    assert energy["idle_w"] == pytest.approx(WATTS, rel=0.03)
    # Power that does not rise with work cannot be told from idling, unless the thread that counts came late.
    assert (energy["net_j"] or 0) * energy["iterations"] / energy["window_s"] < 0.03 * WATTS
    assert energy["window_s"] >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--energy", "maesured"), "no kind of energy figure is called 'maesured'. Did you mean 'measured'"),
        (("--meter", "rappl"), "no meter is called 'rappl'. Did you mean 'rapl'"),
        (("--meter", "rapl,rot=x"), "no option of meter 'rapl' is called 'rot'"),
        (
            ("--meter", "model,device=raspberrypi4"),
            "does not measure (modelled.analytical): --energy any shows it",
        ),
    ],
)
def test_a_wrong_word_is_answered_in_one_sentence(
    small_conv_bundle: Bundle, capfd: pytest.CaptureFixture[str], arguments: tuple[str, str], message: str
) -> None:
    code, answer, _ = said(capfd, "profile", small_conv_bundle.path, *arguments, *BRIEF)
    assert code == 2
    assert message in answer["message"]


def test_doctor_lists_every_meter_with_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    _, answer, _ = said(capfd, "doctor", "--json")
    assert [meter["name"] for meter in answer["meters"]] == list(registry.names(METERS))
    for meter in answer["meters"]:
        here = meter["available"]
        assert here["ok"] or (here["reason"] and here["enable"])
        assert meter["info"]["provenance"]
    capfd.readouterr()
    assert run(["doctor"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    for meter in answer["meters"]:
        assert meter["name"] in out
        assert not meter["available"]["reason"] or meter["available"]["reason"] in out


def test_meters_are_listed_as_plugins(capfd: pytest.CaptureFixture[str]) -> None:
    _, answer, _ = said(capfd, "list", "meters", "--json")
    assert set(answer["meters"]) == set(registry.names(METERS))
    assert all(answer["meters"].values())
    _, runtimes, _ = said(capfd, "list", "runtimes", "--json")
    assert "meters" not in runtimes["runtimes"]
