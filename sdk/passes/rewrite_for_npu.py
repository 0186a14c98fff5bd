"""Bring a model into the form that the device's NPU runs, without changing what it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from edgekit.compression import CompressedModel, Pass, PassContext, pass_name
from edgekit.npu.rewriting import RewriteRecord, rewrite
from edgekit.npu.rules import npu_rules, rules_of
from edgekit.types import Change


class RewriteForNpu(Pass, frozen=True, kw_only=True, tag="rewrite_for_npu"):
    """The exact rewrites that the NPU's rules ask for, each proven in float64 on the model's example inputs.

    It comes before all other passes: they decide numbers for the ops that the NPU will see.
    """

    npu: str = ""  # architecture in `device_profiles/npus/`; empty: that of the device
    rewrites: tuple[str, ...] = ()  # in `sdk/npu/rewrites/`; empty: all that the NPU wants

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """A rewritten copy, with a `Change` for every place that a rewrite looked at and every weight it changed."""
        rules = npu_rules(self.npu) if self.npu else rules_of(context.device)
        found = rewrite(model.model, rules, only=self.rewrites or None, progress=context.progress)
        changes = (*self._places(found.log), *self._weights(model.model.module, found.model.module))
        return replace(model, model=found.model, reference=found.model, changes=(*model.changes, *changes))

    def _places(self, log: Sequence[RewriteRecord]) -> Iterator[Change]:
        for each in log:
            error = "" if each.error is None else f", float64 error {each.error:.1e}"
            yield from (self._place(place, f"{each.title}{error}") for place in each.done)
            yield from (self._place(kept.place, "as traced", f"{each.name}: {kept.reason}") for kept in each.skipped)

    def _place(self, place: str, after: str, reason: str | None = None) -> Change:
        return Change(
            tensor=place, step=pass_name(self), before="as traced", after=after, bytes_before=0, bytes_after=0,
            reason=reason,
        )  # fmt: skip

    def _weights(self, before: nn.Module, after: nn.Module) -> Iterator[Change]:
        """Parameters and buffers that went, came, or have another shape or other values."""
        old, new = (dict(_tensors(module)) for module in (before, after))
        for name in sorted(old.keys() | new.keys()):
            if not _same(old.get(name), new.get(name)):
                was, became = (0 if tensor is None else tensor.nbytes for tensor in (old.get(name), new.get(name)))
                yield Change(
                    tensor=name, step=pass_name(self), before=_form(old.get(name)), after=_form(new.get(name)),
                    bytes_before=was, bytes_after=became,
                )  # fmt: skip


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or (_form(one) == _form(other) and bool((one == other).all()))


def _form(tensor: Tensor | None) -> str:
    """`float32 64x3x3x3`; of a weight that is not there, `none`."""
    if tensor is None:
        return "none"
    return " ".join([str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape))]).rstrip()


PASS = RewriteForNpu
