"""Training: a student learns, in whatever floats and stores; what cannot be trained is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from edgekit.distill.training.cache import embeddings
from edgekit.distill.training.data import Images
from edgekit.distill.training.fit_options import FitOptions, FitRecord
from edgekit.distill.training.loop import without_gain
from edgekit.distill.training.schedule import split
from edgekit.distill.training.trainer import fit
from edgekit.errors import InvalidInput
from tests.toy_training import SHORT, Net, given_images, same, student, task


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
    found = net(**images.batch([0]))["embedding"].detach()
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
        ({"clip_norm": math.inf}, "clip_norm must be 0 or more, not inf"),
        ({"patience": -1}, "patience must be 0 or more"),
        ({"loss": "mae"}, "no loss is called 'mae'"),
        ({"precision": "fp8"}, "no precision of training is called 'fp8'. Did you mean 'fp32'?"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        FitOptions(**options)


def test_gain_is_counted_from_the_best() -> None:
    assert without_gain([3.0]) == 0
    assert without_gain([3.0, 2.0, 1.0]) == 0
    assert without_gain([3.0, 1.0, 2.0, 0.9999]) == 2  # by less than a thousandth
    assert without_gain([1.0, 1.0, 1.0, 0.5]) == 0
