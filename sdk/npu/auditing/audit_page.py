"""An audit as a page: how much of a model an NPU runs, where each op runs, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.npu.auditing.audit import Audit
from edgekit.npu.auditing.audit_map import op_map, verdict_bar
from edgekit.npu.auditing.audit_tables import Group, bits_said, bits_table, facts, groups, place, range_table
from edgekit.npu.auditing.placement import Verdict
from edgekit.npu.rules import NpuRules
from edgekit.page.document import document, section
from edgekit.page.markup import NOTHING, Html, bullets, folded, pairs, table, tag

MOST_PLACES = 4  # of one group
HOW_RANGES = "No samples were given: edgekit analyze with --data DIR, or --calibration builtin:NAME, shows them."


def audit_page(audit: Audit, rules: NpuRules) -> str:
    """One HTML document; the same audit gives the same text."""
    sections = [
        ("coverage", "Coverage", tag("section", _shares(audit), pairs(facts(audit)))),
        ("map", "Where each op runs", _map(audit)),
        ("rest", "What does not run", _rest(audit)),
        ("ranges", "Ranges", _ranges(audit)),
        ("ops", "Every op", _ops(audit)),
        ("rules", "The rules and their sources", _rules(rules)),
    ]
    links = [tag("li", tag("a", title, href=f"#{key}")) for key, title, _ in sections]
    lead = f"On {rules.title} of {audit.device}; every verdict is a {audit.basis}, and no time was measured."
    body = tag(
        "body",
        tag("a", "Skip to the figures", href="#coverage", class_="skip"),
        tag("header",
            tag("p", "edgekit analyze", class_="kicker"), tag("h1", audit.model), tag("p", lead, class_="lead")),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(section(key, title, inner) for key, title, inner in sections)),
        tag("footer", tag("p", "Made by edgekit analyze. A fix is the name of a rewrite, or what to change by hand.")),
    )  # fmt: skip
    return document(f"{audit.model} on {rules.title}", body)


def _shares(audit: Audit) -> Html:
    ops, macs = dict[Verdict, float](), dict[Verdict, float]()
    for op in audit.placements:
        ops[op.verdict] = ops.get(op.verdict, 0.0) + 1
        macs[op.verdict] = macs.get(op.verdict, 0.0) + op.macs
    return tag("div", tag("h3", "Ops"), verdict_bar(ops, "Ops"), tag("h3", "MACs"), verdict_bar(macs, "MACs"))


def _map(audit: Audit) -> Html:
    said = "Ops in the order they run, a picture for each module. Hold the pointer over a mark to read what it is."
    return tag("section", tag("p", said, class_="lead"), op_map(audit.placements))


def _rest(audit: Audit) -> Html:
    left = [each for each in groups(audit.placements) if each.verdict != "runs"]
    if not left:
        return tag("section", tag("p", "Every op runs on the NPU."))
    whole = sum(op.macs for op in audit.placements) or 1
    return tag("div", *(_card(each, each.macs / whole) for each in left), class_="cards")


def _card(found: Group, share: float) -> Html:
    named = [where + (f" x{count}" if count > 1 else "") for where, count in found.alike.items()]
    rest = [f"and {len(named) - MOST_PLACES} more places"] if len(named) > MOST_PLACES else []
    return tag(
        "article",
        tag("h3", found.op, " ", tag("span", found.verdict, class_="bad")),
        tag("p", f"{found.count} op(s), {share:.1%} of the MACs", class_="where"),
        tag("p", found.reason),
        tag("p", tag("strong", "fix: "), found.remedy) if found.fix else NOTHING,
        bullets([*named[:MOST_PLACES], *rest]),
        class_="card",
    )


def _ranges(audit: Audit) -> Html:
    if not audit.ranges:
        return tag("section", tag("p", HOW_RANGES))
    schemes = list(dict.fromkeys(name for each in audit.ranges for name in each.sqnr))
    columns, rows = range_table(audit.ranges, schemes)
    said = (
        "Each op alone, on exact inputs, with its weights and its result rounded. The worst channel stands beside the "
        "total, because a loud channel hides a dead one."
    )
    listed = table("Tensors, the worst first", columns, rows, set(range(1, len(columns) - 1)))
    return tag("section", tag("p", said, class_="lead"), listed, _bits(audit))


def _bits(audit: Audit) -> Html:
    if audit.bits is None:
        return NOTHING
    columns, rows = bits_table(audit.bits)
    listed = table("Ops that need more bits, the most harmful first", columns, rows, {2, 3}) if rows else NOTHING
    return tag("div", tag("h3", "Bits"), tag("p", f"{bits_said(audit.bits)}."), listed)


def _ops(audit: Audit) -> Html:
    rows = [
        [op.op, op.verdict, f"{op.macs:,}" if op.macs else "", op.reason or "", place(op)] for op in audit.placements
    ]
    listed = table("Every op in the order it runs", ["op", "verdict", "MACs", "reason", "where"], rows, {2})
    return tag("section", folded(f"{len(rows)} ops", listed, kind="long"))


def _rules(rules: NpuRules) -> Html:
    sources = table("Sources", ["name", "where"], [[name, where] for name, where in rules.sources.items()])
    evidence = [(name.replace("_", " "), _given(rules, name)) for name in rules.evidence]
    return tag("section", bullets(rules.notes), pairs(evidence), folded("Rules by op", _by_op(rules)), sources)


def _given(rules: NpuRules, name: str) -> str:
    value = getattr(rules, name)
    shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
    listed = ", ".join(map(str, shown)) if isinstance(shown, tuple) else str(shown)
    return f"{listed} ({rules.evidence[name]})"


def _by_op(rules: NpuRules) -> Html:
    rows = [
        [", ".join(rule.ops), _condition(rule.dtypes, rule.limits), rule.refused or "", rule.source, rule.note or ""]
        for rule in rules.ops
    ]
    made = table("When ops run", ["ops", "where", "refused because", "source", "note"], rows)
    return made if rows else NOTHING


def _condition(dtypes: Sequence[str], limits: dict[str, tuple[float, float]]) -> str:
    ranges = [f"{name.replace('_', ' ')} {low:g}" + (f" to {high:g}" if high > low else "")
              for name, (low, high) in limits.items()]  # fmt: skip
    return "; ".join([*([", ".join(dtypes)] if dtypes else []), *ranges]) or "always"
