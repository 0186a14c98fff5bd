"""The last screen: one row per bundle, the same fields in the table and in `--json`."""

from __future__ import annotations

from pathlib import Path

from edgekit.bundle import Bundle, Compiled, Delegation, Fallback, Unpacked
from edgekit.energy import Energy
from edgekit.measurement import AgainstFloat, GenerationTimes, Latency, Measurement
from edgekit.parity import Parity
from edgekit.types import FULL_PRECISION, Precision, Value

SHOWN = 5  # of a longer list, in a line for people
EMULATED = "emulated: not this board's speed"  # above every table of times that an emulator gave


class Row(Value, frozen=True, kw_only=True):
    """One bundle: what it is, whether it answers right, what it costs."""

    bundle: str
    model: str
    device: str
    format: str
    runtime: str
    precision: Precision
    float_ops: int  # of those with weights, in a model of another precision
    model_bytes: int
    unpacked: Unpacked | None = None  # what a packed model file becomes when it is loaded
    parity: Parity | None
    delegation: Delegation | None
    compiled: Compiled | None = None
    measurement: Measurement | None  # of the machine that exported, not of the device
    against_float: AgainstFloat | None


class Failure(Value, frozen=True, kw_only=True):
    """A format that gave no bundle."""

    format: str
    message: str
    exit_code: int


class Report(Value, frozen=True, kw_only=True):
    """What a command found, and what to type next."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    next_command: str | None = None


def report(bundle: Bundle, next_command: str | None = None) -> Report:
    """The report of one bundle."""
    return Report(rows=(row(bundle),), warnings=bundle.manifest.warnings, next_command=next_command)


def row(bundle: Bundle) -> Row:
    """The row of one bundle."""
    manifest, artifact = bundle.manifest, bundle.artifact
    return Row(
        bundle=str(bundle.path),
        model=manifest.name,
        device=manifest.device,
        format=artifact.format,
        runtime=artifact.runtime,
        precision=manifest.precision.name,
        float_ops=manifest.precision.float_ops if manifest.precision.name not in FULL_PRECISION else 0,
        model_bytes=bundle.model_bytes,
        unpacked=artifact.unpacked,
        parity=manifest.parity,
        delegation=manifest.delegation,
        compiled=manifest.compiled,
        measurement=manifest.measurements[-1] if manifest.measurements else None,
        against_float=manifest.against_float,
    )


def cells(row: Row) -> list[tuple[str, str]]:
    """Label and text of every line of a row, for people."""
    lines = [
        ("model", f"{row.model}  {row.precision}{_kept_float(row)}  {row.format} on {row.runtime}"),
        ("size", size_text(row)),
    ]
    if row.parity:
        lines.append(("parity", parity_text(row.parity)))
    if row.delegation:
        lines += delegation_cells(row.delegation)
    if row.compiled:
        lines += compiled_cells(row.compiled)
    if m := row.measurement:
        lines.append(("latency", f"{latency_text(m.latency)}  [this machine, not {row.device}]"))
        if m.generation:
            lines += generation_cells(m.generation)
        if row.against_float:
            lines.append(("against fp32", speedup_text(row.against_float)))
        lines.append(("peak memory", f"{megabytes(m.peak_rss_bytes)} resident, {m.threads} thread(s)"))
        lines.append(("energy", energy_text(m.energy)))
    lines.append(("bundle", str(Path(row.bundle))))
    return lines


def compiled_cells(found: Compiled) -> list[tuple[str, str]]:
    """Label and text of every line on what a vendor's compiler made, and on what it expects of it."""
    who, target = f"{found.compiler} {found.version}", " ".join(found.target.values())
    size = f"{found.precision}, {megabytes(found.bytes)}"
    lines = [("compiled", f"{found.path}  {size} by {who} for {target}")]
    if placed := found.delegation:
        counts = ", ".join(f"{unit} {sum(ops.values())}" for unit, ops in placed.units.items())
        lines.append(("ops go to", f"{counts}  in {placed.partitions} piece(s)"))
        lines += [("left over", fallback_text(placed))] if placed.fallbacks else []
    if each := found.estimate:
        time = f"{milliseconds(each.latency_s)}, " if each.latency_s is not None else ""
        memory = ", ".join(f"{name} {megabytes(used)}" for name, used in each.memory_bytes.items())
        lines.append(("estimate", f"{time}{each.cycles} cycles, {memory}  [estimated by {who}, not run]"))
    check = found.check
    ran = f"{check.by}: " if check.by else ""
    figures = f"{parity_text(check.parity)}; " if check.parity else ""
    return [*lines, ("checked", f"{ran}{figures}{check.covers}"), ("not checked", check.excludes)]


def _kept_float(row: Row) -> str:
    return f" ({row.float_ops} ops with float weights)" if row.float_ops else ""


def size_text(row: Row) -> str:
    """The size of the model file, and what a packed one becomes."""
    plain, size = row.unpacked, megabytes(row.model_bytes)
    if plain is None or plain.bits_per_weight is None:
        return size
    coded = f"{plain.weights / 1e6:.2f} M bf16 weights in {plain.bits_per_weight:.2f} bits each"
    return f"{size}, {megabytes(plain.bytes)} when loaded: {coded}"


