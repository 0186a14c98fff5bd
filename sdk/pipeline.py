"""The main job: model in, verified bundle out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from torch.export import ExportedProgram

from edgekit import isolation, registry
from edgekit.benchmark import measure
from edgekit.bundle import (
    GOLDEN,
    MANIFEST,
    REPORT,
    SCHEMA_VERSION,
    Artifact,
    Asset,
    Bundle,
    CalibrationRecord,
    Compiled,
    Delegation,
    Manifest,
    record_file,
    write_golden,
)
from edgekit.codec import WORTH
from edgekit.compiling import CompileJob
from edgekit.compression import Progress, silent
from edgekit.dataset import RANDOM_SAMPLES, random_samples
from edgekit.decoding import CACHES
from edgekit.divergence import first_divergent, module_errors, worst
from edgekit.drafting import DEFAULTS, Draft, ExportOptions, draft
from edgekit.errors import DelegationMissed, EdgekitError, InvalidInput, ParityFailed, UnsupportedModel
from edgekit.exporting import Exported, Exporter, ExportJob
from edgekit.folder import building, check_free
from edgekit.generation import Generation
from edgekit.golden import golden_run
from edgekit.graph import module_path, op_nodes, source_line
from edgekit.inference import delegation
from edgekit.lossless_artifact import pack
from edgekit.model import Model
from edgekit.page.document import page
from edgekit.parity import TOLERANCES, ModuleError, Parity, Tolerance, compare, with_gates
from edgekit.planning import EXPORTERS, exporter_options
from edgekit.preflight import explained
from edgekit.processing import Arrays, ImagePreprocess, Preprocess, logits_output, relaid
from edgekit.profile import DeviceProfile
from edgekit.report import fallback_text
from edgekit.source import load
from edgekit.speedup import against_float
from edgekit.toolchains import versions
from edgekit.types import FULL_PRECISION, Precision, TensorSpec, Value
from edgekit.verification import References, check_unpacked, judge, make_references

COMPILED_SAMPLES = 32  # that what stands in for a device is asked about: simulators are slow
GOLDEN_SAMPLES = 8  # kept in the bundle, so that it can be verified where PyTorch is not
DIVERGED_DB = 20.0  # a module below this is off, where the gate names no SQNR
QUICK_CALLS = 60  # of the measurement on the last screen


def export(
    model: Model | str,
    device: str | DeviceProfile,
    out: str | Path,
    options: ExportOptions = DEFAULTS,
    *,
    progress: Progress = silent,
) -> Bundle:
    """Export `model` for `device` into the folder `out`, verified.

    Raises `ParityFailed` when the artifact does not answer like PyTorch; then nothing is left at `out`, unless `force`
    asked to keep it with `parity.ok = false` in its manifest.
    """
    folder = Path(os.path.abspath(out))
    check_free(folder, options.force, MANIFEST)
    if isinstance(model, str):
        progress(f"load {model}")
        model = load(model)
    if model.segmentation:
        raise InvalidInput(f"'{model.name}' is exported as two graphs: call edgekit.export_parts")
    made = draft(model, device, options, progress)
    memory = made.forecast.memory
    largest = max(memory.artifact_bytes, memory.weight_bytes)  # before it is packed, where it is
    room = 3 * largest + model.weight_bytes  # the artifact in the making, and the job that crosses
    with building(folder, room, options.force) as partial:
        manifest = with_page(_build(model, made, partial, options, progress), folder.name, partial)
        (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(out)


def _build(model: Model, made: Draft, partial: Path, options: ExportOptions, progress: Progress) -> Manifest:
    exporter: Exporter = registry.load(EXPORTERS, made.plan.format)
    job = ExportJob.of(made.compressed, made.program, made.plan.precision, options.keep_intermediates)
    chosen = exporter_options(made.plan)
    if refused := exporter.reject(job, chosen):
        raise UnsupportedModel("; ".join(map(str, refused)))
    most = made.forecast.memory.export_peak_bytes
    progress(f"export to {made.plan.format}, with at most about {most / 1e9:.1f} GB of memory")
    try:
        exported = isolation.export(made.plan.format, job, partial, chosen, progress)
    except UnsupportedModel as error:
        raise explained(error, made.plan.format, job, progress) from error
    progress("ask PyTorch for reference outputs")
    served = made.compressed.model  # whose sizes may be fixed where those of the model are dynamic
    samples = made.evaluation.samples if made.evaluation else random_samples(served.example_arrays)
    caches = [spec.name for spec in model.inputs if model.generation and spec.name.startswith(CACHES)]
    asked = make_references(model, served.inputs, served.dynamic, samples, state=caches)
    references = _served(asked, model.inputs, exported.inputs or model.inputs)
    write_golden(partial / GOLDEN, _spread(references.real, GOLDEN_SAMPLES))
    manifest = _manifest(model, made, exported, exporter, references, partial)
    if made.compressed.codec:
        progress("code the weights, and decode them to compare")
        manifest = _packed(manifest, partial, made.compressed.codec)
    progress(f"verify in {exporter.RUNTIME} on {len(references.real)} samples")
    parity = judge(Bundle(partial, manifest), references, _tolerance(options, made.plan.precision))
    parity = msgspec.structs.replace(parity, origin="real" if made.evaluation else "random")
    if not parity.ok:
        progress("look for the first module that diverges")

        def expose(artifact: Path, out: Path) -> Mapping[str, TensorSpec]:
            return isolation.expose(made.plan.format, job, artifact, out, chosen, progress)

        reference, output_of = made.compressed.reference or model, made.compressed.output_of
        errors = module_errors(reference, output_of, Bundle(partial, manifest), expose, asked.real[0][0])
        parity = _with_divergence(parity, errors)
        if not options.force:
            raise ParityFailed(_parity_message(manifest, parity))
    manifest = msgspec.structs.replace(manifest, parity=parity)
    if made.plan.compiler:
        progress(f"compile with {made.plan.compiler}")
        pairs = _spread(asked.real, COMPILED_SAMPLES)
        manifest = _compiled(manifest, partial, made, job, pairs, options, progress)
    manifest = _with_delegation(manifest, partial, references, job.program, options)
    return _measured(manifest, partial, job, chosen, progress) if options.measure else manifest


def _spread(pairs: Sequence[tuple[Arrays, Arrays]], most: int) -> list[tuple[Arrays, Arrays]]:
    """At most so many samples with their answers, from the first to the last."""
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int)]


def _served(asked: References, given: tuple[TensorSpec, ...], wanted: tuple[TensorSpec, ...]) -> References:
    """The references with inputs in the layout that the artifact takes."""
    return References(
        tuple((relaid(feeds, given, wanted), expected) for feeds, expected in asked.real),
        tuple((relaid(feeds, given, wanted), expected) for feeds, expected in asked.synthetic),
    )


def _compiled(
    manifest: Manifest,
    partial: Path,
    made: Draft,
    job: ExportJob,
    pairs: list[tuple[Arrays, Arrays]],
    options: ExportOptions,
    progress: Progress,
) -> Manifest:
    """Add what the vendor's compiler makes, beside the artifact, which runs and verifies here.

    Raises `ParityFailed` where what stood in for the device does not answer like PyTorch.
    """
    name = made.plan.compiler or ""
    choice = next(c for c in made.device.runtime if c.compiler and c.compiler.name == name)
    given = CompileJob(
        export=job,
        artifact=partial / manifest.artifacts[0].path,
        unit=made.device.unit_of(choice),
        samples=tuple(feeds for feeds, _ in pairs),
    )
    result = isolation.compile(name, given, partial, progress)
    found = result.compiled
    if found.delegation:
        found = msgspec.structs.replace(found, delegation=_with_sources(found.delegation, job.program))
    if result.answers is not None:
        logits = logits_output(manifest.postprocess)
        tolerance = _tolerance(options, found.precision)
        parity = compare([expected for _, expected in pairs], list(result.answers), tolerance, logits=logits)
        parity = msgspec.structs.replace(parity, origin="real" if made.evaluation else "random")
        if not parity.ok and not options.force:
            raise ParityFailed(_compiled_message(manifest, found, parity))
        found = msgspec.structs.replace(found, check=msgspec.structs.replace(found.check, parity=parity))
    top = partial / found.path
    paths = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
    records = [record_file(partial, path.relative_to(partial).as_posix()) for path in paths]
    assets = (*manifest.assets, *(Asset(role="compiled", **record) for record in records))
    return msgspec.structs.replace(manifest, compiled=found, assets=assets)


def _compiled_message(manifest: Manifest, found: Compiled, parity: Parity) -> str:
    return (
        f"'{manifest.name}' as {found.compiler} makes it does not answer like PyTorch, says {found.check.by}: "
        f"{'; '.join(parity.misses)}. Give more like the real inputs with --calibration, lower the gate with "
        "--min-sqnr-db or --min-cosine, or keep the bundle as it is with --force"
    )


def _with_delegation(
    manifest: Manifest, partial: Path, references: References, program: ExportedProgram, options: ExportOptions
) -> Manifest:
    """Record where ops ran; raises `DelegationMissed` when too few ran on the unit meant for them."""
    (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    found = _with_sources(delegation(Bundle(partial, manifest), references.real[0][0]), program)
    least, judged = options.min_delegated, manifest.compiled.delegation if manifest.compiled else found
    if judged is None:
        if least is not None:
            raise DelegationMissed(
                f"--min-delegated {least:g} has nothing to judge: {manifest.plan.compiler} does not know where ops "
                "will run. Leave it out"
            )
    elif least is not None and 100 * judged.delegated_share < least:
        where = "go to" if manifest.compiled else "ran on"
        raise DelegationMissed(
            f"{100 * judged.delegated_share:.1f} % of the ops {where} {judged.unit}, the gate is {least:g} %: "
            f"{fallback_text(judged)}. See each with: edgekit analyze; or lower --min-delegated"
        )
    return msgspec.structs.replace(manifest, delegation=found)


def _with_sources(found: Delegation, program: ExportedProgram) -> Delegation:
    """Source lines for the fallbacks that name a PyTorch module; runtimes know no trace."""
    lines = {module_path(node): source_line(node) for node in reversed(op_nodes(program.graph))}
    located = tuple(msgspec.structs.replace(f, source=f.source or lines.get(f.where)) for f in found.fallbacks)
    return msgspec.structs.replace(found, fallbacks=located)


def _measured(manifest: Manifest, partial: Path, job: ExportJob, chosen: Value, progress: Progress) -> Manifest:
    """The manifest with figures of this machine, of a compressed model beside its float one."""
    (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    bundle, against = Bundle(partial, manifest), None
    try:
        if manifest.precision.name in FULL_PRECISION:
            progress("measure on this machine")
            measured = measure(bundle, calls=QUICK_CALLS)
        else:
            with tempfile.TemporaryDirectory(dir=partial) as scratch:
                measured, against = against_float(bundle, job, chosen, Path(scratch), progress)
    except EdgekitError as error:  # the bundle is verified, and worth more than its figures
        return _warned(manifest, f"not measured: {error}")
    measured = msgspec.structs.replace(measured, bundle=manifest.name)
    return msgspec.structs.replace(manifest, measurements=(measured,), against_float=against)


def with_page(manifest: Manifest, name: str, partial: Path) -> Manifest:
    """Write the report page; the manifest says why there is none."""
    try:
        text = page([Bundle(Path(name), manifest)])
    except InvalidInput as error:  # a figure that no page can draw, as of an output that overflows
        return _warned(manifest, f"no {REPORT}: {error}")
    (partial / REPORT).write_text(text, encoding="utf-8")
    return manifest


def _warned(manifest: Manifest, warning: str) -> Manifest:
    return msgspec.structs.replace(manifest, warnings=(*manifest.warnings, warning))


def _manifest(
    model: Model, made: Draft, exported: Exported, exporter: Exporter, references: References, partial: Path
) -> Manifest:
    assets = [Asset(role="golden", **record_file(partial, GOLDEN))]
    assets += [Asset(role="external_data", **record_file(partial, path)) for path in exported.external_data]
    assets += [Asset(role="intermediate", **record_file(partial, path)) for path in exported.intermediates]
    if model.assets:
        (partial / "assets").mkdir()
    for name, content in model.assets.items():
        (partial / "assets" / name).write_bytes(content)
        assets.append(Asset(role="processing", **record_file(partial, f"assets/{name}")))
    calibration = made.compressed.calibration
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=model.name,
        source=model.source,
        device=made.device.id,
        plan=made.plan.record(),
        precision=exported.precision,
        inputs=exported.inputs or made.compressed.model.inputs,
        outputs=made.compressed.model.outputs,
        dynamic=made.compressed.model.dynamic,
        preprocess=_laid_out(model.preprocess, exported.inputs),
        postprocess=model.postprocess,
        generation=_with_golden_run(model),
        artifacts=(
            Artifact(
                format=made.plan.format,
                runtime=exporter.RUNTIME,
                runtime_version_range=exporter.RUNTIME_VERSION_RANGE,
                **record_file(partial, exported.path),
            ),
        ),
        assets=tuple(assets),
        calibration=CalibrationRecord(
            origin=calibration.origin, samples=len(calibration.samples), sha256=calibration.sha256
        )
        if calibration
        else None,
        changes=made.compressed.changes,
        delegation=exported.delegation,
        warnings=_warnings(made, references),
        tool_versions=versions(("edgekit", "numpy", *exporter.DISTRIBUTIONS)),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _packed(manifest: Manifest, partial: Path, codec: str) -> Manifest:
    """Put a packed file in the place of the model file. Raises `UnsupportedModel` where that gains too little."""
    [plain] = manifest.artifacts
    path = f"{plain.path}.lossless"
    held = pack(partial / plain.path, partial / path, codec)
    artifact = msgspec.structs.replace(plain, unpacked=held, **record_file(partial, path))
    if artifact.bytes > WORTH * held.bytes:
        raise UnsupportedModel(
            f"'{manifest.name}' in {plain.format} has little to gain from lossless: it would take "
            f"{artifact.bytes / held.bytes:.0%} of {held.bytes} bytes. Converting left {held.weights} weights that are "
            "bf16 values; others changed, as those that a batch norm is folded into. Take --precision fp32"
        )
    packed = msgspec.structs.replace(manifest, artifacts=(artifact,))
    check_unpacked(Bundle(partial, packed))
    (partial / plain.path).unlink()
    return packed


def _with_golden_run(model: Model) -> Generation | None:
    generation = model.generation
    return generation and msgspec.structs.replace(generation, golden=golden_run(model, generation))


def _warnings(made: Draft, references: References) -> tuple[str, ...]:
    found = list(made.warnings)
    if made.evaluation is None:
        found.append(f"verified on {RANDOM_SAMPLES} random inputs only: give real ones with --samples")
    answers = [expected for _, expected in references.real]
    for name in answers[0]:
        if len(answers) > 1 and all(np.array_equal(answers[0][name], answer[name]) for answer in answers):
            found.append(f"PyTorch's output '{name}' is the same for every sample: parity proves nothing about it")
    return tuple(found)


def _tolerance(options: ExportOptions, precision: Precision) -> Tolerance:
    tolerance = with_gates(TOLERANCES[precision], options.cosine_min, options.sqnr_db_min)
    if options.max_drop is not None:
        tolerance = msgspec.structs.replace(tolerance, top1_agreement_min=1 - options.max_drop / 100)
    return tolerance


def _laid_out(preprocess: Preprocess | None, inputs: tuple[TensorSpec, ...] | None) -> Preprocess | None:
    """The preprocessing that makes what the artifact takes."""
    if isinstance(preprocess, ImagePreprocess) and inputs:
        layout = next(spec.layout for spec in inputs if spec.name == preprocess.input)
        return msgspec.structs.replace(preprocess, layout=layout or preprocess.layout)
    return preprocess


def _with_divergence(parity: Parity, errors: list[ModuleError]) -> Parity:
    first = first_divergent(errors, parity.tolerance.sqnr_db_min or DIVERGED_DB)
    where = f"{first.module} ({first.sqnr_db:.1f} dB)" if first else None
    return msgspec.structs.replace(parity, first_divergent=where, worst_modules=tuple(worst(errors)))


def _parity_message(manifest: Manifest, parity: Parity) -> str:
    where = f" The first module that diverges is {parity.first_divergent}." if parity.first_divergent else ""
    if parity.worst_modules:
        where += " Worst: " + ", ".join(f"{e.module} {e.sqnr_db:.1f} dB" for e in parity.worst_modules) + "."
    return (
        f"'{manifest.name}' at {manifest.precision.name} does not answer like PyTorch: "
        f"{'; '.join(parity.misses)}.{where} Take another --precision, give more like the real inputs with "
        "--calibration, lower the gate with --min-sqnr-db or --min-cosine, or keep the bundle as it is with --force"
    )
