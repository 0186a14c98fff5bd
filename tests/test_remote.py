"""What can be said of boards without one: addresses, facts, parcels, and processes that die."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgekit.benchmark import measure
from edgekit.bundle import REPORT, Bundle
from edgekit.errors import DeviceLost, EdgekitError, InvalidInput, ToolchainMissing, UnknownName
from edgekit.place import HERE, LEAST_ASKED, Here, Worker, WorkerSession, open_at, place_at
from edgekit.runtimes.remote import _facts, _parcel, _wheels, adb, ssh
from edgekit.runtimes.remote._facts import check_python, check_room, parse_facts
from edgekit.runtimes.remote._link import run
from edgekit.runtimes.remote._parcel import bundle_parcel, check_elf, file_parcel, send
from tests.scripted_worker import STATE

PI = """machine=aarch64
system=Linux
glibc=glibc 2.36
python=Python 3.11.2
disk=/dev/mmcblk0p2 30000000 100 20000000 48% /
memory=MemAvailable: 7000000 kB
governor=ondemand
temperature=81312
"""


@pytest.mark.parametrize(
    "device",
    ["ssh", "ssh:", "raspberrypi5", "ssh:a b", "ssh:-oProxyCommand=x", "ssh:pi@", "ssh:pi@h:99999", "adb:-s x"],
)
def test_what_is_no_address_is_refused_before_anything_runs(device: str) -> None:
    with pytest.raises(InvalidInput, match=r"no address|no device|no serial"), place_at(device):
        pass


def test_an_unknown_way_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'ssh'"), place_at("shs:pi@board"):
        pass


@pytest.mark.parametrize(
    ("address", "parts"),
    [("board", (None, "board", None)), ("pi@10.0.0.2:2222", ("pi", "10.0.0.2", "2222")),
     ("a.b@h-1.lan", ("a.b", "h-1.lan", None)),
     ("pi@[fe80::1%eth0]:22", ("pi", "[fe80::1%eth0]", "22"))],
)  # fmt: skip
def test_an_address_has_a_user_a_host_and_a_port(address: str, parts: tuple[str | None, ...]) -> None:
    found = ssh.ADDRESS.fullmatch(address)
    assert found is not None
    assert (found["user"], found["host"], found["port"]) == parts


@pytest.mark.parametrize(("place", "program"), [(ssh, "ssh"), (adb, "adb")])
def test_a_missing_client_is_named_with_its_package(place: Any, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolchainMissing, match=f"{program} was not found.*apt-get install"):
        place.open_place("board", 9, None, print)


def test_a_board_is_what_its_shell_says() -> None:
    board = parse_facts(PI)
    assert (board.machine, board.glibc, board.python) == ("aarch64", (2, 36), (3, 11, 2))
    assert (board.disk_bytes, board.memory_bytes) == (20_000_000 * 1024, 7_000_000 * 1024)
    assert "governor ondemand, 81 °C, hot" in str(board)


def test_the_script_of_facts_runs_in_this_machines_shell() -> None:
    said = subprocess.run(["sh", "-c", _facts.SCRIPT], capture_output=True, text=True, check=True).stdout
    assert parse_facts(said).machine == os.uname().machine


def test_a_phone_says_less() -> None:
    board = parse_facts("machine=aarch64\nsystem=Linux\nglibc=\npython=sh: python3: not found\ndisk=\nmemory=\n")
    assert (board.glibc, board.python, board.disk_bytes, board.governor) == (None, (), None, None)
    check_room("it", board, 10**15, 10**15)  # what nobody knows stands in nobody's way
    with pytest.raises(ToolchainMissing, match="has no python3"):
        check_python("it", board)


@pytest.mark.parametrize("text", ["", "rbash: restricted", "machine=\nsystem=\n"])
def test_another_shell_is_named(text: str) -> None:
    with pytest.raises(EdgekitError, match="POSIX shell"):
        parse_facts(text)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("Linux", "Darwin", "runs Darwin"), ("3.11.2", "3.9.2", "has Python 3.9.2, and the runtime half needs 3.11"),
     ("glibc 2.36", "", "has no glibc")],
)  # fmt: skip
def test_a_board_that_takes_no_wheels_says_why(old: str, new: str, said: str) -> None:
    with pytest.raises(EdgekitError, match=said):
        check_python("it", parse_facts(PI.replace(old, new)))


def test_room_is_asked_for_disk_and_memory() -> None:
    board = parse_facts(PI)
    check_room("it", board, 20 * 10**9, 7 * 10**9)
    with pytest.raises(InvalidInput, match="MB of disk free, and 21000 MB are needed"):
        check_room("it", board, 21 * 10**9, 0)
    with pytest.raises(InvalidInput, match="MB of memory free"):
        check_room("it", board, 0, 8 * 10**9)


def test_elf_headers_name_the_processor() -> None:
    here = Path(sys.executable).resolve().read_bytes()[:20]
    check_elf(here, os.uname().machine, "python")
    check_elf(b"plain text", "aarch64", "a script")
    with pytest.raises(InvalidInput, match=f"python is code for {os.uname().machine}, and the board is riscv64"):
        check_elf(here, "riscv64", "python")


def test_the_wheel_for_boards_runs_a_bundle_and_has_no_more_than_it_needs(
    small_conv_bundle: Bundle, tmp_path: Path
) -> None:
    name, content = _wheels.own_wheel()
    assert (name, content) == _wheels.own_wheel()  # its hash is its name on the board
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path)
    assert not (tmp_path / "edgekit/exporters").exists()
    command = [sys.executable, "-P", "-m", "edgekit.worker", str(small_conv_bundle.path), "1"]
    done = subprocess.run(command, input='{"calls": 2}\n', capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert len(json.loads(done.stdout.splitlines()[1])["times_s"]) == 2


def test_the_wheels_a_board_gets_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(_wheels.BASE) == {d for d in project["dependencies"] if not d.startswith("typer")}


class Shell:
    """A link to this machine's own shell."""

    name, has_python = "a shell", True

    def __init__(self, folder: Path) -> None:
        (folder / "store").mkdir()
        self._folder = folder

    def command(self, script: str) -> list[str]:
        return ["sh", "-c", f"EDGEKIT='{self._folder}'\n{script}"]

    def close(self) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_parcels_arrive_whole_under_their_hash(shell: Shell, store: Path, small_conv_bundle: Bundle) -> None:
    parcels = [bundle_parcel(small_conv_bundle), file_parcel("a note", "deep/note.txt", b"hello")]
    send(shell, parcels)
    assert sorted(path.name for path in store.iterdir()) == sorted(parcel.key for parcel in parcels)
    assert Bundle.open(store / parcels[0].key).manifest == small_conv_bundle.manifest
    assert not (store / parcels[0].key / REPORT).exists()  # which is for people, and they are here
    assert (store / parcels[1].key / "deep/note.txt").read_bytes() == b"hello"


