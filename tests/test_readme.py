"""What the pages claim is what the code does and what was measured."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit import registry
from edgekit.bench.export_matrix import names
from edgekit.cli.app import app
from edgekit.parity import TOLERANCES
from edgekit.planning import EXPORTERS

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def program(name: str) -> Any:
    """A program in tests/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # where its dataclasses look for their types
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("name", ["bench", "bench_formats"])
def test_the_tables_of_figures_are_made_from_their_result_files(name: str) -> None:
    bench = program(name)
    results = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    assert bench.readme_table(results) in text("README.md")


def test_the_table_of_gpu_kernels_is_made_from_its_result_file() -> None:
    bench = program("bench_kernels")
    assert bench.readme_table(bench.read()) in text("README.md")


@pytest.mark.parametrize("name", ["fit_cost", "check_cost"])
def test_the_tables_of_forecasts_are_made_from_their_result_files(name: str) -> None:
    made = program(name)
    assert made.readme_table(made.read()) in text("README.md")


def test_the_matrix_is_made_from_its_result_file_and_whole() -> None:
    matrix = program("bench_matrix")
    cells = matrix.read()
    assert matrix.readme_table(cells) in text("README.md")
    assert {cell.model for cell in cells} == set(names())
    assert {cell.format for cell in cells} == set(registry.names(EXPORTERS))


def test_every_command_in_readme_exists_and_every_verb_is_in_readme() -> None:
    verbs = {command.name for command in app.registered_commands}
    assert set(re.findall(r"^\$ edgekit (\w+)", text("README.md"), re.MULTILINE)) <= verbs
    assert all(re.search(rf"`(edgekit )?{verb}`", text("README.md")) for verb in verbs)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_a_page_names_is_there(page: str) -> None:
    named = re.findall(r"`((?:sdk|tests|exporters|runtimes|samples|device_profiles)/[\w./]+\w)`", text(page))
    named += re.findall(r"\]\(([\w./]+)\)", text(page))
    waiting = {"sdk/npu/"}
    assert named
    assert [name for name in named if not (ROOT / name).exists() and name not in waiting] == []


def test_the_gates_in_readme_are_those_in_the_code() -> None:
    for precision, tolerance in TOLERANCES.items():
        [row] = [line for line in text("README.md").splitlines() if line.startswith(f"| {precision} |")]
        assert tolerance.cosine_min is None or f"cosine >= {tolerance.cosine_min:g}" in row
        assert f"SQNR >= {tolerance.sqnr_db_min:g} dB" in row
        share = tolerance.top1_agreement_min
        assert share is None or ("same top-1" if share == 1 else f"{share:.0%} of".replace("%", " %")) in row
