"""One model to several formats: a bundle for each, one table, and a failure of one loses none of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from edgekit import registry
from edgekit.benchmark import QUICK_ROUNDS, compare
from edgekit.bundle import MANIFEST, REPORT, Bundle
from edgekit.compression import Progress, silent
from edgekit.drafting import DEFAULTS, ExportOptions
from edgekit.errors import EdgekitError, InvalidInput, OutputExists, unknown_name
from edgekit.folder import check_free, write_errors
from edgekit.measurement import Comparison, Measurement
from edgekit.model import Model
from edgekit.page.document import page
from edgekit.pipeline import export
from edgekit.planning import EXPORTERS, known_precision, split_option
from edgekit.profile import DeviceProfile, find_device
from edgekit.report import Failure, Report, row
from edgekit.source import load

TURNS = "measured in turns"


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
    if options.precision != "auto":
        known_precision(options.precision)
    chosen = _options_by_format(formats, options.options)
    profile = find_device(device) if isinstance(device, str) else device
    check_folder(Path(out), formats, options.force)
    loaded = load(model) if isinstance(model, str) else model
    bundles: list[Bundle] = []
    failures: list[Failure] = []
    for name in formats:

        def step(text: str, name: str = name) -> None:
            progress(f"{name}: {text}")

        try:
            mine = replace(options, format=name, options=chosen[name])
            bundles.append(export(loaded, profile, Path(out) / name, mine, progress=step))
        except EdgekitError as error:
            failures.append(Failure(format=name, message=str(error), exit_code=error.exit_code))
    rows = [row(bundle) for bundle in bundles]
    compared: list[Comparison] = []
    warnings = dict.fromkeys(warning for bundle in bundles for warning in bundle.manifest.warnings)
    if options.measure and len(bundles) > 1:
        try:
            compared = _in_turns(bundles, progress)
            found = zip(rows, _measurements(compared), strict=True)
            rows = [msgspec.structs.replace(each, measurement=measured) for each, measured in found]
        except EdgekitError as error:  # the bundles are there, with the figures of their own exports
            warnings[f"not measured in turns: {error}"] = None
    if len(bundles) > 1:
        warnings |= dict.fromkeys(write_page(Path(out) / REPORT, bundles, compared, options.force))
    return Report(rows=tuple(rows), failures=tuple(failures), warnings=tuple(warnings))


def check_folder(out: Path, formats: Sequence[str], force: bool) -> None:
    """Raise `OutputExists` unless every bundle can be made under `out`."""
    if (out / MANIFEST).exists():
        raise OutputExists(f"'{out}' is a bundle; several formats make one in each folder under -o: choose another -o")
    for name in formats:
        check_free(out / name, force, MANIFEST)


def _options_by_format(formats: Sequence[str], given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each format's options: those with its name before them."""
    found: dict[str, tuple[str, ...]] = {name: () for name in formats}
    for text in given:
        owner, _, _ = split_option(text)
        if owner not in found:
            raise InvalidInput(f"'{text}' must name one of the formats: {formats[0]}.{text}")
        found[owner] += (text,)
    return found


def _in_turns(bundles: list[Bundle], progress: Progress) -> list[Comparison]:
    progress("measure all formats in turns")
    return compare(bundles, rounds=QUICK_ROUNDS, fresh=False)


def _measurements(compared: list[Comparison]) -> list[Measurement]:
    return [*(pair.a for pair in compared[:1]), *(pair.b for pair in compared)]


def write_page(file: Path, bundles: list[Bundle], compared: list[Comparison], force: bool) -> list[str]:
    """One report page beside the bundles, of all of them; why there is none, where there is none."""
    if file.exists() and not force:
        return [f"'{file}' is there already and was left: edgekit report {file.parent} -o FILE"]
    try:
        text = page(bundles, [(TURNS, made) for made in _measurements(compared)], [(TURNS, pair) for pair in compared])
        with write_errors(file):
            file.write_text(text, encoding="utf-8")
    except EdgekitError as error:
        return [f"no report page: {error}"]
    return []
