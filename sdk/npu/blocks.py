"""Parts of a traced model as modules of their own: what they take in, what they give, and the values between.

A block is everything at a module path. Its layers are the model's own: what it learns, the model has learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgekit.compression import WeightLayer, is_below
from edgekit.graph import module_path
from edgekit.layered import LayeredModule
from edgekit.processing import Arrays

LEAST_LAYERS = 2  # with weights in a block: one alone cannot make up for what an activation behind it does


class Block(nn.Module):
    """The ops of a model at a module path, for many samples at once.

    Takes the tensors that come from outside by the names of their nodes, and returns `output_0` and so on, in the order
    in which the rest reads them; each has the samples along a new first axis. It stays in evaluation mode: statistics
    are what they were set to.
    """

    def __init__(self, model: LayeredModule, path: str) -> None:
        super().__init__()
        inside = _inside(model, path)
        self.sources = tuple(node.name for node in _sources(model, inside))
        self._body = subgraph(model, _sources(model, inside), _results(model, inside))
        self.register_load_state_dict_post_hook(_without_counts)  # type: ignore[no-untyped-call]
        self.eval()

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """`[samples, ...]` each."""
        inputs = [given[name] for name in self.sources]
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no rule for samples beside batches
            found = torch.vmap(self._body)(*inputs)
        return {f"output_{index}": value for index, value in enumerate(found)}

    def train(self, mode: bool = True) -> Block:
        """Nothing changes: a traced graph has no training mode."""
        return self


def subgraph(model: LayeredModule, inputs: Sequence[Node], outputs: Sequence[Node]) -> fx.GraphModule:
    """What computes `outputs` from `inputs`, over the layers of the model; it returns a list."""
    graph, copied = fx.Graph(), dict[Node, Node]()
    for node in inputs:
        copied[node] = graph.placeholder(node.name)
    needed = _ancestors(outputs, set(inputs))
    for node in model.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output([copied[node] for node in outputs])
    return fx.GraphModule(model, graph)


def values(model: LayeredModule, nodes: Sequence[Node], samples: Sequence[Arrays]) -> dict[str, Tensor]:
    """What each node gave for every sample: `[samples, ...]` by the node's name."""
    inputs = [node for node in model.graph.nodes if node.op == "placeholder"]
    part = subgraph(model, inputs, nodes)
    with torch.no_grad():
        rows = [part(*(torch.from_numpy(sample[name]) for name in model.inputs)) for sample in samples]
    return {node.name: torch.stack(column) for node, column in zip(nodes, zip(*rows, strict=True), strict=True)}


def sources(model: LayeredModule, path: str) -> list[Node]:
    """The nodes outside of a block that it reads, without constants."""
    return _sources(model, _inside(model, path))


def results(model: LayeredModule, path: str) -> list[Node]:
    """The nodes of a block that the rest reads."""
    return _results(model, _inside(model, path))


def block_around(model: LayeredModule, node: Node) -> str:
    """The path of the smallest module around a node that has two layers with weights; "" for the whole model."""
    return next(path for path in paths_around(node) if not path or _weight_layers(model, path) >= LEAST_LAYERS)


def paths_around(node: Node) -> Iterator[str]:
    """The modules around a node, the innermost first; the last is the model itself."""
    path = module_path(node)
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def owned(model: LayeredModule, path: str) -> list[nn.Parameter]:
    """The parameters that only a block uses, so that it may change them."""
    inside = set(_inside(model, path))
    elsewhere = {id(tensor) for node in model.graph.nodes if node not in inside and not _within(node, inside)
                 for tensor in _parameters(model, node)}  # fmt: skip
    found = {id(tensor): tensor for node in model.graph.nodes if node in inside or _within(node, inside)
             for tensor in _parameters(model, node)}  # fmt: skip
    return [tensor for key, tensor in found.items() if key not in elsewhere and tensor.is_floating_point()]


def _within(node: Node, inside: set[Node]) -> bool:
    """Whether a stored tensor is read by a block alone."""
    return node.op == "get_attr" and bool(node.users) and set(node.users) <= inside


def _parameters(model: LayeredModule, node: Node) -> list[nn.Parameter]:
    if node.op == "call_module":
        return list(model.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        parent, _, name = str(node.target).rpartition(".")
        stored = getattr(model.get_submodule(parent), name)
        return [stored] if isinstance(stored, nn.Parameter) else []
    return []


def _inside(model: LayeredModule, path: str) -> list[Node]:
    ops = (node for node in model.graph.nodes if node.op in ("call_function", "call_module"))
    return [node for node in ops if not path or is_below(module_path(node), [path])]


def _sources(model: LayeredModule, inside: Sequence[Node]) -> list[Node]:
    varying, block, found = _varying(model), set(inside), dict[Node, None]()
    for node in inside:
        found |= {source: None for source in node.all_input_nodes if source in varying and source not in block}
    return list(found)


def _results(model: LayeredModule, inside: Sequence[Node]) -> list[Node]:
    varying, block, found = _varying(model), set(inside), dict[Node, None]()
    for node in model.graph.nodes:
        if node not in block:
            found |= {source: None for source in node.all_input_nodes if source in block and source in varying}
    return list(found)


def _varying(model: LayeredModule) -> set[Node]:
    """The nodes that depend on the model's inputs."""
    found: set[Node] = set()
    for node in model.graph.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _without_counts(block: nn.Module, keys: Any) -> None:
    """Traced BatchNorms count no batches; torch takes the count for missing in what older versions saved."""
    keys.unexpected_keys[:] = [key for key in keys.unexpected_keys if not key.endswith(".num_batches_tracked")]


def _ancestors(nodes: Sequence[Node], stop: set[Node]) -> set[Node]:
    found, waiting = set[Node](), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in stop:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _weight_layers(model: LayeredModule, path: str) -> int:
    return len({node.target for node in _inside(model, path) if isinstance(model.layer_of(node), WeightLayer)})
