"""A worker that says what it is told to: `python scripted_worker.py SCRIPT`, where SCRIPT is JSON.

`opening` and `closing` are the first and the last line. Each question takes the next of `answers`, a raw line, and when
these are used up a number of calls of `call_s` seconds each, growing by `growth` with every call; a question about
energy is answered with `energy`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from edgekit.place import Here

STATE = {
    "machine": "aarch64", "system": "Linux 6.6", "cpu": None, "cores": 4, "python": "3.11.7", "governor": None,
    "clock_min_hz": None, "clock_max_hz": None, "clock_now_hz": None, "temperature_c": None,
}  # fmt: skip
OPENING = {"load_s": 0.02, "first_run_s": 0.01, "runtime_version": "1.0", "state": STATE}
CLOSING = {"peak_rss_bytes": 1_000_000, "state": STATE}


@dataclass
class Scripted(Here):
    """A place whose workers follow scripts: the first process the first, and so on; the last one stays."""

    scripts: list[dict[str, Any]]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, bundle: object, threads: int) -> subprocess.Popen[str]:
        script = self.scripts[min(len(self.started), len(self.scripts) - 1)]
        command = [sys.executable, __file__, json.dumps(script)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.started.append(process)
        return process


def main(script: dict[str, Any]) -> None:
    calls, answers = 0, iter(script.get("answers", ()))
    say(script.get("opening", OPENING))
    for line in sys.stdin:
        asked = json.loads(line)
        if "energy" in asked:
            say({"energy": script["energy"]})
            continue
        count = asked.get("calls") or asked["tokens"]
        told = next(answers, None)
        if told is None:
            times = [script["call_s"] * script.get("growth", 1.0) ** (calls + n) for n in range(count)]
            if "tokens" in asked:
                say({"times_s": [sum(times[: n + 1]) for n in range(count)], "prompt_tokens": 7})
            else:
                calls += count
                say({"times_s": times})
        else:
            say(told)
    say(script.get("closing", CLOSING))


def say(line: object) -> None:
    sys.stdout.write(line if isinstance(line, str) else json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
