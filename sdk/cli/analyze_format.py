"""`edgekit analyze --format FORMAT`: what becomes of every op when a model is exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.output import progress, say, show_json
from edgekit.errors import InvalidInput

if TYPE_CHECKING:
    from edgekit.preflight import Analysis


def analyze_format(
    model: str,
    format: str,
    *,
    save_repro: Path | None,
    inputs: Sequence[str],
    dynamic: Sequence[str],
    trust_remote_code: bool,
    every: bool,
    json: bool,
    quiet: bool,
) -> int:
    """Ask the exporters and show. Returns 1 where one of them cannot take the model."""
    from edgekit import preflight, repro
    from edgekit.multiformat import choose_formats
    from edgekit.source import load

    formats = choose_formats("all" if format == "auto" else format)
    if save_repro and len(formats) > 1:
        raise InvalidInput("--save-repro is for one format: add --format")
    with progress(quiet) as step:
        step(f"load {model}")
        loaded = load(model, inputs=inputs, dynamic=dynamic, trust_remote_code=trust_remote_code)
        found = [preflight.analyze(loaded, name, progress=step) for name in formats]
        saved = None
        if save_repro:
            saved = repro.save_repro(
                loaded,
                formats[0],
                save_repro,
                inputs=inputs,
                dynamic=dynamic,
                trust_remote_code=trust_remote_code,
                progress=step,
            )
    if json:
        show_json(found)
    else:
        for analysis in found:
            _show(analysis, every)
    if save_repro and not json:
        part = f"'{saved}'" if saved else "the whole model"
        say("nothing fails: no script written" if saved is None else f"{save_repro}/repro.py fails like {part}")
    return 0 if all(analysis.converts for analysis in found) else 1


def _show(analysis: Analysis, every: bool) -> None:
    counts = Counter(op.verdict for op in analysis.ops)
    say(f"{analysis.format}: " + (", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "not traced"))
    if analysis.error:
        say(f"  {analysis.error}")
    groups: dict[tuple[str, ...], list[str]] = {}
    for op in analysis.ops:
        if every or op.reason:
            groups.setdefault((op.verdict, op.op, op.reason, op.fix), []).append(op.place)
    for (verdict, name, reason, fix), places in groups.items():
        say(f"  {verdict}: {name}" + (f": {reason}" if reason else ""))
        for place, count in Counter(places).items():
            say(f"    at {place}" + (f" x{count}" if count > 1 else ""))
        if fix:
            say(f"    fix: {fix}")
