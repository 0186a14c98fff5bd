"""`edgekit analyze -d DEVICE`: what of a model an NPU runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit.cli.output import check_file, progress, save_text, say, show_json, show_pairs, show_table

if TYPE_CHECKING:
    from edgekit.npu.auditing.audit import Audit
    from edgekit.npu.auditing.audit_tables import Group
    from edgekit.types import DType

MOST_GROUPS, MOST_PLACES, MOST_TENSORS = 12, 3, 10


def analyze_npu(
    model: str,
    device: str,
    *,
    data: str | None,
    dtype: str | None,
    min_coverage: float | None,
    min_sqnr: float | None,
    html: Path | None,
    inputs: Sequence[str],
    dynamic: Sequence[str],
    trust_remote_code: bool,
    force: bool,
    every: bool,
    json: bool,
    quiet: bool,
) -> int:
    """Audit, show, and save the page. Returns 1 where the coverage or the SQNR is below the least asked for."""
    from edgekit.dataset import load_dataset
    from edgekit.npu.auditing.audit import audit
    from edgekit.npu.auditing.audit_page import audit_page
    from edgekit.npu.auditing.audit_tables import bits_said, missing
    from edgekit.npu.rules import rules_of
    from edgekit.profile import find_device
    from edgekit.source import load

    if html:
        check_file(html, force)
    profile = find_device(device)
    rules = rules_of(profile)
    with progress(quiet) as step:
        step(f"load {model}")
        loaded = load(model, inputs=inputs, dynamic=dynamic, trust_remote_code=trust_remote_code)
        samples = load_dataset(data, loaded.inputs, loaded.preprocess, loaded.assets) if data else None
        number = cast("DType | None", dtype)
        found = audit(loaded, profile, data=samples, dtype=number, min_db=min_sqnr, progress=step)
    if html:
        save_text(html, audit_page(found, rules))
    if json:
        show_json(found)
    else:
        _show(found, every)
        if html:
            say(f"{html}: open it in a browser")
    failures = []
    if min_coverage is not None and 100 * found.coverage_macs < min_coverage:
        failures.append(missing(found, min_coverage))
    if found.bits and not found.bits.met:
        failures.append(bits_said(found.bits))
    for failure in [] if json else failures:
        say(f"FAILED: {failure}")
    return 1 if failures else 0


def _show(found: Audit, every: bool) -> None:
    from edgekit.npu.auditing.audit_tables import bits_said, bits_table, facts, groups, range_table

    say(f"{found.model} on {found.npu} of {found.device}")
    show_pairs(facts(found))
    listed = [each for each in groups(found.placements) if every or each.verdict != "runs"]
    for group in listed if every else listed[:MOST_GROUPS]:
        _show_group(group, every)
    if not every and len(listed) > MOST_GROUPS:
        say(f"and {len(listed) - MOST_GROUPS} more kinds of ops: add --every")
    if found.ranges:
        schemes = list(dict.fromkeys(name for each in found.ranges for name in each.sqnr))
        columns, rows = range_table(found.ranges, schemes)
        say("")
        show_table(columns, rows if every else rows[:MOST_TENSORS])
        if not every and len(rows) > MOST_TENSORS:
            say(f"and {len(rows) - MOST_TENSORS} more tensors: add --every")
    if found.bits:
        say("")
        say(f"bits: {bits_said(found.bits)}")
        columns, rows = bits_table(found.bits)
        if rows:
            show_table(columns, rows if every else rows[:MOST_TENSORS])
        if not every and len(rows) > MOST_TENSORS:
            say(f"and {len(rows) - MOST_TENSORS} more ops: add --every")


def _show_group(group: Group, every: bool) -> None:
    say(f"  {group.verdict}: {group.op}" + (f": {group.reason}" if group.reason else ""))
    places = list((group.places if every else group.alike).items())
    for where, count in places if every else places[:MOST_PLACES]:
        say(f"    at {where}" + (f" x{count}" if count > 1 else ""))
    if not every and len(places) > MOST_PLACES:
        say(f"    and {len(places) - MOST_PLACES} more places")
    if group.fix:
        say(f"    fix: {group.remedy}")
