"""A board as a place to measure: its lock, what it is given, and processes over there that end with those here."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from edgekit.bundle import Bundle
from edgekit.errors import DeviceBusy, DeviceLost, InvalidInput
from edgekit.runtimes.remote._facts import SCRIPT, Facts, check_python, check_room, parse_facts
from edgekit.runtimes.remote._link import SILENCE, Link, last_words, run, start
from edgekit.runtimes.remote._native import native_work
from edgekit.runtimes.remote._parcel import STORE, SUMS, Parcel, send
from edgekit.runtimes.remote._wheels import python_work

RUNS = "$EDGEKIT/runs"
NATIVE = "executorch"  # the runtime that needs no Python over there
KEPT_DAYS = 30  # what no run used for so long is removed
WAITED_FOR_PID = 20  # tenths of a second that a process may take to say its number
STOP_S = 5  # for the board to kill a worker
# Facts, then the lock, which the kernel gives back when this script ends: with its input, or after its time.
HOLD = """
mkdir -p "{store}" "{runs}" && cd "$EDGEKIT" || exit 1
{facts}
exec 9>>lock
flock -n 9 || {{ echo busy=$(cat holder); exit 0; }}
echo "{who} since $(date '+%Y-%m-%d %H:%M')" >holder
rm -rf store/*.part
find store -mindepth 1 -maxdepth 1 -mtime +{days} -exec rm -rf {{}} +
for run in runs/*; do [ -f $run/pid ] && kill -9 $(cat $run/pid) 2>/dev/null; rm -rf $run; done
echo held=yes
exec timeout {limit} cat
"""
# The number is the worker's own, since exec keeps it. The last line says how it ended; only then is the run over.
WORK = """
mkdir "{runs}/{run}" && cd "{runs}/{run}" || exit 1
timeout -k 5 {limit} sh -c 'echo $$ >pid; exec "$0" "$@"' {command} 2>said
code=$?
words=$(tail -n 1 said | tr -d '"\\\\\\001-\\037')
cd .. && rm -rf {run}
[ $code -gt 128 ] && code=$((128 - code))
printf '\\n{{"ended": %d, "words": "%s"}}\\n' $code "$words"
"""
STOP = """
cd "{runs}/{run}" 2>/dev/null || exit 0
for tenth in $(seq {tenths}); do [ -s pid ] && break; sleep 0.1; done
kill -9 $(cat pid)
cd .. && rm -rf {run}
"""


class RemotePlace:
    """One board, held until `close`."""

    def __init__(self, link: Link, limit_s: int, offline_wheels: Path | None, progress: Callable[[str], None]) -> None:
        self.title = link.name
        self._link, self._limit_s, self._offline, self._progress = link, limit_s, offline_wheels, progress
        self._commands: dict[tuple[Path, int], str] = {}
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the board is held
        who = re.sub(r"[^\w.@ -]", "", f"{os.environ.get('USER', 'somebody')} on {socket.gethostname()}")
        script = HOLD.format(store=STORE, runs=RUNS, facts=SCRIPT, who=who, limit=limit_s, days=KEPT_DAYS)
        self._holder = start(link, script, self._errors)
        try:
            self.facts = self._hold()
        except BaseException:
            self.close()
            raise
        progress(f"{self.title}: {self.facts}")

    def _hold(self) -> Facts:
        said = []
        for line in self._holder.stdout or ():
            text = line.decode(errors="replace").strip()
            if text.startswith("busy="):
                raise DeviceBusy(
                    f"{self.title} measures for {text[5:]}: two at once would disturb each other; try later"
                )
            if text == "held=yes":
                break
            said.append(text)
        else:
            raise DeviceLost(f"{self.title} did not answer: {last_words(self._errors) or SILENCE}")
        return parse_facts("\n".join(said))

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        """A worker on the board, after what it lacks was sent."""
        started = (bundle.path, threads)
        if started not in self._commands:
            self._commands[started] = self._equip(bundle, threads)
        self._progress(f"start {bundle.artifact.runtime} on {self.title}")
        return RemoteProcess(self._link, self._commands[started], self._limit_s)

    def _equip(self, bundle: Bundle, threads: int) -> str:
        if bundle.artifact.runtime == NATIVE:
            parcels, command = native_work(bundle, threads, self.facts, self._offline)
        elif self._link.has_python:
            check_python(self.title, self.facts)
            parcels, command = python_work(bundle, threads, self.facts, self._offline)
        else:
            raise InvalidInput(f"{self.title} runs ExecuTorch bundles: edgekit export --format {NATIVE}")
        self._send(parcels, bundle)
        return command

    def ended(self, process: subprocess.Popen[str]) -> int:
        """There is no code where the connection went before the board could tell one."""
        raise self._lost(process)

    def check(self, process: subprocess.Popen[str]) -> None:
        """Ask the board for a sign, where its client would not notice that it is gone."""
        if not self._link.answers():
            raise self._lost(process)

    def _lost(self, process: subprocess.Popen[str]) -> DeviceLost:
        words = ""
        if isinstance(process, RemoteProcess):
            process.abandon()
            words = last_words(process.said)
        return DeviceLost(f"the connection to {self.title} was lost{words and ': '}{words}")

    def close(self) -> None:
        """Give the board back."""
        if self._holder.stdin is not None:
            self._holder.stdin.close()
        self._link.close()
        self._holder.kill()
        self._holder.wait()
        self._errors.close()

    def _send(self, parcels: Sequence[Parcel], bundle: Bundle) -> None:
        """Send what is not there yet. A bundle that is there must still have its hashes."""
        keys, model = " ".join(parcel.key for parcel in parcels), parcels[-1].path
        checked = f'(cd "{model}" && sha256sum -c {SUMS}) >/dev/null 2>&1 || rm -rf "{model}"'
        there = run(
            self._link,
            f'{checked}; cd "{STORE}" && for key in {keys}; do [ -d $key ] && touch $key && echo $key; done; true',
        )
        missing = [parcel for parcel in parcels if parcel.key not in there.split()]
        check_room(self.title, self.facts, sum(parcel.bytes for parcel in missing), bundle.model_bytes)
        if missing:
            size = sum(parcel.bytes for parcel in missing) / 1e6
            self._progress(f"send {size:.1f} MB to {self.title}: {', '.join(parcel.name for parcel in missing)}")
            send(self._link, missing)


class RemoteProcess(subprocess.Popen[str]):
    """The client's process for one worker; killing it kills the worker on the board first."""

    def __init__(self, link: Link, command: str, limit_s: int) -> None:
        self._link, self._run = link, secrets.token_hex(8)
        self.said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  read when the process has ended
        script = WORK.format(runs=RUNS, run=self._run, limit=limit_s, command=command)
        super().__init__(link.command(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said,
                         text=True, errors="replace", start_new_session=True)  # fmt: skip

    def abandon(self) -> None:
        """End the client alone: there is no way to the board, and asking for one would take its time."""
        super().kill()
        self.wait()

    def kill(self) -> None:
        """Leave nothing running over there, as far as there is still a way to it."""
        if self.poll() is None:
            stop = self._link.command(STOP.format(runs=RUNS, run=self._run, tenths=WAITED_FOR_PID))
            with contextlib.suppress(subprocess.TimeoutExpired):  # no way to it: its time limit ends it
                subprocess.run(stop, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, timeout=STOP_S,
                               start_new_session=True, check=False)  # fmt: skip
        super().kill()
