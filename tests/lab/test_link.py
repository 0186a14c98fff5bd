"""A board behind a cable that is cut or slow, and a device behind adb."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.board import PI5, Board, free_port, need_boards, need_tool
from lab.conftest import Exported, need
from lab.environment import Environment
from lab.session import Command, until

pytestmark = [pytest.mark.lab, pytest.mark.toolchain]
BOARD, HOST = "edgekit-board", "edgekit-host"  # network namespaces
BOARD_IP, HOST_IP = "10.77.0.1", "10.77.0.2"
ENDLESS = ("--calls", "1000000")
GONE_S = 10  # within which a client must notice that a board is gone
LIMIT_S = 25  # of the work on the board


@pytest.fixture(scope="module")
def pte(exported: Exported) -> Path:
    return exported("executorch", "fp32").path


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    need(need_boards)
    need(need_tool, "aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def cable() -> Iterator[None]:
    """Two network namespaces and a cable between them."""
    need(need_tool, "ip", "iproute2")
    ip("netns", "add", BOARD)
    ip("netns", "add", HOST)
    try:
        ip("link", "add", "ek-board", "netns", BOARD, "type", "veth", "peer", "name", "ek-host", "netns", HOST)
        for namespace, device, address in ((BOARD, "ek-board", BOARD_IP), (HOST, "ek-host", HOST_IP)):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", device)
            ip("-n", namespace, "link", "set", device, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        yield
    finally:
        ip("netns", "del", BOARD)
        ip("netns", "del", HOST)


def board_behind_the_cable(lab: Environment, folder: Path, server: str) -> Board:
    return Board(lab, PI5, folder, address=BOARD_IP, server=server, prefix=("ip", "netns", "exec", BOARD),
                 client=("ip", "netns", "exec", HOST))  # fmt: skip


@contextlib.contextmanager
def cut_cable() -> Iterator[None]:
    ip("-n", BOARD, "link", "set", "ek-board", "down")
    try:
        yield
    finally:
        ip("-n", BOARD, "link", "set", "ek-board", "up")


@pytest.fixture(scope="module")
def far(cable: None, lab: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A board with an ssh server at the other end of the cable."""
    board = board_behind_the_cable(lab, tmp_path_factory.mktemp("boards") / "far", "ssh")
    board.start()
    yield board
    board.cut_power()


@pytest.mark.netlab
def test_a_cut_link_ends_the_client_soon_and_the_board_by_its_limit(far: Board, pte: Path) -> None:
    start = time.monotonic()
    command = Command(far, "profile", pte, *ENDLESS, "--time-limit", str(LIMIT_S)).wait_for("start executorch")
    until(lambda: any("worker" in line for line in far.processes()), 30)
    time.sleep(2)
    cut = time.monotonic()
    with cut_cable():
        code, _, errors = command.end(GONE_S)
        assert time.monotonic() - cut < GONE_S
        assert code == 4, errors
        assert "was lost" in errors
        assert re.search(r"reached \d+ |nothing was timed yet", errors), errors
        until(lambda: far.processes() == [], start + LIMIT_S + GONE_S - time.monotonic())
    code, _, errors = Command(far, "profile", pte, "--calls", "5").end()
    assert code == 0, errors


@pytest.mark.netlab
def test_a_slow_link_changes_no_time(far: Board, pte: Path) -> None:
    code, output, errors = Command(far, "profile", pte, "--calls", "30", "--json").end()
    assert code == 0, errors
    quick = json.loads(output)["latency"]["p50_s"]
    for namespace, device in ((BOARD, "ek-board"), (HOST, "ek-host")):
        shaping = ["tbf", "rate", "256kbit", "burst", "4k", "latency", "500ms"]
        done = subprocess.run(["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *shaping], check=False)
        assert done.returncode == 0
    code, output, errors = Command(far, "profile", pte, "--calls", "30", "--json").end()
    for namespace, device in ((BOARD, "ek-board"), (HOST, "ek-host")):
        subprocess.run(["tc", "-n", namespace, "qdisc", "del", "dev", device, "root"], check=True)
    assert code == 0, errors
    assert json.loads(output)["latency"]["p50_s"] < 10 * quick  # the link's answers take far longer than a call


@pytest.fixture(scope="module")
def phone(cable: None, lab: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A simulator of adb's protocol over TCP, and an adb server of its own. No phone: its shell is Debian's."""
    need(need_tool, "adb", "adb")
    os.environ["ANDROID_ADB_SERVER_PORT"] = str(free_port())
    phone = board_behind_the_cable(lab, tmp_path_factory.mktemp("boards") / "phone", "adb")
    phone.start()
    connect(phone)
    yield phone
    phone.call("adb", "kill-server")
    phone.cut_power()
    del os.environ["ANDROID_ADB_SERVER_PORT"]


def connect(phone: Board) -> None:
    """Make adb's server see the device, which it may still have from before a cut."""
    serial = f"{phone.address}:{phone.port}"
    phone.call("adb", "disconnect")
    assert f"connected to {serial}" in phone.call("adb", "connect", serial)
    phone.call("adb", "-s", serial, "wait-for-device")


@pytest.mark.adbproto
def test_adb_runs_a_bundle_with_the_native_runner(phone: Board, pte: Path) -> None:
    code, output, errors = Command(phone, "profile", pte, "--calls", "30", "--json").end()
    assert code == 0, errors
    assert json.loads(output)["before"]["emulated"] is True
    assert len(json.loads(output)["latency"]["times_s"]) == 30
    code, output, errors = Command(phone, "verify", pte, "--json").end()
    assert code == 0, errors
    assert "send" not in errors
    assert json.loads(output)["ok"] is True
    until(lambda: not any("worker" in line for line in phone.processes()), GONE_S)


@pytest.mark.adbproto
def test_adb_says_which_bundles_it_runs(phone: Board, exported: Exported) -> None:
    code, _, errors = Command(phone, "profile", exported("onnx", "fp32").path).end()
    assert code == 2
    assert "edgekit export --format executorch" in errors


@pytest.mark.adbproto
def test_a_device_that_vanishes_is_lost_though_adb_says_0(phone: Board, pte: Path) -> None:
    command = Command(phone, "profile", pte, *ENDLESS).wait_for("start executorch")
    until(lambda: any("worker" in line for line in phone.processes()), 30)
    time.sleep(2)
    phone.cut_power()
    code, _, errors = command.end(GONE_S)
    assert code == 4, errors
    assert "was lost" in errors


@pytest.mark.adbproto
def test_a_cut_link_to_a_device_over_tcp_is_noticed(phone: Board, pte: Path) -> None:
    phone.ensure_on()
    connect(phone)
    command = Command(phone, "profile", pte, *ENDLESS, "--time-limit", str(LIMIT_S)).wait_for("start executorch")
    until(lambda: any("worker" in line for line in phone.processes()), 30)
    time.sleep(2)
    with cut_cable():
        code, _, errors = command.end(GONE_S)
    assert code == 4, errors
    assert "was lost" in errors


@pytest.mark.adbproto
def test_a_serial_that_adb_does_not_know_is_unreachable(phone: Board, pte: Path) -> None:
    port, phone.port = phone.port, 1
    try:
        code, _, errors = Command(phone, "profile", pte).end()
    finally:
        phone.port = port
    assert code == 4
    assert "not found" in errors
