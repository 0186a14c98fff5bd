"""Where each op of a partitioned program runs, and why some stay outside of XNNPACK."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.bundle import Delegation, Fallback
from edgekit.graph import module_path, source_line
from edgekit.runtimes._executorch_file import WEIGHT_OPS, ProgramFile

PARTITION_CALL = "executorch_call_delegate"


def delegation(
    file: ProgramFile, origins: Sequence[Mapping[int, str]], fallbacks: tuple[Fallback, ...], scheme: str | None
) -> Delegation:
    """Ops by unit from the file, names and reasons from the program it was made of.

    Float islands are all float ops in a static scheme; in a dynamic one, whose activations are float, the layers whose
    weights stayed float.
    """
    islands = [
        f"{places.get(op.handle, 'input or output')}: {op.type}"
        for places, operations in zip(origins, file.partitions, strict=True)
        for op in operations
        if op.in_float and (scheme == "static" or (scheme and op.weight and op.type in WEIGHT_OPS))
    ]
    return msgspec.structs.replace(file.delegation(), float_islands=tuple(islands), fallbacks=fallbacks)


def origins(program: ExportedProgram) -> tuple[Mapping[int, str], ...]:
    """Of each partition in the order they run: debug handle -> module path of the nodes it took."""
    found = []
    for call in program.graph.nodes:
        if str(call.target) == PARTITION_CALL:
            taken: Any = getattr(program.graph_module, call.args[0].target)
            nodes = taken.original_module.graph.nodes
            found.append({node.meta["debug_handle"]: _where(node) for node in nodes if "debug_handle" in node.meta})
    return tuple(found)


def fallbacks(program: ExportedProgram, reasons: Mapping[str, str], known: frozenset[str]) -> tuple[Fallback, ...]:
    """The ops left to portable kernels. `reasons` are the partitioner's by node, `known` the ops it has rules for."""
    return tuple(
        Fallback(
            op=edge_op(node), where=_where(node), source=source_line(node), reason=fallback_reason(node, reasons, known)
        )
        for node in program.graph.nodes
        if node.op == "call_function" and "." in _name(node) and node.target is not operator.getitem
    )


def fallback_reason(node: Node, reasons: Mapping[str, str], known: frozenset[str]) -> str:
    """Why XNNPACK leaves a node to portable kernels: the partitioner's words, or what they mean."""
    given = reasons.get(node.name)
    if given and given != "invalid dtype":
        return given
    if edge_op(node).partition(".")[2] not in {name.partition(".")[0] for name in known}:
        return f"XNNPACK has no kernel for {edge_op(node)}"
    values = [item.meta.get("val") for item in (*node.all_input_nodes, node)]
    wrong = [str(v.dtype) for v in values if isinstance(v, torch.Tensor) and v.dtype != torch.float32]
    if wrong:
        return f"XNNPACK computes on float32, and this is {wrong[0].removeprefix('torch.')}"
    return "XNNPACK's partitioner left it out and does not say why"


def edge_op(node: Node) -> str:
    """`aten.embedding` of `aten.embedding.default`."""
    return _name(node).rpartition(".")[0]


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _where(node: Node) -> str:
    return module_path(node) or node.name
