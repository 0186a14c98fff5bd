"""What XNNPACK and ExecuTorch's portable kernels make of every op of a program, without lowering it."""

from __future__ import annotations

from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.errors import UnsupportedModel
from edgekit.exporters._executorch_delegation import fallback_reason
from edgekit.exporters._executorch_graph import editable, trace_again
from edgekit.exporters._executorch_lowering import make_partitioner, partitioner_reasons
from edgekit.exporting import Complaint, ExportJob, OpSupport, op_support
from edgekit.quiet import quiet


class _Seen(Exception):
    """Ends the lowering once the partitioner has had its look."""


def op_verdicts(job: ExportJob) -> list[OpSupport]:
    """Every op of the trace, and every op of its decomposition that XNNPACK does not take."""
    with quiet():
        from executorch.runtime import Runtime

        kernels = {name.partition(".")[0] for name in Runtime.get().operator_registry.operator_names}
        *_, program = trace_again(editable(job.program), job).values()  # other sizes have the same ops
        lowered, reasons = _partitioned(program, job.name)

    def complain(node: Node) -> Complaint | None:
        if node.name not in reasons:
            return None
        if str(getattr(node.target, "_name", "")).partition(".")[0] not in kernels:
            return Complaint(verdict="needs a rewrite", reason="neither XNNPACK nor ExecuTorch has a kernel for it")
        return Complaint(verdict="falls back", reason=f"{reasons[node.name]}: a portable kernel runs it")

    return op_support(job.program, lowered, complain)


def _partitioned(program: ExportedProgram, name: str) -> tuple[ExportedProgram, dict[str, str]]:
    """The decomposed program with aten ops, and why XNNPACK leaves out each node that it does."""
    from executorch.exir import to_edge_transform_and_lower

    partitioner: Any = make_partitioner()
    seen: list[ExportedProgram] = []
    plain = partitioner.partition

    def look(decomposed: ExportedProgram) -> None:
        plain(decomposed)
        seen.append(decomposed)
        raise _Seen

    partitioner.partition = look
    try:
        with partitioner_reasons() as reasons:
            to_edge_transform_and_lower(program, partitioner=[partitioner])
    except Exception as error:
        if not seen:
            raise UnsupportedModel(f"executorch cannot decompose '{name}': {error}") from error
    left = {}
    for node in seen[0].graph.nodes:
        if node.op == "call_function" and hasattr(node.target, "_op"):
            if "delegation_tag" not in node.meta:
                left[node.name] = fallback_reason(node, reasons, frozenset(partitioner.target_partitioner_configs))
            node.target = node.target._op
    return seen[0], left
