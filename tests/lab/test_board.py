"""A board over ssh: what a user types, and what can go wrong in the middle of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.board import BINFMT, PI5, Board, need_boards, need_tool
from lab.conftest import Exported, need
from lab.environment import Environment, LabMissing
from lab.session import Command, runs, until

from edgekit.bundle import Bundle

pytestmark = [pytest.mark.lab, pytest.mark.sshlab, pytest.mark.toolchain]
ENDLESS = ("--calls", "1000000")
FIRST_S, SECOND_S = 60, 15  # from the command to the profile of an emulated board
GONE_S = 10  # within which a client must notice that a board is gone


@pytest.fixture(scope="module")
def onnx(exported: Exported) -> Path:
    return exported("onnx", "fp32").path


@pytest.fixture(scope="module")
def pte(exported: Exported) -> Path:
    return exported("executorch", "fp32").path


@pytest.fixture(scope="module")
def board(lab: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    need(need_boards)
    need(need_tool, "aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    board = Board(lab, PI5, tmp_path_factory.mktemp("boards") / "pi5")
    board.start()
    yield board
    board.cut_power()


@pytest.fixture(autouse=True)
def powered(board: Board) -> None:
    board.ensure_on()


@pytest.fixture
def at_work(board: Board, pte: Path) -> Iterator[Command]:
    """A profile that goes on and on, with calls being timed."""
    command = Command(board, "profile", pte, *ENDLESS).wait_for("start executorch")
    until(lambda: any("worker" in line for line in board.processes()), 30)
    time.sleep(2)
    yield command
    command.process.kill()
    command.process.communicate()


def test_a_first_profile_installs_and_a_second_sends_nothing(board: Board, onnx: Path) -> None:
    start = time.monotonic()
    code, output, errors = Command(board, "profile", onnx, "--json").end()
    first = time.monotonic() - start
    assert code == 0, errors
    assert "send" in errors
    assert json.loads(output)["before"]["emulated"] is True
    assert json.loads(output)["before"]["machine"] == "aarch64"
    start = time.monotonic()
    code, output, errors = Command(board, "profile", onnx).end()
    second = time.monotonic() - start
    assert code == 0, errors
    assert "send" not in errors
    assert "emulated: not this board's speed" in output
    print(f"first contact {first:.1f} s, second {second:.1f} s")
    assert second < first
    if os.getloadavg()[0] < (os.cpu_count() or 1):  # a busy machine says nothing about edgekit
        assert first <= FIRST_S
        assert second <= SECOND_S
    assert board.processes() == []
    assert runs(board) == []


def test_verify_and_run_answer_as_here(board: Board, onnx: Path, tmp_path: Path) -> None:
    import numpy as np

    from edgekit.inference import open_session

    code, output, errors = Command(board, "verify", onnx, "--json").end()
    assert code == 0, errors
    assert json.loads(output)["ok"] is True
    found = Bundle.open(onnx)
    feeds = found.golden()[1][0]
    np.savez(tmp_path / "in.npz", **feeds)
    save = tmp_path / "out.npz"
    code, output, errors = Command(board, "run", onnx, "-i", tmp_path / "in.npz", "--save", save, "--json").end()
    assert code == 0, errors
    assert json.loads(output)["stats"]["calls"] == 1
    with open_session(found) as session, np.load(save) as answers:
        for name, here in session.run(feeds).items():
            np.testing.assert_allclose(answers[name], here, rtol=1e-4, atol=1e-5)


def test_an_emulated_time_passes_no_gate(board: Board, pte: Path) -> None:
    code, _, errors = Command(board, "profile", pte, "--calls", "5", "--max-latency-ms", "10000").end()
    assert code == 2
    assert "this one is emulated" in errors


def test_an_emulated_board_gives_no_profile(board: Board, tmp_path: Path) -> None:
    out = tmp_path / "pi.toml"
    code, output, errors = Command(board, "calibrate", "raspberrypi5", "-o", out).end()
    assert code == 2, errors
    assert "the machine to measure is emulated: its times say nothing about Raspberry Pi 5" in errors
    assert output == ""
    assert list(tmp_path.iterdir()) == []
    assert board.processes() == []
    assert runs(board) == []


def test_a_damaged_bundle_on_the_board_is_sent_again(board: Board, pte: Path) -> None:
    assert Command(board, "profile", pte, "--calls", "5").end()[0] == 0
    (model,) = (board.home / ".edgekit/store").glob("*/model.pte")
    model.write_bytes(model.read_bytes()[:-1])
    code, _, errors = Command(board, "profile", pte, "--calls", "5").end()
    assert code == 0, errors
    assert "send" in errors


def test_a_second_profile_at_once_says_who_measures(board: Board, pte: Path, at_work: Command) -> None:
    code, _, errors = Command(board, "profile", pte).end()
    assert code == 4
    assert "measures for" in errors
    assert at_work.process.poll() is None


def test_after_a_power_cut_a_second_run_works(board: Board, pte: Path, at_work: Command) -> None:
    board.cut_power()
    start = time.monotonic()
    code, _, errors = at_work.end(GONE_S)
    assert time.monotonic() - start < GONE_S
    assert code == 4, errors
    assert "was lost" in errors
    assert re.search(r"reached \d+ |nothing was timed yet", errors), errors
    board.ensure_on()
    code, _, errors = Command(board, "profile", pte, "--calls", "5").end()
    assert code == 0, errors
    assert runs(board) == []


@pytest.mark.parametrize("moment", ["measure", "start executorch", "timing"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_running_on_the_board(
    board: Board, pte: Path, moment: str, number: signal.Signals
) -> None:
    command = Command(board, "profile", pte, *ENDLESS)
    command.wait_for(moment if moment != "timing" else "start executorch")
    if moment == "timing":
        until(lambda: any("worker" in line for line in board.processes()), 30)
        time.sleep(1)
    os.killpg(command.process.pid, number)
    assert command.end(GONE_S)[0] == 130
    until(lambda: board.processes() == [], GONE_S)
    assert runs(board) == []


def test_a_killed_client_leaves_nothing_running_either(board: Board, at_work: Command) -> None:
    at_work.process.kill()
    until(lambda: board.processes() == [], 30)


def test_a_worker_that_is_killed_for_memory_is_named(board: Board, onnx: Path) -> None:
    command = Command(board, "profile", onnx, *ENDLESS)
    until(lambda: board.pids_of("edgekit.worker") != [], 60)
    with memory_limit(board.pids_of("edgekit.worker")[-1], 24 << 20):  # far less than its backend takes to load
        code, _, errors = command.end()
    assert code == 2, errors
    assert "killed by signal 9 (SIGKILL): probably out of memory" in errors
    assert board.processes() == []


def test_the_time_limit_ends_the_work_over_there(board: Board, pte: Path) -> None:
    code, _, errors = Command(board, "profile", pte, *ENDLESS, "--time-limit", "6").end()
    assert code == 2, errors
    assert "was stopped at its time limit on the device: give it more with --time-limit" in errors
    until(lambda: board.processes() == [], GONE_S)


@pytest.fixture
def small(lab: Environment, tmp_path: Path) -> Iterator[Callable[[int], Board]]:
    """A board whose home has few megabytes."""
    started: list[Board] = []

    def make(home_mb: int) -> Board:
        started.append(Board(lab, PI5, tmp_path / "small", home_mb=home_mb))
        started[0].start()
        return started[0]

    yield make
    for board in started:
        board.cut_power()


def test_a_full_disk_is_seen_before_anything_is_sent(small: Callable[[int], Board], onnx: Path) -> None:
    board = small(40)
    code, _, errors = Command(board, "profile", onnx).end()
    assert code == 2
    assert "MB of disk free" in errors
    assert "are needed" in errors
    assert "send" not in errors
    assert shell(board, "ls .edgekit/store") == ""


def test_a_disk_that_fills_meanwhile_leaves_nothing_half_sent(small: Callable[[int], Board], onnx: Path) -> None:
    board = small(220)
    command = Command(board, "profile", onnx).wait_for("send")
    until(lambda: "part" in shell(board, "ls .edgekit/store"), 30)
    shell(board, "head -c 300000000 /dev/zero >hog 2>/dev/null; true")
    code, _, errors = command.end()
    assert code == 2, errors
    assert re.search(r"\(\d KB of disk are free\)", errors), errors
    assert shell(board, "ls .edgekit/store") == ""
    shell(board, "rm hog")
    code, _, errors = Command(board, "profile", onnx, "--calls", "5").end()
    assert code == 0, errors


def test_what_nobody_used_for_a_month_is_removed(board: Board, pte: Path) -> None:
    assert Command(board, "profile", pte, "--calls", "5").end()[0] == 0
    old = board.home / ".edgekit/store/0123"
    old.mkdir()
    os.chown(old, 1000, 1000)
    os.utime(old, (0, 0))
    code, _, errors = Command(board, "profile", pte, "--calls", "5").end()
    assert code == 0, errors
    assert "send" not in errors
    assert not old.exists()


def shell(board: Board, script: str) -> str:
    """What a script prints on a board."""
    ssh = [board.folder / "bin/ssh", "-oBatchMode=yes", "-p", str(board.port), f"pi@{board.address}"]
    return subprocess.run([*ssh, script], capture_output=True, text=True, check=True).stdout.strip()


def test_a_package_that_is_in_no_folder_is_named(board: Board, onnx: Path, tmp_path: Path) -> None:
    for wheel in board.environment.wheels.glob("*.whl"):
        if not wheel.name.startswith("onnxruntime"):
            (tmp_path / wheel.name).symlink_to(wheel)
    code, _, errors = Command(board, "profile", onnx, "--offline-wheels", tmp_path).end()
    assert code == 3
    assert "no wheels of onnxruntime" in errors


def test_code_for_another_processor_is_never_sent(board: Board, onnx: Path, tmp_path: Path) -> None:
    import zipfile

    for wheel in board.environment.wheels.glob("*.whl"):
        shutil.copy(wheel, tmp_path)
    (wheel,) = tmp_path.glob("msgspec-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data[:18] + b"\x3e\x00" + data[20:] if ".so" in name else data)
    code, _, errors = Command(board, "profile", onnx, "--offline-wheels", tmp_path).end()
    assert code == 2
    assert "is code for x86_64, and the board is aarch64" in errors


def test_a_board_whose_programs_do_not_start_says_so(board: Board, pte: Path) -> None:
    BINFMT.write_text("0")
    try:
        code, _, errors = Command(board, "profile", pte).end()
    finally:
        BINFMT.write_text("1")
    assert code == 4
    assert "Exec format error" in errors


def test_an_address_where_nobody_listens_is_unreachable(board: Board, pte: Path) -> None:
    device, board.server = board.server, "ssh"
    port, board.port = board.port, 1
    try:
        code, output, errors = Command(board, "profile", pte, "--json").end()
    finally:
        board.server, board.port = device, port
    assert code == 4
    assert json.loads(output)["error"] == "DeviceUnreachable"
    assert "Connection refused" in errors


@contextlib.contextmanager
def memory_limit(pid: int, limit: int) -> Iterator[None]:
    """How much more a process may hold from here on, by the kernel's control groups."""
    first = Path("/sys/fs/cgroup/memory")
    folder = (first if first.is_dir() else Path("/sys/fs/cgroup")) / "edgekit-lab"
    folder.mkdir(exist_ok=True)
    name = "memory.limit_in_bytes" if (folder / "memory.limit_in_bytes").exists() else "memory.max"
    if not (folder / name).exists():
        need(_no_memory_groups)
    (folder / name).write_text(str(limit))
    (folder / "cgroup.procs").write_text(str(pid))
    try:
        yield
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text(), GONE_S)
        folder.rmdir()


def _no_memory_groups() -> None:
    raise LabMissing("no control group for memory: mount one at /sys/fs/cgroup/memory")
