"""`make matrix`: every architecture to every format, into tests/export_matrix.json and README's table."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit.bench.export_matrix import Cell, names, run, table

RESULTS = Path(__file__).parent / "export_matrix.json"
README = Path(__file__).parents[1] / "README.md"


def read() -> list[Cell]:
    return msgspec.json.decode(RESULTS.read_bytes(), type=list[Cell])


def readme_table(cells: Sequence[Cell]) -> str:
    """The table of README, made from a result file and nothing else."""
    columns, rows = table(cells)
    lines = [columns, ["---"] * len(columns), *rows]
    reasons = [f"- {c.model}, {c.format} {c.precision}: {c.reason}" for c in cells if c.status != "ok"]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + [""] + reasons)


def with_table(text: str, shown: str) -> str:
    """README with the table between its markers."""
    begin, end = "<!-- matrix -->\n", "<!-- /matrix -->"
    return re.sub(f"({begin}).*?({end})", lambda m: f"{m[1]}{shown}\n{m[2]}", text, flags=re.DOTALL)


def main(models: Sequence[str]) -> None:
    """Run the named models (all, when none is) and keep the other cells as they were."""
    made = run(models, progress=lambda step: print(step, file=sys.stderr, flush=True))
    kept = [cell for cell in read() if cell.model not in {c.model for c in made}] if models else []
    cells = sorted([*kept, *made], key=lambda cell: names().index(cell.model))
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(cells), indent=1) + b"\n")
    README.write_text(with_table(README.read_text(encoding="utf-8"), readme_table(cells)), encoding="utf-8")
    print(readme_table(cells))


if __name__ == "__main__":
    main(sys.argv[1:])