def comparison_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of several bundles side by side; a format that failed has its reason instead."""
    columns = ["format", "precision", "MB", "load ms", "p50 ms", "peak MB", "parity", "delegated"]
    rows = []
    for each in report.rows:
        m, where = each.measurement, each.delegation
        rows.append(
            [
                each.format,
                each.precision,
                f"{each.model_bytes / 1e6:.2f}",
                f"{1e3 * m.load_s:.1f}" if m else "-",
                f"{1e3 * m.latency.p50_s:.2f}" if m else "-",
                f"{m.peak_rss_bytes / 1e6:.0f}" if m else "-",
                _parity_cell(each.parity),
                f"{100 * where.delegated_share:.0f} % {where.unit}" if where else "-",
            ]
        )
    rows += [[failure.format, "FAILED", *["-"] * (len(columns) - 2)] for failure in report.failures]
    return columns, rows


def _parity_cell(parity: Parity | None) -> str:
    if parity is None:
        return "-"
    figure = "" if parity.sqnr_db is None else f" {parity.sqnr_db:.1f} dB"
    return ("ok" if parity.ok else "FAILED") + figure


def generation_cells(times: GenerationTimes) -> list[tuple[str, str]]:
    """Label and text of every line on how fast a language model is."""
    first = f"{milliseconds(times.time_to_first_token_s)} after a prompt of {times.prompt_tokens} tokens"
    return [
        ("first token", f"{first}: {times.prefill_tokens_per_s:.0f} tokens/s, median of {times.texts} texts"),
        ("next tokens", f"{times.decode_tokens_per_s:.1f} tokens/s, between two {latency_text(times.inter_token)}"),
    ]


def speedup_text(found: AgainstFloat) -> str:
    """How much time the compressed model takes for each second of the float one."""
    interval = f"{found.ratio_ci.low:.2f} to {found.ratio_ci.high:.2f}"
    text = f"{found.ratio:.2f}x its time ({interval}), fp32 p50 {milliseconds(found.float_p50_s)}"
    return text if found.reason is None else f"{text}: not faster here: {found.reason}"


def delegation_cells(found: Delegation) -> list[tuple[str, str]]:
    """Label and text of every line on where ops ran."""
    counts = ", ".join(f"{unit} {sum(ops.values())}" for unit, ops in found.units.items())
    pieces = f" in {found.partitions} pieces" if found.partitions > 1 else ""
    lines = [("ops ran on", f"{counts}{pieces}")]
    if found.layout_copies:
        share = "" if found.layout_copies_share is None else f", {found.layout_copies_share:.1%} of the time"
        lines.append(("layout copies", f"{found.layout_copies}{share}"))
    if found.float_islands:
        lines.append(("float islands", f"{len(found.float_islands)}: {', '.join(found.float_islands[:SHOWN])}"))
    if found.fallbacks:
        lines.append(("fallbacks", fallback_text(found)))
    return lines


def fallback_text(found: Delegation) -> str:
    """The ops that did not run where they should, grouped by reason, with the first place of each."""
    groups: dict[tuple[str, str], list[Fallback]] = {}
    for fallback in found.fallbacks:
        groups.setdefault((fallback.op, fallback.reason), []).append(fallback)
    shown = [
        f"{len(each)}x {op} at {each[0].where}{f' ({each[0].source})' if each[0].source else ''}: {reason}"
        for (op, reason), each in list(groups.items())[:SHOWN]
    ]
    return "; ".join([*shown, *([f"and {len(groups) - SHOWN} more kinds"] if len(groups) > SHOWN else [])])


def parity_text(parity: Parity) -> str:
    """One line on parity."""
    if parity.sqnr_db is None or parity.cosine_min is None:
        return "FAILED: " + (parity.misses[0] if parity.misses else "the bundle records no figures")
    top1 = "" if parity.top1_agreement is None else f", top-1 {parity.top1_agreement:.1%} of {parity.top1_samples}"
    state = "ok" if parity.ok else "FAILED"
    if run := parity.golden_run:
        top1 += f", golden run {run.agreeing} of {run.tokens} tokens"
    figures = f"SQNR {parity.sqnr_db:.1f} dB, cosine >= {parity.cosine_min:.4f}{top1}"
    return f"{state}  {figures}, {parity.samples} {parity.origin} samples"


def latency_text(latency: Latency) -> str:
    """p50 with its interval, and the tail where there are samples for it."""
    text = f"p50 {milliseconds(latency.p50_s)}"
    if latency.p50_ci_s:
        text += f" ({1e3 * latency.p50_ci_s.low:.2f} to {1e3 * latency.p50_ci_s.high:.2f})"
    for name, value in (("p90", latency.p90_s), ("p99", latency.p99_s), ("p99.9", latency.p999_s)):
        if value is not None:
            text += f"  {name} {milliseconds(value)}"
    return text


def energy_text(energy: Energy) -> str:
    """Joules with their source, or why there are none."""
    if energy.gross_j is None:
        return f"{energy.provenance}: {energy.reason}"
    sure = "" if energy.u_rel is None else f" ± {100 * energy.u_rel:.2g} %"
    what = f"[{' '.join(filter(None, (energy.provenance, energy.meter)))}"
    if energy.net_j is None or energy.idle_w is None:
        text = f"{1e3 * energy.gross_j:.4g} mJ{sure} {what}]"
    else:
        text = f"{1e3 * energy.net_j:.4g} mJ{sure} {what}, net of {energy.idle_w:.3g} W idle]"
        text += f", {1e3 * energy.gross_j:.4g} mJ gross"
    return f"{text}  ({', '.join(energy.flags)})" if energy.flags else text


def megabytes(size: float) -> str:
    """Bytes as MB (10^6)."""
    return f"{size / 1e6:.2f} MB"


def milliseconds(seconds: float) -> str:
    """Seconds as ms."""
    return f"{1e3 * seconds:.2f} ms"
