"""Copies are timed at sizes that double, and caches are read from the kernel's files, whatever these hold."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from edgekit import bandwidth as module
from edgekit.bandwidth import SMALLEST_BYTES, bandwidth, cache_sizes


@pytest.mark.parametrize("threads", [1, 2])
def test_copies_double_in_size_up_to_the_largest_and_all_have_a_rate(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_LARGEST_BYTES", 4 << 20)
    monkeypatch.setattr(module, "cache_sizes", dict)
    found = bandwidth(threads)
    sizes = [rate.working_set_bytes for rate in found.rates]
    assert (sizes[0], sizes[-1]) == (SMALLEST_BYTES * threads, 4 << 20)
    assert all(after == 2 * before for before, after in pairwise(sizes))
    assert all(1e7 < rate.bytes_per_s < 1e13 for rate in found.rates)
    assert found.threads == threads


def test_little_free_memory_bounds_what_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 8 << 20)
    found = bandwidth(1)
    assert found.rates[-1].working_set_bytes == 1 << 20


def test_a_machine_without_free_memory_still_copies_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 0)
    assert len(bandwidth(1).rates) == 1


def cache(folder: Path, index: int, **files: str) -> None:
    (folder / f"index{index}").mkdir()
    for name, text in files.items():
        (folder / f"index{index}" / name).write_text(text)


def test_caches_are_data_caches_by_level(tmp_path: Path) -> None:
    cache(tmp_path, 0, type="Data\n", level="1\n", size="48K\n")
    cache(tmp_path, 1, type="Instruction\n", level="1\n", size="32K\n")
    cache(tmp_path, 2, type="Unified\n", level="2\n", size="2048K\n")
    assert cache_sizes(tmp_path) == {"l1d": 49152, "l2": 2 << 20}


def test_files_that_are_missing_or_odd_name_no_cache(tmp_path: Path) -> None:
    cache(tmp_path, 0, type="Data", level="1")
    cache(tmp_path, 1, type="Data", level="1", size="")
    cache(tmp_path, 2, type="Unified", level="2", size="K")
    cache(tmp_path, 3, type="Unified", level="3", size="-4K")
    assert cache_sizes(tmp_path) == {}
    assert cache_sizes(tmp_path / "none") == {}
