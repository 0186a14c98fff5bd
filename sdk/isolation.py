"""Run an exporter or a vendor's compiler in a process of its own: its imports, memory and crashes stay there.

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
from edgekit.bundle import Compiled
from edgekit.compiling import COMPILERS, CompileJob, CompileResult, DeviceCompiler
from edgekit.compression import Progress
from edgekit.environments import environment_folder
from edgekit.errors import EdgekitError, ToolchainMissing
from edgekit.exporting import Exported, Exporter, ExportJob, OpSupport, load_samples, save_samples
from edgekit.host import available_memory_bytes, rss_bytes
from edgekit.planning import EXPORTERS
from edgekit.processing import Arrays
from edgekit.profile import ComputeUnit
from edgekit.toolchains import require
from edgekit.types import TensorSpec, Value
from edgekit.wire import decoded, encoded

WATCH_S = 0.5  # between looks at the process's memory
SHOW_S = 5.0  # between lines about it
SIGKILL = 9
SAMPLES = "samples.npz"  # of a compiler, beside the job


class _Task(Value, frozen=True, kw_only=True):
    """What to do with the job in the same folder."""

    verb: Literal["export", "expose", "support", "compile"]
    plugin: str  # the exporter's name, or the compiler's
    options: dict[str, Any] = {}
    out: str = ""
    artifact: str = ""
    unit: ComputeUnit | None = None  # that a compiler makes a file for

    @property
    def who(self) -> str:
        """The plugin in words."""
        return f"the {self.plugin} {'compiler' if self.verb == 'compile' else 'exporter'}"


def export(exporter: str, job: ExportJob, out: Path, options: Value, progress: Progress) -> Exported:
    """`Exporter.export` in a process of its own.

    Raises what the exporter raises, and `EdgekitError` that says how much memory it had when it was killed.
    """
    task = _Task(verb="export", plugin=exporter, options=msgspec.to_builtins(options), out=str(out))
    return msgspec.convert(_run(task, job, progress, out), Exported)


def expose(
    exporter: str, job: ExportJob, artifact: Path, out: Path, options: Value, progress: Progress
) -> Mapping[str, TensorSpec]:
    """`Exporter.expose` in a process of its own."""
    given = msgspec.to_builtins(options)
    task = _Task(verb="expose", plugin=exporter, options=given, out=str(out), artifact=str(artifact))
    return msgspec.convert(_run(task, job, progress), dict[str, TensorSpec])


def support(exporter: str, job: ExportJob, progress: Progress) -> list[OpSupport]:
    """`Exporter.support` in a process of its own."""
    return msgspec.convert(_run(_Task(verb="support", plugin=exporter), job, progress), list[OpSupport])


def compile(compiler: str, job: CompileJob, out: Path, progress: Progress) -> CompileResult:
    """`DeviceCompiler.compile` in a process of its own, with the compiler's environment in front."""
    task = _Task(verb="compile", plugin=compiler, out=str(out), artifact=str(job.artifact), unit=job.unit)
    said = _run(task, job.export, progress, out, job.samples)
    answers = said["answers"] and tuple(decoded(each) for each in said["answers"])
    return CompileResult(compiled=msgspec.convert(said["compiled"], Compiled), answers=answers)


def _run(
    task: _Task, job: ExportJob, progress: Progress, beside: Path | None = None, samples: tuple[Arrays, ...] = ()
) -> Any:
    """Hand the job over in a folder: in `beside`, where the output has its room, or with the system's others."""
    environment = _environment(task)
    with tempfile.TemporaryDirectory(prefix="edgekit-", dir=beside) as name:
        folder = Path(name)
        progress(f"hand the traced model to {task.who}")
        job.save(folder)
        save_samples(folder / SAMPLES, samples)
        (folder / "task.json").write_text(task.to_json(), encoding="utf-8")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgekit.isolation", name],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        try:
            return _listen(process, task.who, folder / "log", progress)
        finally:
            process.kill()
            process.wait()


