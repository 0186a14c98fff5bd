"""`make bench-profile`: is the clock of `profile` right, and does `compare` find no difference where there is none?

`python tests/bench_profile.py BUNDLE` takes an ONNX bundle and writes tests/profile_benchmarks.json, without torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from edgekit.benchmark import alternate, compare, control, trial_ratio, warm_up
from edgekit.bundle import Bundle
from edgekit.host import host_state
from edgekit.measurement import coefficient_of_variation, ratio_interval
from edgekit.place import HERE, Place, Worker

RESULTS = Path(__file__).with_name("profile_benchmarks.json")
LOOP = Path(__file__).with_name("bare_loop.py")
TRIALS, ROUNDS, CONTROLS = 10, 6, 10


class BareLoop:
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


def main(path: str) -> None:
    bundle = Bundle.open(path)
    results = {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": msgspec.to_builtins(host_state()),
        "versions": {name: version(name) for name in ("onnxruntime", "numpy")},
        "model": f"{bundle.manifest.name} {bundle.manifest.precision.name}",
        "against_bare_loop": against_bare_loop(bundle),
        "controls": controls(bundle),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: results[name] for name in ("against_bare_loop", "controls")}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1])
