"""Where data goes between the modules of a traced model.

Every tensor that enters or leaves a module passes a marker while the model is traced. In the graph without in-place ops
that follows, what a module keeps from the rest is a matter of walking backward from the outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.compression import is_below
from edgekit.cost.kernels import op_name
from edgekit.distill.cutting.call import Constant, by_name, positions, why_not_again, with_tensors, without_tensors
from edgekit.errors import UnsupportedModel
from edgekit.graph import capture, module_path, place_of
from edgekit.model import Model
from edgekit.quiet import quiet
from edgekit.types import TensorSpec

# Ops that take a shape from their input and no value, or from their second input.
SHAPED = {
    "empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "rand_like", "randn_like",
    "zeros_like",
}  # fmt: skip
SHAPED_BY_SECOND = {"expand_as", "reshape_as", "type_as", "view_as"}


@dataclass(kw_only=True)
class Calls:
    """How a module was called while its model was traced; of several calls, the last."""

    count: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    constants: dict[str, Constant] = field(default_factory=dict)
    trouble: str | None = None  # why it cannot be called with named tensors


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A model's trace with markers at the edges of its modules."""

    program: ExportedProgram
    output: Node  # of the same graph without in-place ops
    sources: dict[Node, list[Node]]
    weights: dict[str, str]  # placeholder -> path of the parameter or buffer
    inputs: frozenset[str]  # placeholders of the model's inputs
    calls: dict[str, Calls]  # by module path
    markers: dict[str, dict[Node, str]]  # `path:in` or `path:out` -> its markers with the names of their tensors

    def consumed(self, path: str) -> list[str]:
        """The names of a module's outputs that the model's outputs depend on."""
        exits = self.markers.get(f"{path}:out", {})
        rest = self.behind([self.output], exits)
        return [name for node, name in exits.items() if node in rest]

    def road_around(self, path: str) -> str | None:
        """How data reaches the rest of the model past a module's outputs, or the module past its inputs; or None."""
        entries, exits = self.markers.get(f"{path}:in", {}), self.markers.get(f"{path}:out", {})
        rest, before = self.behind([self.output], exits), self.behind(entries)
        for source in before:
            if source.name in self.inputs and source in rest:
                return f"'{source.name}' reaches the outputs past it: {_first_op(source, rest, before, path)}"
        for node in rest:
            if (weight := self.weights.get(node.name)) and is_below(weight, [path]):
                return f"the rest reads its weight '{weight}': {_first_op(node, rest, ())}"
        for source in self.behind([node for node in exits if node in rest], entries):
            if source.name in self.inputs:
                return f"it reads '{source.name}' other than as its argument"
        return None

    def behind(self, starts: Iterable[Node], stops: Collection[Node] = ()) -> dict[Node, Node | None]:
        """All that the starts depend on, without going past the stops; each with the next node towards a start."""
        found = dict[Node, Node | None].fromkeys(starts)
        pending = list(found)
        for node in pending:
            for source in () if node in stops else self.sources[node]:
                if source not in found:
                    found[source] = node
                    pending.append(source)
        return found


def _first_op(source: Node, road: Mapping[Node, Node | None], known: Collection[Node], path: str | None = None) -> str:
    """Where a road from a source first leaves what is known and the module at a path: op, module and source line."""
    node = road[source]
    while node is not None and node.op == "call_function":
        if not (_is_marker(node) or node in known or (path and is_below(module_path(node), [path]))):
            return f"{op_name(node)} in {place_of(node)}"
        node = road[node]
    return "it is returned as it is"


def trace(model: Model) -> Flow:
    """Trace a model with markers. Raises `UnsupportedModel` with the line that cannot be traced, and what to do."""
    calls: dict[str, Calls] = {}
    try:
        with _marked(model.module, calls), quiet():
            program = capture(model)
            functional = program.run_decompositions({})
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"{error}. Sites are proven on a trace of the whole model, which an export takes too: rewrite the line, or "
            "give the model without what follows it"
        ) from error
    signature = functional.graph_signature
    markers: dict[str, dict[Node, str]] = {}
    for node in filter(_is_marker, functional.graph.nodes):
        side, _, name = str(node.args[1]).rpartition(":")
        markers.setdefault(side, {})[node] = name
    return Flow(
        program=program,
        output=functional.graph.output_node(),
        sources={node: _read(node) for node in functional.graph.nodes},
        markers=markers,
        weights={**signature.inputs_to_parameters, **signature.inputs_to_buffers},
        inputs=frozenset(signature.user_inputs),
        calls=calls,
    )


@torch.library.custom_op("edgekit::marker", mutates_args=())
def marker(tensor: Tensor, place: str) -> Tensor:
    """The tensor itself; in a graph, its name at the edge of a module: `path:in:argument`, `path:out:output`."""
    return tensor.clone()


@marker.register_fake
def _(tensor: Tensor, place: str) -> Tensor:
    return torch.empty_like(tensor)


def _read(node: Node) -> list[Node]:
    """The nodes whose values an op reads; of some arguments it reads only the shape."""
    name = op_name(node)
    if name in SHAPED:
        return []
    return node.all_input_nodes[:1] if name in SHAPED_BY_SECOND else node.all_input_nodes


def _is_marker(node: Node) -> bool:
    return node.target is torch.ops.edgekit.marker.default


@contextlib.contextmanager
def _marked(module: nn.Module, calls: dict[str, Calls]) -> Iterator[None]:
    """Markers at the edges of every module with weights; they come off whatever happens."""
    handles = []
    try:
        for path, part in module.named_modules():
            if path and next(part.parameters(), None) is not None:
                enter, leave = _hooks(path, positions(part), calls)
                handles.append(part.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(part.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(path: str, names: tuple[str, ...], calls: dict[str, Calls]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def mark(name: str, value: Any, side: str) -> Any:
        return marker(value, f"{path}:{side}:{name}") if isinstance(value, Tensor) else value

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = calls.setdefault(path, Calls())
        arguments = by_name(names, args, kwargs)
        call.count += 1
        call.trouble = why_not_again(arguments)
        call.inputs = tuple(_spec(name, value) for name, value in arguments.items() if isinstance(value, Tensor))
        call.constants = {name: value for name, value in arguments.items() if isinstance(value, Constant)}
        marked = {name: mark(name, value, "in") for name, value in arguments.items()}
        return tuple(marked.values())[: len(args)], {name: marked[name] for name in kwargs}

    def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        call = calls[path]
        try:
            structure, named = without_tensors(result)
        except UnsupportedModel as error:
            call.trouble = call.trouble or str(error).replace("the module returns", "it returns")
            return None
        call.outputs = tuple(_spec(name, tensor) for name, tensor in named.items())
        return with_tensors(structure, {name: mark(name, tensor, "out") for name, tensor in named.items()})

    return enter, leave


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in tensor.shape)
    return TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=shape)  # type: ignore[arg-type]
