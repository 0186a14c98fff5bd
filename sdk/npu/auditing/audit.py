"""What an NPU makes of a model before anything is compiled: every op at its source line, and what that adds up to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.compression import Progress, silent
from edgekit.cost.kernels import NOTHING, PRODUCTS, VIEWS, kernel_of, live_nodes, made, steps
from edgekit.errors import InvalidInput
from edgekit.exporting import OWN_NAMESPACES
from edgekit.graph import capture, module_path, source_line
from edgekit.npu.auditing.far_numbers import FarNumber, far_numbers, met_by
from edgekit.npu.auditing.op_calls import call_of, plain_name
from edgekit.npu.auditing.placement import FLOATS, Judgement, judge
from edgekit.npu.auditing.placement import Verdict as Verdict
from edgekit.npu.measures import OpCall, order
from edgekit.npu.numbers.bits import Bits, choose_bits
from edgekit.npu.numbers.ranges import TensorRange, tensor_ranges
from edgekit.npu.rules import NpuRules, npu_ids, npu_rules, rules_of
from edgekit.parity import EXACT_DB
from edgekit.types import DType, Value

if TYPE_CHECKING:
    from edgekit.dataset import Dataset
    from edgekit.model import Model
    from edgekit.profile import DeviceProfile

SHUFFLES = {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "col2im"}
BYTES: dict[str, int] = {"int8": 1, "uint8": 1, "bool": 1, "int16": 2, "float16": 2, "bfloat16": 2, "int64": 8}
WIDTHS: set[DType] = {"int8", "int16"}  # that ops may be given one by one
JUDGES = 16  # samples: every op is tried alone, and the walk tries as many again
INSIDE = "each model is one graph without branches: compute both sides and choose with torch.where"


class OpPlacement(Value, frozen=True, kw_only=True):
    """One op with what is computed along with it: where it runs, and what that costs."""

    op: str  # "conv2d"
    module: str  # the path of the PyTorch module that calls it
    source: str | None  # "model.py:41"
    verdict: Verdict
    reason: str = ""
    fix: str = ""  # the name of a rewrite or an adaptation, or words
    macs: int = 0
    padded_macs: int = 0  # with channels filled up as the NPU does
    copies_bytes: int = 0  # that it writes only to have the same values in another order
    folded: tuple[str, ...] = ()  # ops that its kernel computes too: "batch_norm", "relu6"


class Audit(Value, frozen=True, kw_only=True):
    """What an NPU makes of a model. Shares are from 0 to 1, and 1 of nothing: all MACs of a model that has none."""

    model: str
    npu: str
    device: str
    placements: tuple[OpPlacement, ...]  # in the order of the trace
    coverage_ops: float
    coverage_macs: float
    layout_copies: int  # ops that only bring values into another order
    wasted_macs: float  # of the MACs that the NPU does, those on padding
    high_rank: tuple[str, ...]  # places of tensors with more dimensions than the NPU takes
    dynamic: tuple[str, ...]  # dimensions whose size is not fixed
    basis: Literal["table estimate"] = "table estimate"  # a compiler's own placement is in the manifest of an export
    ranges: tuple[TensorRange, ...] = ()
    bits: Bits | None = None  # the ops that need more than 8, where an SQNR was asked for


def audit(
    model: Model,
    device: DeviceProfile,
    *,
    data: Dataset | None = None,
    schemes: Sequence[str] = ("w8a8", "w8a16", "w4a16"),
    dtype: DType | None = None,
    min_db: float | None = None,
    progress: Progress = silent,
) -> Audit:
    """Place every op of a model on a device's NPU or its host; with `data`, measure what its tensors hold too.

    `dtype` is what floating tensors are brought to, the NPU's first one by default. `min_db` is an SQNR of the model's
    answers on `data`: the audit says which ops need 16 bits for it. Constants, views that change nothing and shape
    arithmetic are no ops. Raises `InvalidInput` for a device without an NPU, one whose ops are not known, or one
    without what `min_db` needs; `UnsupportedModel` for a model that cannot be traced.
    """
    rules = rules_of(device)
    if not rules.ops:
        known = [each for each in npu_ids() if npu_rules(each).ops]
        raise InvalidInput(f"which ops {rules.title} runs is not known here; it is for {', '.join(known)}")
    if dtype is not None and dtype not in rules.dtypes:
        raise InvalidInput(f"{rules.title} does not compute {dtype}: take {', '.join(rules.dtypes)}")
    if min_db is not None:
        _check_bits(rules, data, min_db)
    progress("trace the model")
    program = capture(model)
    progress(f"ask the rules of {rules.id}")
    placements = place_ops(program, rules, dtype)
    running = [each for each in placements if each.verdict == "runs"]
    covered, done = sum(each.macs for each in running), sum(each.padded_macs for each in running)
    return Audit(
        model=model.name,
        npu=rules.id,
        device=device.id,
        placements=placements,
        coverage_ops=_share(len(running), len(placements)),
        coverage_macs=_share(covered, sum(each.macs for each in placements)),
        layout_copies=sum(each.copies_bytes > 0 for each in placements),
        wasted_macs=1 - _share(covered, done),
        high_rank=tuple(_high_rank(program, rules)),
        dynamic=tuple(map(str, model.dynamic)),
        ranges=_ranges(model, data, schemes, progress) if data is not None else (),
        bits=choose_bits(model, data.samples, min_db=min_db, progress=progress)
        if data and min_db is not None
        else None,
    )


def place_ops(program: ExportedProgram, rules: NpuRules, dtype: DType | None = None) -> tuple[OpPlacement, ...]:
    """The placement of every op of a traced program, in its order."""
    return tuple(each for _, each in placed_nodes(program, rules, dtype))


def placed_nodes(
    program: ExportedProgram, rules: NpuRules, dtype: DType | None = None
) -> Iterator[tuple[tuple[Node, ...], OpPlacement]]:
    """The nodes of each op, itself first, and their placement."""
    live = live_nodes(program)
    far = far_numbers(program, live)
    computed = {step[0]: step for step in steps(program, live, {*rules.fused, *(f"{name}_" for name in rules.fused)})}
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator) and node in live:
            yield (node,), _control_flow(node)
        elif node in computed and not _does_nothing(node):
            yield computed[node], _placed(computed[node], live, far, rules, dtype or rules.dtypes[0])


def _placed(
    step: tuple[Node, ...], live: set[Node], far: Mapping[Node, FarNumber], rules: NpuRules, dtype: DType
) -> OpPlacement:
    node, *along = step
    namespace = getattr(node.target, "namespace", "aten")
    if namespace not in OWN_NAMESPACES:
        judgement, copied = _custom(namespace), 0
    else:
        call = call_of(node, live, met_by(step, far))
        judgement, copied = judge(call, rules, dtype), _copied_bytes(call, dtype)
    kernel = kernel_of(node, live)
    product = kernel is not None and kernel.op_class in PRODUCTS
    return OpPlacement(
        op=plain_name(node),
        module=module_path(node),
        source=source_line(node),
        verdict=judgement.verdict,
        reason=judgement.reason,
        fix=judgement.fix,
        macs=kernel.ops // 2 if kernel and product else 0,
        padded_macs=kernel.padded_ops(rules.channel_multiple.get(dtype, 1)) // 2 if kernel and product else 0,
        copies_bytes=copied,
        folded=tuple(map(plain_name, along)),
    )


def _custom(namespace: str) -> Judgement:
    return Judgement(
        verdict="falls back",
        reason=f"it is a custom op of '{namespace}', which no compiler of an NPU knows",
        fix="write it with PyTorch's own ops, or leave it out of the exported part",
    )


def _control_flow(node: Node) -> OpPlacement:
    reason = "it decides on the value of a tensor what is computed"
    return OpPlacement(op=str(node.target), module=module_path(node), source=source_line(node), verdict="falls back",
                       reason=reason, fix=INSIDE)  # fmt: skip


def _does_nothing(node: Node) -> bool:
    """Whether an op gives what it was given: a dropout, a view of the same shape, a cast to the same dtype."""
    source, (result, *_) = node.all_input_nodes[0], made(node)
    name, given = plain_name(node), made(source)
    if name == "to" or name == "_to_copy":
        return bool(given) and given[0].dtype == result.dtype
    return name in NOTHING or (name in VIEWS and bool(given) and tuple(given[0].shape) == tuple(result.shape))


def _copied_bytes(call: OpCall, dtype: DType) -> int:
    """Bytes that an op writes only to have the same values in another order."""
    turned = [axis for axis in order(call) if call.first and call.first.shape[axis] > 1]
    if turned == sorted(turned) and call.op not in SHUFFLES:
        return 0
    (result, *_) = call.outputs
    return math.prod(result.shape) * BYTES.get(dtype if result.dtype in FLOATS else result.dtype, 4)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _high_rank(program: ExportedProgram, rules: NpuRules) -> Iterator[str]:
    for step in steps(program, live_nodes(program)):
        rank = max(len(tensor.shape) for tensor in made(step[0]))
        if rules.max_rank is not None and rank > rules.max_rank:
            place = f"{module_path(step[0]) or 'the model itself'} ({source_line(step[0])})"
            yield f"{plain_name(step[0])} in {place}: {rank} dimensions"


def _check_bits(rules: NpuRules, data: Dataset | None, min_db: float) -> None:
    asked = f"ops that get 16 bits for {min_db:g} dB"
    if data is None:
        raise InvalidInput(f"{asked} are chosen on samples: add --data")
    if not set(rules.dtypes) >= WIDTHS:
        raise InvalidInput(f"{asked} need int16, and {rules.title} computes {', '.join(rules.dtypes)}")
    if not 0 < min_db <= EXACT_DB:
        raise InvalidInput(f"--min-sqnr {min_db:g}: give decibels above 0, {EXACT_DB:g} at most")


def _ranges(model: Model, data: Dataset, schemes: Sequence[str], progress: Progress) -> tuple[TensorRange, ...]:
    progress(f"run {len(data.samples)} samples, rounded as {', '.join(schemes)}")
    return tensor_ranges(model, data.samples, schemes)
