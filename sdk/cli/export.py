"""`edgekit export` and `edgekit plan`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import options as given
from edgekit.cli import parts
from edgekit.cli.output import progress, say, show_json, show_pairs, show_table, warn
from edgekit.errors import InvalidInput

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.drafting import Draft, ExportOptions
    from edgekit.model import Model
    from edgekit.report import Report


@given.verb("export", "edgekit export -m zoo:efficientnet_lite0 -d raspberrypi5 --precision int8 -o out\n\n"
            "Next:  edgekit run out --input photo.jpg")  # fmt: skip
def export(
    model: given.ModelRef,
    device: given.DeviceName,
    output: given.Output,
    format: given.Format = "auto",
    precision: given.Precision = "auto",
    calibration: given.Calibration = None,
    samples: given.Samples = None,
    input: given.Inputs = None,
    dynamic: given.Dynamic = None,
    context: given.Context = None,
    plan: given.PlanFile = None,
    min_cosine: given.MinCosine = None,
    min_sqnr_db: given.MinSqnr = None,
    max_drop: given.MaxDrop = None,
    max_memory_mb: given.MaxMemory = None,
    min_delegated: given.MinDelegated = None,
    no_fallback: given.NoFallback = False,
    option: given.ExporterOptions = None,
    keep_intermediates: given.KeepIntermediates = False,
    dry_run: given.DryRun = False,
    force: given.ForceBundle = False,
    measure: given.Measure = True,
    trust_remote_code: given.TrustRemoteCode = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Turn a PyTorch model into a verified bundle for a device.

    The artifact is loaded in the runtime that will run it and compared with PyTorch on real samples. A miss exits 1 and
    leaves nothing behind. With several formats, or `--format all`, each makes a bundle in a folder of its own under -o.
    """
    from edgekit import pipeline
    from edgekit.bundle import MANIFEST, PARTS
    from edgekit.drafting import ExportOptions
    from edgekit.folder import check_free
    from edgekit.multiformat import check_folder, choose_formats, export_formats
    from edgekit.multipart import export_parts
    from edgekit.source import load

    several = choose_formats(format) if format == "all" or "," in format else ()
    if several and dry_run:
        raise InvalidInput("--dry-run shows one format: name it, or leave --format out")

    options = ExportOptions(
        format=format,
        precision=precision,
        calibration=calibration,
        samples=samples,
        plan=_read_plan(plan) if plan else None,
        cosine_min=min_cosine,
        sqnr_db_min=min_sqnr_db,
        max_memory_mb=max_memory_mb,
        max_drop=max_drop,
        min_delegated=100.0 if no_fallback else min_delegated,
        options=tuple(option or ()),
        keep_intermediates=keep_intermediates,
        force=force,
        measure=measure,
    )
    with progress(quiet) as step:
        if several:
            check_folder(output, several, force)
        elif not dry_run:
            check_free(output, force, PARTS if (output / PARTS).is_file() else MANIFEST)
        step(f"load {model}")
        loaded = load(
            model, inputs=input or (), dynamic=dynamic or (), context=context, trust_remote_code=trust_remote_code
        )
        if several and loaded.segmentation:
            raise InvalidInput(f"'{loaded.name}' is exported as two graphs, to one format at a time: name one --format")
        if dry_run:
            drafts = _drafts(loaded, device, options, step)
        elif loaded.segmentation:
            in_parts = export_parts(loaded, device, output, options, progress=step)
        elif several:
            compared = export_formats(loaded, device, output, several, options, progress=step)
        else:
            bundle = pipeline.export(loaded, device, output, options, progress=step)
    if dry_run:
        _show_drafts(drafts, json)
        return 0
    if loaded.segmentation:
        return parts.show_exported(in_parts, json)
    if several:
        return _show_formats(compared, output, json)
    return _show_bundle(bundle, json)


@given.verb("plan", "edgekit plan -m zoo:minilm_l6 -d raspberrypi4 -o plan.json\n\n"
            "Next:  edgekit export -m zoo:minilm_l6 -d raspberrypi4 --plan plan.json -o out")  # fmt: skip
