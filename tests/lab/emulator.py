"""One program under qemu, without a board, root or sshd: a `Place` whose workers are arm64 processes here."""

from __future__ import annotations

import os
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path

from lab.board import Personality
from lab.environment import Environment

from edgekit.bundle import Bundle
from edgekit.place import Here
from edgekit.runtimes.remote._native import JOB, build, native_job
from edgekit.runtimes.remote._wheels import own_wheel

QEMU = "qemu-aarch64-static"


class Emulator(Here):
    """A processor that runs workers. `folder` holds a root with this processor's /proc/cpuinfo, by links."""

    def __init__(
        self, environment: Environment, personality: Personality, folder: Path, qemu_cpu: str | None = None
    ) -> None:
        self.title = f"an emulated {personality.name}"
        self._environment, self._qemu_cpu = environment, qemu_cpu or personality.qemu_cpu
        self._root, self._own = folder / "root", folder / "edgekit"
        (self._root / "proc").mkdir(parents=True)
        for name in ("etc", "lib", "usr"):
            (self._root / name).symlink_to(environment.root / name)
        (self._root / "proc/cpuinfo").symlink_to(personality.cpuinfo)
        with zipfile.ZipFile(BytesIO(own_wheel()[1])) as archive:
            archive.extractall(self._own)

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        python = [self._root / "usr/bin/python3.11", "-P", "-m", "edgekit.worker", bundle.path, threads]
        command = self._native(bundle, threads) if bundle.artifact.runtime == "executorch" else python
        variables = {
            "PATH": os.environ["PATH"],
            "QEMU_CPU": self._qemu_cpu,
            "PYTHONPATH": f"{self._own}:{self._environment.site}",
        }
        words = [QEMU, "-L", str(self._root), *map(str, command)]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)

    def _native(self, bundle: Bundle, threads: int) -> list[object]:
        job = self._own / JOB
        job.write_text(native_job(bundle))
        runner = build("aarch64", self._environment.wheels)
        outputs = [spec.name for spec in bundle.manifest.outputs]
        loader = [runner / "ld-linux-aarch64.so.1", "--library-path", runner]
        return [*loader, runner / "worker", bundle.artifact_path, threads, job, *outputs]
