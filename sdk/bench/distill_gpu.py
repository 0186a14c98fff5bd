"""How fast an encoder of a real size is distilled on a GPU, and what a cache saves: `edgekit bench distill-gpu`.

A Segment Anything is trained on scenes of shapes first. Then its encoder's student learns for some steps from each kind
of store, and at last for long enough to be judged. What is made lies in a folder, so a second call goes on from it.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from msgspec.structs import replace

import edgekit
from edgekit.bench._shapes_teacher import TeacherSize, Trained, save, train, untrained, write_data
from edgekit.compression import Progress, silent
from edgekit.distill.architecture.sizing import student
from edgekit.distill.card import Card
from edgekit.distill.cutting.boundary import Encoder
from edgekit.distill.cutting.site import Site, find_site
from edgekit.distill.decoupled import distill
from edgekit.distill.distill_options import DistillOptions
from edgekit.distill.record import read_record
from edgekit.distill.training.cache import CacheCost, Embeddings, Store, embeddings
from edgekit.distill.training.data import Images, from_samples, open_images
from edgekit.distill.training.fit_options import FitOptions, FitRecord
from edgekit.distill.training.precision import TrainingPrecision
from edgekit.distill.training.trainer import fit
from edgekit.errors import EdgekitError, InvalidInput
from edgekit.host import cores
from edgekit.model import Model
from edgekit.runtimes.meters.nvml import Gpu
from edgekit.source import load
from edgekit.types import Value

ENCODER = "sam.vision_encoder"
STUDENT, PARAMS = "npu-conv", 0.1
SAMPLE_S = 0.1  # between looks at whether the GPU is busy
WARM_STEPS = 10  # in which kernels are chosen
TEACHER_BATCH = 32
MOST_IN_MEMORY = 512  # images held as arrays, for the bound without files
JUDGED_SHARE = 0.04
TRAINED = "trained.json"
T = TypeVar("T")


class Probe(Value, frozen=True, kw_only=True):
    """Some steps of stage 1 from one kind of store."""

    images: Literal["files", "memory"]
    store: str
    precision: str
    steps: int
    images_per_s: float
    busy_share: float | None  # of the GPU's time, that a kernel ran; None without NVML


class Filling(Value, frozen=True, kw_only=True):
    """What it took to fill a cache."""

    store: str = "files"
    precision: str
    cost: CacheCost
    busy_share: float | None

    @property
    def images_per_s(self) -> float:
        """Through the teacher, with reading images and writing embeddings."""
        return self.cost.images / self.cost.seconds


class GpuBench(Value, frozen=True, kw_only=True):
    """What was measured on one machine."""

    device: str
    cores: int
    versions: dict[str, str]
    size: TeacherSize
    trained: Trained
    site: Site
    images: int
    batch: int
    fillings: tuple[Filling, ...]
    probes: tuple[Probe, ...]
    fit: FitRecord  # of the student that the card is of
    seconds: float  # of the whole verb: cache, training, judging, writing
    busy_share: float | None  # in them
    card: Card


def run(
    work: Path,
    *,
    size: TeacherSize | None = None,
    images: int = 3000,
    teacher_seconds: float = 150.0,
    steps: int = 1500,
    probe_steps: int = 100,
    batch: int = 64,
    device: str = "cuda",
    progress: Progress = silent,
) -> GpuBench:
    """Everything in turn. Raises `InvalidInput` where torch sees no CUDA device and `device` asks for one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("torch sees no CUDA device: this bench is of training on one")
    size = size or TeacherSize()
    trained = teacher(work, size, images, teacher_seconds, device, progress)
    progress("load the teacher and look for its site")
    model = load(str(work / "teacher"))
    site = find_site(model, ENCODER)
    precision: TrainingPrecision = "bf16" if device == "cuda" else "fp32"
    options = FitOptions(steps=probe_steps, batch=batch, precision=precision, heldout_share=0.0, evaluations=1)
    fillings, probes = _probes(work, model, site, options, device, progress)
    shutil.rmtree(work / "student", ignore_errors=True)
    whole = DistillOptions(
        site=ENCODER,
        data=str(work / "images"),
        truth=str(work / "truth"),
        student=STUDENT,
        params=PARAMS,
        judged_share=JUDGED_SHARE,
        cache=str(work / "cache"),
        fit=replace(options, steps=steps, heldout_share=0.02, evaluations=10, lr=2e-3),
        device=device,
    )
    begun = time.perf_counter()
    card, busy = _busy(lambda: distill(model, work / "student", whole, progress=progress))
    seconds = time.perf_counter() - begun
    if card is None:
        raise InvalidInput("this bench is of one process: start it without torchrun")
    return GpuBench(
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        cores=cores(),
        versions={"torch": str(torch.__version__), "edgekit": edgekit.__version__},
        size=size,
        trained=trained,
        site=site,
        images=images,
        batch=batch,
        fillings=fillings,
        probes=probes,
        fit=read_record(work / "student").fit,
        seconds=seconds,
        busy_share=busy,
        card=card,
    )


