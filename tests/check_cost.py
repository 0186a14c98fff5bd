"""`python tests/check_cost.py PROFILE [MODEL ...]`: forecasts beside what this machine takes.

Zoo models and random ones of sizes that people deploy, in onnxruntime with one thread: float, and 8 bits. The profile
`generic-x86` knows nothing of this machine but its kind, so its factor shows what `analytical` is worth; one that
`edgekit calibrate` wrote shows what a calibration is. Writes cost_check.json and README's table.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.drafting import ExportOptions, draft
from edgekit.host import host_state
from edgekit.model import Model
from edgekit.pipeline import export
from edgekit.profile import find_device
from edgekit.source import load
from edgekit.toolchains import versions
from edgekit.types import Value

RESULTS = Path(__file__).parent / "cost_check.json"
README = Path(__file__).parents[1] / "README.md"


class Check(Value, frozen=True, kw_only=True):
    """One model in one precision: predicted and measured seconds of a call."""

    model: str
    precision: str
    forecast_s: float
    error: float | str
    measured_p50_s: float


class Checks(Value, frozen=True, kw_only=True):
    """All of one run."""

    device: str
    machine: str
    cores: int
    date: str
    checks: tuple[Check, ...]
    versions: dict[str, str]


class Field(nn.Module):
    """A transformers model that answers with one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.model(**inputs)[0]


def mobilenet() -> Model:
    import transformers as t

    model = t.MobileNetV2ForImageClassification(t.MobileNetV2Config(num_labels=1000, tf_padding=False))
    return load(Field(model.eval()), {"pixel_values": torch.rand(1, 3, 224, 224)})


def vit() -> Model:
    import transformers as t

    config = t.ViTConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768)
    return load(Field(t.ViTForImageClassification(config).eval()), {"pixel_values": torch.rand(1, 3, 224, 224)})


def bert() -> Model:
    import transformers as t

    config = t.BertConfig(vocab_size=5000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
                          intermediate_size=1024)  # fmt: skip
    tokens = torch.ones(1, 128, dtype=torch.long)
    return load(Field(t.BertModel(config).eval()), {"input_ids": tokens, "attention_mask": tokens})


MODELS: dict[str, tuple[Callable[[], Model], str]] = {
    "efficientnet_lite0": (lambda: load("zoo:efficientnet_lite0"), "int8"),
    "minilm_l6": (lambda: load("zoo:minilm_l6"), "int8-dynamic"),
    "MobileNetV2": (mobilenet, "int8"),
    "ViT, 6 layers of 192": (vit, "int8-dynamic"),
    "BERT, 4 layers of 256": (bert, "int8-dynamic"),
}


def check(name: str, device: str, folder: Path) -> list[Check]:
    """Export a model in 8 bits, which times its float self beside it, and forecast both."""
    make, precision = MODELS[name]
    model = make()
    if model.calibration is None and precision == "int8":
        rng = np.random.default_rng(0)
        samples = {key: rng.random((16, *array.shape[1:]), np.float32) for key, array in model.example_arrays.items()}
        np.savez(folder / "samples.npz", **samples)  # type: ignore[arg-type]
    data = str(folder / "samples.npz") if (folder / "samples.npz").exists() else None

    def options(wanted: str) -> ExportOptions:
        return ExportOptions(format="onnx", precision=wanted, calibration=data, force=True)

    manifest = export(model, device, folder / "out", options(precision)).manifest
    [measured], against = manifest.measurements, manifest.against_float
    if against is None:
        raise SystemExit(f"{name}: {manifest.warnings}")
    found = []
    for each, seconds in (("fp32", against.float_p50_s), (precision, measured.latency.p50_s)):
        latency = draft(model, device, options(each)).forecast.latency
        if latency is None:
            raise SystemExit(f"{device} has no forecast")
        found.append(Check(model=name, precision=each, forecast_s=latency.seconds, error=latency.error,
                           measured_p50_s=seconds))  # fmt: skip
    return found


def readme_table(found: Checks) -> str:
    """The table of README, made from a result file and nothing else."""
    rows = [["model", "precision", "forecast", "measured p50", "forecast / measured"], ["---"] * 5]
    factors = [each.forecast_s / each.measured_p50_s for each in found.checks]
    for each, factor in zip(found.checks, factors, strict=True):
        times = (f"{1e3 * seconds:.1f} ms" for seconds in (each.forecast_s, each.measured_p50_s))
        rows.append([each.model, each.precision, *times, f"{factor:.2f}"])
    tools = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    said = (
        f"Profile `{found.device}`, {found.checks[0].error}: factor {statistics.median(factors):.2f} in the middle, "
        f"{min(factors):.2f} to {max(factors):.2f}. {found.machine}, {found.cores} cores, one thread, {found.date}; "
        f"{tools}."
    )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{said}"


def read() -> Checks:
    return Checks.from_json(RESULTS.read_bytes())


def main(device: str, names: Sequence[str]) -> None:
    """Check the named models, or all, and write what is kept."""
    from datetime import UTC, datetime

    torch.manual_seed(0)
    checks: list[Check] = []
    for name in names or MODELS:
        print(name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            checks += check(name, device, Path(folder))
    state = host_state()
    profile = find_device(device)
    found = Checks(
        device=profile.id + (" calibrated here" if profile.calibration else ""),
        machine=state.cpu or state.machine,
        cores=state.cores,
        date=datetime.now(UTC).date().isoformat(),
        checks=tuple(checks),
        versions=versions(("edgekit", "torch", "onnxruntime", "transformers")),
    )
    RESULTS.write_text(found.to_json() + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    marked = re.sub(r"(<!-- cost-check -->\n).*?(<!-- /cost-check -->)",
                    lambda m: f"{m[1]}{readme_table(found)}\n{m[2]}", text, flags=re.DOTALL)  # fmt: skip
    README.write_text(marked, encoding="utf-8")
    print(readme_table(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
