"""Run an exporter in a process of its own: its imports, its memory and its crashes stay there.

`python -m edgekit.isolation FOLDER` is the other side. It reads a saved `ExportJob` and a `_Task` from the folder, and
speaks one JSON document a line: `{"step": ...}` as it goes on, then `{"result": ...}` or `{"error": ..., "type": ...}`.
Whatever a toolchain prints goes to FOLDER/log.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgekit import errors, registry
from edgekit.compression import Progress
from edgekit.errors import EdgekitError
from edgekit.exporting import Exported, Exporter, ExportJob, OpSupport
from edgekit.host import available_memory_bytes, rss_bytes
from edgekit.planning import EXPORTERS
from edgekit.toolchains import require
from edgekit.types import TensorSpec, Value

WATCH_S = 0.5  # between looks at the process's memory
SHOW_S = 5.0  # between lines about it
SIGKILL = 9


class _Task(Value, frozen=True, kw_only=True):
    """What to do with the job in the same folder."""

    verb: Literal["export", "expose", "support"]
    exporter: str
    options: dict[str, Any] = {}
    out: str = ""
    artifact: str = ""


def export(exporter: str, job: ExportJob, out: Path, options: Value, progress: Progress) -> Exported:
    """`Exporter.export` in a process of its own.

    Raises what the exporter raises, and `EdgekitError` that says how much memory it had when it was killed.
    """
    task = _Task(verb="export", exporter=exporter, options=msgspec.to_builtins(options), out=str(out))
    return msgspec.convert(_run(task, job, progress, out), Exported)


def expose(
    exporter: str, job: ExportJob, artifact: Path, out: Path, options: Value, progress: Progress
) -> Mapping[str, TensorSpec]:
    """`Exporter.expose` in a process of its own."""
    given = msgspec.to_builtins(options)
    task = _Task(verb="expose", exporter=exporter, options=given, out=str(out), artifact=str(artifact))
    return msgspec.convert(_run(task, job, progress), dict[str, TensorSpec])


def support(exporter: str, job: ExportJob, progress: Progress) -> list[OpSupport]:
    """`Exporter.support` in a process of its own."""
    return msgspec.convert(_run(_Task(verb="support", exporter=exporter), job, progress), list[OpSupport])


def _run(task: _Task, job: ExportJob, progress: Progress, beside: Path | None = None) -> Any:
    """Hand the job over in a folder: in `beside`, where the output has its room, or with the system's others."""
    require(registry.load(EXPORTERS, task.exporter).DISTRIBUTIONS, f"exporter '{task.exporter}'")
    with tempfile.TemporaryDirectory(prefix="edgekit-", dir=beside) as name:
        folder = Path(name)
        progress(f"hand the traced model to the {task.exporter} exporter")
        job.save(folder)
        (folder / "task.json").write_text(task.to_json(), encoding="utf-8")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgekit.isolation", name], stdout=subprocess.PIPE, stderr=log
            )
        try:
            return _listen(process, task.exporter, folder / "log", progress)
        finally:
            process.kill()
            process.wait()


def _listen(process: subprocess.Popen[bytes], exporter: str, log: Path, progress: Progress) -> Any:
    """Pass steps on, show the memory in use, and return the result."""
    if process.stdout is None:
        raise RuntimeError("the exporter was started without a pipe")
    step, used, shown, pending = "start the exporter", 0, time.monotonic(), b""
    with process.stdout as stream, selectors.DefaultSelector() as waiting:
        waiting.register(stream, selectors.EVENT_READ)
        while True:
            used = rss_bytes(process.pid) or used
            if not waiting.select(WATCH_S):
                if time.monotonic() - shown >= SHOW_S:
                    progress(f"{step}, {used / 1e9:.1f} GB in use")
                    shown = time.monotonic()
                continue
            received = os.read(stream.fileno(), 1 << 16)
            if not received:
                raise EdgekitError(_death(process.wait(), exporter, used, log))
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "step" not in said:
                    return _outcome(said)
                step, shown = said["step"], time.monotonic()
                progress(step)


def _outcome(said: dict[str, Any]) -> Any:
    if "errno" in said:
        raise OSError(said["errno"], said["error"])
    if "error" in said:
        raise getattr(errors, said["type"], EdgekitError)(said["error"])
    return said["result"]


def _death(code: int, exporter: str, used: int, log: Path) -> str:
    """Why the process ended without a word, and what to do."""
    if code == -SIGKILL:
        free = available_memory_bytes()
        beside = f" and {free / 1e9:.1f} GB are free now" if free else ""
        return (
            f"the {exporter} exporter was killed, most likely for memory: it had {used / 1e9:.1f} GB in use{beside}. "
            "Close other programs, take a smaller input or a smaller model, or export on a machine with more memory; "
            "the bundle runs anywhere"
        )
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    how = f"crashed with signal {-code}" if code < 0 else f"left with code {code}"
    return f"the {exporter} exporter {how}; its toolchain's last words: {' | '.join(last) or 'none'}"


def main(folder: Path) -> None:
    """Do the folder's task. Standard output is for us alone: a toolchain's C++ would print between our lines."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(document: dict[str, Any]) -> None:
        channel.write(json.dumps(document) + "\n")
        channel.flush()

    try:
        say({"result": msgspec.to_builtins(_do(folder, lambda step: say({"step": step})))})
    except EdgekitError as error:
        say({"error": str(error), "type": type(error).__name__})
    except OSError as error:
        say({"error": error.strerror or str(error), "errno": error.errno or 0})
    except MemoryError:
        say({"error": "the exporter ran out of memory: take a smaller input or model", "type": "EdgekitError"})
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        say({"error": f"the exporter failed unexpectedly: {reason}. Please report it", "type": "EdgekitError"})


def _do(folder: Path, progress: Progress) -> Exported | Mapping[str, TensorSpec] | list[OpSupport]:
    task = _Task.from_json((folder / "task.json").read_bytes())
    exporter: Exporter = registry.load(EXPORTERS, task.exporter)
    options = msgspec.convert(task.options, exporter.Options)
    job = ExportJob.load(folder)
    if task.verb == "support":
        return exporter.support(job)
    if task.verb == "export":
        return exporter.export(job, Path(task.out), options, progress)
    return exporter.expose(job, Path(task.artifact), Path(task.out), options)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (KeyboardInterrupt, BrokenPipeError):  # whoever asked is interrupted too, and says so
        sys.exit(1)