@pytest.mark.parametrize("hostile", [b"", b"other", b"hello\n"])
def test_a_parcel_that_is_altered_on_its_way_leaves_nothing(
    shell: Shell, store: Path, monkeypatch: pytest.MonkeyPatch, hostile: bytes
) -> None:
    whole, cut = file_parcel("one", "a", b"1"), file_parcel("two", "b", b"hello")
    add = _parcel._add

    def altered(archive: tarfile.TarFile, name: str, content: bytes) -> None:
        add(archive, name, hostile if content == b"hello" else content)

    monkeypatch.setattr(_parcel, "_add", altered)
    with pytest.raises(EdgekitError, match=r"a shell: .*did NOT match"):
        send(shell, [whole, cut])
    assert list(store.iterdir()) == []


def test_a_script_that_does_not_come_to_its_end_is_a_lost_device(shell: Shell) -> None:
    assert run(shell, "echo one; echo two").split() == ["one", "two"]
    with pytest.raises(EdgekitError, match="a shell: no way"):
        run(shell, "echo no way >&2; exit 3")
    for script in ("kill -9 $$", "echo edgekit-end 0; kill -9 $$"):  # the client itself may leave with 0
        with pytest.raises(DeviceLost, match="a shell did not answer: the connection ended without a word"):
            run(shell, script)


