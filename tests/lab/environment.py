"""The lab's arm64 root and wheels: built once, kept in ~/.cache/edgekit-lab under a hash of what they are made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("EDGEKIT_LAB_CACHE", "~/.cache/edgekit-lab")).expanduser()
RELEASE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libgomp1", "libstdc++6", "bash", "dash", "coreutils", "findutils",
            "grep", "procps", "tar", "gzip", "util-linux", "libc-bin")  # fmt: skip
RUNNER = "executorch==1.5.1"  # for its shared libraries alone
WHEELS = ("numpy==2.4.6", "msgspec==0.22.0", "onnxruntime==1.31.1", "ai-edge-litert==2.3.0")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
FOLDERS = ("data/local/tmp", "dev", "etc", "home/pi", "proc", "run", "srv", "sys", "tmp")
EMULATED = "qemu-user\n"  # the mark by which `edgekit.host` knows that no time measured here is a board's


class LabMissing(Exception):
    """A piece that the lab needs and this machine lacks, with what brings it."""


@dataclass(frozen=True)
class Environment:
    """Where the pieces lie: `root` is an arm64 Debian without kernel, `wheels` what boards are given."""

    path: Path

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def wheels(self) -> Path:
        return self.path / "wheels"

    @property
    def site(self) -> Path:
        """The wheels unpacked, for an arm64 Python without a board."""
        return self.path / "site"


def environment() -> Environment:
    """The environment, built when its pins are new. Raises `LabMissing`."""
    pins = [RELEASE, PACKAGES, WHEELS, RUNNER, PLATFORMS, FOLDERS, EMULATED]
    path = CACHE / hashlib.sha256(json.dumps(pins).encode()).hexdigest()[:16]
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.tmp")
        part.mkdir(parents=True)
        try:
            _build_root(part / "root", part / "apt")
            _download_wheels(part / "wheels")
            _unpack((part / "wheels"), part / "site")
            shutil.rmtree(part / "apt")
            part.rename(path)
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()[-1:] or ["no message"]
            raise LabMissing(f"the lab's root cannot be built: {error.cmd[0]}: {said[0]}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return Environment(path)


def _build_root(root: Path, state: Path) -> None:
    """Unpack Debian packages: a private apt state leaves this machine's own alone, and no maintainer script runs."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise LabMissing(f"no {tool}: the lab's arm64 root is made of Debian packages")
    sites = _run("apt-get", "indextargets", "--format", "$(SITE)").split()
    if not sites:
        raise LabMissing("apt-get knows no mirror: write one into /etc/apt/sources.list.d")
    for folder in (state / "lists/partial", state / "cache/archives/partial", *(root / name for name in FOLDERS)):
        folder.mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {sites[0]} {RELEASE} main\n")
    settings = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root", "Acquire::Languages": "none", "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status", "Dir::Cache": state / "cache",
        "Dir::Etc::SourceList": state / "sources.list", "Dir::Etc::SourceParts": "/dev/null",
    }  # fmt: skip
    options = [f"-o{name}={value}" for name, value in settings.items()]
    _run("apt-get", *options, "update", "-qq")
    _run("apt-get", *options, "install", "--yes", "-qq", "--download-only", *PACKAGES)
    for package in sorted((state / "cache/archives").glob("*.deb")):
        _run("dpkg", "-x", str(package), str(root))
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\npi:x:1000:1000::/home/pi:/bin/bash\n")
    (root / "etc/group").write_text("root:x:0:\npi:x:1000:\n")
    (root / "etc/edgekit-emulated").write_text(EMULATED)


def _download_wheels(folder: Path) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    for wanted in (WHEELS, ("--no-deps", RUNNER)):
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", "3.11",
             "--implementation", "cp", *platforms, "--dest", str(folder), *wanted)  # fmt: skip


def _unpack(wheels: Path, site: Path) -> None:
    for wheel in sorted(wheels.glob("*.whl")):
        if not wheel.name.startswith("executorch-"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
