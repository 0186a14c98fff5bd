"""Fold every BatchNorm into the convolution before it: same answers, fewer ops, honest weight ranges."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgekit.compression import CompressedModel, Pass, PassContext, record, tensor_spec, with_module
from edgekit.graph import module_path


class FoldBatchNorm(Pass, frozen=True, kw_only=True, tag="fold_batch_norm"):
    """`w' = w * gamma / sqrt(var + eps)`, `b' = (b - mean) * gamma / sqrt(var + eps) + beta`, per output channel.

    Quantising passes need it first: the runtime will see the folded weights, so ranges must be taken from them.

    Source: Jacob et al. (arXiv 1712.05877), section 3.2, equation 14.
    """

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """Fold in a copy; each BatchNorm becomes an identity."""
        nodes = context.trace(model).graph.nodes
        calls = Counter(module_path(node) for node in nodes if _is_foldable(node))
        pairs = [pair for node in nodes if (pair := _pair(node, model.model.module))]
        pairs = [
            pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1
        ]  # a layer called twice keeps its norms
        if not pairs:
            return model

        def fold(module: nn.Module) -> None:
            for convolution, norm in pairs:
                layer, statistics = module.get_submodule(convolution), module.get_submodule(norm)
                module.set_submodule(convolution, fuse_conv_bn_eval(layer, statistics))  # type: ignore[type-var, arg-type]
                module.set_submodule(norm, nn.Identity())

        changes = [
            record(self, tensor_spec(f"{norm}.{name}", tensor), tensor, None, f"folded into {convolution}", 0)
            for convolution, norm in pairs
            for name, tensor in model.model.module.get_submodule(norm).state_dict().items()
        ]
        folded = with_module(model, fold)
        return replace(folded, changes=(*model.changes, *changes), output_of={**model.output_of, **dict(pairs)})


def _is_foldable(node: Node) -> bool:
    return node.op == "call_function" and ("batch_norm" in str(node.target) or str(node.target).startswith("aten.conv"))


def _pair(node: Node, module: nn.Module) -> tuple[str, str] | None:
    """(convolution, BatchNorm) paths if `node` normalises a convolution that nothing else reads.

    A norm of a class of its own may do more than normalise, and a weight that is computed is not the stored one.
    """
    if node.op != "call_function" or "batch_norm" not in str(node.target):
        return None
    if not isinstance(before := node.args[0], Node):
        return None
    if not str(before.target).startswith("aten.conv") or len(before.users) != 1:
        return None
    paths = module_path(before), module_path(node)
    convolution, norm = (module.get_submodule(path) for path in paths)
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or norm.running_mean is None:
        return None
    stored = isinstance(weight := before.args[1], Node) and weight.op == "placeholder"
    return paths if isinstance(convolution, nn.Conv1d | nn.Conv2d | nn.Conv3d) and stored else None


PASS = FoldBatchNorm