def plan(
    model: given.ModelRef,
    device: given.DeviceName,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan here as JSON.")] = None,
    format: given.Format = "auto",
    precision: given.Precision = "auto",
    calibration: given.Calibration = None,
    input: given.Inputs = None,
    dynamic: given.Dynamic = None,
    context: given.Context = None,
    max_memory_mb: given.MaxMemory = None,
    trust_remote_code: given.TrustRemoteCode = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Choose passes, format and precision for a device, forecast size and memory, and say why. Exports nothing."""
    from edgekit.drafting import ExportOptions
    from edgekit.source import load

    options = ExportOptions(format=format, precision=precision, calibration=calibration, max_memory_mb=max_memory_mb)
    with progress(quiet) as step:
        step(f"load {model}")
        loaded = load(
            model, inputs=input or (), dynamic=dynamic or (), context=context, trust_remote_code=trust_remote_code
        )
        if output is not None and loaded.segmentation:
            raise InvalidInput(f"a plan is for one graph, and '{loaded.name}' is exported as two: leave -o out")
        drafts = _drafts(loaded, device, options, step)
    if output is not None:
        try:
            output.write_text(drafts[0].plan.to_json(), encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"cannot write the plan '{output}': {error.strerror}") from error
    _show_drafts(drafts, json)
    return 0


def _drafts(loaded: Model, device: str, options: ExportOptions, step: Callable[[str], None]) -> tuple[Draft, ...]:
    from edgekit.drafting import draft
    from edgekit.multipart import draft_parts

    if loaded.segmentation:
        return draft_parts(loaded, device, options, step)
    return (draft(loaded, device, options, step),)


def _read_plan(path: Path) -> Any:
    from edgekit.planning import Plan

    try:
        return Plan.from_json(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"cannot read the plan '{path}': {error.strerror}") from error


def _show_drafts(drafts: Sequence[Draft], json: bool) -> None:
    """One draft, or one after the other under the names of the parts."""
    if json:
        facts = [
            {"plan": d.plan, "forecast": d.forecast, "changes": d.compressed.changes, "warnings": d.warnings}
            for d in drafts
        ]
        names = [drafted.compressed.model.source.part or "" for drafted in drafts]
        show_json(facts[0] if len(facts) == 1 else {"parts": dict(zip(names, facts, strict=True))})
        return
    for drafted in drafts:
        if part := drafted.compressed.model.source.part:
            say(part)
        _show_draft(drafted)


def _show_draft(drafted: Draft) -> None:
    from edgekit.cli.forecast import forecast_cells
    from edgekit.compression import pass_name

    plan, forecast, changes = drafted.plan, drafted.forecast, drafted.compressed.changes
    changed = sum(change.reason is None for change in changes)
    show_pairs(
        [
            ("device", drafted.device.title),
            *((reason.split()[0], reason.split(maxsplit=1)[1]) for reason in plan.reasons),
            ("passes", ", ".join(pass_name(step) for step in plan.passes) or "none: weights stay as they are"),
            ("tensors", f"{changed} changed, {len(changes) - changed} kept"),
            *forecast_cells(forecast),
        ]
    )
    reasons = {(c.step, c.reason): c for c in changes if c.reason}
    if reasons:
        counts = [sum((c.step, c.reason) == key for c in changes) for key in reasons]
        rows = [[c.step, str(n), c.reason or "", c.tensor] for c, n in zip(reasons.values(), counts, strict=True)]
        say("")
        show_table(["pass", "kept", "because", "for example"], rows)
    warn(drafted.warnings)


def _show_bundle(bundle: Bundle, json: bool) -> int:
    """The rows of one format; 1 when it missed parity and was kept by force."""
    from edgekit.report import cells, report

    found = report(bundle, next_command=_next(bundle))
    if json:
        show_json(found)
    else:
        show_pairs([*cells(found.rows[0]), *_page_line(bundle.path)])
        say(f"\nNext:  {found.next_command}")
    warn(found.warnings)
    parity = bundle.manifest.parity
    return 0 if parity and parity.ok else 1


def _show_formats(found: Report, output: Path, json: bool) -> int:
    """The table of several formats; 1 when one of them failed."""
    from edgekit.report import comparison_table, fallback_text, speedup_text

    if json:
        show_json(found)
    else:
        for shown in found.rows[:1]:
            where = ", measured on this machine" if shown.measurement else ""
            say(f"{shown.model} for {shown.device}{where}\n")
        show_table(*comparison_table(found))
        say("")
        lines = [(f"{r.format} against fp32", speedup_text(r.against_float)) for r in found.rows if r.against_float]
        lines += [
            (f"{r.format} fallbacks", text)
            for r in found.rows
            if r.delegation and (text := fallback_text(r.delegation))
        ]
        lines += [(failure.format, f"FAILED: {failure.message}") for failure in found.failures]
        lines += _page_line(output)
        if len(found.rows) > 1:
            lines.append(("next", f"edgekit compare {shlex.quote(str(output))}/*"))
        if lines:
            show_pairs(lines)
    warn(found.warnings)
    return 1 if found.failures or any(r.parity and not r.parity.ok for r in found.rows) else 0


def _page_line(folder: Path) -> list[tuple[str, str]]:
    """Where the report page is, if it could be written."""
    from edgekit.bundle import REPORT

    return [("report", str(folder / REPORT))] if (folder / REPORT).is_file() else []


def _next(bundle: Bundle) -> str:
    folder = shlex.quote(str(bundle.path))
    if bundle.manifest.generation:
        return f'edgekit run {folder} --prompt "Once upon a time"'
    return f"edgekit run {folder} --input FILE_OR_TEXT" if bundle.manifest.preprocess else f"edgekit profile {folder}"
