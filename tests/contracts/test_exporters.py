"""Every exporter, by existing, goes through these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit import registry
from edgekit.bundle import Bundle
from edgekit.compression import CompressedModel
from edgekit.divergence import module_errors
from edgekit.drafting import ExportOptions
from edgekit.errors import InvalidInput
from edgekit.exporting import Exporter, ExportJob
from edgekit.graph import capture
from edgekit.inference import RUNTIMES
from edgekit.pipeline import export
from edgekit.planning import EXPORTERS, RECIPES, Plan, exporter_options, plan
from edgekit.profile import find_device
from edgekit.source import load
from edgekit.types import TensorSpec, Value

MODELS = Path(__file__).parents[1] / "models.py"
NAMES = registry.names(EXPORTERS)


@pytest.fixture(scope="module", params=NAMES)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(format: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp(format) / "out"
    given = ExportOptions(format=format, precision="fp32", measure=False)
    return export(f"{MODELS}:small_conv", "raspberrypi5", out, given)


def test_it_names_a_runtime_that_runs_its_format(format: str) -> None:
    exporter = registry.load(EXPORTERS, format)
    assert format == registry.load(RUNTIMES, exporter.RUNTIME).FORMAT
    assert isinstance(exporter.Options(), Value)


def test_its_artifact_answers_like_pytorch(bundle: Bundle) -> None:
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.cosine_min is not None
    assert bundle.manifest.parity.cosine_min > 0.99999


def test_learned_queries_and_parts_of_mixed_dtypes_go_through_in_8_bits(format: str, tmp_path: Path) -> None:
    given = ExportOptions(format=format, precision="int8-dynamic", measure=False)
    made = export(f"{MODELS}:prompted", "raspberrypi5", tmp_path / "out", given).manifest
    assert made.parity is not None
    assert made.parity.sqnr_db is not None
    assert made.parity.sqnr_db > 25
    assert made.precision.quantized_ops > 0


def test_its_lossless_file_is_the_float_one_in_fewer_bytes(format: str, tmp_path: Path) -> None:
    given = ExportOptions(format=format, precision="fp32", measure=False)
    floats = export(f"{MODELS}:bf16_mlp", "raspberrypi5", tmp_path / "fp32", given)
    stored = export(f"{MODELS}:bf16_mlp", "raspberrypi5", tmp_path / "out", replace(given, precision="lossless"))
    held, where = stored.artifact.unpacked, stored.manifest.delegation
    assert held is not None
    assert held.weights >= 16 * 512
    assert stored.model_bytes < 0.6 * floats.model_bytes
    assert (held.path, held.bytes) == (floats.artifact.path, floats.artifact.bytes)
    assert stored.manifest.parity == floats.manifest.parity
    assert where is not None
    assert floats.manifest.delegation is not None
    assert where.units == floats.manifest.delegation.units


def test_its_layout_copies_take_a_measured_share_of_a_call(bundle: Bundle) -> None:
    where = bundle.manifest.delegation
    assert where is not None
    assert where.layout_copies > 0
    assert where.layout_copies_share is not None
    assert 0 < where.layout_copies_share < 1


def test_it_writes_only_what_the_manifest_lists(bundle: Bundle) -> None:
    listed = {record.path for record in (*bundle.manifest.artifacts, *bundle.manifest.assets)}
    found = {str(path.relative_to(bundle.path)) for path in bundle.path.rglob("*") if path.is_file()}
    assert found == listed | {"manifest.json", "report.html"}


def test_exposed_modules_answer_like_pytorchs(bundle: Bundle, format: str) -> None:
    model = load(f"{MODELS}:small_conv")
    exporter: Exporter = registry.load(EXPORTERS, format)
    job = ExportJob.of(CompressedModel(model=model), capture(model), "fp32")

    def expose(artifact: Path, out: Path) -> Mapping[str, TensorSpec]:
        return exporter.expose(job, artifact, out, exporter.Options())

    feeds = {"pixels": np.random.default_rng(0).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32)}
    errors = module_errors(model, {}, bundle, expose, feeds)
    assert [error.module for error in errors] == ["norm", "depthwise"]  # `head` is the output itself
    assert min(error.sqnr_db for error in errors) > 100


@pytest.mark.parametrize("name", NAMES)
def test_its_precisions_have_recipes_and_others_are_refused_with_those_it_has(name: str) -> None:
    exporter: Exporter = registry.load(EXPORTERS, name)
    assert set(exporter.PRECISIONS) <= set(RECIPES)
    model, device = load(f"{MODELS}:mlp"), find_device("raspberrypi5")
    for precision in set(RECIPES) - set(exporter.PRECISIONS):
        with pytest.raises(InvalidInput, match=f"{name} has no {precision}: take --precision {exporter.PRECISIONS[0]}"):
            plan(capture(model), device, precision=precision, format=name)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_with_those_it_has(name: str) -> None:
    chosen = Plan(device="x", format=name, precision="fp32", passes=(), options={"colour": "red"})
    with pytest.raises(InvalidInput, match=f"the {name} exporter does not take this option.*colour.*it has "):
        exporter_options(chosen)
