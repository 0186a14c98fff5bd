"""What RKNN-Toolkit2 says of a build, read from its log: where each op went, cycles, memory.

RKNN: [18:16:09.210] ID OpType   DataType Target InputShape  OutputShape  Cycles(DDR/NPU/Total) RW(KB) FullName
RKNN: [18:16:09.210] 1  ConvClip INT8     NPU    (1,3,32,32) (1,16,15,15) 391/2160/2160         5      Conv:conv2d
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from edgekit.bundle import CompilerEstimate, Delegation, Fallback
from edgekit.errors import EdgekitError, UnsupportedModel
from edgekit.exporters._onnx_file import MODULE
from edgekit.types import Value

LAYER = re.compile(
    r"RKNN: \[[^\]]*\] (?P<id>\d{1,9}) +(?P<op>\w+) +(?P<dtype>\w+) +(?P<unit>[A-Z]{3}) +\S+ +\S+ +"
    r"\d+/\d+/(?P<cycles>\d{1,18}) +\d+ +(?P<name>\S+)"
)
TITLE = "Network Layer Information Table"
MEMORY = re.compile(r"Total (Internal|Weight) Memory Size: (\d{1,12}(?:\.\d{1,6})?)KB")
VERSION = re.compile(r"rknn-toolkit2 version: (\d[\w.+]*)")
ERROR = re.compile(r"(?:Error|Exception|E RKNN|\bE\b[^:]*):\s*(?P<said>\S.*)")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
ENDS = ("InputOperator", "OutputOperator")  # rows of the table that are no ops
KIB = 1024


class Layer(Value, frozen=True, kw_only=True):
    """A row of the table."""

    op: str
    unit: str  # "NPU", "CPU"
    cycles: int  # 0 on the CPU
    name: str  # of the ONNX node, or one made of it: "node_conv2d#1"


def layers(log: str) -> list[Layer]:
    """The last table of a log. Raises `EdgekitError` where there is none, or where rows are missing."""
    _, title, table = log.rpartition(TITLE)
    rows = [row for row in map(LAYER.search, table.splitlines()) if row]
    if not title or not rows:
        raise EdgekitError("RKNN-Toolkit2's log holds no table of layers: it is not as version 2.5 writes it")
    if [int(row["id"]) for row in rows] != list(range(len(rows))) or rows[-1]["op"] != "OutputOperator":
        raise EdgekitError("RKNN-Toolkit2's table of layers is cut or out of order: it is not as version 2.5 writes it")
    return [
        Layer(op=row["op"], unit=row["unit"], cycles=int(row["cycles"]), name=row["name"].partition(":")[2])
        for row in rows
        if row["op"] not in ENDS
    ]


def placement(log: str, npu: str, modules: Mapping[str, str]) -> Delegation:
    """Where ops went, after the toolkit's fusions. `modules` are ONNX node -> path of its PyTorch module."""
    found = layers(log)
    units: dict[str, Counter[str]] = {}
    for layer in found:
        units.setdefault(npu if layer.unit == "NPU" else layer.unit.lower(), Counter())[layer.op] += 1
    if npu not in units:
        raise UnsupportedModel("RKNN-Toolkit2 leaves every op to the CPU, and does not say why")
    pieces = sum(
        layer.unit == "NPU" and (index == 0 or found[index - 1].unit != "NPU") for index, layer in enumerate(found)
    )
    fallbacks = tuple(
        Fallback(op=layer.op, where=_module(layer.name, modules), reason="RKNN-Toolkit2 gives no reason")
        for layer in found
        if layer.unit != "NPU"
    )
    return Delegation(
        unit=npu, units={unit: dict(ops) for unit, ops in units.items()}, partitions=pieces, fallbacks=fallbacks
    )


def estimate(log: str) -> CompilerEstimate:
    """Cycles of the NPU's ops. What the CPU's take is not in the log, so there is no time."""
    memory = {name.lower(): round(KIB * float(size)) for name, size in MEMORY.findall(log)}
    cycles = sum(layer.cycles for layer in layers(log))
    return CompilerEstimate(cycles=cycles, memory_bytes={name: size for name, size in memory.items() if size})


def version(log: str) -> str:
    """The toolkit's own."""
    found = VERSION.search(log)
    return found.group(1) if found else "of no known version"


def last_error(text: str) -> str:
    """The last thing the toolkit complained of, in one line."""
    plain = COLOUR.sub("", text)
    said = [found["said"].strip() for found in map(ERROR.search, plain.splitlines()) if found]
    return said[-1] if said else next(iter(plain.strip().splitlines()), "it does not say why")


def modules(artifact: Path) -> dict[str, str]:
    """Node or tensor -> path of its PyTorch module, as the ONNX exporter keeps them."""
    import onnx

    found: dict[str, str] = {}
    for node in onnx.load(artifact, load_external_data=False).graph.node:
        path = next((entry.value for entry in node.metadata_props if entry.key == MODULE), None)
        found |= {name: path for name in (node.name, *node.output) if path and name}
    return found


def _module(name: str, modules: Mapping[str, str]) -> str:
    """The module of the node or tensor that a layer was made of, `head` of `linear_mm#2`; else the layer's own name."""
    known = [each for each in modules if re.fullmatch(re.escape(each) + r"(?:[_#].*)?", name)]
    return modules[max(known, key=len)] if known else name
