"""One model as two graphs: the encoder and the rest, each exported like any model, and the chain of both verified."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from edgekit.bundle import MANIFEST, PARTS, Bundle, file_sha256
from edgekit.compression import Progress, silent
from edgekit.dataset import load_dataset
from edgekit.drafting import DEFAULTS, Draft, ExportOptions, draft
from edgekit.errors import EdgekitError, InvalidInput, ParityFailed
from edgekit.folder import building, check_free
from edgekit.model import Model
from edgekit.parity import TOLERANCES, Tolerance, with_gates
from edgekit.parts import ENCODER, REST, SCHEMA_VERSION, BundleInParts, Parts, judge_chain
from edgekit.pipeline import GOLDEN_SAMPLES, export
from edgekit.processing import Arrays, relaid
from edgekit.profile import DeviceProfile
from edgekit.segmentation import Segmentation, sample_prompts
from edgekit.source import load
from edgekit.splitting import split


def export_parts(
    model: Model | str,
    device: str | DeviceProfile,
    out: str | Path,
    options: ExportOptions = DEFAULTS,
    *,
    progress: Progress = silent,
) -> BundleInParts:
    """Export a promptable model for `device` as two bundles in the folder `out`, each verified, and their chain too.

    Raises `ParityFailed` where a part or the chain does not answer like PyTorch, as `edgekit.export` does.
    """
    folder = Path(os.path.abspath(out))
    check_free(folder, options.force, PARTS)
    if isinstance(model, str):
        progress(f"load {model}")
        model = load(model)
    segmentation = segmentation_of(model)
    encoder, rest = split(model, segmentation.encoder)
    text = options.samples or model.evaluation
    if text is None:
        raise InvalidInput(f"'{model.name}' is verified in parts on real samples: give --samples")
    with building(folder, 3 * model.weight_bytes, options.force) as partial:
        progress("ask PyTorch for embeddings of the samples")
        samples = _samples(encoder, segmentation, text)
        chosen = {ENCODER: replace(options, samples=text), REST: _for_rest(encoder, segmentation, options, partial)}
        chosen[REST] = replace(chosen[REST], samples=_store(encoder, samples, partial / "samples.npz"))
        for part in (encoder, rest):
            _export_part(part, device, partial, chosen[part.source.part or ""], progress)
        for scratch in partial.glob("*.npz"):
            scratch.unlink()
        progress("verify both parts after each other")
        _write_record(model, partial, samples, options)
    return BundleInParts.open(out)


def draft_parts(
    model: Model, device: str | DeviceProfile, options: ExportOptions = DEFAULTS, progress: Progress = silent
) -> tuple[Draft, Draft]:
    """Decide everything about both parts, and write nothing but scratch."""
    segmentation = segmentation_of(model)
    encoder, rest = split(model, segmentation.encoder)
    with tempfile.TemporaryDirectory() as scratch:
        return (
            draft(encoder, device, options, progress),
            draft(rest, device, _for_rest(encoder, segmentation, options, Path(scratch)), progress),
        )


def segmentation_of(model: Model) -> Segmentation:
    """How the model is asked. Raises `InvalidInput` for one that is exported as one graph."""
    if model.segmentation is None:
        raise InvalidInput(f"'{model.name}' is one graph: edgekit.export makes one bundle of it")
    return model.segmentation


def _for_rest(encoder: Model, segmentation: Segmentation, options: ExportOptions, folder: Path) -> ExportOptions:
    """The options with data sets of pictures turned into sets of embeddings and prompts; `folder` keeps these."""
    if options.plan:
        raise InvalidInput("a plan is for one graph, and this model is exported as two: leave --plan out")
    if options.calibration is None:
        return replace(options, samples=None)
    samples = _samples(encoder, segmentation, options.calibration)
    return replace(options, samples=None, calibration=_store(encoder, samples, folder / "calibration.npz"))


def _samples(encoder: Model, segmentation: Segmentation, text: str) -> list[Arrays]:
    """Inputs of the whole model: pictures of a data set, each with a prompt."""
    pictures = load_dataset(text, encoder.inputs, encoder.preprocess, encoder.assets).samples
    height, width = next(iter(pictures[0].values())).shape[2:]
    prompts = sample_prompts(segmentation, [(height, width)] * len(pictures))
    return [{**picture, **prompt} for picture, prompt in zip(pictures, prompts, strict=True)]


def _store(encoder: Model, samples: Sequence[Arrays], path: Path) -> str:
    """Write what the rest takes of these samples as a data set, and return its name."""
    pixels = [spec.name for spec in encoder.inputs]
    rows = [
        {**encoder({name: sample[name] for name in pixels}), **{n: a for n, a in sample.items() if n not in pixels}}
        for sample in samples
    ]
    np.savez(path, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})  # type: ignore[arg-type]
    return str(path)


def _export_part(
    part: Model, device: str | DeviceProfile, partial: Path, options: ExportOptions, progress: Progress
) -> None:
    name = part.source.part or ""
    try:
        export(part, device, partial / name, options, progress=lambda text: progress(f"{name}: {text}"))
    except EdgekitError as error:
        raise type(error)(f"the {name}: {error}") from error


def _write_record(model: Model, partial: Path, samples: Sequence[Arrays], options: ExportOptions) -> None:
    """Judge the chain and write `parts.json`. Raises `ParityFailed`."""
    record = Parts(
        schema_version=SCHEMA_VERSION,
        name=model.name,
        sha256={part: file_sha256(partial / part / MANIFEST) for part in (ENCODER, REST)},
        segmentation=segmentation_of(model),
    )
    found = BundleInParts(partial, record, Bundle.open(partial / ENCODER), Bundle.open(partial / REST))
    taken = {spec.name: spec for spec in found.encoder.manifest.inputs}
    wanted = tuple(taken.get(spec.name, spec) for spec in model.inputs)
    spread = np.linspace(0, len(samples) - 1, min(GOLDEN_SAMPLES, len(samples))).round().astype(int)
    whole = [(relaid(samples[i], model.inputs, wanted), model(samples[i])) for i in spread]
    chain = judge_chain(found, whole, _tolerance(found, options))
    if not chain.parity.ok and not options.force:
        raise ParityFailed(
            f"the parts of '{model.name}' answer like PyTorch one by one, and not after each other: "
            f"{'; '.join(chain.parity.misses)}. Take another --precision, or lower the gate with --min-sqnr-db or "
            "--min-cosine"
        )
    (partial / PARTS).write_text(msgspec.structs.replace(record, chain=chain).to_json(), encoding="utf-8")


def _tolerance(found: BundleInParts, options: ExportOptions) -> Tolerance:
    """The gate of the part with fewer bits, which the chain cannot do better than."""
    gates = [TOLERANCES[bundle.manifest.precision.name] for bundle in found.bundles]
    loosest = min(gates, key=lambda gate: gate.sqnr_db_min or 0.0)
    return with_gates(loosest, options.cosine_min, options.sqnr_db_min)
