"""What survives a kill: a run that goes on ends with the bits it would have had; a damaged checkpoint is named."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from edgekit.distill.training.checkpoint import FILE
from edgekit.distill.training.trainer import fit
from edgekit.errors import InvalidInput
from tests.processes import finished, running
from tests.toy_training import SHORT, Net, same, student, task

TESTS = str(Path(__file__).parent)
RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from edgekit.distill.training.fit_options import FitOptions
from edgekit.distill.training.trainer import fit
from toy_training import Net, task
class Slow(Net):
    def forward(self, pixels):
        time.sleep(float(sys.argv[2]))
        return super().forward(pixels)
images, targets = task()
net = Slow(12, seed=2, noisy=True)
record = fit(net, images, targets, {options}, folder=Path(sys.argv[1]), progress=lambda s: print(s, flush=True))
torch.save(net.state_dict(), Path(sys.argv[1]) / "net.pt")
print(record.steps, record.stopped)
"""
LONG = replace(SHORT, steps=200, precision="bf16", checkpoint_s=0.1)


def run(folder: Path, delay: float) -> list[str]:
    """The command of a run whose student takes `delay` seconds more for each step."""
    program = RUN.format(tests=TESTS, options=repr(LONG))
    return [sys.executable, "-P", "-c", program, str(folder), str(delay)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_run_ends_with_the_bits_it_would_have_had(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    with running(run(folder, 0.01)) as child:
        while not (folder / FILE).exists():
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.01)
        if number != signal.SIGKILL:
            (folder / FILE).unlink()  # the one that it leaves is meant
        time.sleep(0.05)
        child.send_signal(number)
        errors = child.communicate(timeout=60)[1]
    assert child.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (number != signal.SIGKILL)
    at = torch.load(folder / FILE)["state"]["step"]
    assert 0 < at < 200
    again = finished(run(folder, 0.0), timeout=60)
    assert again.stdout.splitlines()[-1] == "200 steps", again.stderr
    assert f"step {at} of" not in again.stdout  # what was done is not done again
    whole = student(noisy=True)
    images, targets = task()
    record = fit(whole, images, targets, LONG)
    resumed = torch.load(folder / "net.pt")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.state_dict().items())
    state = torch.load(folder / FILE)["state"]
    assert tuple(map(tuple, state["losses"])) == record.loss
    assert tuple(map(tuple, state["heldout"])) == record.heldout
    assert not list(folder.glob("*.part"))


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    images, targets = task()
    first, second = student(), student()
    record = fit(first, images, targets, SHORT, folder=tmp_path)
    begun = time.perf_counter()
    assert fit(second, images, targets, SHORT, folder=tmp_path) == record
    assert same(first, second)
    assert time.perf_counter() - begun < record.seconds + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": replace(SHORT, lr=0.1)}, "lr was 0.01 and is 0.1"),
        ({"net": student(seed=5)}, "student was "),
        ({"count": 63}, "images was "),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, change: Mapping[str, Any], said: str) -> None:
    images, targets = task()
    fit(student(), images, targets, SHORT, folder=tmp_path)
    before = (tmp_path / FILE).read_bytes()
    images, targets = task(change.get("count", 64))
    with pytest.raises(InvalidInput, match=rf"is of another run \(.*{said}.*choose another folder, or delete it"):
        fit(change.get("net") or student(), images, targets, change.get("options", SHORT), folder=tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    images, targets = task(8)
    with pytest.raises(InvalidInput, match=r"fit.pt' is no whole checkpoint: delete it to begin anew"):
        fit(student(), images, targets, SHORT, folder=tmp_path)


class Diverging(Net):
    """Infinite from some call on, as an unstable student is."""

    calls = 0

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        found = super().forward(pixels)["embedding"]
        self.calls += self.training
        return {"embedding": found * (math.inf if self.calls > 30 else 1.0)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_that_becomes_nan_stops_with_the_last_good_checkpoint(tmp_path: Path, precision: Any) -> None:
    images, targets = task()
    options = replace(SHORT, checkpoint_s=0.0, precision=precision)
    with pytest.raises(InvalidInput, match=r"is NaN or Inf at step \d+ of 60: take a lower lr than 0.01") as caught:
        fit(Diverging(12, seed=2), images, targets, options, folder=tmp_path)
    assert f"the last good checkpoint is '{tmp_path / FILE}'" in str(caught.value)
    assert ("bf16 instead of fp16" in str(caught.value)) == (precision == "fp16")
    if precision == "fp32":
        assert "at step 31 of" in str(caught.value)
        assert torch.load(tmp_path / FILE)["state"]["step"] == 30
    state = torch.load(tmp_path / FILE)["state"]
    assert all(tensor.isfinite().all() for tensor in state["module"].values())
