"""Rockchip's RKNN-Toolkit2, for the NPUs of RK3588 and its kin: ONNX in, .rknn out.

It quantises the float ONNX file by itself, from the calibration samples; without samples it makes float16. Its own
simulator on this machine stands in for the NPU. The toolkit is proprietary, and used only where somebody installed it.
Source: rknn-toolkit2 2.5.0, its API and the log of its builds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Compiled, CompiledCheck
from edgekit.compiling import CompileJob, CompileResult, named
from edgekit.compression import Progress
from edgekit.environments import environment_missing
from edgekit.errors import EdgekitError, InvalidInput
from edgekit.exporters.compilers import _rknn_log
from edgekit.processing import Arrays
from edgekit.types import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32",)
OPTIONS: dict[str, Any] = {"opset": 18}  # it reads up to 19
ENVIRONMENT = "rknn"
FILE = "model.rknn"
LOG, SAMPLES = "build.log", "samples.txt"


def missing() -> str | None:
    """Why it cannot run here. See `edgekit.compiling.DeviceCompiler`."""
    return environment_missing(ENVIRONMENT, "RKNN-Toolkit2")


def compile(job: CompileJob, out: Path, progress: Progress) -> CompileResult:
    """Build, simulate, and read where each op went. See `edgekit.compiling.DeviceCompiler`."""
    job.require_fixed_sizes("RKNN-Toolkit2")
    if job.unit.rknn is None:
        raise InvalidInput(
            f"unit '{job.unit.name}' of the device profile has no [unit.rknn], which says what to compile for"
        )
    platform = job.unit.rknn.target_platform
    calibration = job.export.calibration
    artifact = job.artifact.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it drops files where it runs
        with _toolkit(platform) as rknn:
            progress(f"compile with RKNN-Toolkit2, quantised on {len(calibration)} samples")
            _done("load_onnx", rknn.load_onnx(model=str(artifact)))
            listing = _listed(calibration) if calibration else None
            _done("build", rknn.build(do_quantization=bool(calibration), dataset=listing))
            _done("export_rknn", rknn.export_rknn(str(out / FILE)))
            progress(f"run RKNN's simulator on {len(job.samples)} samples")
            _done("init_runtime", rknn.init_runtime())
            answers = tuple(named(_answer(rknn, sample), job.export) for sample in job.samples)
        log = Path(LOG).read_text(encoding="utf-8", errors="replace")
    version = _rknn_log.version(log)
    compiled = Compiled(
        path=FILE,
        bytes=(out / FILE).stat().st_size,
        compiler="rknn",
        version=version,
        precision="int8" if calibration else "fp16",
        target={"target_platform": platform},
        delegation=_rknn_log.placement(log, job.unit.name, _rknn_log.modules(artifact)),
        estimate=_rknn_log.estimate(log),
        check=CompiledCheck(
            by=f"RKNN's simulator {version}",
            covers="the model as RKNN quantises it",
            excludes="the NPU and its driver: the simulator is the vendor's, and rounds in its own way",
        ),
    )
    return CompileResult(compiled=compiled, answers=answers)


@contextlib.contextmanager
def _toolkit(platform: str) -> Iterator[Any]:
    """An RKNN that writes all it says into the log. Raises `EdgekitError` with the toolkit's last words."""
    from rknn.api import RKNN

    with _spoken_into(Path(LOG)):
        rknn = RKNN(verbose=True)
        try:
            _done("config", rknn.config(target_platform=platform, quantized_dtype="w8a8"))
            yield rknn
        except EdgekitError:
            raise
        except Exception as error:  # the toolkit raises Python's types, with its log in them
            said = _rknn_log.last_error(str(error))
            raise EdgekitError(f"RKNN-Toolkit2 does not compile this model: {said}") from error
        finally:
            rknn.release()


@contextlib.contextmanager
def _spoken_into(path: Path) -> Iterator[None]:
    """Send what Python and native code print to a file: the table of layers comes from the toolkit's C++."""
    kept = os.dup(1), os.dup(2)
    with path.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            ctypes.CDLL(None).fflush(None)
            for stream, terminal in zip((1, 2), kept, strict=True):
                os.dup2(terminal, stream)
                os.close(terminal)


def _done(step: str, code: int) -> None:
    if code:
        said = _rknn_log.last_error(Path(LOG).read_text(encoding="utf-8", errors="replace"))
        raise EdgekitError(f"RKNN-Toolkit2's {step} failed: {said}")


def _listed(samples: tuple[Arrays, ...]) -> str:
    """Write the samples as the toolkit reads them: a line of files for each, one for each input."""
    lines = []
    for index, sample in enumerate(samples):
        names = [f"{index}_{at}.npy" for at in range(len(sample))]
        for name, array in zip(names, sample.values(), strict=True):
            np.save(name, array)
        lines.append(" ".join(names))
    Path(SAMPLES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return SAMPLES


def _answer(rknn: Any, sample: Arrays) -> list[Any]:
    inputs = list(sample.values())
    return list(rknn.inference(inputs=inputs, data_format=["nchw"] * len(inputs)))
