"""Does each bundle answer like PyTorch? Every output with its gates, and where the first difference is."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.page.markup import NOTHING, Html, bullets, join, table, tag
from edgekit.page.subjects import Subject
from edgekit.parity import Parity, Tolerance
from edgekit.report import parity_text


def accuracy(subjects: Sequence[Subject]) -> Html:
    """Parity of each bundle in the runtime that runs it."""
    explained = (
        "PyTorch's outputs against the file's, in the runtime that will run it. SQNR is the power of the signal over "
        "that of the error: 20 dB is an error of a tenth, 60 dB of a thousandth. The cosine is of the worst sample."
    )
    return join([tag("p", explained, class_="lead"), *(_of(subject) for subject in subjects)])


def _of(subject: Subject) -> Html:
    parity = subject.manifest.parity
    if parity is None:
        return tag("section", tag("h3", subject.label), tag("p", "Not verified: the bundle holds no parity."))
    verdict = tag("p", parity_text(parity), class_="good" if parity.ok else "bad")
    return tag(
        "section",
        tag("h3", subject.label),
        verdict,
        bullets(parity.misses, "bad"),
        _outputs(subject.label, parity),
        _modules(parity),
        _golden(parity),
    )


def _outputs(label: str, parity: Parity) -> Html:
    if not parity.outputs:
        return NOTHING
    gates = parity.tolerance
    rows = [
        [
            output.name,
            f"{output.sqnr_db:.1f}",
            _gate(gates.sqnr_db_min),
            f"{output.cosine_min:.6f}",
            _gate(gates.cosine_min),
            f"{output.max_abs:.3g}",
            f"{output.max_rel:.2%}",
            _state(output.sqnr_db, output.cosine_min, gates),
        ]
        for output in parity.outputs
    ]
    columns = ["output", "SQNR dB", "gate", "cosine", "gate", "max error", "of largest", "state"]
    return table(f"Outputs of {label}, {parity.samples} {parity.origin} samples", columns, rows, {1, 2, 3, 4, 5, 6})


def _state(sqnr_db: float, cosine: float, gates: Tolerance) -> Html:
    low = gates.sqnr_db_min is not None and sqnr_db < gates.sqnr_db_min
    turned = gates.cosine_min is not None and cosine < gates.cosine_min
    return tag("span", "below its gate", class_="bad") if low or turned else tag("span", "ok", class_="good")


def _gate(least: float | None) -> str:
    return "none" if least is None else f"{least:g}"


def _modules(parity: Parity) -> Html:
    if not parity.first_divergent and not parity.worst_modules:
        return NOTHING
    first = tag(
        "p", "First module that is off, in the order they run: ", tag("code", parity.first_divergent or "not found")
    )
    rows = [[module.module, f"{module.sqnr_db:.1f}"] for module in parity.worst_modules]
    return join([first, table("Modules that are furthest off", ["module", "SQNR dB"], rows, {1}) if rows else NOTHING])


def _golden(parity: Parity) -> Html:
    run = parity.golden_run
    if run is None:
        return NOTHING
    said = f"Golden run: {run.agreeing} of {run.tokens} tokens agree, {run.judged_agreeing} of {run.judged} judged."
    return tag("p", said, f" First difference: {run.first_difference}." if run.first_difference else "")
