"""Windows: their edges, their length, what stands around them, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgekit
from edgekit.bundle import Bundle
from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, Snapshot, reading
from edgekit.energy_window import measure_energy, seconds_each, take_window
from edgekit.errors import InvalidInput, MeterMissing
from edgekit.inference import open_session, sample_feeds
from edgekit.metering import EnergyFigures, energy_figures
from edgekit.meters import EnergyRequest
from edgekit.sampling import Sampler

INFO = MeterInfo(
    id="scripted",
    provenance="measured.counter",
    domains=("all",),
    covers=("cpu",),
    excludes=(),
    update_period_s=0.02,
    resolution_j=1e-9,
)


class Load:
    """Work that sleeps, and knows the power that is drawn: 2 W, and 10 W more while it works."""

    def __init__(self, call_s: float = 0.001) -> None:
        self.call_s, self.calls, self.busy_s, self.start = call_s, 0, 0.0, time.monotonic()

    def __call__(self, count: int) -> None:
        before = time.monotonic()
        for _ in range(count):
            time.sleep(self.call_s)
        self.busy_s += time.monotonic() - before
        self.calls += count

    def joules(self) -> float:
        return 2 * (time.monotonic() - self.start) + 10 * self.busy_s


class Steps(Counter):
    """A counter that shows what it has counted every `update_period_s` only. `drift` is watts per second of idling."""

    def __init__(self, load: Load, info: MeterInfo = INFO) -> None:
        self._load, self._info, self._shown, self._next, self.reads = load, info, load.joules(), 0, 0
        self.closed = False

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        self.reads += 1
        now = time.monotonic_ns()
        if now >= self._next:
            self._shown = self._load.joules()
            self._next = now - now % self._period_ns + self._period_ns
        return Snapshot(t_ns=now, joules={"all": self._shown})

    def close(self) -> None:
        self.closed = True

    @property
    def _period_ns(self) -> int:
        return round(1e9 * self._info.update_period_s)


class Scripted:
    """A meter whose counter is made by a function."""

    def __init__(self, open_counter: Callable[[], Counter], info: MeterInfo = INFO) -> None:
        self._open, self.info = open_counter, info

    def available(self) -> Availability:
        return HERE_IT_IS

    def open(self) -> Counter:
        return self._open()


def test_a_window_finds_the_energy_of_a_call_and_of_idling() -> None:
    load = Load()
    found = measure_energy(Scripted(lambda: Steps(load)), load, idle_s=0.5)
    assert found.gross_j is not None
    assert found.window_s is not None
    assert found.net_j is not None
    each_s = found.window_s / found.iterations
    assert found.gross_j == pytest.approx(12 * each_s, rel=0.03)
    assert found.net_j == pytest.approx(10 * each_s, rel=0.03)
    assert found.idle_w == pytest.approx(2, rel=0.05)
    assert found.flags == ("gain_unknown",)
    assert found.u_rel is not None
    assert 0 < found.u_rel < 1  # calls of a busy machine scatter


def test_a_window_is_as_long_as_the_meter_asks() -> None:
    load = Load()
    slow = msgspec.structs.replace(INFO, update_period_s=0.06)
    each_s = seconds_each(load)
    fast = take_window(Steps(load), load, each_s, idle_s=0, least_s=0.5)
    longer = take_window(Steps(load, slow), load, each_s, idle_s=0, least_s=0.5)
    seconds = [(w.marks[-1].t_ns - w.marks[0].t_ns) / 1e9 for w in (fast, longer)]
    assert 1.0 <= seconds[0] < 1.3  # 50 periods of 20 ms
    assert 3.0 <= seconds[1] < 3.4
    assert [len(w.calls) for w in (fast, longer)] == [5, 5]


def test_a_sensor_that_answers_slowly_gets_a_longer_window() -> None:
    load = Load()

    def watts() -> dict[str, float]:
        time.sleep(0.1)
        return {"all": 7.0}

    sampled = msgspec.structs.replace(INFO, provenance="measured.sampled", update_period_s=0.002)
    sampler = Sampler(sampled, watts)
    try:
        window = take_window(sampler, load, 0.001, idle_s=0, least_s=0.5)
    finally:
        sampler.close()
    found = reading(sampled, window)
    assert found.updates_seen >= 20
    assert found.window_s is not None
    assert found.window_s > 2  # twenty answers
    assert found.gross_j is not None


def test_edges_lie_on_the_counters_steps_where_calls_are_short() -> None:
    load = Load()
    for _ in range(3):
        counter = Steps(load)
        window = take_window(counter, load, 0.001, idle_s=0, least_s=0.1)
        assert window.edge_s == pytest.approx(0.002)  # two calls between two looks
        for end in (window.marks[0], window.marks[-1]):
            assert (end.t_ns % 20_000_000) < 8_000_000  # soon after a step
        found = reading(INFO, window)
        assert found.gross_j is not None
        assert found.window_s is not None
        assert found.gross_j * found.iterations / found.window_s == pytest.approx(12, rel=0.01)
    sampled = msgspec.structs.replace(INFO, provenance="measured.sampled")
    assert take_window(Steps(load, sampled), load, 0.001, idle_s=0, least_s=0.1).edge_s == 0.02


def test_only_calls_between_the_edges_count() -> None:
    load = Load()
    window = take_window(Steps(load), load, 0.001, idle_s=0, least_s=0.3)
    assert sum(window.calls) < load.calls  # some ran until the counter's first step
    seconds = (window.marks[-1].t_ns - window.marks[0].t_ns) / 1e9
    assert sum(window.calls) * 0.001 < seconds


def test_calls_longer_than_the_counters_period_are_not_aligned_to_it() -> None:
    load = Load(call_s=0.05)
    counter = Steps(load)
    window = take_window(counter, load, 0.05, idle_s=0, least_s=0.3)
    assert window.edge_s == INFO.update_period_s
    assert sum(window.calls) == load.calls >= 10


def test_an_edge_is_the_device_then_the_meter() -> None:
    order: list[str] = []
    load = Load()

    class Noted(Steps):
        def read(self) -> Snapshot:
            order.append("read")
            return super().read()

    take_window(Noted(load), load, 0.001, sync=lambda: order.append("sync"), idle_s=0.1, least_s=0.1)
    assert order[0::2] == ["sync"] * (len(order) // 2)
    assert order[1::2] == ["read"] * (len(order) // 2)


def test_a_counter_is_closed_also_when_the_work_fails() -> None:
    counter = Steps(Load())
    done = 0

    def work(count: int) -> None:
        nonlocal done
        done += count
        time.sleep(0.01 * count)
        if done > 100:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        measure_energy(Scripted(lambda: counter), work, idle_s=0)
    assert counter.closed


def test_a_meter_that_learns_joules_afterwards_is_asked_once_for_all_edges() -> None:
    load, asked = Load(), []

    class Later(Steps):
        def read(self) -> Snapshot:
            joules = super().read()
            known[joules.t_ns] = load.joules()
            return msgspec.structs.replace(joules, joules={})

        def settle(self, taken: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
            asked.append(len(taken))
            return tuple(msgspec.structs.replace(each, joules={"all": known[each.t_ns]}) for each in taken)

    known: dict[int, float] = {}
    external = msgspec.structs.replace(INFO, provenance="measured.external", runs_on="client")
    found = measure_energy(Scripted(lambda: Later(load, external), external), load, idle_s=0.2)
    assert asked == [6 + 4]
    assert found.gross_j is not None
    assert found.window_s is not None
    assert found.gross_j * found.iterations == pytest.approx(12 * found.window_s, rel=0.03)


def spin(count: int) -> None:
    for _ in range(count):
        sum(range(2000))


def burn(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize(("cost_s", "notable"), [(0.0, False), (0.005, True)])
def test_a_sampler_that_slows_the_work_is_found_out(cost_s: float, notable: bool) -> None:
    info = msgspec.structs.replace(INFO, provenance="measured.sampled", update_period_s=0.01 if notable else 0.1)

    def watts() -> dict[str, float]:
        burn(cost_s)
        return {"all": 5.0}

    found = measure_energy(Scripted(lambda: Sampler(info, watts), info), spin, idle_s=0)
    overhead = float(found.flags[0].removeprefix("sampler_overhead=").removesuffix("%"))
    if notable:
        assert overhead > 5  # on a busy machine the thread gets less of its turn
        assert "latency_energy_same_run=false" in found.flags
    else:
        assert abs(overhead) < 100  # a shared machine has other work


@pytest.fixture
def rapl_root(tmp_path: Path) -> Path:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0\n")
    (zone / "energy_uj").write_text("1000000\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    return tmp_path


def test_an_app_counts_the_joules_of_its_calls(small_conv_bundle: Bundle, rapl_root: Path) -> None:
    feeds, counter = sample_feeds(small_conv_bundle), rapl_root / "intel-rapl:0" / "energy_uj"
    with open_session(small_conv_bundle) as session:
        session.run(feeds)
        assert session.stats().energy is None
        with edgekit.meter(session, f"rapl,root={rapl_root}") as window:
            for _ in range(40):
                session.run(feeds)
            time.sleep(0.03)  # thirty updates of such a counter
            counter.write_text("9000000\n")
        stats = session.stats()
    assert window.energy.gross_j == pytest.approx(8.0 / 40)
    assert window.energy.iterations == 40
    assert window.energy.net_j is None
    assert stats.energy == window.energy
    assert stats.calls == 41


def test_without_a_session_a_window_is_the_whole_block(rapl_root: Path) -> None:
    with edgekit.meter(name=f"rapl,root={rapl_root}") as window:
        with pytest.raises(InvalidInput, match="known after its `with` block"):
            _ = window.energy
        time.sleep(0.03)
        (rapl_root / "intel-rapl:0" / "energy_uj").write_text("3500000\n")
    assert window.energy.gross_j == pytest.approx(2.5)
    assert window.energy.iterations == 1


def test_a_block_that_is_too_short_for_its_counter_has_no_figure(rapl_root: Path) -> None:
    with edgekit.meter(name=f"rapl,root={rapl_root}") as window:
        (rapl_root / "intel-rapl:0" / "energy_uj").write_text("3500000\n")
    assert window.energy.gross_j is None
    assert window.energy.flags == ("few_updates",)
    assert window.energy.reason is not None
    assert "a longer window is needed" in window.energy.reason


def test_a_window_without_calls_has_no_joules_of_one(small_conv_bundle: Bundle, rapl_root: Path) -> None:
    with (
        open_session(small_conv_bundle) as session,
        edgekit.meter(session, f"rapl,root={rapl_root}") as window,
    ):
        pass
    assert window.energy.gross_j is None
    assert window.energy.reason == "the session served no call within the window"


def test_an_error_in_the_block_passes_through(rapl_root: Path) -> None:
    with pytest.raises(ZeroDivisionError), edgekit.meter(name=f"rapl,root={rapl_root}"):
        1 / 0  # noqa: B018


def test_a_meter_that_is_not_here_fails_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(MeterMissing, match=r"rapl.*cannot be read here"):
        edgekit.meter(name=f"rapl,root={tmp_path}")


def test_metering_does_not_slow_calls(small_conv_bundle: Bundle, rapl_root: Path) -> None:
    feeds, ratios = sample_feeds(small_conv_bundle), []
    with open_session(small_conv_bundle) as session:

        def calls(count: int) -> list[float]:
            times = []
            for _ in range(count):
                before = time.perf_counter()
                session.run(feeds)
                times.append(time.perf_counter() - before)
            return times

        calls(200)
        for _ in range(15):
            plain = np.median(calls(100))
            with edgekit.meter(session, f"rapl,root={rapl_root}"):
                ratios.append(np.median(calls(100)) / plain)
    assert np.median(ratios) == pytest.approx(1, abs=0.2)  # two tests share the machine: a percent would be noise


def test_a_model_has_its_own_field_and_never_the_measured_one() -> None:
    asked = EnergyRequest(mode="any", meter="model,device=raspberrypi4")
    found = energy_figures(asked, "cpu", spin)
    assert found.energy.gross_j is None
    assert found.energy.provenance == "unavailable"
    assert "nvml:" in (found.energy.reason or "")
    assert found.modelled_energy_j is not None
    assert found.modelled_energy_j > 0
    assert found.modelled_energy_note is not None
    assert found.modelled_energy_note.startswith("model raspberrypi4 [modelled.analytical] of board")
    assert EnergyFigures.from_json(found.to_json()) == found


def test_without_watts_there_is_no_modelled_figure_but_the_reason() -> None:
    found = energy_figures(EnergyRequest(mode="any", meter="model,device=raspberrypi5"), "cpu", spin)
    assert found.modelled_energy_j is None
    assert found.modelled_energy_note is not None
    assert "edgekit calibrate" in found.modelled_energy_note


def test_measured_never_falls_back_to_a_model(rapl_root: Path) -> None:
    with pytest.raises(InvalidInput, match=r"does not measure \(modelled.analytical\): --energy any"):
        energy_figures(EnergyRequest(mode="measured", meter="model,device=raspberrypi4"), "cpu", spin)
    with pytest.raises(MeterMissing):
        energy_figures(EnergyRequest(mode="measured", meter=f"rapl,root={rapl_root / 'none'}"), "cpu", spin)


def test_an_emulated_board_has_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit import metering
    from edgekit.host import host_state

    state: Any = msgspec.structs.replace(host_state(), emulated=True)
    monkeypatch.setattr(metering, "host_state", lambda: state)
    with pytest.raises(MeterMissing, match="this board is emulated"):
        energy_figures(EnergyRequest(mode="measured"), "cpu", spin)
