"""Boards of the lab: a Raspberry Pi's processor by qemu, an sshd of its own, and what can go wrong with one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from lab.environment import Environment, LabMissing

HERE = Path(__file__).parent
BINFMT = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
BOOT_S = 10


@dataclass(frozen=True)
class Personality:
    """A processor: what qemu computes, and the /proc/cpuinfo that libraries choose their kernels by."""

    name: str
    qemu_cpu: str

    @property
    def cpuinfo(self) -> Path:
        return HERE / f"cpuinfo.{self.name}"


PI4 = Personality("pi4", "cortex-a72")
PI5 = Personality("pi5", "cortex-a76")


def need_boards() -> None:
    """Raise `LabMissing` for the first thing that a board with sshd needs and this machine lacks."""
    need_tool("qemu-aarch64-static", "qemu-user-static")
    need_tool("sshd", "openssh-server", at="/usr/sbin/sshd")
    need_tool("ssh", "openssh-client")
    if os.geteuid() != 0:
        raise LabMissing("not root: a board needs mount and process namespaces")
    if not BINFMT.exists():
        raise LabMissing(
            "binfmt_misc does not know qemu-aarch64: mount -t binfmt_misc none /proc/sys/fs/binfmt_misc, "
            "then apt-get install --reinstall qemu-user-static"
        )


def need_tool(name: str, package: str, at: str | None = None) -> None:
    """Raise `LabMissing` with the package that brings a program."""
    if shutil.which(at or name) is None:
        raise LabMissing(f"{name} was not found: apt-get install {package}")


class Board:
    """One board. `folder` keeps its home, keys and logs; `prefix` and `client` run it and who calls it elsewhere."""

    def __init__(
        self,
        environment: Environment,
        personality: Personality,
        folder: Path,
        *,
        qemu_cpu: str | None = None,
        address: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
        client: tuple[str, ...] = (),
        home_mb: int | None = None,
        server: str = "ssh",
    ) -> None:
        self.environment, self.personality, self.folder = environment, personality, folder
        self.qemu_cpu = qemu_cpu or personality.qemu_cpu
        self.address, self.port, self.home_mb, self.server = address, free_port(), home_mb, server
        self._prefix, self._client_prefix = prefix, client
        folder.mkdir(parents=True)
        for name in ("id", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        (folder / "known_hosts").write_text(f"[{address}]:{self.port} {(folder / 'host.pub').read_text()}")
        config = f"IdentityFile {folder}/id\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
        (folder / "ssh_config").write_text(config)
        for client in ("ssh", "adb"):
            self._client(client)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def device(self) -> str:
        """What `-d` takes."""
        user = "pi@" if self.server == "ssh" else ""
        return f"{self.server}:{user}{self.address}:{self.port}"

    @property
    def home(self) -> Path:
        """The board's home as this machine sees it."""
        return self.folder / "home"

    def start(self) -> None:
        """Power on, and wait until sshd listens."""
        boot = ["bash", str(HERE / "boot.sh"), str(self.environment.root), str(self.folder),
                str(self.personality.cpuinfo), self.qemu_cpu, self.address, str(self.port), self.server]  # fmt: skip
        alive = ("setpriv", "--pdeathsig", "KILL")  # a board does not outlive the tests that were killed
        command = [*alive, *self._prefix, "unshare", "--mount", "--pid", "--fork", "--kill-child", *boot]
        variables = os.environ | ({"HOME_MB": str(self.home_mb)} if self.home_mb else {})
        log = (self.folder / "sshd.log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
        log.close()
        end = time.monotonic() + BOOT_S
        while b"Server listening" not in (self.folder / "sshd.log").read_bytes():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the board did not start: {(self.folder / 'sshd.log').read_text()[-500:]}")
            time.sleep(0.02)

    def ensure_on(self) -> None:
        """Power on after a cut."""
        if self._process is None:
            self.start()

    def cut_power(self) -> None:
        """Every process of the board is gone at once; its home stays. A process namespace ends with its first one."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            (self.folder / "sshd.log").unlink()

    def pids(self) -> list[int]:
        """The machine's numbers of the board's processes, sshd first."""
        if self._process is None:
            return []
        found, children = [], [self._process.pid]
        while children:
            found += children
            children = [child for pid in children for child in _children(pid)]
        return found[1:]

    def processes(self) -> list[str]:
        """Command lines of everything that the board's user runs."""
        return [
            line for line in map(_command, self.pids()) if line and "sshd" not in line and "adb_device.py" not in line
        ]

    def pids_of(self, word: str) -> list[int]:
        """The machine's numbers of the processes with a word in their command line."""
        return [pid for pid in self.pids() if word in _command(pid)]

    def call(self, client: str, *words: str) -> str:
        """What a client of this board says."""
        command = [self.folder / "bin" / client, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _client(self, name: str) -> None:
        """An `ssh` with this board's key and host key, as ~/.ssh/config would name them, or an `adb` near the board."""
        binary = self.folder / "bin" / name
        binary.parent.mkdir(exist_ok=True)
        words = [*self._client_prefix, f"/usr/bin/{name}", *([f"-F {self.folder}/ssh_config"] if name == "ssh" else [])]
        binary.write_text(f'#!/bin/sh\nexec {" ".join(words)} "$@"\n')
        binary.chmod(0o755)


def _children(pid: int) -> list[int]:
    try:  # each thread has children of its own
        return [int(n) for task in Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
