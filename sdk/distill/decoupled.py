"""The verb: learn the teacher's embeddings, refine if asked, put the student in, and judge it on images kept aside.

The work lies in `OUT.partial` until it is whole. A run that was stopped goes on there with the same command.
Source: MobileSAM (arXiv 2306.14289, section 3) for learning from embeddings alone.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import torch
from torch import Tensor, nn

from edgekit.compression import Progress, silent
from edgekit.dataset import image_files
from edgekit.distill.boundary import Encoder
from edgekit.distill.cache import Embeddings, Store, embeddings
from edgekit.distill.card import MORE_OF_STAGE_1, STAGE_1, Card
from edgekit.distill.card_page import card_page
from edgekit.distill.checkpoint import FILE as CHECKPOINT
from edgekit.distill.data import Images, open_images
from edgekit.distill.division import divided, reaching
from edgekit.distill.fit_options import FitOptions, FitRecord
from edgekit.distill.parallel import Processes, processes
from edgekit.distill.precision import TrainingPrecision
from edgekit.distill.record import CARD, PAGE, WEIGHTS, Distilled, write_weights
from edgekit.distill.refine import RefineOptions, RefineRecord, refine
from edgekit.distill.site import Site, find_site
from edgekit.distill.sizing import Student, student
from edgekit.distill.splicing import outside_sha256, splice
from edgekit.distill.task import Task, open_task
from edgekit.distill.trainer import fit
from edgekit.distill.verification import check_teacher, verify_student
from edgekit.errors import InvalidInput, unknown_name
from edgekit.folder import check_free, put_in_place, write_errors
from edgekit.model import Model, weights_sha256
from edgekit.source import DISTILLED, load
from edgekit.types import Value

HUGGING_FACE_FILES = ("*.json", "tokenizer*", "vocab.*", "merges.txt")


class DistillOptions(Value, frozen=True, kw_only=True):
    """What to swap for what, and how to learn it."""

    site: str  # module path, or its unique end: "vision_encoder"
    data: str  # in the grammar of `edgekit.dataset`; needs no labels
    student: str = "npu-conv"  # file in `sdk/distill/students/`
    params: float = 0.1  # of the student: a share of the site's up to 1, a number above
    neck: str | None = None  # module of the site to end the student with, as a path in it: "neck"
    task: str | None = None  # file in `sdk/distill/tasks/`; what fits the model if left out
    truth: str | None = None  # folder with what is true of the images, as the task reads it
    judged_share: float = 0.1  # of the images: kept aside, for the card
    cache: str = "ram"  # embeddings: "ram", "stream" to compute them each time, or a folder
    fit: FitOptions = FitOptions()
    refine: RefineOptions | None = None
    device: str = "cpu"
    min_r2: float | None = None
    min_agreement: float | None = None
    min_quality_share: float | None = None  # of the teacher's quality
    force: bool = False

    def __post_init__(self) -> None:
        """Raises `InvalidInput` that names the option and what it may be."""
        if not self.params > 0:
            raise InvalidInput(f"params must be a share of the site's up to 1, or a number above, not {self.params:g}")
        if self.fit.precision not in get_args(TrainingPrecision):
            raise unknown_name("precision of training", self.fit.precision, get_args(TrainingPrecision))
        if not 0 < self.judged_share < 1:
            raise InvalidInput(f"judged_share must be between 0 and 1, not {self.judged_share:g}")


def distill(
    model: Model | str, out: str | Path, options: DistillOptions, *, progress: Progress = silent
) -> Card | None:
    """Distil a site of `model` into the folder `out`, a model source like any other, and return the student's card.

    Of the processes that `torchrun` started only the first gets a card. Raises `GateMissed` where the student misses
    a gate: nothing is left at `out` then, and a run with other gates goes on from what was learnt.
    """
    folder = Path(os.path.abspath(out))
    partial = folder.with_name(f"{folder.name}.partial")
    group = processes(options.device)
    check_free(folder, options.force, DISTILLED)
    say = progress if group.is_first else silent
    if isinstance(model, str):
        say(f"load {model}")
        model = load(model)
    if model.source.kind in ("module", "distilled"):
        raise InvalidInput(
            f"'{model.source.ref}' is a {model.source.kind}, which a folder cannot name for others to build again: "
            "give a Hugging Face folder, zoo:NAME or your_file.py:factory"
        )
    try:
        return _distill(model, partial, folder, options, group, say)
    except KeyboardInterrupt:
        say(f"stopped: the same command goes on from '{partial}'")
        raise


@dataclass(frozen=True, eq=False, kw_only=True)
class _Job:
    """What all stages share."""

    model: Model
    site: Site
    task: Task
    options: DistillOptions
    learnt: Images
    judged: Images
    learnt_embeddings: Embeddings
    judged_embeddings: Embeddings
    progress: Progress


def _distill(
    model: Model, partial: Path, folder: Path, options: DistillOptions, group: Processes, progress: Progress
) -> Card | None:
    progress("look for the site")
    site = find_site(model, options.site)
    task = open_task(model, options.task)
    made = _student(model, site, options)  # before any work, since its budget may not do
    job = _prepared(model, site, task, options, progress)
    truth = _truth(job)
    untrained = copy.deepcopy(made)
    with write_errors(folder):
        partial.mkdir(parents=True, exist_ok=True)
        fitted = fit(
            made,
            job.learnt,
            job.learnt_embeddings,
            options.fit,
            folder=partial,
            device=group.device,
            progress=progress,
        )
        controls = _controls(job, made, group.device)  # all processes train
        if not group.is_first:
            return None
        refined = _refined(job, made, group.device)
        card = verify_student(
            model, site, made, job.judged, job.judged_embeddings, task, untrained=untrained, controls=controls,
            truth=truth, seed=options.fit.seed, device=group.device, progress=progress,
        )  # fmt: skip
        card.require(r2=options.min_r2, agreement=options.min_agreement, quality_share=options.min_quality_share)
        progress("put the student in its place")
        _write(job, made.cpu(), card, fitted, refined, partial)
        (partial / CHECKPOINT).unlink()
        put_in_place(partial, folder, options.force)
    return card


def _student(model: Model, site: Site, options: DistillOptions) -> Student:
    module = model.module.get_submodule(site.path)
    known = dict(module.named_modules())
    if options.neck is not None and options.neck not in known:
        children = ", ".join(name for name, _ in module.named_children())
        raise InvalidInput(f"site '{site.path}' has no module '{options.neck}' to end with; it has {children}")
    neck = known[options.neck] if options.neck else None
    return student(options.student, site, params=options.params, neck=neck, seed=options.fit.seed)


def _prepared(model: Model, site: Site, task: Task, options: DistillOptions, progress: Progress) -> _Job:
    """Images in two parts that share none, and what the teacher says of both."""
    inputs = tuple(spec for spec in model.inputs if spec.name not in task.prompt_inputs)
    given = open_images(options.data, inputs, model.preprocess, model.assets, progress)
    learnt, judged = divided(reaching(model, site, given), options.judged_share)
    encoder = Encoder(model.module.get_submodule(site.path), site)
    store: Store = "ram" if options.cache == "ram" else "stream" if options.cache == "stream" else Path(options.cache)
    teacher = model.source.sha256 or ""

    def ask(part: Images) -> Embeddings:
        return embeddings(
            encoder, part, store=store, teacher_sha256=teacher, device=options.device, progress=progress
        )  # fmt: skip

    judged_embeddings = ask(judged)
    check_teacher(judged_embeddings)
    return _Job(
        model=model, site=site, task=task, options=options, learnt=learnt, judged=judged,
        learnt_embeddings=ask(learnt), judged_embeddings=judged_embeddings, progress=progress,
    )  # fmt: skip


def _controls(job: _Job, made: Student, device: torch.device) -> dict[str, nn.Module]:
    """What a refined student is held against: itself before, and with as many more steps of stage 1."""
    options = job.options.refine
    if options is None:
        return {}
    longer = copy.deepcopy(made)
    more = msgspec.structs.replace(job.options.fit, steps=options.steps, lr=options.lr)
    job.progress("control: as many more steps of stage 1")
    fit(longer, job.learnt, job.learnt_embeddings, more, device=device, progress=job.progress)
    return {STAGE_1: copy.deepcopy(made), MORE_OF_STAGE_1: longer}


def _refined(job: _Job, made: Student, device: torch.device) -> RefineRecord | None:
    """Refine in place where it was asked for."""
    if job.options.refine is None:
        return None
    return refine(
        job.model, job.site, made, job.learnt, job.learnt_embeddings, job.task, job.options.refine, device=device,
        progress=job.progress,
    )  # fmt: skip


def _truth(job: _Job) -> dict[str, Tensor] | None:
    if job.options.truth is None:
        return None
    data = Path(job.options.data)
    if not data.is_dir():
        raise InvalidInput(
            f"ground truth is looked up by the names of image files, and '{data}' is no folder of images"
        )
    files, _ = image_files(data, job.model.preprocess)
    by_key = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in files}
    return job.task.read_truth({key: by_key[key] for key in job.judged.keys}, Path(job.options.truth), job.model)


def _write(
    job: _Job, made: Student, card: Card, fitted: FitRecord, refined: RefineRecord | None, partial: Path
) -> None:
    """Everything that `record` describes."""
    spliced = splice(job.model, job.site, made)
    record = Distilled(
        source=job.model.source,
        site=job.site,
        student=made.record,
        neck=job.options.neck,
        task=job.task.name,
        sha256=weights_sha256(spliced),
        outside_sha256=outside_sha256(spliced, job.site.path),
        fit=fitted,
        refine=refined,
    )
    if record.outside_sha256 != outside_sha256(job.model.module, job.site.path):
        raise RuntimeError("weights outside the site changed")
    write_weights(spliced, partial / WEIGHTS)
    if job.model.source.kind == "huggingface":
        for pattern in HUGGING_FACE_FILES:
            for file in sorted(Path(job.model.source.ref).glob(pattern)):
                if not file.name.endswith(".index.json"):  # of weights in several files
                    shutil.copyfile(file, partial / file.name)
    (partial / CARD).write_text(card.to_json(), encoding="utf-8")
    (partial / PAGE).write_text(card_page(card), encoding="utf-8")
    (partial / DISTILLED).write_text(record.to_json(), encoding="utf-8")
