"""ExecuTorch bundles on boards without torch or even Python: `runtimes/cpp/`, cross-built for the board.

It is linked to the shared libraries of ExecuTorch's own wheel, and sent with them and the C library it was built for:
the board's own does not matter.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError, InvalidInput, ToolchainMissing
from edgekit.generation import timing_prompt
from edgekit.runtimes.remote._facts import Facts
from edgekit.runtimes.remote._parcel import Parcel, bundle_parcel, file_parcel, folder_parcel
from edgekit.runtimes.remote._wheels import fetch
from edgekit.types import entry_points
from edgekit.wire import encoded

SOURCES = Path(__file__).parents[1] / "cpp"
JOB = "job.json"
CACHE = Path("~/.cache/edgekit/runner")
REQUIREMENT = "executorch>=1.5,<2"
LIBRARIES = ("executorch", "executorch_threadpool", "executorch_kernels_optimized", "executorch_kernels_quantized",
             "executorch_backend_xnnpack")  # fmt: skip
LOADERS = {"aarch64": "ld-linux-aarch64.so.1", "x86_64": "ld-linux-x86-64.so.2"}
SYSTEM = ("libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1")
WHEEL_GLIBC = (2, 28)


def native_work(bundle: Bundle, threads: int, board: Facts, offline: Path | None) -> tuple[list[Parcel], str]:
    """What a board needs to run the bundle natively, the model last, and the command that does it."""
    runner, model = folder_parcel("the native runner", build(board.machine, offline)), bundle_parcel(bundle)
    job = file_parcel("a sample", JOB, native_job(bundle).encode())
    names = " ".join(shlex.quote(spec.name) for spec in bundle.manifest.outputs)
    command = (
        f'"{runner.path}/{LOADERS[board.machine]}" --library-path "{runner.path}" "{runner.path}/worker" '
        f'"{model.path}"/{shlex.quote(bundle.artifact.path)} {threads} "{job.path}/{JOB}" {names}'
    )
    return [runner, job, model], command


def native_job(bundle: Bundle) -> str:
    """What `worker.cpp` reads of a bundle besides its model: methods by size, the prompt to time, a sample."""
    manifest, sample = bundle.manifest, bundle.golden()[0][0]
    sized = {dim.axis_name for dim in manifest.dynamic if dim.sizes}
    places = [f"{i}.{axis}" for i, spec in enumerate(manifest.inputs) for axis in range(len(spec.shape))
              if spec.shape[axis] in sized]  # fmt: skip
    return json.dumps(
        {
            "methods": ",".join(f"{name}={size}" for name, size in entry_points(manifest.dynamic).items()),
            "sized": places[0] if places else "0.0",
            "prompt": ",".join(map(str, timing_prompt(manifest.generation) if manifest.generation else ())),
            "feeds": encoded({spec.name: sample[spec.name] for spec in manifest.inputs}),
        }
    )


def build(machine: str, offline: Path | None = None) -> Path:
    """The folder with the runner for a processor, built where it is not in the cache. Raises `ToolchainMissing`."""
    if machine not in LOADERS:
        raise InvalidInput(f"ExecuTorch has no build for {machine}: there are {', '.join(LOADERS)}")
    made_of = b"".join(path.read_bytes() for path in (*sorted(SOURCES.iterdir()), Path(__file__)))
    key = hashlib.sha256(made_of + machine.encode()).hexdigest()[:16]
    folder = CACHE.expanduser() / key
    if not folder.exists():
        part = folder.with_suffix(f".{os.getpid()}.part")
        part.mkdir(parents=True)
        try:
            _compile(_compiler(machine), machine, part, offline)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _compiler(machine: str) -> str:
    name = f"{machine}-linux-gnu-g++"
    if found := shutil.which(name) or (shutil.which("g++") if platform.machine() == machine else None):
        return found
    package = f"g++-{machine.replace('_', '-')}-linux-gnu"
    raise ToolchainMissing(f"the native runner is built by {name}, which was not found: apt-get install {package}")


def _compile(compiler: str, machine: str, out: Path, offline: Path | None) -> None:
    (wheel,) = fetch((REQUIREMENT,), machine, sys.version_info[:2], WHEEL_GLIBC, offline, dependencies=False)
    unpacked = out / "wheel"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(
            unpacked, [n for n in archive.namelist() if n.startswith(("executorch/lib/", "executorch/inc"))]
        )
    libraries, headers = unpacked / "executorch/lib", unpacked / "executorch/include"
    command = [
        compiler, "-std=c++17", "-O2", "-w", "-DC10_USING_CUSTOM_GENERATED_MACROS",
        f'-DEXECUTORCH_VERSION="{wheel.name.split("-")[1]}"', f"-I{headers}",
        f"-I{headers}/executorch/runtime/core/portable_type/c10", str(SOURCES / "worker.cpp"),
        "-o", str(out / "worker"),
        f"-L{libraries}", "-Wl,--no-as-needed",  # kernels and backends register themselves when they are loaded
        *(f"-l{name}" for name in LIBRARIES),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgekitError(f"the native runner does not build with {wheel.name}: {done.stderr.strip()[-600:]}")
    for name in LIBRARIES:
        shutil.copy(libraries / f"lib{name}.so", out)
    for name in (LOADERS[machine], *SYSTEM):
        asked = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        if Path(found := asked.stdout.strip()).is_absolute():
            shutil.copy(found, out)
    shutil.rmtree(unpacked)


if __name__ == "__main__":
    print(build(*sys.argv[1:2] or ("aarch64",)))  # noqa: T201  `make runner`
