"""What litert_torch and LiteRT make of every op of a program, without converting it."""

from __future__ import annotations

from torch.fx import Node

from edgekit.exporters._tflite_conversion import copied, toolchain
from edgekit.exporting import Complaint, ExportJob, OpSupport, op_support
from edgekit.quiet import quiet

# Ops that litert_torch turns into one that LiteRT does not run, or runs outside of XNNPACK. Measured with LiteRT 2.3.
WITHOUT_KERNEL = {"aten.sort.default": "STABLEHLO_SORT", "aten.topk.default": "STABLEHLO_SORT"}
OUTSIDE_XNNPACK = {
    "aten.argmax.default": "ARG_MAX",
    "aten.atan2.default": "ATAN2",
    "aten.cumsum.default": "CUMSUM",
    "aten.embedding.default": "EMBEDDING_LOOKUP",
    "aten.flip.default": "REVERSE_V2",
    "aten.index.Tensor": "GATHER_ND",
    "aten.prod.dim_int": "REDUCE_PROD",
    "aten.remainder.Scalar": "FLOOR_MOD",
    "aten.sign.default": "SIGN",
    "aten.where.self": "SELECT_V2",
}


def op_verdicts(job: ExportJob) -> list[OpSupport]:
    """Every op of the trace, and every op of its decomposition that does not simply convert."""
    toolchain()
    with quiet():
        from litert_torch import fx_infra
        from litert_torch.backend import lowerings

        decompositions = fx_infra.decomp.pre_convert_decomp() | fx_infra.decomp.pre_lower_decomp()
        lowered = fx_infra.safe_run_decompositions(copied(job.program), decompositions, can_skip=False)

    def complain(node: Node) -> Complaint | None:
        name = str(node.target)
        if kind := WITHOUT_KERNEL.get(name):
            return Complaint(verdict="needs a rewrite", reason=f"it becomes {kind}, for which LiteRT has no kernel")
        if lowerings.lookup(node.target) is None:
            return Complaint(verdict="needs a rewrite", reason="litert_torch has no lowering for it")
        if kind := OUTSIDE_XNNPACK.get(name):
            return Complaint(verdict="falls back", reason=f"XNNPACK has no kernel for {kind}: LiteRT's own runs it")
        return None

    return op_support(job.program, lowered, complain)
