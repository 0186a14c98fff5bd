"""Where one op runs by an NPU's rules: on it, after a rewrite, or on the host, with the reason and what helps."""

from __future__ import annotations

from typing import Literal

from edgekit.npu.measures import MEASURES, OpCall
from edgekit.npu.rules import NpuRules, OpRule
from edgekit.types import DType, Value

Verdict = Literal["runs", "needs a rewrite", "falls back"]
FLOATS = ("float16", "bfloat16", "float32", "float64")
IMAGE_RANK = 4
FINITE_INPUT_MASKS = "finite_input_masks"  # the adaptation


class Judgement(Value, frozen=True, kw_only=True):
    """A verdict; the reason and the fix are empty where the op runs."""

    verdict: Verdict
    reason: str = ""
    fix: str = ""


RUNS = Judgement(verdict="runs")


def judge(call: OpCall, rules: NpuRules, dtype: DType | None = None) -> Judgement:
    """Where an op runs. Floating tensors are what the model is brought to: `dtype`, the NPU's first one by default."""
    if call.varies and rules.static_shapes:
        return _refused("its sizes vary, and models are compiled with fixed ones", "static_shapes")
    complaints = [(_complaints(rule, call, rules, dtype or rules.dtypes[0]), rule) for rule in rules.of_op(call.op)]
    decides = next((rule for unmet, rule in complaints if not unmet), None)
    if decides is not None and decides.refused:
        return _refused(decides.refused, decides.fix)
    if decides is None and complaints:
        unmet, nearest = min(complaints, key=lambda each: (bool(each[1].refused), len(each[0])))
        return _refused("; ".join(unmet), nearest.fix)
    if decides is None:
        return _refused(f"nothing says that {rules.title} runs it", None)
    return _general(call, rules, dtype or rules.dtypes[0])


def _general(call: OpCall, rules: NpuRules, dtype: DType) -> Judgement:
    """What every op must keep to."""
    rank = int(MEASURES["rank"](call) or 0)
    if rules.max_rank is not None and rank > rules.max_rank:
        return _refused(f"a tensor has {rank} dimensions, and it takes {rules.max_rank}", "low_rank")
    batch = call.first.shape[0] if call.first and len(call.first.shape) == IMAGE_RANK else 1
    if rules.batch_one and batch > 1:
        return _refused(f"its batch is {batch}, and it takes 1", "give the model one sample at a time")
    far = call.far
    if far and rules.largest_number is not None and dtype not in FLOATS and far.size > rules.largest_number:
        reason = f"{far.origin} gives it {far.size:.2g}, and a grid of {dtype} goes to {rules.largest_number:.2g}"
        return _refused(reason, FINITE_INPUT_MASKS if far.varies else "finite_masks")
    return RUNS


def _complaints(rule: OpRule, call: OpCall, rules: NpuRules, dtype: DType) -> list[str]:
    """In words, what a rule asks for and an op does not have."""
    found = _works_on(call, dtype)
    allowed = rule.dtypes or rules.dtypes
    said = [] if found in allowed else [f"it works on {found}, and {', '.join(allowed)} run"]
    for name, (least, most) in rule.limits.items():
        value = MEASURES[name](call)
        if value is not None and not least <= value <= most:
            said.append(_said(name, value, least, most))
    return said


def _works_on(call: OpCall, dtype: DType) -> str:
    """The dtype of an op on the NPU: of what it computes, for indices and masks that of the trace."""
    tensors = [each.dtype for each in (*call.inputs, *call.outputs)]
    return dtype if set(tensors) & set(FLOATS) else tensors[0]


def _said(name: str, value: float, least: float, most: float) -> str:
    what = (MEASURES[name].__doc__ or name).strip()
    if what.startswith("1 where "):
        fact = what.removeprefix("1 where ").rpartition(", ")[0]
        return fact if value else f"it is not so that {fact}"
    runs = f"{least:g} runs" if least == most else f"{least:g} to {most:g} run"
    return f"{what}: {value:g}, and {runs}"


def _refused(reason: str, fix: str | None) -> Judgement:
    """A fix without spaces names a rewrite or an adaptation."""
    named = fix is not None and " " not in fix
    instead = "write it with ops that run there, or compute it outside of the model"
    return Judgement(verdict="needs a rewrite" if named else "falls back", reason=reason, fix=fix or instead)
