"""The `npu-conv` student in the integers of three schemes: how far its embeddings are off, on scenes of the toy SAM.

A short training does: what matters is that weights and ranges are those of a trained student.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgekit.bench._npu_figure import Figure
from edgekit.compression import Progress
from edgekit.distill import DistillOptions, distill
from edgekit.distill.refine import RefineOptions
from edgekit.distill.scenes import scenes, write_scenes
from edgekit.distill.toy_sam import pixel_values, save_toy_sam, trained_toy_sam
from edgekit.distill.training.fit_options import FitOptions
from edgekit.drafting import ExportOptions
from edgekit.errors import InvalidInput
from edgekit.model import Model
from edgekit.npu.integer.check import integer_check
from edgekit.npu.numbers.quantsim import model_sqnr, simulate
from edgekit.npu.numbers.scheme import scheme
from edgekit.pipeline import export
from edgekit.processing import Arrays
from edgekit.profile import find_device
from edgekit.source import load
from edgekit.splitting import split

IMAGE, DEVICE = "pixel_values", "raspberrypi5"  # any that takes TFLite: nothing runs there
SITE, STUDENT, SHARE = "vision_encoder", "npu-conv", 1 / 6  # of the teacher's parameters, at most
TEACHER_STEPS, STEPS, REFINE_STEPS, SCENES = 600, 300, 5, 800
TRAINED, JUDGED = 1000, 5000  # seeds of the scenes that teach, and of those that judge
SAMPLES = 64  # that give the ranges, and as many others that are judged
BARS = {"w8a16": 40.0, "w8a8": 30.0}


def figures(progress: Progress) -> Iterator[Figure]:
    """The ratio of each scheme, on scenes that gave no range. Raises `ToolchainMissing` without the TFLite exporter."""
    samples = _samples(2 * SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        encoder = _student(Path(folder), progress)
        yield _in_integers(encoder, samples, Path(folder), progress)
    for name, bar in BARS.items():
        progress(f"simulate {name}")
        simulated = simulate(encoder, samples[:SAMPLES], scheme(name))
        found = model_sqnr(encoder, simulated, samples[SAMPLES:])
        yield Figure(
            name=f"npu-conv student of the toy SAM: {name}",
            value=found.total_db,
            unit="dB",
            bar=bar,
            how=f"worst channel {found.worst_channel_db:.1f} dB; {SAMPLES} scenes, simulated",
        )


def _in_integers(encoder: Model, samples: list[Arrays], folder: Path, progress: Progress) -> Figure:
    """The same bits where they really are integers: an int8 file, op by op, beside what is simulated below."""
    for name, some in (("ranges", samples[:SAMPLES]), ("judged", samples[SAMPLES:])):
        np.savez(folder / f"{name}.npz", pixel_values=np.concatenate([each[IMAGE] for each in some]))
    options = ExportOptions(
        format="tflite",
        precision="int8",
        calibration=str(folder / "ranges.npz"),
        samples=str(folder / "judged.npz"),
        options=("integer_io=true",),
        measure=False,
    )
    found = integer_check(export(encoder, find_device(DEVICE), folder / "int8", options=options, progress=progress))
    return Figure(
        name="npu-conv student of the toy SAM: int8 in LiteRT's integers",
        value=found.outputs[0].sqnr_db if found.ok else math.nan,
        unit="dB",
        bar=BARS["w8a8"],
        how=found.misses[0] if found.misses else f"{found.values:,} values equal to its reference kernels",
    )


def _student(folder: Path, progress: Progress) -> Model:
    """The student of a toy teacher, both trained here."""
    save_toy_sam(trained_toy_sam(steps=TEACHER_STEPS, progress=progress), folder / "teacher")
    write_scenes(scenes(SCENES, TRAINED), folder / "images", folder / "truth")
    options = DistillOptions(
        site=SITE,
        data=str(folder / "images"),
        truth=str(folder / "truth"),
        student=STUDENT,
        params=SHARE,
        fit=FitOptions(steps=STEPS, lr=4e-3),
        refine=RefineOptions(steps=REFINE_STEPS),
    )
    distill(str(folder / "teacher"), folder / "student", options, progress=progress)
    model = load(str(folder / "student"))
    if model.segmentation is None:
        raise InvalidInput("the distilled model is promptable no more")
    return split(model, model.segmentation.encoder)[0]


def _samples(count: int) -> list[Arrays]:
    return [{IMAGE: one[None].numpy()} for one in pixel_values(scenes(count, JUDGED))]
