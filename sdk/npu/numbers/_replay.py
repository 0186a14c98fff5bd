"""A traced model run again op by op, so that every value can be seen and replaced on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.graph import capture
from edgekit.layered import LayeredModule, layered
from edgekit.model import Model

aten = torch.ops.aten
LAYER_OPS: dict[type[nn.Module], str] = {
    nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d", nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d", nn.Embedding: "embedding", nn.LayerNorm: "layer_norm",
    nn.RMSNorm: "rms_norm", nn.GroupNorm: "group_norm", nn.BatchNorm1d: "batch_norm", nn.BatchNorm2d: "batch_norm",
    nn.BatchNorm3d: "batch_norm",
}  # fmt: skip
See = Callable[[Node, Any], Any]  # a node and its value; what is returned takes the value's place


@dataclass(frozen=True, eq=False)
class Replay:
    """A model's layers and the graph that calls them, with attention spelled out as products and a softmax."""

    root: LayeredModule
    graph: fx.Graph

    @classmethod
    def of(cls, model: Model | LayeredModule) -> Replay:
        """Trace a model, or take one that is traced; neither is changed."""
        root = model if isinstance(model, LayeredModule) else layered(capture(model))
        graph, made = fx.Graph(), dict[Node, Node]()
        graph.output(graph.graph_copy(root.graph, made))
        graph.set_codegen(root.graph._codegen)
        for old, new in made.items():
            new.meta = dict(old.meta)
        for node in graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
            _spell_out(graph, node)
        return cls(root, graph)

    def op(self, node: Node) -> str:
        """`conv2d` for a call of the op or of its layer; empty for what is no op."""
        if node.op == "call_module":
            return LAYER_OPS.get(type(self.root.get_submodule(str(node.target))), "")
        return op_name(node)

    def run(self, inputs: Mapping[str, Tensor], see: See, weights: Mapping[Node, Tensor] | None = None) -> Any:
        """Run once; `weights` replace those of the layers and constants that these nodes call or read."""
        with torch.no_grad():
            return Watched(self, see, weights or {}).run(*(inputs[name] for name in self.root.inputs))


class Watched(fx.Interpreter):
    """torch's interpreter, with another look at every value and other weights for some nodes."""

    def __init__(self, replay: Replay, see: See, weights: Mapping[Node, Tensor]) -> None:
        super().__init__(replay.root, graph=replay.graph)
        self.see, self.weights = see, weights

    def run_node(self, n: Node) -> Any:
        """The node's value, after `see`."""
        args, options = self.fetch_args_kwargs_from_env(n)
        return self.see(n, self.compute(n, args, options, self.weights.get(n)))

    def compute(self, node: Node, args: Any, options: Any, weight: Tensor | None = None) -> Any:
        """What a node gives for these arguments, with this weight in place of its own."""
        if weight is None:
            return getattr(self, node.op)(node.target, args, options)
        if node.op == "get_attr":
            return weight
        layer = self.fetch_attr(str(node.target))
        return torch.func.functional_call(layer, {"weight": weight}, args, options)


def _spell_out(graph: fx.Graph, node: Node) -> None:
    """Replace fused attention by its ops, each of which rounds on its own; grouped queries stay fused."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given.get("enable_gqa"):
        return
    query, key, value = given["query"], given["key"], given["value"]

    def insert(target: Callable[..., Any], *args: Any, **options: Any) -> Node:
        with graph.inserting_before(node):
            made = graph.call_function(target, args, options)
        with query.meta["val"].fake_mode, torch.no_grad():
            found = target(*fx.map_arg(args, lambda each: each.meta["val"]), **options)
        made.meta = {**node.meta, "val": found}
        return made

    shape = query.meta["val"].shape
    scores = insert(aten.matmul.default, query, insert(aten.transpose.int, key, -2, -1))
    scale = given.get("scale")
    scores = insert(aten.mul.Scalar, scores, shape[-1] ** -0.5 if scale is None else scale)
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        size = [shape[-2], key.meta["val"].shape[-2]]
        mask = insert(aten.tril.default, insert(aten.ones.default, size, dtype=torch.bool, device="cpu"))
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        scores = insert(aten.masked_fill.Scalar, scores, insert(aten.logical_not.default, mask), float("-inf"))
    elif mask is not None:
        scores = insert(aten.add.Tensor, scores, mask)
    result = insert(aten.matmul.default, insert(aten.softmax.int, scores, -1), value)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
