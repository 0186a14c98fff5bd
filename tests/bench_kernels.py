"""`make bench-kernels`: GPU kernels beside dense products, into tests/kernel_benchmarks.json and README's table.

On a machine without a GPU, give it a result that `edgekit bench kernels --output` wrote on one that has.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from edgekit.bench.kernels import KernelBench, decoding_table, run, table

RESULTS = Path(__file__).with_name("kernel_benchmarks.json")
README = Path(__file__).parents[1] / "README.md"


def readme_table(found: KernelBench) -> str:
    """The table of README, made from a result and nothing else."""
    lines = [*_markdown(*table(found)), "", *_markdown(*decoding_table(found))]
    coded = ", ".join(f"{name} {bits:.2f}" for name, bits in found.bits_per_weight.items())
    tools = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    where = f"{found.device}, {tools}; memory gave {found.bytes_per_s / 1e12:.2f} TB/s; bits a weight: {coded}."
    return "\n".join([*lines, "", where])


def _markdown(columns: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *rows)]


def with_table(text: str, shown: str) -> str:
    """README with the table between its markers."""
    begin, end = "<!-- bench-kernels -->\n", "<!-- /bench-kernels -->"
    return re.sub(f"({begin}).*?({end})", lambda m: f"{m[1]}{shown}\n{m[2]}", text, flags=re.DOTALL)


def read() -> KernelBench:
    return KernelBench.from_json(RESULTS.read_bytes())


def main(given: list[str]) -> None:
    found = KernelBench.from_json(Path(given[0]).read_bytes()) if given else run(progress=print)
    RESULTS.write_text(found.to_json() + "\n", encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), readme_table(found)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
