"""`make bench`: the figures that README quotes, measured here and written to tests/benchmarks.json.

Ratios are of interleaved runs in one process tree. Absolute times are of this machine on this day.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit.benchmark import compare
from edgekit.bundle import Bundle
from edgekit.dataset import PHOTOS, photo_bytes
from edgekit.drafting import ExportOptions
from edgekit.host import host_state, rss_bytes
from edgekit.inference import open_session, prepare, sample_feeds
from edgekit.model import Model
from edgekit.pipeline import export
from edgekit.session import CallLog, counted_run
from edgekit.source import load

RESULTS = Path(__file__).parent / "benchmarks.json"
README = Path(__file__).parents[1] / "README.md"
EDGEKIT = Path(sys.executable).with_name("edgekit")
GIB = 1 << 30


def wall_s(command: list[str], repeats: int = 15) -> float:
    """Median seconds of a command."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def start_up() -> dict[str, Any]:
    python = [sys.executable, "-P", "-c"]
    empty, imported = wall_s([*python, "pass"]), wall_s([*python, "import edgekit"])
    return {
        "import_s": imported - empty,
        "import_limit_s": 0.150,
        "help_s": wall_s([str(EDGEKIT), "--help"]),
        "help_limit_s": 0.400,
    }


def session_overhead(bundle: Bundle, repeats: int = 9, blocks: int = 10, calls: int = 30) -> dict[str, Any]:
    """What Session.run adds to onnxruntime's own run: time around it, less what timing adds around a direct call.

    The model's own time varies by more than the overhead, so it is taken out call by call. Caches are as cold as a real
    call leaves them, and how cold that is varies with the machine's other work: every repeat's median is kept.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    direct = onnxruntime.InferenceSession(bundle.artifact_path, options)
    names, feeds = [spec.name for spec in bundle.manifest.outputs], sample_feeds(bundle)
    inside = 0

    def timed(given: Any) -> Any:
        nonlocal inside
        start = time.perf_counter_ns()
        results = direct.run(names, given)
        inside = time.perf_counter_ns() - start
        return results

    manifest = bundle.manifest
    ours = counted_run(timed, manifest.inputs, manifest.outputs, manifest.dynamic, CallLog())
    model: list[int] = []
    overheads = []
    for _ in range(repeats):
        around: dict[str, list[int]] = {"direct": [], "ours": []}
        for block in range(blocks):
            name, call = (("direct", timed), ("ours", ours))[block % 2]
            for _ in range(calls):
                start = time.perf_counter_ns()
                result = call(feeds)
                around[name].append(time.perf_counter_ns() - start - inside)
                model.append(inside)
                del result
        overheads.append((statistics.median(around["ours"]) - statistics.median(around["direct"])) / 1e9)
    overhead, p50 = statistics.median(overheads), statistics.median(model) / 1e9
    measured = {"direct_p50_s": p50, "overhead_s": overhead, "repeats_s": overheads, "share": overhead / p50}
    return {**measured, "limit_s": 20e-6, "limit_share": 0.02}


def tree_rss_bytes(pid: int) -> int:
    """Resident memory of a process and its children; pages that both hold count twice."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return (rss_bytes(pid) or 0) + sum(tree_rss_bytes(int(child)) for child in children)


def export_peak(model: str, precision: str, device: str, out: Path, model_bytes: int) -> dict[str, Any]:
    """Peak resident memory of an export: of its process and the exporter's together, looked at every 20 ms."""
    command = [
        str(EDGEKIT),
        "export",
        "-m",
        model,
        "-d",
        device,
        "--precision",
        precision,
        "-o",
        str(out),
        "-q",
        "--no-measure",
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_rss_bytes(process.pid))
        time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return {
        "model": model if model.startswith("zoo:") else model.rpartition(":")[2],
        "precision": precision,
        "model_bytes": model_bytes,
        "wall_s": time.perf_counter() - start,
        "peak_rss_bytes": peak,
        "limit_bytes": 4 * model_bytes + int(1.5 * GIB),
    }


def whole_photographs(model: Model, bundle: Bundle) -> list[dict[str, Any]]:
    """Float and int8 top-1 of every whole photograph that calibration did not see."""
    rows = []
    with open_session(bundle) as session:
        for name in PHOTOS["photos-heldout"]:
            feeds = prepare(bundle, photo_bytes(name))  # type: ignore[arg-type]
            reference, answer = model(feeds)["output"][0], session.run(feeds)["output"][0]
            best = np.sort(reference)[::-1]
            rows.append(
                {
                    "photo": name,
                    "float_top1": int(reference.argmax()),
                    "int8_top1": int(answer.argmax()),
                    "float_margin_logits": float(best[0] - best[1]),
                }
            )
    return rows


