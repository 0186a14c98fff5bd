"""The rules that ship: what each file says hangs together, and the NPUs differ where their sources do."""

from __future__ import annotations

import pytest
import torch

from edgekit import registry
from edgekit.npu.rewriting import REWRITES
from edgekit.npu.rules import NpuRules, OpRule, npu_ids, npu_rules, rules_of
from edgekit.profile import find_device

DEVICES = {
    "ethos-u55-128": "ethos-u55", "ethos-u55-256": "ethos-u55", "ethos-u65-256": "ethos-u65",
    "ethos-u85-256": "ethos-u85", "qcom-htp-v68": "qcom-htp-v68", "SA8295P": "qcom-htp-v68",
    "qcom-htp-v75": "qcom-htp-v75", "8 gen 3": "qcom-htp-v75", "apple-ane": "apple-ane", "rk3588-npu": "rk3588-npu",
    "coral-edgetpu": "coral-edgetpu", "hailo-8l": "hailo-8l",
}  # fmt: skip
EVERY = pytest.mark.parametrize("npu", npu_ids())


def rule(npu: str, op: str) -> OpRule:
    """The first rule of an op."""
    return npu_rules(npu).of_op(op)[0]


@pytest.mark.parametrize(("device", "npu"), DEVICES.items())
def test_devices_and_npus_answer_to_each_others_names(device: str, npu: str) -> None:
    assert rules_of(find_device(device)).id == npu


@EVERY
def test_every_op_is_one_of_pytorch(npu: str) -> None:
    ops = {op for rule in npu_rules(npu).ops for op in rule.ops}
    assert sorted(op for op in ops if not hasattr(torch.ops.aten, op)) == []


@EVERY
def test_every_source_is_used(npu: str) -> None:
    rules = npu_rules(npu)
    cited = {*rules.evidence.values(), *(each.source for each in (*rules.ops, *rules.prefers))}
    said = " ".join(
        [*rules.notes, *(each.note or "" for each in (*rules.ops, *rules.prefers)), *rules.sources.values()]
    )
    assert sorted(name for name in rules.sources if name not in cited and name not in said) == []


@EVERY
def test_no_rule_stands_behind_one_that_always_decides(npu: str) -> None:
    behind = [
        f"{op}: {later}"
        for op in {op for rule in npu_rules(npu).ops for op in rule.ops}
        for at, earlier in enumerate(npu_rules(npu).of_op(op))
        if not earlier.limits and covers(npu_rules(npu), earlier)
        for later in npu_rules(npu).of_op(op)[at + 1 :]
    ]
    assert behind == []


def covers(rules: NpuRules, rule: OpRule) -> bool:
    """Whether a rule speaks of every dtype of the NPU."""
    return not rule.dtypes or set(rules.dtypes) <= set(rule.dtypes)


def test_two_factors_of_16_bits_need_a_newer_htp() -> None:
    assert "int16" not in rule("qcom-htp-v68", "matmul").dtypes
    assert "int16" in npu_rules("qcom-htp-v68").dtypes
    assert rule("qcom-htp-v75", "matmul").dtypes == ()


def test_a_product_of_two_computed_tensors_tells_the_npus_apart() -> None:
    refused = {npu for npu in DEVICES.values() if not npu.startswith("ethos") and rule(npu, "matmul").refused}
    assert refused == {"coral-edgetpu"}


def test_look_ups_of_tokens_stay_on_the_host_where_the_vendors_models_leave_them() -> None:
    refused = {npu for npu in ("apple-ane", "coral-edgetpu", "hailo-8l", "qcom-htp-v68", "rk3588-npu")
               if rule(npu, "embedding").refused}  # fmt: skip
    assert refused == {"apple-ane", "coral-edgetpu", "hailo-8l"}


@EVERY
def test_every_rewrite_that_is_preferred_exists(npu: str) -> None:
    preferred = [each.rewrite for each in npu_rules(npu).prefers]
    assert len(set(preferred)) == len(preferred)
    assert sorted(set(preferred) - set(registry.names(REWRITES))) == []
