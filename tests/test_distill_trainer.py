"""Training: a student learns, a killed run ends as if it had not been killed, and several processes equal one."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import Tensor, nn

from edgekit.distill._training import without_gain
from edgekit.distill.cache import Embeddings, embeddings
from edgekit.distill.checkpoint import FILE
from edgekit.distill.data import Images, from_samples
from edgekit.distill.fit_options import FitOptions, FitRecord
from edgekit.distill.parallel import processes
from edgekit.distill.schedule import average_share, batch_numbers, learning_rate, parameter_groups, split
from edgekit.distill.trainer import fit
from edgekit.errors import InvalidInput, UnknownName

TESTS = str(Path(__file__).parent)
SHORT = FitOptions(steps=60, batch=8, lr=1e-2, evaluations=6, patience=0, heldout_share=0.1)


class Net(nn.Module):
    """A teacher of `width` channels, and with `noisy` a student that draws random numbers in training."""

    def __init__(self, width: int, *, seed: int, norm: bool = True, noisy: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, width, 3, 2, 1, bias=not norm)
            self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
            self.drop = nn.Dropout(0.1 if noisy else 0.0)
            self.head = nn.Conv2d(width, 6, 3, 2, 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.head(self.drop(self.norm(self.stem(pixels)).relu()))}


def given_images(count: int = 64) -> Images:
    """Blocks of one colour, which are easier to learn from than noise."""
    coarse = np.random.default_rng(0).standard_normal((count, 3, 3, 3)).astype(np.float32)
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return from_samples([{"pixels": fine[i : i + 1]} for i in range(count)])


def task(count: int = 64, store: Any = "ram") -> tuple[Images, Embeddings]:
    images = given_images(count)
    return images, embeddings(Net(24, seed=1), images, store=store, teacher_sha256="a" * 64)


def student(*, seed: int = 2, **options: Any) -> Net:
    return Net(12, seed=seed, **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_student_learns_what_the_teacher_says() -> None:
    images, targets = task()
    net, said = student(), list[str]()
    record = fit(net, images, targets, replace(SHORT, steps=300), progress=said.append)
    assert (record.steps, record.stopped, record.processes) == (300, "steps", 1)
    assert [step for step, _ in record.heldout] == [step for step, _ in record.loss] == [50, 100, 150, 200, 250, 300]
    assert record.heldout[-1][1] < 0.2 * record.loss[0][1]
    assert record.images_per_s == pytest.approx(300 * 8 / record.seconds)
    assert not net.training
    assert FitRecord.from_json(record.to_json()) == record
    assert said[-1].startswith("step 300 of 300, ")
    assert said[-1].endswith(", 0 s to go")
    found = net(**images.batch([0]))["embedding"]
    wanted = targets[0]["embedding"].float()
    assert float((found - wanted).square().mean() / wanted.var()) < 0.2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_precisions_learn_too(precision: Any) -> None:
    images, targets = task()
    record = fit(student(), images, targets, replace(SHORT, steps=120, precision=precision))
    assert record.heldout[-1][1] < 0.5 * record.loss[0][1]


@pytest.mark.parametrize("loss", ["huber", "cosine", "whitened"])
def test_every_loss_falls(loss: str) -> None:
    images, targets = task()
    record = fit(student(), images, targets, replace(SHORT, steps=120, loss=loss))
    assert record.heldout[-1][1] < 0.5 * record.loss[0][1]


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    images, targets = task()
    nets = [student(noisy=True) for _ in range(3)]
    state = torch.random.get_rng_state()
    for net, seed, workers in zip(nets, (0, 0, 1), (1, 3, 1), strict=True):
        fit(net, images, targets, replace(SHORT, seed=seed), workers=workers)
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's draws are moved


def test_a_stream_and_files_teach_what_memory_does(tmp_path: Path) -> None:
    nets = []
    for store in ("ram", tmp_path, "stream"):
        images, targets = task(store=store)
        nets.append(student())
        fit(nets[-1], images, targets, SHORT)
    assert same(nets[0], nets[1])
    for name, tensor in nets[0].state_dict().items():  # a stream computes in other batches than a cache
        torch.testing.assert_close(nets[2].state_dict()[name], tensor, rtol=0.02, atol=2e-3)


def test_padding_does_not_reach_the_student() -> None:
    given = given_images(16)
    mask = np.zeros((12, 12), bool)
    mask[:6] = True
    images = Images(given.origin, given.keys, given.preprocess_sha256, (mask,) * 16, given.load)
    nets = []
    for junk in (0.0, 1e4):
        targets = embeddings(Net(24, seed=1), given, store="ram", teacher_sha256="a" * 64)
        for i in range(16):
            targets[i]["embedding"][:, :, 2:] = junk  # the lower half is padding; what is held is changed in place
        nets.append(student())
        fit(nets[-1], images, targets, replace(SHORT, batch=4))
    assert same(nets[0], nets[1])


RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from test_distill_trainer import *
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


def start(folder: Path, delay: float, options: FitOptions = LONG) -> subprocess.Popen[str]:
    program = RUN.format(tests=TESTS, options=repr(options))
    run = [sys.executable, "-P", "-c", program, str(folder), str(delay)]
    return subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_run_ends_with_the_bits_it_would_have_had(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    child = start(folder, 0.01)
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
    again = start(folder, 0.0)
    said, errors = again.communicate(timeout=60)
    assert said.splitlines()[-1] == "200 steps", errors
    assert f"step {at} of" not in said  # what was done is not done again
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


def test_a_learning_rate_that_is_far_too_high_is_caught() -> None:
    images, targets = task()
    with pytest.raises(InvalidInput, match=r"take a lower lr than 1e\+30"):
        fit(student(norm=False), images, targets, replace(SHORT, lr=1e30, clip_norm=0))


def test_it_stops_early_when_nothing_is_gained_and_keeps_the_best() -> None:
    images, targets = task(16)
    net = student()
    options = replace(SHORT, steps=2000, batch=4, evaluations=100, patience=4, lr=0.02, heldout_share=0.3)
    record = fit(net, images, targets, options)
    assert record.stopped == "early"
    assert record.steps < 2000
    values = [value for _, value in record.heldout]
    assert without_gain(values) == 4
    held = split(images.keys, 0.3, 0)[1]
    found = net(**images.batch(held))["embedding"]
    wanted = torch.cat([targets[i]["embedding"] for i in held]).float()
    assert float((found - wanted).square().mean()) == pytest.approx(min(values), rel=1e-3)


def test_without_a_held_out_part_all_images_are_learnt_from() -> None:
    images, targets = task(8)
    record = fit(student(), images, targets, replace(SHORT, heldout_share=0.0, patience=3))
    assert record.heldout == ()
    assert record.steps == 60


def test_a_student_that_returns_a_tensor_serves_a_site_of_one_output() -> None:
    class Bare(Net):
        def forward(self, pixels: Tensor) -> Any:
            return super().forward(pixels)["embedding"]

    images, targets = task()
    net, bare = student(), Bare(12, seed=2)
    fit(net, images, targets, SHORT)
    fit(bare, images, targets, SHORT)
    assert same(net, bare)


def test_what_does_not_fit_is_named() -> None:
    images, targets = task(8)
    wrong = student()
    wrong.head = nn.Conv2d(12, 5, 3, 2, 1)
    with pytest.raises(InvalidInput, match=r"the student gives \{'embedding': \[8, 5, 3, 3\]\}, and the teacher"):
        fit(wrong, images, targets, SHORT)
    with pytest.raises(InvalidInput, match="there are 7 images and 8 embeddings"):
        fit(student(), given_images(7), targets, SHORT)
    with pytest.raises(InvalidInput, match="no parameter of the student can be trained"):
        fit(student().requires_grad_(False), images, targets, SHORT)
    with pytest.raises(InvalidInput, match="'gpu' is no device of torch: give cpu, cuda or cuda:1"):
        fit(student(), images, targets, SHORT, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="torch sees no CUDA device"):
            fit(student(), images, targets, SHORT, device="cuda")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"batch": 0}, "batch must be 1 or more"),
        ({"lr": 0.0}, "lr must be above 0, not 0.0"),
        ({"lr": math.nan}, "lr must be above 0, not nan"),
        ({"ema": 1.0}, "ema must be 0 or more and below 1, not 1.0"),
        ({"heldout_share": -0.1}, "heldout_share must be 0 or more and below 1"),
        ({"warmup_share": math.nan}, "warmup_share must be 0 or more and below 1"),
        ({"clip_norm": -1.0}, "clip_norm must be 0 or more, not -1.0"),
        ({"patience": -1}, "patience must be 0 or more"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        FitOptions(**options)
    with pytest.raises(UnknownName, match="no loss is called 'mae'"):
        FitOptions(loss="mae")


# What a step depends on.


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 5))
def test_every_item_comes_once_in_each_round(count: int, batch: int, seed: int) -> None:
    items = list(range(100, 100 + count))
    steps = -(-3 * count // batch)
    drawn = [number for step in range(steps) for number in batch_numbers(step, batch, items, seed)]
    assert len(drawn) == steps * batch
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == items


def test_the_order_changes_with_seed_and_round() -> None:
    items = list(range(50))
    assert batch_numbers(0, 50, items, 0) != batch_numbers(1, 50, items, 0)
    assert batch_numbers(0, 50, items, 0) != batch_numbers(0, 50, items, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30), st.floats(0, 0.99), st.integers(0, 3))
def test_equal_images_are_never_on_both_sides(keys: list[str], share: float, seed: int) -> None:
    learnt, held = split(keys, share, seed)
    assert sorted(learnt + held) == list(range(len(keys)))
    assert not {keys[i] for i in learnt} & {keys[i] for i in held}
    assert learnt
    assert bool(held) == (share > 0 and len(set(keys)) > 1)


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(0, 100, 1.0, 0.0) == 1.0


def test_the_average_forgets_its_first_steps() -> None:
    assert average_share(1, 0.999) == pytest.approx(9 / 11)
    assert average_share(10**6, 0.999) == pytest.approx(0.001)
    assert average_share(5, 0.0) == 1.0


def test_norms_and_biases_do_not_decay() -> None:
    net = student()
    matrices, vectors = parameter_groups(net, 0.1)
    assert {id(p) for p in matrices["params"]} == {id(net.stem.weight), id(net.head.weight)}
    assert {id(p) for p in vectors["params"]} == {id(net.norm.weight), id(net.norm.bias), id(net.head.bias)}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)


def test_gain_is_counted_from_the_best() -> None:
    assert without_gain([3.0]) == 0
    assert without_gain([3.0, 2.0, 1.0]) == 0
    assert without_gain([3.0, 1.0, 2.0, 0.9999]) == 2  # by less than a thousandth
    assert without_gain([1.0, 1.0, 1.0, 0.5]) == 0


# Several processes.

SHARED = """
import os, sys
sys.path.insert(0, {tests!r})
from test_distill_trainer import *
out = Path(sys.argv[1])
images, targets = task(store=out / "cache")
net = student(norm=sys.argv[2] == "norm")
record = fit(net, images, targets, SHORT, folder=out / "run")
group = processes("cpu")
torch.save(net.state_dict(), out / f"net{{group.rank}}.pt")
if group.is_first:
    (out / "record.json").write_text(record.to_json())
"""


def torchrun(folder: Path, count: int, *arguments: str, program: str = SHARED) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(program.format(tests=TESTS))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), str(script)]
    return subprocess.run(
        [*run, str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("norm", ["norm", "plain"])
def test_two_processes_learn_what_one_does_with_the_whole_batch(tmp_path: Path, norm: str) -> None:
    done = torchrun(tmp_path / "two", 2, norm)
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
    program = SHARED.replace("SHORT, folder", "replace(SHORT, batch=7), folder")
    done = torchrun(tmp_path, 2, "norm", program=program)
    assert done.returncode != 0
    assert "a batch of 7 images cannot be shared evenly by 2 processes" in done.stderr


def test_a_lone_process_needs_no_group() -> None:
    group = processes("cpu")
    assert (group.rank, group.count, group.is_first, group.sum(1.0, 2.0)) == (0, 1, True, (1.0, 2.0))
    assert group.part([1, 2, 3]) == group.slice([1, 2, 3]) == [1, 2, 3]
