"""A run that was stopped, killed or out of disk goes on; what is in the way is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lossless_folders import begun, flip, records, same_but_the_time, weights
from safetensors.torch import save_file

from edgekit import compress_weights, decompress_weights, verify_weights
from edgekit.errors import EdgekitError, OutputExists
from edgekit.lossless_folder import MANIFEST


@pytest.mark.parametrize("lines", [0, 1, 2, 9, 20, 33, None])
def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(
    lines: int | None, source: Path, compressed: Path, tmp_path: Path
) -> None:
    begun(source, tmp_path / "out", lines)
    compress_weights(source, tmp_path / "out")
    assert same_but_the_time(tmp_path / "out", compressed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("lines", [1, 4, 12, 23, 31, None])
def test_a_stopped_df11_run_goes_on_and_ends_as_one_that_was_not(
    lines: int | None, source: Path, grouped: Path, tmp_path: Path
) -> None:
    begun(source, tmp_path / "out", lines, "df11")
    compress_weights(source, tmp_path / "out", "df11")
    assert same_but_the_time(tmp_path / "out", grouped)


def test_a_run_that_is_killed_goes_on(source: Path, tmp_path: Path) -> None:
    save_file({f"w{i:02}": weights(512, 512, seed=i) for i in range(40)}, tmp_path / "m.safetensors")
    program = "import sys; from edgekit import compress_weights; compress_weights(sys.argv[1], sys.argv[2])"
    run = [sys.executable, "-P", "-c", program, str(tmp_path / "m.safetensors"), str(tmp_path / "out")]
    journal = tmp_path / "out.partial" / "lossless.journal"
    process = subprocess.Popen(run)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 5):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 5 <= journal.read_bytes().count(b"\n") < 40
    assert not (tmp_path / "out").exists()
    compress_weights(tmp_path / "m.safetensors", tmp_path / "out")
    decompress_weights(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "m.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_a_journal_that_was_cut_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    save_file({"a": weights(64, 128), "b": torch.ones(3), "c": weights(64, 128)}, tmp_path / "m.safetensors")
    partial = begun(tmp_path / "m.safetensors", tmp_path / "out")
    whole = (partial / "lossless.journal").read_bytes()
    compress_weights(tmp_path / "m.safetensors", tmp_path / "clean")
    for size in range(0, len(whole), 7):
        shutil.copytree(partial, tmp_path / "cut.partial")
        (tmp_path / "cut.partial" / "lossless.journal").write_bytes(whole[:size])
        compress_weights(tmp_path / "m.safetensors", tmp_path / "cut")
        assert same_but_the_time(tmp_path / "cut", tmp_path / "clean")
        shutil.rmtree(tmp_path / "cut")


def test_data_that_did_not_reach_the_disk_is_written_again(source: Path, compressed: Path, tmp_path: Path) -> None:
    partial = begun(source, tmp_path / "out")
    for file in partial.rglob("*.safetensors"):
        os.truncate(file, file.stat().st_size // 2)
    compress_weights(source, tmp_path / "out")
    assert same_but_the_time(tmp_path / "out", compressed)


def test_what_was_finished_is_not_coded_again_but_proved(source: Path, tmp_path: Path) -> None:
    """A bit that is off in what an earlier run finished stays off: it was not written again, and the proof sees it."""
    partial = begun(source, tmp_path / "out")
    flip(partial / "extra" / "special.safetensors", -3)
    with pytest.raises(EdgekitError, match=r"does not make the source again.*tensor '\w+' of '.*special\.safetensors'"):
        compress_weights(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_changed_meanwhile_is_compressed_as_it_is_now(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    save_file({name: weights(64, 128, seed=i) for i, name in enumerate(names)}, tmp_path / "m.safetensors")
    begun(tmp_path / "m.safetensors", tmp_path / "out")
    now = {name: weights(64, 128, seed=9 if name == "c" else i) for i, name in enumerate(names)}
    save_file(now, tmp_path / "m.safetensors")
    begun(tmp_path / "m.safetensors", tmp_path / "out", 5)
    compress_weights(tmp_path / "m.safetensors", tmp_path / "out")
    decompress_weights(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "m.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_another_job_does_not_go_on_where_this_one_stopped(source: Path, tmp_path: Path) -> None:
    partial = begun(source, tmp_path / "out", codec="df12")
    (partial / "left").mkdir()
    (partial / "left" / "over").touch()
    manifest = compress_weights(source, tmp_path / "out", "df11x")
    assert not any(tensor.codec == "df12" for tensor in records(manifest).values())
    assert not (tmp_path / "out" / "left").exists()


def test_two_runs_do_not_write_into_one_folder(source: Path, tmp_path: Path) -> None:
    def run_again(step: str) -> None:
        with pytest.raises(OutputExists, match=r"another process is writing '.*out\.partial'"):
            compress_weights(source, tmp_path / "out")

    compress_weights(source, tmp_path / "out", progress=run_again)
    verify_weights(tmp_path / "out")


@pytest.mark.parametrize("make", [Path.touch, lambda path: (path / "mine").mkdir(parents=True)])
def test_what_lies_where_the_partial_folder_would_be_is_left_alone(
    make: Callable[[Path], Any], source: Path, tmp_path: Path
) -> None:
    make(tmp_path / "out.partial")
    with pytest.raises(OutputExists, match=r"out\.partial' is in the way"):
        compress_weights(source, tmp_path / "out")
    assert (tmp_path / "out.partial").exists()


def test_an_output_is_replaced_only_by_force_and_only_one_of_ours(source: Path, copy: Path) -> None:
    with pytest.raises(OutputExists, match="--force"):
        compress_weights(source, copy)
    compress_weights(source, copy, "df12", force=True)
    assert verify_weights(copy).codec == "df12"
    (copy / MANIFEST).unlink()
    with pytest.raises(OutputExists, match=r"holds no lossless\.json"):
        compress_weights(source, copy, force=True)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(source: Path, tmp_path: Path) -> None:
    """The file size limit of a child process stands for the end of the disk: writes fail half-way, as there."""
    program = (
        "import resource, sys, edgekit; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: edgekit.compress_weights(sys.argv[1], sys.argv[2])\n"
        "except edgekit.EdgekitError as error: print(type(error).__name__, error)"
    )
    run = [sys.executable, "-P", "-c", program, str(source), str(tmp_path / "out")]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert said.startswith("InvalidInput the disk is full"), said
    compress_weights(source, tmp_path / "out")
    verify_weights(tmp_path / "out")
