"""How large each bundle is: weights by dtype, memory, files with their hashes, and what passes did to each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.page.bars import shares
from edgekit.page.markup import Html, bullets, folded, join, pairs, table, tag
from edgekit.page.overview import machine_text
from edgekit.page.subjects import Subject
from edgekit.report import megabytes, size_text


def content(subjects: Sequence[Subject]) -> Html:
    """Sizes and plan of each bundle."""
    return join(map(_of, subjects))


def _of(subject: Subject) -> Html:
    manifest, precision = subject.manifest, subject.manifest.precision
    weights = sorted(precision.weight_bytes.items(), key=lambda item: (-item[1], item[0]))
    facts: list[tuple[str, str]] = [
        ("weights", megabytes(sum(size for _, size in weights))),
        ("model file", size_text(subject.row)),
        ("ops with weights", f"{precision.quantized_ops} in fewer than 16 bits, {precision.float_ops} in float"),
    ]
    facts += [
        ("peak memory", join([megabytes(run.measured.peak_rss_bytes), f" resident, {run.origin}: ", machine_text(run)]))
        for run in subject.runs
    ]
    files = [
        [record.path, megabytes(record.bytes), tag("code", record.sha256)]
        for record in (*manifest.artifacts, *manifest.assets)
    ]
    return tag(
        "section",
        tag("h3", subject.label),
        shares(weights, "Bytes of weights by dtype"),
        pairs(facts),
        table("Weights by dtype, read back from the file", ["dtype", "bytes"],
              [[dtype, f"{size:,}"] for dtype, size in weights], {1}),
        folded("Files", table("Files of the bundle", ["file", "size", "sha256"], files, {1})),
        folded("Plan: why this format and precision", bullets(manifest.plan.reasons), _passes(subject)),
        folded(f"Tensors: {len(manifest.changes)} records of what passes did", _changes(subject), kind="long"),
    )  # fmt: skip


def _passes(subject: Subject) -> Html:
    rows = [
        [
            str(number + 1),
            str(each.get("pass", "unnamed")),
            _options(each),
        ]
        for number, each in enumerate(subject.manifest.plan.passes)
    ]
    return table("Passes in order", ["step", "pass", "options"], rows)


def _options(each: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in each.items() if name != "pass")


def _changes(subject: Subject) -> Html:
    ordered = sorted(subject.manifest.changes, key=lambda each: (each.bytes_after - each.bytes_before, each.tensor))
    rows = [
        [
            each.tensor,
            each.step,
            each.before,
            each.after,
            f"{each.bytes_before}",
            f"{each.bytes_after}",
            each.reason or "",
        ]
        for each in ordered
    ]
    columns = ["tensor", "pass", "before", "after", "bytes before", "bytes after", "reason"]
    return table("Tensors, the largest savings first", columns, rows, {4, 5})
