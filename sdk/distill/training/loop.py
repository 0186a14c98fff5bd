"""The loop that trains a student, with everything that a checkpoint has to hold."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from edgekit.compression import Progress
from edgekit.distill.training._synced_batch_norm import synced
from edgekit.distill.training.cache import Embeddings
from edgekit.distill.training.checkpoint import Checkpoint
from edgekit.distill.training.data import Images
from edgekit.distill.training.feeding import loaded_ahead
from edgekit.distill.training.fit_options import FitOptions, FitRecord
from edgekit.distill.training.losses import channel_scales, loss
from edgekit.distill.training.parallel import Processes
from edgekit.distill.training.precision import autocast
from edgekit.distill.training.schedule import average_share, batch_numbers, learning_rate, parameter_groups, split
from edgekit.errors import InvalidInput

LOOK_EVERY = 10  # steps on a GPU between looks at whether all is finite: each makes it wait
SHOW_S = 2.0  # between lines of progress
SCALE_IMAGES = 64  # whose embeddings give the scale of each channel
LEAST_GAIN = 1e-3  # of the best held-out loss: less is no improvement
LEAST_SCALER = 1.0  # of the loss in fp16: gradients that overflow below it do so for another reason
State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Batch:
    feeds: Mapping[str, Tensor]
    targets: Mapping[str, Tensor] | None  # None: the teacher has to be asked
    valid: Tensor | None


class Training:
    """A student in training, on a copy of it; `best` is what it learnt."""

    def __init__(
        self,
        student: nn.Module,
        images: Images,
        embeddings: Embeddings,
        options: FitOptions,
        group: Processes,
        workers: int,
        progress: Progress,
    ) -> None:
        if options.batch % group.count:
            raise InvalidInput(f"a batch of {options.batch} images cannot be shared evenly by {group.count} processes")
        self._images, self._embeddings, self._options = images, embeddings, options
        self._group, self._workers, self._progress = group, workers, progress
        self._learnt, self._held_out = split(images.keys, options.heldout_share, options.seed)
        module = synced(student) if group.count > 1 else copy.deepcopy(student)
        self._module = module.to(group.device).train()
        if group.device.type == "cuda":
            self._module.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # as convolutions compute
        self._parallel = DistributedDataParallel(self._module) if group.count > 1 else self._module
        self._optimizer = torch.optim.AdamW(parameter_groups(self._module, options.weight_decay), lr=options.lr)
        self._scaler = torch.amp.GradScaler(group.device.type, enabled=options.precision == "fp16")
        self._loss = loss(options.loss, self._scales() if options.loss == "whitened" else None)
        self._step, self._seconds = 0, 0.0
        self._stopped: Literal["steps", "early"] | None = None
        self._losses: list[tuple[int, float]] = []
        self._heldout: list[tuple[int, float]] = []
        self._average = {name: tensor.clone() for name, tensor in self._module.state_dict().items()}
        self._best: State | None = None
        self._sum = torch.zeros((), device=group.device)  # of losses since the last evaluation
        self._pending: list[Tensor] = []  # norms of gradients since the last look

    @property
    def best(self) -> State:
        """The averaged weights of the best evaluation, of the last step where nothing is held out."""
        return self._best or self._average

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "step": self._step,
            "seconds": self._seconds,
            "stopped": self._stopped,
            "losses": self._losses,
            "heldout": self._heldout,
            "module": self._module.state_dict(),
            "average": self._average,
            "best": self._best,
            "sum": self._sum,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._step, self._seconds, self._stopped = state["step"], state["seconds"], state["stopped"]
        self._losses, self._heldout = list(state["losses"]), list(state["heldout"])
        self._module.load_state_dict(state["module"])
        self._average, self._best = self._here(state["average"]), state["best"] and self._here(state["best"])
        self._sum = state["sum"].to(self._group.device)
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])

    def run(self, checkpoint: Checkpoint | None, stopped: Callable[[], bool]) -> None:
        """All steps that are left. Raises `KeyboardInterrupt`, with a checkpoint written, soon after `stopped`."""
        options, group = self._options, self._group
        look_every = LOOK_EVERY if group.device.type == "cuda" else 1
        first, begun = self._step, time.perf_counter()
        before, saved, shown = self._seconds, begun, begun
        numbers = (
            group.slice(batch_numbers(step, options.batch, self._learnt, options.seed))
            for step in range(first, 0 if self._stopped else options.steps)
        )
        for batch in loaded_ahead(numbers, self._load, self._workers):
            self._learn(batch)
            due = self._step * options.evaluations // options.steps
            evaluate = due != (self._step - 1) * options.evaluations // options.steps
            if not evaluate and self._step % look_every:
                continue
            self._check_finite(checkpoint)
            if evaluate:
                self._evaluate()
            now = time.perf_counter()
            self._seconds = before + now - begun
            interrupted = group.sum(stopped())[0] > 0
            if checkpoint and group.is_first and (interrupted or self._stopped or now - saved > options.checkpoint_s):
                checkpoint.save(self.state())
                saved = time.perf_counter()
            if group.is_first and (evaluate or now - shown > SHOW_S):
                self._show(begun, first)
                shown = now
            if interrupted:
                raise KeyboardInterrupt
            if self._stopped:
                break

    def record(self) -> FitRecord:
        """What happened so far."""
        return FitRecord(
            steps=self._step,
            seconds=self._seconds,
            images_per_s=self._step * self._options.batch / self._seconds,
            loss=tuple(self._losses),
            heldout=tuple(self._heldout),
            stopped=self._stopped or "steps",
            processes=self._group.count,
        )

    def _load(self, numbers: Sequence[int]) -> _Batch:
        """In a thread: read files, and move what was read to where it is needed."""
        on_gpu, targets = self._group.device.type == "cuda", self._embeddings.batch(numbers)
        if targets and on_gpu:
            targets = {name: tensor.pin_memory() for name, tensor in targets.items()}
        return _Batch(self._images.batch(numbers, on_gpu), targets, self._images.valid_batch(numbers))

    def _here(self, tensors: Mapping[str, Tensor]) -> State:
        device = self._group.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

    def _error(self, batch: _Batch, module: Callable[..., Any]) -> Tensor:
        feeds = self._here(batch.feeds)
        targets = self._embeddings.of(feeds) if batch.targets is None else self._here(batch.targets)
        with autocast(self._group.device, self._options.precision):
            found = module(**feeds)
        outputs = {next(iter(targets)): found} if isinstance(found, Tensor) else found
        return self._loss(outputs, targets, batch.valid)

    def _learn(self, batch: _Batch) -> None:
        options = self._options
        torch.manual_seed((options.seed * options.steps + self._step) * self._group.count + self._group.rank)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._step, options.steps, options.lr, options.warmup_share)
        error = self._error(batch, self._parallel)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(error).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._module.parameters(), options.clip_norm or math.inf)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._step += 1
        self._sum += error.detach()
        self._pending.append(norm)
        self._average_in(average_share(self._step, options.ema))

    @torch.no_grad()
    def _average_in(self, share: float) -> None:
        for name, tensor in self._module.state_dict().items():
            if tensor.is_floating_point():
                self._average[name].lerp_(tensor, share)
            else:
                self._average[name].copy_(tensor)

    def _check_finite(self, checkpoint: Checkpoint | None) -> None:
        """Gradients are the same in all processes, so all stop at the same step."""
        norms = torch.stack(self._pending).tolist()
        first = self._step - len(norms)
        self._pending.clear()
        wrong = next((first + i for i, norm in enumerate(norms) if not math.isfinite(norm)), None)
        if self._scaler.is_enabled():  # which leaves out steps that overflow, and tries a smaller scale
            wrong = self._step - 1 if self._scaler.get_scale() < LEAST_SCALER else None
        if wrong is None:
            return
        options = self._options
        kept = checkpoint is not None and checkpoint.path.exists()
        raise InvalidInput(
            f"the loss or its gradient is NaN or Inf at step {wrong + 1} of {options.steps}: take a lower lr than "
            f"{options.lr:g}" + f", or bf16 instead of {options.precision}" * (options.precision == "fp16")
            + (f"; the last good checkpoint is '{checkpoint.path}'" if checkpoint and kept else "")
        )  # fmt: skip

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Held-out loss of the averaged weights, and whether to stop."""
        options = self._options
        since = self._step - (self._losses[-1][0] if self._losses else 0)
        total, count = self._group.sum(float(self._sum), 1.0)
        self._losses.append((self._step, total / count / since))
        self._sum.zero_()
        if self._step == options.steps:
            self._stopped = "steps"
        if not self._held_out:
            return
        value = self._held_out_loss()
        if value < min((v for _, v in self._heldout), default=math.inf):
            self._best = {name: tensor.clone() for name, tensor in self._average.items()}
        self._heldout.append((self._step, value))
        if options.patience and without_gain([v for _, v in self._heldout]) >= options.patience:
            self._stopped = "early"

    def _held_out_loss(self) -> float:
        size = self._options.batch // self._group.count
        mine = self._group.part(self._held_out)
        parts = [mine[i : i + size] for i in range(0, len(mine), size)]
        self._module.eval()
        total = 0.0
        for part, batch in zip(parts, loaded_ahead(parts, self._load, self._workers), strict=True):
            error = self._error(batch, lambda **feeds: functional_call(self._module, self._average, kwargs=feeds))
            total += float(error) * len(part)
        self._module.train()
        return self._group.sum(total)[0] / len(self._held_out)

    def _show(self, begun: float, first: int) -> None:
        steps, rate = self._options.steps, (self._step - first) / (time.perf_counter() - begun)
        said = f"step {self._step} of {steps}, {rate * self._options.batch:.0f} images/s"
        if self._losses:
            said += f", loss {self._losses[-1][1]:.4g}"
        if self._heldout:
            said += f", held out {self._heldout[-1][1]:.4g}"
        self._progress(f"{said}, {(steps - self._step) / rate:.0f} s to go")

    def _scales(self) -> dict[str, Tensor]:
        """Of the first images that are learnt from."""
        numbers = self._learnt[:SCALE_IMAGES]
        found = [self._embeddings[number] for number in numbers]
        joined = {name: torch.cat([each[name].float() for each in found]) for name in found[0]}
        return self._here(channel_scales(joined, self._images.valid_batch(numbers)))


def without_gain(values: Sequence[float]) -> int:
    """How many of the last losses were no better than the best before them by `LEAST_GAIN`."""
    best, last = math.inf, 0
    for number, value in enumerate(values):
        if value < best * (1 - LEAST_GAIN):
            best, last = value, number
    return len(values) - 1 - last