def teacher(work: Path, size: TeacherSize, images: int, seconds: float, device: str, progress: Progress) -> Trained:
    """Data and a trained teacher in `work`, unless they lie there."""
    known = work / TRAINED
    if not known.is_file():
        progress(f"draw {images} scenes")
        write_data(work, images)
        model = untrained(size)
        trained = train(model, size, work, seconds, device, progress)
        save(model, size, work / "teacher")
        known.write_text(trained.to_json(), encoding="utf-8")
    return Trained.from_json(known.read_bytes())


def _probes(
    work: Path, model: Model, site: Site, options: FitOptions, device: str, progress: Progress
) -> tuple[tuple[Filling, ...], tuple[Probe, ...]]:
    encoder = Encoder(model.module.get_submodule(site.path), site)
    inputs = tuple(spec for spec in model.inputs if spec.name == site.inputs[0].name)
    files = open_images(str(work / "images"), inputs, model.preprocess, model.assets, progress)
    fillings, probes = [], []

    def ask(images: Images, store: Store, precision: TrainingPrecision) -> Embeddings:
        return embeddings(
            encoder, images, store=store, teacher_sha256=model.source.sha256 or "", device=device,
            precision=precision, batch=TEACHER_BATCH, progress=progress,
        )  # fmt: skip

    def fill(store: Store, precision: TrainingPrecision) -> None:
        found, busy = _busy(partial(ask, files, store, precision))
        fillings.append(Filling(store=_kind(store), precision=precision, cost=found.cost, busy_share=busy))

    shutil.rmtree(work / "cache", ignore_errors=True)
    fill("ram", options.precision)
    if options.precision != "fp32":
        fill(work / "cache", options.precision)
    fill(work / "cache", "fp32")  # which the whole verb finds
    few = from_samples([files[number] for number in range(min(len(files), MOST_IN_MEMORY))])
    kinds: tuple[tuple[Literal["files", "memory"], Images, Store], ...] = (
        ("files", files, work / "cache"),
        ("files", files, "stream"),
        ("memory", few, "ram"),
        ("memory", few, "stream"),
    )
    for origin, images, store in kinds:
        name = _kind(store)
        progress(f"learn from images in {origin}, embeddings: {name}")
        targets = ask(images, store, "fp32" if name == "files" else options.precision)
        net = student(STUDENT, site, params=PARAMS)
        fit(net, images, targets, replace(options, steps=WARM_STEPS), device=device)
        record, busy = _busy(partial(fit, net, images, targets, options, device=device))
        probes.append(
            Probe(
                images=origin, store=name, precision=options.precision, steps=record.steps,
                images_per_s=record.images_per_s, busy_share=busy,
            )
        )  # fmt: skip
    return tuple(fillings), tuple(probes)


def _kind(store: Store) -> str:
    return store if isinstance(store, str) else "files"


def _busy(work: Callable[[], T]) -> tuple[T, float | None]:
    """What some work gives, and the GPU's mean busy share meanwhile; None where NVML is not to be had."""
    try:
        gpu = Gpu()
    except (OSError, EdgekitError):
        return work(), None
    shares: list[float] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            shares.append(gpu.busy_share())

    with gpu:
        thread = threading.Thread(target=sample, name="edgekit busy", daemon=True)
        thread.start()
        try:
            found = work()
        finally:
            done.set()
            thread.join()
    return found, statistics.fmean(shares) if shares else None


def cells(found: GpuBench) -> list[tuple[str, str]]:
    """Label and text of every line, for people."""

    def busy(share: float | None) -> str:
        return "" if share is None else f", GPU busy {share:.0%}"

    card = found.card
    lines = [
        ("device", f"{found.device}, {found.cores} cores, torch {found.versions['torch']}"),
        ("teacher", f"{card.teacher_params / 1e6:.1f} M parameters at {found.size.side} pixels, trained for "
                    f"{found.trained.seconds:.0f} s at {found.trained.images_per_s:.0f} images/s"),
        ("student", f"{STUDENT}, {card.student_params / 1e6:.2f} M parameters"),
    ]  # fmt: skip
    for filling in found.fillings:
        cost = filling.cost
        lines.append((
            f"cache in {filling.store}, teacher in {filling.precision}",
            f"{cost.images} images in {cost.seconds:.1f} s, {filling.images_per_s:.0f} images/s, "
            f"{cost.bytes / cost.images / 1e6:.2f} MB each{busy(filling.busy_share)}",
        ))  # fmt: skip
    for probe in found.probes:
        label = f"images in {probe.images}, embeddings {probe.store}"
        lines.append((label, f"{probe.images_per_s:.0f} images/s in {probe.precision}{busy(probe.busy_share)}"))
    lines.append(("distil", f"{found.fit.steps} steps, {found.fit.images_per_s:.0f} images/s; all in "
                            f"{found.seconds:.0f} s{busy(found.busy_share)}"))  # fmt: skip
    worst = f"worst channel {card.worst_channel_r2:.4f}"
    lines.append(("embeddings", f"R2 {card.r2:.4f}, cosine {card.cosine:.4f}, {worst}"))
    return [*lines, *(("verdict", verdict) for verdict in card.verdicts)]