class Dying(Here):
    """A place whose worker says one line and ends so."""

    title = "a place"

    def __init__(self, ending: str) -> None:
        self._ending = ending

    def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
        opening = json.dumps({"load_s": 1, "first_run_s": 1, "runtime_version": "1", "state": STATE})
        times = json.dumps({"times_s": [0.002] * LEAST_ASKED})
        script = f"echo '{opening}'; read asked; echo '{times}'; read asked; {self._ending}"
        return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ended(self, process: subprocess.Popen[str]) -> int:
        if self._ending == "exit 255":
            raise DeviceLost("the connection was lost")
        return super().ended(process)


@pytest.mark.parametrize(
    ("ending", "said"),
    [("kill -9 $$", r"killed by signal 9 \(SIGKILL\): probably out of memory"),
     ("kill -4 $$", r"killed by signal 4 \(SIGILL\): the processor lacks an instruction"),
     ("kill -11 $$", r"killed by signal 11 \(SIGSEGV\)$"), ("exit 3", "left with code 3"),
     ("exit 124", "stopped at its time limit on the device"), ("echo '{\"ended\": -9}'", "SIGKILL"),
     ("echo '{\"error\": \"no such op\", \"type\": \"BundleCorrupt\"}'", "no such op"),
     ("exit 255", "the connection was lost; reached 10 calls, p50 2.00 ms"),
     ("printf '{\"times_s\": [0.0'", "left with code 0")],
)  # fmt: skip
def test_how_a_worker_ended_is_said(small_conv_bundle: Bundle, ending: str, said: str) -> None:
    with Worker(small_conv_bundle, 1, Dying(ending)) as worker, pytest.raises(EdgekitError, match=said):
        worker.times(10**6)


def test_a_session_over_a_worker_is_a_session(small_conv_bundle: Bundle) -> None:
    feeds, _ = small_conv_bundle.golden()[0]
    with open_at(HERE, small_conv_bundle, 1) as here, WorkerSession(Worker(small_conv_bundle, 1, HERE)) as there:
        for name, array in here.run(feeds).items():
            assert there.run(feeds)[name].tobytes() == array.tobytes()
        assert there.stats().calls == len(here.run(feeds))
        with pytest.raises(InvalidInput, match="pixels"):
            there.run({})
    with pytest.raises(InvalidInput, match="closed"):
        there.run(feeds)


def test_a_machine_that_is_silent_is_asked_for_a_sign_until_it_is_gone(
    small_conv_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Silent(Dying):
        def check(self, process: subprocess.Popen[str]) -> None:
            asked.append(process.pid)
            if len(asked) == 3:
                raise DeviceLost("the connection was lost")

    monkeypatch.setattr("edgekit.place.SILENT_S", 0.2)
    worker = Worker(small_conv_bundle, 1, Silent("sleep 60"))
    with pytest.raises(DeviceLost, match=f"was lost; reached {LEAST_ASKED} calls, p50 2.00 ms"):
        worker.times(1000)
    worker.stop()
    assert len(asked) == 3


def test_a_wall_clock_that_jumps_moves_no_time(small_conv_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, time\nhours = itertools.count(0, -3600.0)\ntime.time = lambda: next(hours)\n"
    )

    class Jumping(Here):
        def start(self, bundle: Bundle, threads: int) -> subprocess.Popen[str]:
            command = [sys.executable, "-P", "-m", "edgekit.worker", str(bundle.path), str(threads)]
            path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                    env=os.environ | {"PYTHONPATH": path})  # fmt: skip

    measured = measure(small_conv_bundle, calls=20, place=Jumping())
    assert all(0 < seconds < 5 for seconds in (*measured.latency.times_s, measured.load_s, measured.first_run_s))
