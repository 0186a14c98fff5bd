"""Stage 2: train the student through the frozen rest, on what the teacher answers to the prompts of a task.

Each step asks about some images twice: first prompts of the task's kinds in turn, then the same ones made harder where
student and teacher disagreed. A pull to the teacher's embeddings keeps the student from serving these prompts alone.
BatchNorm keeps the statistics of stage 1, whose batches are larger.
Source: EdgeSAM (arXiv 2312.06660, section 3.2).
"""

from __future__ import annotations

import math
import time
from itertools import cycle

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.compression import Progress, silent
from edgekit.distill.cutting.boundary import outputs_of
from edgekit.distill.cutting.rest import Rest
from edgekit.distill.cutting.site import Site
from edgekit.distill.cutting.splicing import outside_sha256
from edgekit.distill.task import Prompt, Task
from edgekit.distill.training.cache import Embeddings
from edgekit.distill.training.data import Images
from edgekit.distill.training.losses import loss as embedding_loss
from edgekit.distill.training.schedule import batch_numbers, learning_rate, parameter_groups
from edgekit.errors import InvalidInput
from edgekit.model import Model
from edgekit.types import Value

SHOW_EVERY = 10  # steps between lines of progress and points of the record


class RefineOptions(Value, frozen=True, kw_only=True):
    """How to refine."""

    steps: int = 200
    batch: int = 8  # images a step
    questions: int = 4  # for each image; a task without prompts asks one
    rounds: int = 2  # of each question; from the second on with what the student got wrong
    lr: float = 1e-4  # of AdamW, at its peak
    weight_decay: float = 5e-4
    warmup_share: float = 0.05
    clip_norm: float = 0.1  # of all gradients together
    pull: float = 10.0  # weight of the embeddings' squared error, in units of their variance
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `InvalidInput` that names the option and what it may be."""
        for name in ("steps", "batch", "questions", "rounds"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("lr", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("pull", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInput(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.warmup_share < 1:
            raise InvalidInput(f"warmup_share must be 0 or more and below 1, not {self.warmup_share}")


class RefineRecord(Value, frozen=True, kw_only=True):
    """What happened in refinement."""

    steps: int
    seconds: float
    loss: tuple[tuple[int, float], ...]  # (step, the task's loss), every `SHOW_EVERY` steps
    pull: tuple[tuple[int, float], ...]  # (step, the embeddings' error)
    rest_sha256: str  # of all weights outside the site, the same before and after


def refine(
    model: Model,
    site: Site,
    student: nn.Module,
    images: Images,
    embeddings: Embeddings,
    task: Task,
    options: RefineOptions,
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> RefineRecord:
    """Train in place; afterwards the student is in evaluation mode. `embeddings` are the teacher's, of the same images.

    Raises `InvalidInput` where the loss stops being finite; the student is then as it was before.
    """
    loop = _Refinement(model, site, student.to(device), images, embeddings, task, options, torch.device(device))
    before, frozen = _state(student), outside_sha256(loop.rest.module, site.path)
    start = time.perf_counter()
    losses: list[tuple[int, float]] = []
    pulls: list[tuple[int, float]] = []
    student.eval()
    for step in range(options.steps):
        answered, pulled = loop.step(step)
        if not math.isfinite(answered + pulled):
            student.load_state_dict(before)
            raise InvalidInput(
                f"the loss of refinement became {answered + pulled} at step {step + 1}; the student is as stage 1 left "
                f"it: lower the learning rate ({options.lr:g}), or leave refinement out"
            )
        if step % SHOW_EVERY == 0 or step == options.steps - 1:
            losses.append((step, answered))
            pulls.append((step, pulled))
            left = (time.perf_counter() - start) / (step + 1) * (options.steps - step - 1)
            progress(f"refine: step {step + 1} of {options.steps}, loss {answered:.3f}, {left:.0f} s to go")
    if outside_sha256(loop.rest.module, site.path) != frozen:
        raise RuntimeError("refinement changed weights outside the site")
    return RefineRecord(
        steps=options.steps,
        seconds=time.perf_counter() - start,
        loss=tuple(losses),
        pull=tuple(pulls),
        rest_sha256=frozen,
    )


class _Refinement:
    """What all steps share."""

    def __init__(
        self, model: Model, site: Site, student: nn.Module, images: Images, embeddings: Embeddings, task: Task,
        options: RefineOptions, device: torch.device,
    ) -> None:  # fmt: skip
        self.rest = Rest(model, site, task.prompt_inputs)
        self.rest.module.to(device)
        self._site, self._student, self._images, self._embeddings = site, student, images, embeddings
        self._task, self._options, self._device = task, options, device
        self._generator = np.random.default_rng(options.seed)
        self._kinds = cycle(task.kinds)
        self._pull = embedding_loss("whitened")
        self._optimiser = torch.optim.AdamW(parameter_groups(student, options.weight_decay), options.lr)

    def step(self, number: int) -> tuple[float, float]:
        """Learn from one batch of images; the task's loss and the embeddings' error before it."""
        options = self._options
        rows = batch_numbers(number, options.batch, range(len(self._images)), options.seed)
        feeds = {name: tensor.to(self._device) for name, tensor in self._images.batch(rows).items()}
        stored = self._embeddings.batch(rows) or self._embeddings.of(feeds)
        teacher = {name: tensor.to(self._device).float() for name, tensor in stored.items()}
        valid = self._images.valid_batch(rows)
        found = outputs_of(self._student(**feeds), self._site)
        pulled = self._pull(found, teacher, valid)
        answered = self._answered(found, teacher, valid)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(number, options.steps, options.lr, options.warmup_share)
        self._optimiser.zero_grad()
        (answered + options.pull * pulled).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._student.parameters(), options.clip_norm)
        self._optimiser.step()
        return answered.item(), pulled.item()

    def _answered(self, student: dict[str, Tensor], teacher: dict[str, Tensor], valid: Tensor | None) -> Tensor:
        """The task's loss, mean over rounds."""
        task, losses = self._task, []
        prompt = self._prompt(teacher, valid)
        for turn in range(self._options.rounds if task.prompt_inputs else 1):
            with torch.no_grad():
                theirs = self.rest(teacher, prompt)
            ours = self.rest(student, prompt)
            losses.append(task.loss(ours, theirs))
            if turn + 1 < self._options.rounds:
                mine, right = (task.decide(task.answer(side)).detach() for side in (ours, theirs))
                prompt = task.harder(prompt, mine, right, self._generator)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _prompt(self, teacher: dict[str, Tensor], valid: Tensor | None) -> Prompt:
        """Prompts of the next kind for objects that the teacher sees at random places."""
        times = self._options.questions
        count = times * len(next(iter(teacher.values())))
        area = None if valid is None else valid.repeat_interleave(times, 0)
        anywhere = self._task.places(count, area, self._generator)
        if not anywhere:
            return {}
        objects = self._task.decide(self._task.answer(self.rest(teacher, anywhere)))
        return self._task.prompt(next(self._kinds), objects, self._generator)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