def main() -> None:
    host = host_state()
    results: dict[str, Any] = {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": msgspec.to_builtins(host),
        "versions": {n: version(n) for n in ("edgekit", "torch", "onnx", "onnxruntime", "numpy")},
        "start_up": start_up(),
    }
    model = load("zoo:efficientnet_lite0")
    with tempfile.TemporaryDirectory() as folder:
        floats = export(model, "raspberrypi5", f"{folder}/fp32", ExportOptions(precision="fp32", measure=False))
        int8 = export(model, "raspberrypi5", f"{folder}/int8", ExportOptions(precision="int8", measure=False))
        results["session"] = session_overhead(floats)
        [pair] = compare([floats, int8])
        parity = int8.manifest.parity
        assert parity is not None
        results["int8"] = {
            "fp32_p50_s": pair.a.latency.p50_s,
            "int8_p50_s": pair.b.latency.p50_s,
            "ratio": pair.ratio,
            "ratio_ci": [pair.ratio_ci.low, pair.ratio_ci.high],
            "ratio_limit": 0.65,
            "fp32_bytes": floats.model_bytes,
            "int8_bytes": int8.model_bytes,
            "sqnr_db": parity.sqnr_db,
            "sqnr_limit_db": 15.0,
            "samples": parity.samples,
            "top1_agreement_confident": parity.top1_agreement,
            "top1_samples": parity.top1_samples,
            "whole_photographs": whole_photographs(model, int8),
        }
        large = f"{Path(__file__).with_name('models.py')}:large"
        sizes = {name: load(name).weight_bytes for name in ("zoo:efficientnet_lite0", "zoo:minilm_l6", large)}
        results["export_memory"] = [
            export_peak(name, precision, device, Path(folder) / f"peak{index}", sizes[name])
            for index, (name, precision, device) in enumerate(
                (
                    ("zoo:efficientnet_lite0", "fp32", "raspberrypi5"),
                    ("zoo:efficientnet_lite0", "int8", "raspberrypi5"),
                    ("zoo:minilm_l6", "int8-dynamic", "generic-x86"),
                    (large, "fp16", "generic-x86"),
                    (large, "int8-dynamic", "generic-x86"),
                )
            )
        ]
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = readme_table(results)
    README.write_text(with_table(README.read_text(encoding="utf-8"), table), encoding="utf-8")
    print(table)


def readme_table(results: dict[str, Any]) -> str:
    """The table of README, made from a result file and nothing else."""
    start, session, int8 = results["start_up"], results["session"], results["int8"]
    kept = sum(row["float_top1"] == row["int8_top1"] for row in int8["whole_photographs"])
    memory = max(results["export_memory"], key=lambda row: row["peak_rss_bytes"] / row["limit_bytes"])
    peak = f"peak memory of an export ({memory['model']}, {memory['model_bytes'] / 1e6:.0f} MB, {memory['precision']})"
    low, high = int8["ratio_ci"]
    least, most = 1e6 * min(session["repeats_s"]), 1e6 * max(session["repeats_s"])
    overhead = f"{1e6 * session['overhead_s']:.0f} µs ({least:.0f} to {most:.0f}), {session['share']:.2%}"
    rows = [
        ("`import edgekit`", f"{1e3 * start['import_s']:.0f} ms", "150 ms"),
        ("`edgekit --help`", f"{1e3 * start['help_s']:.0f} ms", "400 ms"),
        ("session overhead over onnxruntime", overhead, "20 µs, 2 %"),
        ("int8 / fp32 time, efficientnet_lite0", f"{int8['ratio']:.2f} ({low:.2f} to {high:.2f})", "0.65"),
        ("int8 SQNR on photographs not calibrated on", f"{int8['sqnr_db']:.1f} dB", "at least 15 dB"),
        ("whole photographs that keep their float top-1", f"{kept} of {len(int8['whole_photographs'])}", "all"),
        (peak, f"{memory['peak_rss_bytes'] / GIB:.2f} GiB",
         f"{memory['limit_bytes'] / GIB:.2f} GiB"),
    ]  # fmt: skip
    host, versions = results["host"], results["versions"]
    tools = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = ["| figure | measured | limit |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    where = f"{host['cpu']}, {host['cores']} cores, one thread, {results['date_utc'][:10]}; {tools}."
    return "\n".join([*lines, "", where])


def with_table(text: str, table: str) -> str:
    """README with the table between its markers."""
    return re.sub(r"(<!-- bench -->\n).*?(<!-- /bench -->)", lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
