"""Does decoupled distillation keep what a teacher can? `edgekit bench distill`: the toy SAM, from training to bundles.

Each seed trains a teacher of its own, distils its encoder with the verb, and times both encoders in their bundles.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import edgekit
from edgekit.compression import Progress, silent
from edgekit.distill.card import UNTRAINED, Card
from edgekit.distill.decoupled import distill
from edgekit.distill.distill_options import DistillOptions
from edgekit.distill.refine import RefineOptions
from edgekit.distill.scenes import scenes, write_scenes
from edgekit.distill.toy_sam import STEPS, save_toy_sam, trained_toy_sam
from edgekit.distill.training.fit_options import FitOptions
from edgekit.drafting import ExportOptions
from edgekit.errors import InvalidInput
from edgekit.host import host_state
from edgekit.intervals import Interval
from edgekit.measurement import HostState
from edgekit.multipart import export_parts
from edgekit.types import Value

SITE, STUDENT, DEVICE = "vision_encoder", "npu-conv", "raspberrypi5"
SHARE = 1 / 6  # of the teacher's parameters, at most
SCENES_APART = 1000  # seeds of the teacher's scenes and of the student's are that far apart
POINTS = "points"
BARS = {
    "R2 of the embeddings": 0.95,
    "IoU to the teacher, points": 0.80,
    "above the untrained student, points": 0.25,
    "share of the teacher's IoU to the truth, points": 0.95,
    "teacher's parameters over the student's": 6.0,
    "teacher's time over the student's": 1.0,
}


class Effort(Value, frozen=True, kw_only=True):
    """How much is trained; the figures of the documentation are made with the defaults."""

    teacher_steps: int = STEPS
    scenes: int = 2500
    judged_share: float = 0.052
    steps: int = 2200
    lr: float = 4e-3
    refine_steps: int = 150


class SeedResult(Value, frozen=True, kw_only=True):
    """One seed: its card, and the student's encoder beside the teacher's in this machine's runtime."""

    seed: int
    card: Card
    time_ratio: float  # of one call: student over teacher, both exported in float
    time_ratio_ci: Interval
    teacher_s: float  # training it, or reading it where it was kept
    distill_s: float

    def values(self) -> tuple[float, ...]:
        """In the order of `BARS`."""
        card = self.card
        truth, whole = (card.quality or {}).get(POINTS, 0.0), (card.teacher_quality or {}).get(POINTS, 1.0)
        return (
            card.r2,
            card.agreement[POINTS],
            card.agreement[POINTS] - card.controls[UNTRAINED].agreement[POINTS],
            truth / whole,
            card.teacher_params / card.student_params,
            1 / self.time_ratio,
        )


class Figure(Value, frozen=True, kw_only=True):
    """One figure over seeds, and the least that it should be."""

    name: str
    mean: float
    least: float
    most: float
    bar: float

    @property
    def met(self) -> bool:
        """Whether the mean reaches the bar."""
        return self.mean >= self.bar


class DistillBench(Value, frozen=True, kw_only=True):
    """What was found on this machine."""

    host: HostState
    versions: dict[str, str]
    effort: Effort
    figures: tuple[Figure, ...]
    seeds: tuple[SeedResult, ...]


def run(
    seeds: int = 3,
    effort: Effort | None = None,
    *,
    jobs: int = 1,
    cache: Path | None = None,
    progress: Progress = silent,
) -> DistillBench:
    """Distil the toy SAM once a seed, `jobs` of them at once; `cache` is a folder that keeps trained teachers."""
    import torch

    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise InvalidInput(f"--{name} must be 1 or more, not {value}")
    effort = effort or Effort()
    if jobs == 1:
        found = [_one(seed, effort, cache, progress) for seed in range(seeds)]
    else:
        progress(f"{seeds} seeds, {jobs} at once")
        with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            found = list(pool.map(_one, range(seeds), repeat(effort), repeat(cache)))
    return DistillBench(
        host=host_state(),
        versions={"edgekit": edgekit.__version__, "torch": str(torch.__version__)},
        effort=effort,
        figures=figures(found),
        seeds=tuple(found),
    )


def _one(seed: int, effort: Effort, cache: Path | None, progress: Progress = silent) -> SeedResult:
    def say(text: str) -> None:
        progress(f"seed {seed}: {text}")

    with tempfile.TemporaryDirectory() as scratch:
        folder, start = Path(scratch), time.monotonic()
        save_toy_sam(trained_toy_sam(seed, steps=effort.teacher_steps, cache=cache, progress=say), folder / "teacher")
        trained = time.monotonic()
        write_scenes(scenes(effort.scenes, SCENES_APART + seed), folder / "images", folder / "truth")
        card = distill(str(folder / "teacher"), folder / "student", _options(folder, effort, seed), progress=say)
        if card is None:
            raise InvalidInput("the bench takes one process: run it without torchrun")
        done = time.monotonic()
        export = ExportOptions(precision="fp32", measure=False)
        teacher, student = (
            export_parts(str(folder / name), DEVICE, folder / f"{name}-bundle", export, progress=say).encoder
            for name in ("teacher", "student")
        )
        compared = edgekit.compare([teacher, student], progress=say)[0]
        return SeedResult(
            seed=seed,
            card=card,
            time_ratio=compared.ratio,
            time_ratio_ci=compared.ratio_ci,
            teacher_s=trained - start,
            distill_s=done - trained,
        )


def _options(folder: Path, effort: Effort, seed: int) -> DistillOptions:
    return DistillOptions(
        site=SITE,
        data=str(folder / "images"),
        truth=str(folder / "truth"),
        student=STUDENT,
        params=SHARE,
        judged_share=effort.judged_share,
        fit=FitOptions(steps=effort.steps, lr=effort.lr, seed=seed),
        refine=RefineOptions(steps=effort.refine_steps, seed=seed),
    )


def figures(found: Sequence[SeedResult]) -> tuple[Figure, ...]:
    """Mean and range of every figure over seeds."""
    columns = zip(*(each.values() for each in found), strict=True)
    return tuple(
        Figure(name=name, mean=statistics.mean(values), least=min(values), most=max(values), bar=bar)
        for (name, bar), values in zip(BARS.items(), columns, strict=True)
    )


def table(found: DistillBench) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: every figure with its bar."""
    rows = [
        [each.name, f"{each.mean:.3f}", f"{each.least:.3f} to {each.most:.3f}", f"{each.bar:g}", _state(each)]
        for each in found.figures
    ]
    return ["figure", f"mean of {len(found.seeds)}", "from, to", "bar", ""], rows


def _state(figure: Figure) -> str:
    return "met" if figure.met else "MISSED"
