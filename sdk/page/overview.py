"""The top of the page: what the model is, where it came from, and what its bundles cost."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.page.markup import NOTHING, Html, bullets, join, pairs, table, tag
from edgekit.page.subjects import AT_EXPORT, Run, Subject
from edgekit.report import EMULATED, Report, comparison_table, megabytes, milliseconds, speedup_text
from edgekit.types import TensorSpec

MOST_TENSORS = 8  # of a list of inputs: a language model has one for each layer


def heading(subjects: Sequence[Subject], strays: Sequence[Run]) -> Html:
    """Name and source of the model, and a banner where times are an emulator's."""
    names = list(dict.fromkeys(subject.manifest.name for subject in subjects))
    runs = [run for subject in subjects for run in subject.runs] + list(strays)
    sources = dict.fromkeys((s.manifest.source.kind, s.manifest.source.ref, s.manifest.device) for s in subjects)
    lines = [
        tag("p", "From ", tag("code", f"{kind}:{ref}"), ", exported for ", tag("strong", device), class_="lead")
        for kind, ref, device in sources
    ]
    banner = NOTHING
    if any(run.emulated for run in runs):
        which = join((tag("strong", f"{run.label}, {run.origin}") for run in runs if run.emulated), "; ")
        said = "These times come from an emulator. They say that the model runs, and nothing about how fast: "
        banner = tag("p", tag("strong", EMULATED), ". ", said, which, ".", class_="banner", role="note")
    return tag("header", tag("p", "edgekit report", class_="kicker"), tag("h1", ", ".join(names)), *lines, banner)


def overview(subjects: Sequence[Subject]) -> Html:
    """One card for each bundle; several also side by side in a table, and what the export warned of."""
    cards = tag("div", *map(_card, subjects), class_="cards")
    said: dict[str, list[str]] = {}
    for subject in subjects:
        for warning in dict.fromkeys(subject.manifest.warnings):
            said.setdefault(warning, []).append(subject.label)
    warnings = [
        warning if len(labels) == len(subjects) else f"{', '.join(labels)}: {warning}"
        for warning, labels in said.items()
    ]
    side_by_side = _side_by_side(subjects) if len(subjects) > 1 else NOTHING
    notes = tag("div", tag("h3", "Warnings"), bullets(warnings), class_="warnings") if warnings else NOTHING
    return join([cards, side_by_side, notes])


def provenance(subjects: Sequence[Subject]) -> Html:
    """Where each bundle came from, and what goes in and out."""
    parts = []
    for subject in subjects:
        manifest = subject.manifest
        calibration = manifest.calibration
        rows: list[tuple[str, str]] = [
            ("source", tag("code", f"{manifest.source.kind}:{manifest.source.ref}")),
            ("weights sha256", tag("code", manifest.source.sha256 or "not recorded")),
            ("exported", f"{manifest.created_utc} for {manifest.device}"),
            ("runtime", f"{subject.row.runtime} ({manifest.artifacts[0].runtime_version_range})"),
            ("inputs", _tensors(manifest.inputs)),
            ("outputs", _tensors(manifest.outputs)),
        ]
        if manifest.dynamic:
            rows.append(("dynamic sizes", ", ".join(map(str, manifest.dynamic))))
        if calibration:
            rows.append(("calibration", f"{calibration.samples} samples of {calibration.origin}"))
        rows.append(("bundle", tag("code", subject.row.bundle)))
        parts.append(tag("section", tag("h3", subject.label), pairs(rows)))
    return join(parts)


def machine_text(run: Run) -> Html:
    """The machine of a run, marked where it is an emulator."""
    machine = f"{run.machine}, {run.measured.threads} thread(s)"
    return join([machine, " ", tag("strong", EMULATED, class_="emulated")] if run.emulated else [machine])


