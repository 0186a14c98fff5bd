"""The bench of NPUs: what a figure and a part are. The parts themselves take minutes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from edgekit.bench import npu as bench
from edgekit.bench._npu_figure import Figure
from edgekit.cli.app import run
from edgekit.errors import ToolchainMissing, UnknownName

STORED = Path(__file__).with_name("npu_benchmarks.json")


def figure(value: float, *, at_most: bool = False) -> Figure:
    return Figure(name="coverage", value=value, unit="%", bar=95, at_most=at_most)


@pytest.mark.parametrize(
    ("value", "at_most", "ok"),
    [(95, False, True), (94.9, False, False), (95, True, True), (95.1, True, False), (math.nan, False, False),
     (math.nan, True, False)],
)  # fmt: skip
def test_a_figure_meets_its_bar_from_the_right_side(value: float, at_most: bool, ok: bool) -> None:
    assert figure(value, at_most=at_most).ok is ok


@pytest.mark.parametrize("part", bench.PARTS)
def test_every_part_is_a_file_with_figures(part: str) -> None:
    given = inspect.signature(import_module(f"edgekit.bench._npu_{part}").figures).parameters
    assert list(given) == ["progress"]


def test_a_part_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(UnknownName, match=r"'velo'\. Did you mean 'vela'"):
        bench.run(["velo"])


def test_a_missing_toolchain_leaves_its_part_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(progress: object) -> Iterator[Figure]:
        yield figure(96)
        raise ToolchainMissing("Ethos-U NPUs need Vela")

    monkeypatch.setattr("edgekit.bench._npu_vela.figures", figures)
    found = bench.run(["vela"])
    assert found.figures == {}
    assert found.missing == {"vela": "Ethos-U NPUs need Vela"}


def test_the_table_shows_each_figure_beside_its_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("edgekit.bench._npu_vela.figures", lambda progress: iter([figure(90), figure(96)]))
    assert run(["bench", "npu", "--parts", "vela", "-q", "-o", str(tmp_path / "npu.json")]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[1] == ["coverage", "90", "%", "at", "least", "95", "MISSED"]
    assert said[2][-1] == "ok"
    kept = bench.NpuBench.from_json((tmp_path / "npu.json").read_text())
    assert [each.value for each in kept.figures["vela"]] == [90, 96]


def test_the_figures_of_the_documentation_are_of_every_part_and_meet_their_bars() -> None:
    kept = bench.NpuBench.from_json(STORED.read_text())
    assert sorted(kept.figures) == list(bench.PARTS)
    assert not [each.name for part in kept.figures.values() for each in part if not each.ok]
