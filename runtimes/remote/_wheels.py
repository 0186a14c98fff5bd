"""The runtime half as a board gets it: this package's own files, and the wheels of one backend for that board."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from io import BytesIO
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError, InvalidInput, ToolchainMissing
from edgekit.runtimes.remote._facts import Facts
from edgekit.runtimes.remote._parcel import Parcel, bundle_parcel, unzipped_parcel, wheel_parcel

BASE = ("numpy>=1.26", "msgspec>=0.19")
PACKAGES = ("edgekit", "edgekit.formats", "edgekit.runtimes", "edgekit.runtimes.meters")  # of the runtime half
CACHE = Path("~/.cache/edgekit/wheels")
OLDEST_GLIBC = 17  # of the 2.x that wheels are named after
DATE = (1980, 1, 1, 0, 0, 0)  # in every archive, so that equal content has an equal hash


def own_wheel() -> tuple[str, bytes]:
    """Name and content of a pure wheel with the modules of the runtime half, without its optional C decoder."""
    version = import_module("edgekit").__version__
    info = f"edgekit-{version}.dist-info"
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for package in PACKAGES:
            for path in _sources(package):
                name = f"{package.replace('.', '/')}/{path.name}"
                archive.writestr(zipfile.ZipInfo(name, DATE), path.read_bytes())
        metadata = f"Metadata-Version: 2.1\nName: edgekit\nVersion: {version}\n"
        archive.writestr(zipfile.ZipInfo(f"{info}/METADATA", DATE), metadata)
    return f"edgekit-{version}", buffer.getvalue()


def python_work(bundle: Bundle, threads: int, board: Facts, offline: Path | None) -> tuple[list[Parcel], str]:
    """What a board needs to run the bundle in its own Python, the model last, and the command that does it."""
    requirements = (*BASE, bundle.artifact.runtime_version_range)
    wheels = fetch(requirements, board.machine, board.python[:2], board.glibc or (), offline)
    packages = [unzipped_parcel(*own_wheel()), *(wheel_parcel(wheel, board.machine) for wheel in wheels)]
    path, model = ":".join(package.path for package in packages), bundle_parcel(bundle)
    command = f'env "PYTHONPATH={path}" python3 -P -m edgekit.worker "{model.path}" {threads}'
    return [*packages, model], command


def fetch(
    requirements: tuple[str, ...],
    machine: str,
    python: tuple[int, ...],
    glibc: tuple[int, ...],
    offline: Path | None,
    *,
    dependencies: bool = True,
) -> list[Path]:
    """Wheels for another machine's processor, Python and C library: from the index, or from the folder `offline`.

    They are kept in ~/.cache/edgekit/wheels, a folder for each question. Raises `ToolchainMissing` where there are
    none, `InvalidInput` where `offline` is no folder.
    """
    if offline is not None and not offline.is_dir():
        raise InvalidInput(f"--offline-wheels: '{offline}' is no folder")
    tags = [*(f"manylinux_2_{n}_{machine}" for n in range(glibc[1], OLDEST_GLIBC - 1, -1)), f"manylinux2014_{machine}"]
    arguments = ["--only-binary=:all:", "--implementation", "cp", "--python-version", ".".join(map(str, python)),
                 *(word for tag in tags for word in ("--platform", tag)), *([] if dependencies else ["--no-deps"]),
                 *(["--no-index", "--find-links", str(offline)] if offline else []), *requirements]  # fmt: skip
    offered = sorted((p.name, p.stat().st_size) for p in offline.glob("*.whl")) if offline else []
    folder = CACHE.expanduser() / hashlib.sha256(repr((arguments, offered)).encode()).hexdigest()[:16]
    if not folder.exists():
        part = folder.with_suffix(f".{os.getpid()}.part")
        part.mkdir(parents=True)
        try:
            _pip_download([*arguments, "--dest", str(part)], f"{requirements[-1]} for {machine}")
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return sorted(folder.glob("*.whl"))


def _pip_download(arguments: list[str], wanted: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or done.stderr.splitlines()[-1:]
    said = errors[-1].removeprefix("ERROR: ") if errors else f"pip left with code {done.returncode}"
    if "No module named pip" in said:
        raise ToolchainMissing("wheels for a board are fetched by pip, which this Python lacks: python -m ensurepip")
    raise ToolchainMissing(f"no wheels of {wanted}: {said}; or take them from a folder: --offline-wheels DIR")


def _sources(package: str) -> list[Path]:
    try:
        module = import_module(package)
    except ModuleNotFoundError:
        return []
    if module.__file__ is None:
        raise EdgekitError(f"the files of {package} were not found: install edgekit from a folder or a wheel")
    return sorted(Path(module.__file__).parent.glob("*.py"))
