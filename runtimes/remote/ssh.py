"""Boards with an ssh server, by the system's own client: its config, agents, keys and jump hosts count."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import InvalidInput, ToolchainMissing
from edgekit.runtimes.remote._link import SILENCE, last_words, unreachable
from edgekit.runtimes.remote._place import RemotePlace

USER, HOST = r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", r"[A-Za-z0-9_.][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.%a-z]+\]"
ADDRESS = re.compile(rf"(?:(?P<user>{USER})@)?(?P<host>{HOST})(?::(?P<port>\d{{1,5}}))?")
FOLDER = 'EDGEKIT="$HOME/.edgekit"\n'
# A cut cable ends the client after two unanswered questions; nobody is asked for a password in the middle of a run.
OPTIONS = ("BatchMode=yes", "ConnectTimeout=8", "ServerAliveInterval=2", "ServerAliveCountMax=2",
           "ControlMaster=auto", "ControlPersist=60", "ForwardAgent=no", "ForwardX11=no", "RequestTTY=no",
           "RemoteCommand=none", "LogLevel=ERROR")  # fmt: skip
HINTS = {
    "Host key verification failed": "connect once by hand to see and accept its key: ssh {}",
    "Permission denied": "it asks for a password or another key: ssh-copy-id {}",
    "Exec format error": "it cannot run its own shell",
}


def open_place(address: str, limit_s: int, offline_wheels: Path | None, progress: Callable[[str], None]) -> RemotePlace:
    """Connect to `[user@]host[:port]` and hold the board; all scripts share one connection.

    Raises `InvalidInput`, `DeviceUnreachable`, and `ToolchainMissing` where this machine has no ssh.
    """
    found = ADDRESS.fullmatch(address)
    if found is None or int(found["port"] or 22) > 65535:
        raise InvalidInput(f"'ssh:{address}' is no address: write ssh:user@host or ssh:user@host:port")
    if shutil.which("ssh") is None:
        raise ToolchainMissing("ssh was not found: install OpenSSH's client (apt-get install openssh-client)")
    target = found["host"].strip("[]")
    link = _Ssh(address, f"{found['user']}@{target}" if found["user"] else target, found["port"])
    return RemotePlace(link, limit_s, offline_wheels, progress)


class _Ssh:
    """One connection, kept by OpenSSH's control socket in a folder of its own."""

    has_python = True

    def __init__(self, address: str, target: str, port: str | None) -> None:
        self.name = address
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-ssh-", ignore_cleanup_errors=True)
        self._target = target
        options = (*OPTIONS, f"ControlPath={self._folder.name}/%C")
        self._options = [*(f"-o{option}" for option in options), *(["-p", port] if port else [])]
        self._by_hand = f"{target} -p {port}" if port else target
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        with tempfile.TemporaryFile() as errors:
            done = subprocess.run(self.command("exit 0"), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                                  start_new_session=True, check=False)  # fmt: skip
            if done.returncode:
                said = last_words(errors) or SILENCE
                hint = next((hint.format(self._by_hand) for text, hint in HINTS.items() if text in said), None)
                raise unreachable(self.name, f"{said}; {hint}" if hint else said)

    def command(self, script: str) -> list[str]:
        """`ssh` with a script for the board's plain shell, whatever the account's own is."""
        return ["ssh", *self._options, "--", self._target, f"exec sh -c {shlex.quote(FOLDER + script)}"]

    def answers(self) -> bool:
        """OpenSSH ends by itself when nobody answers."""
        return True

    def close(self) -> None:
        """End the shared connection."""
        if Path(self._folder.name).exists():
            subprocess.run(["ssh", *self._options, "-O", "exit", "--", self._target], stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)  # fmt: skip
            self._folder.cleanup()
