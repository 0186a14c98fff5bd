"""One model to several formats: a bundle for each, one table, and a failure of one loses none of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from edgekit import registry
from edgekit.benchmark import compare
from edgekit.bundle import MANIFEST, Bundle
from edgekit.compression import Progress, silent
from edgekit.drafting import DEFAULTS, ExportOptions
from edgekit.errors import EdgekitError, InvalidInput, OutputExists, unknown_name
from edgekit.measurement import Measurement
from edgekit.model import Model
from edgekit.pipeline import check_free, export
from edgekit.planning import EXPORTERS
from edgekit.profile import DeviceProfile, find_device
from edgekit.report import Failure, Report, row
from edgekit.source import load

ROUNDS = 10  # of the measurement in turns


def choose_formats(text: str) -> tuple[str, ...]:
    """The formats that `--format` names: `all`, or a list with commas. Raises `UnknownName`."""
    known = registry.names(EXPORTERS)
    chosen = known if text == "all" else tuple(dict.fromkeys(text.split(",")))
    if wrong := [name for name in chosen if name not in known]:
        raise unknown_name("export format", wrong[0], known)
    return chosen


def export_formats(
    model: Model | str,
    device: str | DeviceProfile,
    out: str | Path,
    formats: Sequence[str],
    options: ExportOptions = DEFAULTS,
    *,
    progress: Progress = silent,
) -> Report:
    """Export each format into its own folder under `out`, then measure all bundles in turns.

    What goes wrong with one format is a `Failure` of the report; only what is wrong for all of them raises.
    """
    if options.plan:
        raise InvalidInput("a plan is for one format: give --plan without a list of formats")
    profile = find_device(device) if isinstance(device, str) else device
    check_folder(Path(out), formats, options.force)
    loaded = load(model) if isinstance(model, str) else model
    bundles: list[Bundle] = []
    failures: list[Failure] = []
    for name in formats:

        def step(text: str, name: str = name) -> None:
            progress(f"{name}: {text}")

        try:
            bundles.append(export(loaded, profile, Path(out) / name, replace(options, format=name), progress=step))
        except EdgekitError as error:
            failures.append(Failure(format=name, message=str(error), exit_code=error.exit_code))
    rows = [row(bundle) for bundle in bundles]
    if options.measure and len(bundles) > 1:
        measured = _in_turns(bundles, progress)
        rows = [msgspec.structs.replace(r, measurement=found) for r, found in zip(rows, measured, strict=True)]
    warnings = dict.fromkeys(warning for bundle in bundles for warning in bundle.manifest.warnings)
    return Report(rows=tuple(rows), failures=tuple(failures), warnings=tuple(warnings))


def check_folder(out: Path, formats: Sequence[str], force: bool) -> None:
    """Raise `OutputExists` unless every bundle can be made under `out`."""
    if (out / MANIFEST).exists():
        raise OutputExists(f"'{out}' is a bundle; several formats make one in each folder under -o: choose another -o")
    for name in formats:
        check_free(out / name, force)


def _in_turns(bundles: list[Bundle], progress: Progress) -> list[Measurement]:
    progress("measure all formats in turns")
    found = compare(bundles, rounds=ROUNDS)
    return [found[0].a, *(pair.b for pair in found)]