def where_text(run: Run) -> Html:
    """The machine of a run and what it has to do with the device that the bundle is for."""
    machine = machine_text(run)
    if run.emulated:
        return machine
    if run.device:
        here = "the machine that exported" if run.origin == AT_EXPORT else "the machine that measured"
        return join([machine, f": {here}; the bundle is for {run.device}"])
    return join([machine, ": of no bundle on this page"])


def _card(subject: Subject) -> Html:
    row, run = subject.row, subject.runs[-1] if subject.runs else None
    parity = row.parity
    state = NOTHING
    if parity:
        state = tag("span", "parity ok" if parity.ok else "parity FAILED", class_="good" if parity.ok else "bad")
    size = f"{row.precision} weights" + (f", {row.float_ops} ops with float weights" if row.float_ops else "")
    sqnr = "-" if parity is None or parity.sqnr_db is None else f"{parity.sqnr_db:.1f} dB"
    tiles = [
        _tile("model file", megabytes(row.model_bytes), size),
        _tile("SQNR against PyTorch", sqnr, _judged(subject)),
    ]
    if run:
        tiles += _measured_tiles(run)
    head = tag("h3", subject.label, " ", state)
    lines = [tag("p", where_text(run), class_="where")] if run else [tag("p", "Not measured yet.", class_="where")]
    if row.against_float:
        lines.append(tag("p", "Against fp32 in the same runtime: ", speedup_text(row.against_float), class_="where"))
    return tag("article", head, tag("div", *tiles, class_="tiles"), *lines, class_="card")


def _measured_tiles(run: Run) -> list[Html]:
    measured, latency, energy = run.measured, run.measured.latency, run.measured.energy
    found = latency.p50_ci_s
    interval = (
        f"95 % interval {1e3 * found.low:.2f} to {1e3 * found.high:.2f}" if found else "too few calls for an interval"
    )
    tiles = [_tile("latency, p50, emulated" if run.emulated else "latency, p50", milliseconds(latency.p50_s), interval)]
    if measured.generation:
        speed = f"{measured.generation.decode_tokens_per_s:.1f}/s"
        first = milliseconds(measured.generation.time_to_first_token_s)
        tiles.append(_tile("tokens", speed, f"first after {first}"))
    tiles.append(_tile("peak memory", megabytes(measured.peak_rss_bytes), "resident"))
    joules = energy.gross_j if energy.net_j is None else energy.net_j
    if joules is None or not energy.provenance.startswith("measured"):
        return [*tiles, _tile("energy", "", "not measured: see Energy")]
    kind = "above idle" if energy.net_j is not None else "idle included"
    return [*tiles, _tile("energy", f"{1e3 * joules:.4g} mJ", f"{energy.provenance}, {kind}")]


def _judged(subject: Subject) -> str:
    parity = subject.manifest.parity
    if parity is None:
        return "not verified"
    gate = parity.tolerance.sqnr_db_min
    least = "" if gate is None else f", gate {gate:g} dB"
    return f"{parity.samples} {parity.origin} samples{least}"


def _tile(name: str, figure: str, note: str) -> Html:
    return tag(
        "div", tag("span", name, class_="name"), tag("span", figure, class_="figure"), tag("span", note, class_="note")
    )


def _side_by_side(subjects: Sequence[Subject]) -> Html:
    columns, rows = comparison_table(Report(rows=tuple(subject.row for subject in subjects)))
    named = [
        [subject.label, *cells[2:], machine_text(subject.runs[-1]) if subject.runs else "not measured"]
        for subject, cells in zip(subjects, rows, strict=True)
    ]
    shown = ["bundle", *columns[2:], "measured on"]
    return tag("section", table("Bundles side by side, each with its newest measurement", shown, named, {1, 2, 3, 4}))


def _tensors(specs: Sequence[TensorSpec]) -> Html:
    rest = [f"and {len(specs) - MOST_TENSORS} more"] if len(specs) > MOST_TENSORS else []
    return join([*(tag("code", str(spec)) for spec in specs[:MOST_TENSORS]), *rest], ", ")
