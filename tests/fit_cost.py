"""`python tests/fit_cost.py CSV JSON`: fit the model of costs: cost_fit.json, README's table, device profiles."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from edgekit.bench.cost import CostFit, calibrations, run, summary
from edgekit.profile import Calibration, load_shipped
from edgekit.profile_writer import toml

RESULTS = Path(__file__).parent / "cost_fit.json"
ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PROFILES = {"snapdragon-8-gen-3": "Samsung Galaxy S24", "sa8295p": "SA8295P ADP"}  # profile -> as it was measured
RUNTIME, UNIT = "qnn", "npu"
DATE = "2026-02-24"  # of the measurements
MARK = "# Made by tests/fit_cost.py to the end of the file: what QNN reached on whole models, one table a dtype.\n"


def read() -> CostFit:
    return CostFit.from_json(RESULTS.read_bytes())


def readme_table(found: CostFit) -> str:
    """The table of README, made from a result file and nothing else."""
    columns, rows = summary(found)
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *rows])


def with_table(text: str, shown: str) -> str:
    """README with the table between its markers."""
    begin, end = "<!-- cost -->\n", "<!-- /cost -->"
    return re.sub(f"({begin}).*?({end})", lambda m: f"{m[1]}{shown}\n{m[2]}", text, flags=re.DOTALL)


def profile_calibrations(found: CostFit, profile: str) -> list[Calibration]:
    """The calibrations of one profile."""
    unit = next(unit for unit in load_shipped(profile).unit if unit.name == UNIT)
    return calibrations(found, PROFILES[profile], RUNTIME, unit, DATE)


def with_calibrations(text: str, found: Sequence[Calibration]) -> str:
    """A profile's text with its fitted calibrations at the end, in place of those that were there."""
    tables = [{key: value for key, value in json.loads(each.to_json()).items() if value is not None} for each in found]
    return f"{text.partition(MARK)[0].rstrip()}\n\n{MARK}{toml({'calibration': tables})}"


def main(data: Path, pages: Path) -> None:
    """Fit all and write what is kept."""
    found = run(data, pages, progress=lambda step: print(step, file=sys.stderr, flush=True))
    RESULTS.write_text(found.to_json() + "\n", encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), readme_table(found)), encoding="utf-8")
    for profile in PROFILES:
        path = ROOT / "device_profiles" / f"{profile}.toml"
        text = with_calibrations(path.read_text(encoding="utf-8"), profile_calibrations(found, profile))
        path.write_text(text, encoding="utf-8")
    print(readme_table(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