def _environment(task: _Task) -> dict[str, str]:
    """The variables of the process. Raises `ToolchainMissing` where what it drives is not installed."""
    if task.verb != "compile":
        require(registry.load(EXPORTERS, task.plugin).DISTRIBUTIONS, f"exporter '{task.plugin}'")
        return dict(os.environ)
    compiler: DeviceCompiler = registry.load(COMPILERS, task.plugin)
    if reason := compiler.missing():
        raise ToolchainMissing(reason)
    if compiler.ENVIRONMENT is None:
        return dict(os.environ)
    others = os.environ.get("PYTHONPATH")
    packages = str(environment_folder(compiler.ENVIRONMENT))
    return os.environ | {"PYTHONPATH": os.pathsep.join([packages, others] if others else [packages])}


def _listen(process: subprocess.Popen[bytes], who: str, log: Path, progress: Progress) -> Any:
    """Pass steps on, show the memory in use, and return the result."""
    if process.stdout is None:
        raise RuntimeError(f"{who} was started without a pipe")
    step, used, shown, pending = f"start {who}", 0, time.monotonic(), b""
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
                raise EdgekitError(_death(process.wait(), who, used, log))
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


def _death(code: int, who: str, used: int, log: Path) -> str:
    """Why the process ended without a word, and what to do."""
    if code == -SIGKILL:
        free = available_memory_bytes()
        beside = f" and {free / 1e9:.1f} GB are free now" if free else ""
        return (
            f"{who} was killed, most likely for memory: it had {used / 1e9:.1f} GB in use{beside}. "
            "Close other programs, take a smaller input or a smaller model, or export on a machine with more memory; "
            "the bundle runs anywhere"
        )
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    how = f"crashed with signal {-code}" if code < 0 else f"left with code {code}"
    return f"{who} {how}; its toolchain's last words: {' | '.join(last) or 'none'}"


def main(folder: Path) -> None:
    """Do the folder's task. Standard output is for us alone: a toolchain's C++ would print between our lines."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(document: dict[str, Any]) -> None:
        channel.write(json.dumps(document) + "\n")
        channel.flush()

    task = _Task.from_json((folder / "task.json").read_bytes())
    try:
        say({"result": msgspec.to_builtins(_do(task, folder, lambda step: say({"step": step})))})
    except EdgekitError as error:
        say({"error": str(error), "type": type(error).__name__})
    except OSError as error:
        say({"error": error.strerror or str(error), "errno": error.errno or 0})
    except MemoryError:
        say({"error": f"{task.who} ran out of memory: take a smaller input or model", "type": "EdgekitError"})
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        say({"error": f"{task.who} failed unexpectedly: {reason}. Please report it", "type": "EdgekitError"})


def _do(
    task: _Task, folder: Path, progress: Progress
) -> Exported | Mapping[str, TensorSpec] | list[OpSupport] | dict[str, Any]:
    job = ExportJob.load(folder)
    if task.verb == "compile":
        return _compile(task, job, folder, progress)
    exporter: Exporter = registry.load(EXPORTERS, task.plugin)
    options = msgspec.convert(task.options, exporter.Options)
    if task.verb == "support":
        return exporter.support(job)
    if task.verb == "export":
        return exporter.export(job, Path(task.out), options, progress)
    return exporter.expose(job, Path(task.artifact), Path(task.out), options)


def _compile(task: _Task, job: ExportJob, folder: Path, progress: Progress) -> dict[str, Any]:
    compiler: DeviceCompiler = registry.load(COMPILERS, task.plugin)
    if task.unit is None:
        raise RuntimeError(f"{task.who} was given no unit")
    samples = load_samples(folder / SAMPLES)
    given = CompileJob(export=job, artifact=Path(task.artifact), unit=task.unit, samples=samples)
    made = compiler.compile(given, Path(task.out), progress)
    return {"compiled": made.compiled, "answers": made.answers and [encoded(each) for each in made.answers]}


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (KeyboardInterrupt, BrokenPipeError):  # whoever asked is interrupted too, and says so
        sys.exit(1)
