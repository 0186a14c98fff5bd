"""Phones and other Android devices, by the system's adb client. They run ExecuTorch bundles, with the native runner."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import InvalidInput, ToolchainMissing
from edgekit.runtimes.remote._link import unreachable
from edgekit.runtimes.remote._place import RemotePlace

SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
ANSWER_S = 3.0
FOLDER = "/data/local/tmp/edgekit"  # where adb's shell may write and run


def open_place(address: str, limit_s: int, offline_wheels: Path | None, progress: Callable[[str], None]) -> RemotePlace:
    """Hold the device with this serial.

    Raises `InvalidInput`, `DeviceUnreachable`, and `ToolchainMissing` where this machine has no adb.
    """
    if not SERIAL.fullmatch(address):
        raise InvalidInput(f"'adb:{address}' is no serial: see adb devices")
    if shutil.which("adb") is None:
        raise ToolchainMissing("adb was not found: install Android's platform tools (apt-get install adb)")
    asked = subprocess.run(["adb", "-s", address, "get-state"], capture_output=True, text=True, check=False,
                           stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    if asked.stdout.strip() != "device":
        said = (asked.stderr.strip() or asked.stdout.strip() or "adb does not say why").splitlines()[-1]
        raise unreachable(address, f"{said.removeprefix('error: ')}; see adb devices, or: adb connect HOST:PORT")
    return RemotePlace(_Adb(address), limit_s, offline_wheels, progress)


class _Adb:
    """The server that adb keeps on this machine holds the connection."""

    has_python = False

    def __init__(self, serial: str) -> None:
        self.name = serial

    def command(self, script: str) -> list[str]:
        """`adb shell` without a terminal: bytes go through as they are."""
        return ["adb", "-s", self.name, "shell", "-T", f"EDGEKIT={FOLDER}\n{script}"]

    def answers(self) -> bool:
        """Behind a cut network cable adb waits for minutes."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return not subprocess.run(self.command("true"), stdin=subprocess.DEVNULL, capture_output=True,
                                      timeout=ANSWER_S, start_new_session=True, check=False).returncode  # fmt: skip
        return False

    def close(self) -> None:
        """Nothing of ours is open."""
