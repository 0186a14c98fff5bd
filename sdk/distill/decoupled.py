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

import msgspec
import torch
from torch import Tensor, nn

from edgekit.compression import Progress, silent
from edgekit.dataset import image_files
from edgekit.distill.architecture.own_student import is_own, own_student
from edgekit.distill.architecture.sizing import StudentRecord, student
from edgekit.distill.card import MORE_OF_STAGE_1, STAGE_1, Card
from edgekit.distill.card_page import card_page
from edgekit.distill.cutting.boundary import Encoder
from edgekit.distill.cutting.division import divided, reaching
from edgekit.distill.cutting.site import Site, find_site
from edgekit.distill.cutting.splicing import outside_sha256, splice
from edgekit.distill.distill_options import DistillOptions
from edgekit.distill.record import CARD, PAGE, WEIGHTS, Distilled, write_weights
from edgekit.distill.refine import RefineRecord, refine
from edgekit.distill.task import Task, open_task
from edgekit.distill.training.cache import Embeddings, Store, embeddings
from edgekit.distill.training.checkpoint import FILE as CHECKPOINT
from edgekit.distill.training.data import Images, open_images
from edgekit.distill.training.fit_options import FitRecord
from edgekit.distill.training.parallel import Processes, processes
from edgekit.distill.training.trainer import fit
from edgekit.distill.verification import check_teacher, verify_student
from edgekit.errors import InvalidInput
from edgekit.folder import check_free, put_in_place, write_errors
from edgekit.model import Model, weights_sha256
from edgekit.source import DISTILLED, load

SHARE = 0.1  # of the site's parameters, for a student whose size nobody gave
HUGGING_FACE_FILES = ("*.json", "tokenizer*", "vocab.*", "merges.txt")


def distill(
    model: Model | str,
    out: str | Path,
    options: DistillOptions,
    *,
    student: nn.Module | None = None,
    progress: Progress = silent,
) -> Card | None:
    """Distil a site of `model` into the folder `out`, a model source like any other, and return the student's card.

    A `student` given as a module is trained in place, instead of what `options.student` names; no folder can build it,
    so `restore` opens `out` with a module like it, and `edgekit.load` does not.
    Of the processes that `torchrun` started only the first gets a card. Raises `GateMissed` where the student misses
    a gate: nothing is left at `out` then, and a run with other gates goes on from what was learnt.
    """
    folder = Path(os.path.abspath(out))
    partial = folder.with_name(f"{folder.name}.partial")
    group = processes(options.device)
    check_free(folder, options.force, DISTILLED)
    say = progress if group.is_first else silent
    if student is not None:
        options = msgspec.structs.replace(options, student=f"module:{type(student).__name__}")
    if isinstance(model, str):
        say(f"load {model}")
        model = load(model)
    if model.source.kind in ("module", "distilled"):
        raise InvalidInput(
            f"'{model.source.ref}' is a {model.source.kind}, which a folder cannot name for others to build again: "
            "give a Hugging Face folder, zoo:NAME or your_file.py:factory"
        )
    try:
        return _distill(model, partial, folder, options, student, group, say)
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
    model: Model,
    partial: Path,
    folder: Path,
    options: DistillOptions,
    given: nn.Module | None,
    group: Processes,
    progress: Progress,
) -> Card | None:
    progress("look for the site")
    site = find_site(model, options.site)
    task = open_task(model, options.task)
    made, record = _student(model, site, options, given)  # before any work, since it may not do
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
        _write(job, made.cpu(), record, card, fitted, refined, partial)
        (partial / CHECKPOINT).unlink()
        put_in_place(partial, folder, options.force)
    return card


def _student(
    model: Model, site: Site, options: DistillOptions, given: nn.Module | None
) -> tuple[nn.Module, StudentRecord]:
    if given is not None or is_own(options.student):
        return own_student(options.student if given is None else given, model, site, seed=options.fit.seed)
    module = model.module.get_submodule(site.path)
    known = dict(module.named_modules())
    if options.neck is not None and options.neck not in known:
        children = ", ".join(name for name, _ in module.named_children())
        raise InvalidInput(f"site '{site.path}' has no module '{options.neck}' to end with; it has {children}")
    neck = known[options.neck] if options.neck else None
    params = SHARE if options.params is None else options.params
    built = student(options.student, site, params=params, neck=neck, seed=options.fit.seed)
    return built, built.record


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


def _controls(job: _Job, made: nn.Module, device: torch.device) -> dict[str, nn.Module]:
    """What a refined student is held against: itself before, and with as many more steps of stage 1."""
    options = job.options.refine
    if options is None:
        return {}
    longer = copy.deepcopy(made)
    more = msgspec.structs.replace(job.options.fit, steps=options.steps, lr=options.lr)
    job.progress("control: as many more steps of stage 1")
    fit(longer, job.learnt, job.learnt_embeddings, more, device=device, progress=job.progress)
    return {STAGE_1: copy.deepcopy(made), MORE_OF_STAGE_1: longer}


def _refined(job: _Job, made: nn.Module, device: torch.device) -> RefineRecord | None:
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
    job: _Job,
    made: nn.Module,
    student: StudentRecord,
    card: Card,
    fitted: FitRecord,
    refined: RefineRecord | None,
    partial: Path,
) -> None:
    """Everything that `record` describes."""
    spliced = splice(job.model, job.site, made)
    record = Distilled(
        source=job.model.source,
        site=job.site,
        student=student,
        options=job.options,
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
