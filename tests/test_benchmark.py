"""Bundles are measured in trials of fresh processes, and compared in turns: by scripted workers and by real ones."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec
import pytest

from edgekit import benchmark
from edgekit.benchmark import alternate, compare, control, energy_of, measure, trial_ratio, warm_up, with_energy
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError, InvalidInput, MeterMissing
from edgekit.generation import Generation
from edgekit.measurement import Measurement
from edgekit.meters import EnergyRequest
from edgekit.place import Worker
from tests.scripted_worker import CLOSING, OPENING, STATE, Scripted

MEASURED = EnergyRequest(mode="measured")


def script(call_s: float, **more: Any) -> dict[str, Any]:
    return {"call_s": call_s, "opening": {**OPENING, "first_run_s": call_s}, **more}


def flags(*now: str) -> dict[str, Any]:
    return {"state": {**STATE, "throttle_flags": now}}


def test_each_trial_is_a_process_of_its_own(small_conv_bundle: Bundle) -> None:
    place = Scripted([script(call_s) for call_s in (0.01, 0.02, 0.03, 0.04, 0.05)])
    found = measure(small_conv_bundle, calls=12, place=place)
    assert len(place.started) == 5
    assert all(process.poll() is not None for process in place.started)
    assert [(trial.process, trial.calls) for trial in found.trials] == [(0, 3), (1, 3), (2, 2), (3, 2), (4, 2)]
    assert [trial.p50_s for trial in found.trials] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    assert found.trial_cv == pytest.approx(statistics.stdev([1, 2, 3, 4, 5]) / 3)
    assert found.mean_ci_s is not None
    assert found.mean_ci_s.low < 0.03 < found.mean_ci_s.high
    assert found.first_run_s == 0.03
    assert found.load_s == 0.02
    assert found.latency.calls == 12


def test_where_a_process_starts_slowly_the_trials_share_one(
    small_conv_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SLOW_START_S", 0.0)
    place = Scripted([script(0.1)])
    found = measure(small_conv_bundle, calls=10, place=place)
    assert len(place.started) == 1
    assert [(trial.process, trial.calls) for trial in found.trials] == [(0, 2)] * 5
    assert found.mean_ci_s is not None


def test_what_was_measured_is_on_record(small_conv_bundle: Bundle) -> None:
    found = measure(small_conv_bundle, calls=3, trials=3)
    assert found.artifact_sha256 == small_conv_bundle.artifact.sha256
    assert found.input_source == "golden sample 0"
    assert found.runtime_build
    assert found.overhead_s is not None
    assert found.overhead_s < 1e-3
    assert found.before.affinity
    assert len(found.trials) == found.latency.calls == 3
    assert found.mean_ci_s is None  # of three trials
    assert Measurement.from_json(found.to_json()) == found


@pytest.mark.parametrize(("calls", "texts"), [(5, 5), (300, 5), (700, 15)])
def test_a_language_model_writes_texts_in_every_trial(small_conv_bundle: Bundle, calls: int, texts: int) -> None:
    generation = Generation(context=128, layers=1, vocabulary=10)
    manifest = msgspec.structs.replace(small_conv_bundle.manifest, generation=generation)
    found = measure(Bundle(small_conv_bundle.path, manifest), calls=calls, place=Scripted([script(0.25)])).generation
    assert found is not None
    assert (found.texts, found.prompt_tokens) == (texts, 7)
    assert found.inter_token.calls is not None
    assert found.inter_token.calls >= calls
    assert (found.time_to_first_token_s, found.decode_tokens_per_s) == (0.25, pytest.approx(4))


@pytest.mark.parametrize(("calls", "trials"), [(0, 5), (-1, 5), (10, 0)])
def test_no_calls_or_trials_are_refused(small_conv_bundle: Bundle, calls: int, trials: int) -> None:
    with pytest.raises(InvalidInput, match=f"1 or more, not {calls} and {trials}"):
        measure(small_conv_bundle, calls=calls, trials=trials)


@pytest.mark.parametrize(
    ("call_s", "growth", "least", "most", "warm"),
    [
        (0.001, 1.0, 500, 510, True),  # half a second at least
        (0.1, 1.0, 20, 20, True),  # two chunks of ten
        (0.4, 1.0, 6, 6, True),  # calls that are long: chunks of three
        (30.0, 1.0, 6, 6, True),  # two chunks though each takes longer than all of the time
        (0.05, 1.01, 20, 400, False),  # each chunk 10 % slower than the one before
    ],
)
def test_warming_up_ends_when_the_median_is_steady(
    small_conv_bundle: Bundle, call_s: float, growth: float, least: int, most: int, warm: bool
) -> None:
    with Worker(small_conv_bundle, 1, Scripted([script(call_s, growth=growth)])) as worker:
        runs, steady = warm_up(worker)
    assert least <= runs <= most
    assert steady is warm


def test_a_machine_whose_flags_rise_was_throttled(small_conv_bundle: Bundle) -> None:
    old = "under-voltage since boot"
    told = script(
        0.1, opening={**OPENING, **flags(old)}, closing={**CLOSING, **flags(old, "throttled since boot", "hot")}
    )
    found = measure(small_conv_bundle, calls=8, place=Scripted([told]))
    assert found.throttled == ("hot", "throttled since boot, which rose meanwhile")
    calm = script(0.1, opening={**OPENING, **flags(old)}, closing={**CLOSING, **flags(old)})
    assert measure(small_conv_bundle, calls=8, place=Scripted([calm])).throttled == ()


def test_calls_that_become_slower_count_as_throttled_without_sensors(small_conv_bundle: Bundle) -> None:
    found = measure(small_conv_bundle, calls=10, place=Scripted([script(s) for s in (0.1, 0.1, 0.1, 0.1, 0.11)]))
    assert found.before.throttle_flags is None
    assert found.throttled == ("calls became 10% slower from first to last quarter",)


def test_compare_takes_the_ratio_of_each_trial(small_conv_bundle: Bundle) -> None:
    speeds = (0.1, 0.2, 0.2, 0.1, 0.1, 0.2, 0.2, 0.1, 0.1, 0.2)  # every second trial starts the other bundle first
    place = Scripted([script(speed) for speed in speeds])
    [found] = compare([small_conv_bundle, small_conv_bundle], rounds=2, place=place)
    assert len(place.started) == 10
    assert found.trial_ratios == pytest.approx((2.0,) * 5)
    assert (found.ratio, found.ratio_ci.low, found.ratio_ci.high) == pytest.approx((2.0, 2.0, 2.0))
    assert (found.rounds, found.a.latency.calls, found.b.latency.calls) == (2, 100, 100)
    assert found.verdict.endswith("2.00x as fast as " + str(small_conv_bundle.path))


@pytest.mark.parametrize(("slow_s", "fresh", "processes"), [(0.0, True, 10), (0.0, False, 2), (60.0, False, 10)])
def test_a_quick_comparison_shares_processes_that_start_slowly(
    small_conv_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, slow_s: float, fresh: bool, processes: int
) -> None:
    monkeypatch.setattr(benchmark, "SLOW_START_S", slow_s)
    place = Scripted([script(0.1)])
    [found] = compare([small_conv_bundle] * 2, rounds=1, fresh=fresh, place=place)
    assert len(place.started) == processes
    assert [(trial.process, trial.calls) for trial in found.b.trials] == [
        (number if processes == 10 else 0, 10) for number in range(5)
    ]
    assert len(found.trial_ratios) == 5


def test_processes_that_differ_as_much_as_the_bundles_give_no_verdict(small_conv_bundle: Bundle) -> None:
    speeds = (0.10, 0.12, 0.09, 0.10, 0.10, 0.11, 0.11, 0.10, 0.10, 0.10)
    [found] = compare([small_conv_bundle] * 2, rounds=1, place=Scripted([script(speed) for speed in speeds]))
    assert min(found.trial_ratios) < 1 < max(found.trial_ratios)
    assert found.verdict.startswith("no difference shown")
    assert control(found).holds


def test_the_control_fails_where_a_bundle_differs_from_itself(small_conv_bundle: Bundle) -> None:
    speeds = (0.1, 0.13, 0.12, 0.1, 0.1, 0.13, 0.12, 0.1, 0.1, 0.13)
    itself = control(compare([small_conv_bundle] * 2, rounds=1, place=Scripted([script(s) for s in speeds]))[0])
    assert not itself.holds
    assert itself.ratio_ci.low > 1


def test_no_worker_has_two_rounds_one_after_the_other(small_conv_bundle: Bundle) -> None:
    asked = []

    class Noting(Worker):
        def times(self, calls: int) -> tuple[float, ...]:
            asked.append(self.opening.load_s)
            return super().times(calls)

    places = [Scripted([script(0.1, opening={**OPENING, "load_s": float(name)})]) for name in (1, 2, 3)]
    workers = [Noting(small_conv_bundle, 1, place) for place in places]
    try:
        times = alternate(workers, 2)
    finally:
        for worker in workers:
            worker.stop()
    assert asked == [1, 2, 3, 1, 2, 3]  # or its second would find caches that it warmed itself
    assert [[len(block) for block in mine] for mine in times] == [[10, 10]] * 3


def test_a_disturbed_round_does_not_move_a_trial() -> None:
    assert trial_ratio([(1.0, 1.0, 9.0), (1.0,), (1.0,)], [(2.0, 2.0, 2.0), (2.0,), (50.0,)]) == 2.0


@pytest.mark.parametrize(
    ("count", "trials", "rounds", "text"),
    [(1, 5, 6, "two bundles or more"), (2, 4, 6, "5 trials of 1 round or more, not 4 of 6"), (2, 5, 0, "not 5 of 0")],
)
def test_a_comparison_without_an_interval_is_refused(
    small_conv_bundle: Bundle, count: int, trials: int, rounds: int, text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        compare([small_conv_bundle] * count, trials=trials, rounds=rounds)


def test_a_worker_that_dies_in_a_later_trial_leaves_none_behind(small_conv_bundle: Bundle) -> None:
    place = Scripted([script(0.1), script(0.1), script(0.1), {"opening": "no json\n"}])
    with pytest.raises(EdgekitError, match="makes no sense"):
        compare([small_conv_bundle] * 2, rounds=1, place=place)
    assert len(place.started) == 4
    assert all(process.poll() is not None for process in place.started)


# Joules beside times


def joules(net_j: float) -> dict[str, Any]:
    return {"provenance": "measured.counter", "meter": "rapl", "gross_j": 2 * net_j, "net_j": net_j, "u_rel": 0.01}


def test_joules_join_a_comparison_with_a_verdict_of_their_own(small_conv_bundle: Bundle) -> None:
    found = compare([small_conv_bundle, small_conv_bundle], place=Scripted([script(0.01), script(0.01)]))
    assert found[0].energy is None
    place = Scripted([script(0.01, energy=joules(2e-3)), script(0.01, energy=joules(1e-3))])
    (pair,) = with_energy(found, MEASURED, place=place)
    assert len(place.started) == 2
    assert (pair.a.energy.net_j, pair.b.energy.net_j) == (2e-3, 1e-3)
    assert pair.energy is not None
    assert pair.energy.ratio == 0.5
    assert pair.energy.verdict.endswith(f"takes 0.50x the joules of {small_conv_bundle.path}")
    assert (pair.ratio, pair.verdict) == (found[0].ratio, found[0].verdict)


def test_a_worker_that_reads_no_meter_fails_what_was_to_be_measured(small_conv_bundle: Bundle) -> None:
    nothing = {"provenance": "unavailable", "reason": "the native runner reads no meter"}
    place = Scripted([script(0.01, energy=nothing)])
    with pytest.raises(MeterMissing, match="the native runner reads no meter"):
        energy_of(small_conv_bundle, MEASURED, place=place)
    found = energy_of(small_conv_bundle, EnergyRequest(mode="any"), place=Scripted([script(0.01, energy=nothing)]))
    assert found.energy.reason == "the native runner reads no meter"
