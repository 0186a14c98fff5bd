"""`edgekit analyze -d DEVICE --fix -o OUT`: rewrite a model for an NPU, and say what was done where."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.output import progress, say, show_json, show_table
from edgekit.errors import InvalidInput

if TYPE_CHECKING:
    from edgekit.npu.adapting import AdaptationRecord
    from edgekit.npu.auditing.audit import Audit
    from edgekit.npu.fixing import Fixed
    from edgekit.npu.rewriting import RewriteRecord

MOST_PLACES = 3  # lines of one rewrite


def analyze_fix(
    model: str,
    device: str,
    output: Path | None,
    *,
    allow: str | None,
    data: str | None,
    min_coverage: float | None,
    inputs: Sequence[str],
    dynamic: Sequence[str],
    trust_remote_code: bool,
    force: bool,
    every: bool,
    json: bool,
    quiet: bool,
) -> int:
    """Fix and show. Returns 1 where the coverage after it is below the least that was asked for."""
    from edgekit.folder import check_free
    from edgekit.npu.fixing import FixOptions, fix
    from edgekit.source import REWRITTEN, load

    if output is None:
        raise InvalidInput("--fix writes a model: add -o OUT")
    words = tuple(word for word in (allow or "").split(",") if word)
    with progress(quiet) as step:
        check_free(output, force, REWRITTEN)
        step(f"load {model}")
        loaded = load(model, inputs=inputs, dynamic=dynamic, trust_remote_code=trust_remote_code)
        found = fix(loaded, device, output, FixOptions(allow=words, data=data, force=force), progress=step)
    if json:
        show_json(found)
    else:
        _show(found, every)
        say(f"\nNext:  edgekit export -m {shlex.quote(str(output))} -d {device} -o out")
    return 0 if min_coverage is None or 100 * found.after.coverage_macs >= min_coverage else 1


def _show(found: Fixed, every: bool) -> None:
    say(f"{found.before.model} for {found.before.npu} of {found.before.device}\n")
    for record in found.log:
        _show_rewrite(record, every)
    for adapted in found.adapted:
        _show_adaptation(adapted)
    if found.unasked:
        say(f"allowed, and not asked for by this NPU: {', '.join(found.unasked)}")
    say("")
    show_table(("on the NPU", "before", "after"), _compared(found.before, found.after))


def _show_rewrite(record: RewriteRecord, every: bool) -> None:
    if not record.done and not record.skipped and not every:
        return
    error = "" if record.error is None else f", float64 error {record.error:.1e}"
    say(f"{record.name}: {record.title}: {len(record.done)} places{error}")
    _show_places(list(Counter(record.done).items()), every)
    for reason in dict.fromkeys(each.reason for each in record.skipped):
        where = [each.place for each in record.skipped if each.reason == reason]
        say(f"    skipped {len(where)}, as at {where[0]}: {reason}")


def _show_places(places: Sequence[tuple[str, int]], every: bool) -> None:
    for where, count in places if every else places[:MOST_PLACES]:
        say(f"    at {where}" + (f" x{count}" if count > 1 else ""))
    if not every and len(places) > MOST_PLACES:
        say(f"    and {len(places) - MOST_PLACES} more: add --every")


def _show_adaptation(record: AdaptationRecord) -> None:
    say(f"{record.name}: {'kept' if record.kept else 'taken back'} at {record.place}: {record.reason}")


def _compared(before: Audit, after: Audit) -> list[list[str]]:
    return [
        ["MACs", f"{before.coverage_macs:.1%}", f"{after.coverage_macs:.1%}"],
        ["ops", f"{before.coverage_ops:.1%}", f"{after.coverage_ops:.1%}"],
        ["layout copies", f"{before.layout_copies}", f"{after.layout_copies}"],
        ["MACs on padding", f"{before.wasted_macs:.1%}", f"{after.wasted_macs:.1%}"],
        ["tensors of too many dimensions", f"{len(before.high_rank)}", f"{len(after.high_rank)}"],
        ["dynamic sizes", f"{len(before.dynamic)}", f"{len(after.dynamic)}"],
    ]
