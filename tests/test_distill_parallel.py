"""Several processes learn what one does, and leave none behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from edgekit.distill.training.checkpoint import FILE
from edgekit.distill.training.fit_options import FitOptions, FitRecord
from edgekit.distill.training.parallel import processes
from edgekit.distill.training.trainer import fit
from tests.processes import finished, running, torchrun
from tests.toy_training import SHORT, student, task

TESTS = str(Path(__file__).parent)
SHARED = """
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from edgekit.distill.training.fit_options import FitOptions
from edgekit.distill.training.parallel import processes
from edgekit.distill.training.trainer import fit
from toy_training import Net, student, task
class Slow(Net):
    def forward(self, pixels):
        time.sleep(0.05)
        return super().forward(pixels)
out = Path(sys.argv[1])
group = processes("cpu")
(out / f"pid{{group.rank}}").write_text(str(os.getpid()))
images, targets = task(store=out / "cache")
net = Slow(12, seed=2) if sys.argv[2] == "slow" else student(norm=sys.argv[2] == "norm")
record = fit(net, images, targets, {options}, folder=out / "run")
torch.save(net.state_dict(), out / f"net{{group.rank}}.pt")
if group.is_first:
    (out / "record.json").write_text(record.to_json())
"""


def shared(folder: Path, kind: str, options: FitOptions = SHORT) -> list[str]:
    """The command that trains a student of a kind in two processes."""
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SHARED.format(tests=TESTS, options=repr(options)))
    return torchrun(2, str(script), str(folder), kind)


@pytest.mark.parametrize("norm", ["norm", "plain"])
def test_two_processes_learn_what_one_does_with_the_whole_batch(tmp_path: Path, norm: str) -> None:
    done = finished(shared(tmp_path / "two", norm), timeout=180)
    assert done.returncode == 0, done.stderr
    alone = student(norm=norm == "norm")
    images, targets = task()
    record = fit(alone, images, targets, SHORT)
    both = [torch.load(tmp_path / "two" / f"net{rank}.pt") for rank in (0, 1)]
    found = FitRecord.from_json((tmp_path / "two" / "record.json").read_text())
    assert (found.processes, found.steps) == (2, 60)
    assert [v for _, v in found.heldout] == pytest.approx([v for _, v in record.heldout], rel=1e-3)
    assert [v for _, v in found.loss] == pytest.approx([v for _, v in record.loss], rel=1e-3)
    untrained = student(norm=norm == "norm").state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(both[0][name], both[1][name]), name
        torch.testing.assert_close(both[0][name], tensor, rtol=1e-3, atol=1e-4)
        assert name.endswith("tracked") or not torch.allclose(tensor, untrained[name], rtol=1e-2, atol=1e-3), name
    shards = list((tmp_path / "two" / "cache").rglob("*.safetensors"))
    assert len(shards) == 2  # each process computed its half


def test_a_batch_that_cannot_be_shared_is_named(tmp_path: Path) -> None:
    done = finished(shared(tmp_path, "norm", replace(SHORT, batch=7)), timeout=180)
    assert done.returncode != 0
    assert "a batch of 7 images cannot be shared evenly by 2 processes" in done.stderr


def test_one_signal_stops_all_processes_with_a_checkpoint(tmp_path: Path) -> None:
    with running(shared(tmp_path, "slow", replace(SHORT, steps=2000, checkpoint_s=0.1))) as child:
        while not (tmp_path / "run" / FILE).exists():
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.05)
        (tmp_path / "run" / FILE).unlink()  # the one that they leave is meant
        child.terminate()
        assert child.wait(timeout=60) != 0
    for rank in (0, 1):
        assert not Path(f"/proc/{(tmp_path / f'pid{rank}').read_text()}").exists()
        assert not (tmp_path / f"net{rank}.pt").exists()
    assert 0 < torch.load(tmp_path / "run" / FILE)["state"]["step"] < 2000
    assert not list(tmp_path.rglob("*.part"))


def test_a_lone_process_needs_no_group() -> None:
    group = processes("cpu")
    assert (group.rank, group.count, group.is_first, group.sum(1.0, 2.0)) == (0, 1, True, (1.0, 2.0))
    assert group.part([1, 2, 3]) == group.slice([1, 2, 3]) == [1, 2, 3]
