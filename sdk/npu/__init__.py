"""Layouts that NPUs can run: which ops of a model an NPU takes, and rewrites that let it take more.

Importing this package does not import torch; each name loads its module on first use.
Source: AutoNeural (arXiv 2512.02924) for why models fail on NPUs; each rule and rewrite names its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.npu.adapting import adapt as adapt
    from edgekit.npu.auditing.audit import Audit as Audit
    from edgekit.npu.auditing.audit import audit as audit
    from edgekit.npu.gated_conv import GatedConv as GatedConv
    from edgekit.npu.gated_conv import replace_attention as replace_attention
    from edgekit.npu.numbers.bits import choose_bits as choose_bits
    from edgekit.npu.numbers.quantsim import model_sqnr as model_sqnr
    from edgekit.npu.numbers.quantsim import simulate as simulate
    from edgekit.npu.numbers.ranges import tensor_ranges as tensor_ranges
    from edgekit.npu.rewriting import rewrite as rewrite
    from edgekit.npu.rules import npu_rules as npu_rules
    from edgekit.npu.rules import rules_of as rules_of

_HOME = {
    "Audit": "auditing.audit",
    "GatedConv": "gated_conv",
    "adapt": "adapting",
    "audit": "auditing.audit",
    "choose_bits": "numbers.bits",
    "model_sqnr": "numbers.quantsim",
    "npu_rules": "rules",
    "replace_attention": "gated_conv",
    "rewrite": "rewriting",
    "rules_of": "rules",
    "simulate": "numbers.quantsim",
    "tensor_ranges": "numbers.ranges",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"edgekit.npu.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edgekit.npu' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
