"""`make bench-profile`: the clock of `profile`, `compare` where there is no difference, and what `edgekit.meter` takes.

`python tests/bench_profile.py BUNDLE` takes an ONNX bundle and writes tests/profile_benchmarks.json, without torch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import msgspec

import edgekit
from edgekit.benchmark import alternate, compare, control, trial_ratio, warm_up
from edgekit.bundle import Bundle
from edgekit.host import host_state
from edgekit.inference import open_session, sample_feeds
from edgekit.measurement import coefficient_of_variation, ratio_interval
from edgekit.place import HERE, Here, Place, Worker

RESULTS = Path(__file__).with_name("profile_benchmarks.json")
LOOP = Path(__file__).with_name("bare_loop.py")
TRIALS, ROUNDS, CONTROLS = 10, 6, 10
WINDOWS, WINDOW_CALLS = 10, 200  # of a trial with a meter; calls of each, about a second
RAILS = ("VDD_CPU", "VDD_GPU", "VDD_SOC")


class BareLoop(Here):
    """A place whose workers call onnxruntime in a bare loop."""

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(LOOP), str(bundle.path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def against_bare_loop(bundle: Bundle) -> dict[str, Any]:
    """What the worker of `profile` sees over what onnxruntime's own loop does, in alternating rounds."""
    ratios = [_trial(bundle, first=number % 2 == 0) for number in range(TRIALS)]
    ratio, interval = ratio_interval(ratios)
    return {"p50_ratio": ratio, "ratio_ci": [interval.low, interval.high], "trial_ratios": ratios, "limit": 0.03}


def _trial(bundle: Bundle, first: bool) -> float:
    bare, ours = BareLoop(), HERE
    order: tuple[Place, Place] = (bare, ours) if first else (ours, bare)
    with Worker(bundle, 1, order[0]) as one, Worker(bundle, 1, order[1]) as other:
        for worker in (one, other):
            warm_up(worker)
        times = alternate([one, other], ROUNDS)
    return trial_ratio(*(times if first else times[::-1]))


def controls(bundle: Bundle) -> dict[str, Any]:
    """A/A controls: each should hold 1 with a chance of 95 %."""
    found = [compare([bundle, bundle])[0] for _ in range(CONTROLS)]
    return {
        "held_1": sum(control(pair).holds for pair in found),
        "of": CONTROLS,
        "ratios": [pair.ratio for pair in found],
        "intervals": [[pair.ratio_ci.low, pair.ratio_ci.high] for pair in found],
        "trial_cv": [coefficient_of_variation(pair.trial_ratios) for pair in found],
    }


def metered(bundle: Bundle) -> dict[str, Any]:
    """What a window with a meter takes over as many calls without, in turns: CPU time of all threads, and of the clock.

    The meter asks a chip with three rails of watts ten times a second, from files that stand in for the chip's: a
    sensor on a slow bus takes longer to answer, but its wait is not the calls'.
    """
    with tempfile.TemporaryDirectory() as root, open_session(bundle) as session:
        chip = Path(root, "hwmon0")
        chip.mkdir()
        (chip / "name").write_text("ina226\n")
        for number, rail in enumerate(RAILS, 1):
            (chip / f"power{number}_input").write_text("2500000\n")
            (chip / f"power{number}_label").write_text(f"{rail}\n")
        meter = f"hwmon,root={root},rails={'+'.join(f'ina226/{rail}' for rail in RAILS)}"
        feeds = sample_feeds(bundle)

        def calls() -> None:
            for _ in range(WINDOW_CALLS):
                session.run(feeds)

        def window() -> None:
            with edgekit.meter(session, meter):
                calls()

        calls()
        trials = [_turns(calls, window) for _ in range(TRIALS)]
    found: dict[str, Any] = {"limit": 0.01}
    for name, ratios in zip(("cpu", "clock"), zip(*trials, strict=True), strict=True):
        ratio, interval = ratio_interval(ratios)
        found[name] = {"ratio": ratio, "ratio_ci": [interval.low, interval.high], "trial_ratios": ratios}
    return found


def _turns(without: Callable[[], None], with_meter: Callable[[], None]) -> tuple[float, float]:
    """The median ratio of CPU times, and of times on the clock, over turns that change their order."""
    cpu, clock = [], []
    for turn in range(WINDOWS):
        first, second = (without, with_meter) if turn % 2 else (with_meter, without)
        one, other = _spent(first), _spent(second)
        plain, metered = (one, other) if turn % 2 else (other, one)
        cpu.append(metered[0] / plain[0])
        clock.append(metered[1] / plain[1])
    return statistics.median(cpu), statistics.median(clock)


def _spent(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of CPU of this process, and of the clock."""
    cpu, clock = process_time(), perf_counter()
    work()
    return process_time() - cpu, perf_counter() - clock


def main(path: str) -> None:
    bundle = Bundle.open(path)
    results = {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": msgspec.to_builtins(host_state()),
        "versions": {name: version(name) for name in ("onnxruntime", "numpy")},
        "model": f"{bundle.manifest.name} {bundle.manifest.precision.name}",
        "against_bare_loop": against_bare_loop(bundle),
        "controls": controls(bundle),
        "metered": metered(bundle),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: results[name] for name in ("against_bare_loop", "controls", "metered")}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1])
