"""What is read of this machine is plausible, and memory is of this program alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

from edgekit.host import host_state, peak_rss_bytes
from edgekit.measurement import HostState

MB = 1_000_000


def total_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def child(code: str) -> int:
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(run.stdout)


def test_the_state_of_the_host_is_plausible() -> None:
    state = host_state()
    assert state.machine == platform.machine() != ""
    assert state.system.startswith(platform.system())
    assert state.python == platform.python_version()
    assert 1 <= state.cores <= (os.cpu_count() or 1)
    assert state.emulated is False
    for clock in (state.clock_min_hz, state.clock_max_hz, state.clock_now_hz):
        assert clock is None or 1e8 < clock < 1e10
    if state.clock_min_hz and state.clock_max_hz:
        assert state.clock_min_hz <= state.clock_max_hz
    assert state.temperature_c is None or -40 < state.temperature_c < 130
    assert state.cpu is None or state.cpu.strip() == state.cpu != ""
    assert state.governor is None or state.governor.isidentifier()


def test_the_state_of_the_host_can_be_stored() -> None:
    state = host_state()
    assert HostState.from_json(state.to_json()) == state


def test_peak_memory_is_more_than_an_interpreter_and_less_than_the_machine_has() -> None:
    assert 5 * MB < peak_rss_bytes() < total_memory()


def test_peak_memory_stays_after_the_memory_is_freed() -> None:
    code = """
from edgekit.host import peak_rss_bytes
before = peak_rss_bytes()
block = bytes(range(256)) * 400_000
held = peak_rss_bytes()
del block
assert peak_rss_bytes() > held - 1_000_000  # the kernel counts in batches
print(held - before)
"""
    assert 95 * MB < child(code) < 130 * MB


def test_peak_memory_does_not_count_the_program_that_started_this_one() -> None:
    code = """
import subprocess, sys
from edgekit.host import peak_rss_bytes
block = bytes(range(256)) * 1_200_000
assert peak_rss_bytes() > 300_000_000
inner = "from edgekit.host import peak_rss_bytes; print(peak_rss_bytes())"
print(subprocess.run([sys.executable, "-c", inner], check=True, capture_output=True, text=True).stdout)
"""
    assert 5 * MB < child(code) < 200 * MB
