"""A traced program as a module again: one graph that can be edited, with its layers at their own paths.

Passes and exporters see what they see in any model: `nn.Conv2d` at `vision.stem.conv`, hooks that fire, named weights.
Tracing it again keeps the module path and the source line of every op, so what is said about an edited model still
points at the user's code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.fx import Node
from torch.fx.traceback import preserve_node_meta

from edgekit.cost.kernels import op_name
from edgekit.graph import hinted, module_path
from edgekit.model import with_names
from edgekit.quiet import quiet
from edgekit.stored_layers import LAYERS, Stored

aten = torch.ops.aten
HOME = ("nn_module_stack", "stack_trace")  # of a node's meta: where its op comes from


class LayeredModule(nn.Module):
    """A model as a graph of aten ops without in-place ones. Called by keyword, with the tensors of the model's inputs.

    Layers whose weights are stored are `call_module` nodes; parameters that an op reads itself are `get_attr` nodes;
    the rest are `call_function` nodes of aten overloads. Every node holds a fake tensor of its result in `meta["val"]`.
    """

    def __init__(self, graph: fx.Graph, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.graph = graph
        self.inputs = inputs

    def forward(self, **inputs: Tensor) -> Any:
        """Run the graph op by op; what is traced meanwhile takes over each op's home."""
        interpreter = fx.Interpreter(self, graph=self.graph)
        values = [inputs[name] for name in self.inputs]
        if not torch.compiler.is_exporting():
            return interpreter.run(*values)
        with preserve_node_meta():
            return interpreter.run(*values)

    @property
    def is_dynamic(self) -> bool:
        """Whether an input has a size that is not fixed."""
        values = [node.meta["val"] for node in self.graph.find_nodes(op="placeholder")]
        return any(isinstance(size, torch.SymInt) for value in values for size in value.shape)

    def layer_of(self, node: Node) -> nn.Module | None:
        """The layer that a node calls; None for other nodes."""
        return self.get_submodule(str(node.target)) if node.op == "call_module" else None

    def op(self, target: Callable[..., Any], *args: Any, at: Node, home: Node | None = None, **options: Any) -> Node:
        """Insert a call of an aten overload before `at`; it belongs where `home` (or `at`) belongs."""
        with self.graph.inserting_before(at):
            return self._placed(self.graph.call_function(target, args, options), home or at)

    def call(self, path: str, layer: nn.Module, *args: Node, at: Node, home: Node | None = None) -> Node:
        """Put a layer at a path, in place of what is there, and insert a call of it before `at`."""
        install(self, path, layer)
        with self.graph.inserting_before(at):
            return self._placed(self.graph.call_module(path, args), home or at)

    def weight(self, path: str, tensor: Tensor, *, at: Node) -> Node:
        """Store a constant at a path, and insert a reading of it before `at`."""
        keep(self, path, tensor)
        with self.graph.inserting_before(at):
            return self._placed(self.graph.get_attr(path), at)

    def replace(self, old: Node, new: Node) -> None:
        """Let all that read `old` read `new`, and drop what nothing reads any more."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self.tidy()

    def tidy(self) -> None:
        """Drop nodes that nothing reads, and the layers and constants that only they used."""
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        drop_unused(self, {str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")})

    def refresh(self) -> None:
        """Work out every result's shape and dtype again, after weights or arguments of nodes were changed in place."""
        for node in self.graph.nodes:
            if node.op not in ("placeholder", "output"):
                node.meta["val"] = self._value(node)

    def free_batch(self) -> None:
        """Let reshapes that keep one sample in front keep any number: passes run several at once, traces have one."""
        for node in self.graph.find_nodes(op="call_function", target=aten.reshape.default):
            (source,), shape = node.all_input_nodes, list(node.meta["val"].shape)
            if shape[:1] == [1] == list(source.meta["val"].shape[:1]):
                node.args = (source, [-1, *shape[1:]])

    def _placed(self, node: Node, home: Node) -> Node:
        node.meta = {key: home.meta[key] for key in HOME if key in home.meta}
        node.meta["val"] = self._value(node)
        return node

    def _value(self, node: Node) -> Any:
        """What the node returns, as fake tensors: nothing is computed."""
        args = fx.map_arg(node.args, lambda source: source.meta["val"])
        options = fx.map_arg(node.kwargs, lambda source: source.meta["val"])
        mode = detect_fake_mode(args) or _mode_of(self.graph)
        with mode, torch.no_grad():
            if node.op == "get_attr":
                return mode.from_tensor(stored(self, str(node.target)), static_shapes=True)
            if node.op == "call_function":
                return node.target(*args, **options)  # type: ignore[operator]
            layer = self.get_submodule(str(node.target))
            tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            faked: dict[str, Tensor] = {n: mode.from_tensor(t, static_shapes=True) for n, t in tensors.items()}
            return functional_call(layer, faked, args, options)


M = TypeVar("M", bound=nn.Module)


def copied(model: M) -> M:
    """A deep copy of a module, traced or not: an edit of it is seen nowhere else."""
    with quiet():  # torch warns of its own classes when a graph is copied
        return copy.deepcopy(model)


def layered(program: ExportedProgram) -> LayeredModule:
    """The program as a module over the same weights, in evaluation mode.

    Reshapes take any memory layout in it, so that an edit need not know which one its input has.
    """
    with quiet():
        functional = program.run_decompositions({}).module(check_guards=False)
    assert isinstance(functional, fx.GraphModule)
    names = _input_names(program)
    graph, found = fx.Graph(), dict[Node, Node]()
    kind: Any = with_names(LayeredModule, names)
    model: LayeredModule = kind(graph, names)
    for node in functional.graph.nodes:
        copied = graph.node_copy(node, found.__getitem__)
        copied.meta = dict(node.meta)
        if node.op == "get_attr":
            copied.target = unclaimed(str(node.target))
            keep(model, copied.target, stored(functional, str(node.target)))
        found[node] = copied
    graph.set_codegen(functional.graph._codegen)
    for node in list(graph.nodes):
        _simplify(node)
        _pad_in_numbers(model, node)
        _call_layer(model, node)
    model.tidy()
    return model.eval()


def _input_names(program: ExportedProgram) -> tuple[str, ...]:
    """What the program's inputs are called: positional ones as its graph names them, others by keyword."""
    kwargs = program.call_spec.in_spec.children()[1].context if program.call_spec.in_spec else []
    inputs = [str(name) for name in program.graph_signature.user_inputs]
    return (*inputs[: len(inputs) - len(kwargs)], *map(str, kwargs))


def _simplify(node: Node) -> None:
    """Copies that only settle a memory layout go, and views become reshapes, which need none."""
    if node.target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default
    elif node.target is aten.clone.default:
        source = node.args[0]
        assert isinstance(source, Node)
        node.replace_all_uses_with(source)


def _pad_in_numbers(model: LayeredModule, node: Node) -> None:
    """A convolution's border as numbers, not as "same"; one that is wider on the right is put there by an op."""
    if node.op != "call_function" or getattr(node.target, "_overloadname", "") != "padding":
        return
    defaults: tuple[Any, ...] = (None, [1], "valid", [1], 1)
    given: tuple[Any, ...] = (*node.args, *defaults[len(node.args) - 2 :])
    image, weight, bias, stride, padding, dilation, groups = given
    window = weight.meta["val"].shape[2:]
    spread = list(dilation) * (len(window) if len(dilation) == 1 else 1)
    whole = [by * (size - 1) if padding == "same" else 0 for by, size in zip(spread, window, strict=True)]
    if any(border % 2 for border in whole):
        extra = [side for border in reversed(whole) for side in (0, border % 2)]
        image = model.op(aten.constant_pad_nd.default, image, extra, at=node)
    node.target = getattr(aten, op_name(node)).default
    node.args = (image, weight, bias, stride, [border // 2 for border in whole], dilation, groups)


def _call_layer(model: LayeredModule, node: Node) -> None:
    """Turn an op on stored weights into a call of the layer that holds them."""
    build = LAYERS.get(op_name(node)) if node.op == "call_function" else None
    stored_layer = build(node, model) if build else None
    if stored_layer is None:
        return
    path = _free_path(model, node, stored_layer)
    install(model, path, stored_layer.layer)
    with model.graph.inserting_before(node):
        called = model.graph.call_module(path, (stored_layer.input,))
    called.meta = dict(node.meta)
    if isinstance(value := node.meta["val"], tuple | list):  # of the results of a norm, all but the first go unread
        called.meta["val"] = value[0]
        for user in list(node.users):
            user.replace_all_uses_with(called)
    else:
        node.replace_all_uses_with(called)


def _free_path(model: LayeredModule, node: Node, layer: Stored) -> str:
    """Where a layer goes: to the layer that called it, else where its weight lies, unless a different one is there."""
    caller = unclaimed(module_path(node))
    is_caller = _class_name(node) == type(layer.layer).__name__
    for path in (caller, layer.path) if is_caller else (layer.path, caller):
        there = _find(model, path) if path else None
        if path and (there is None or type(there) is nn.Module or _same(there, layer.layer)):
            return path
    taken = [path for path, _ in model.named_modules() if path.startswith(layer.path)]
    return f"{layer.path}_{len(taken)}"


def unclaimed(path: str) -> str:
    """The path, but for names that the module has itself: a model's own `weight` or `graph` becomes `_weight`."""
    first = path.partition(".")[0]
    return f"_{path}" if hasattr(LayeredModule, first) or first in ("graph", "inputs") else path


def _class_name(node: Node) -> str:
    """The class of the innermost module that an op belongs to, without where it is defined."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "")}
    return str(list(stack.values())[-1][1]).rpartition(".")[2]


def _same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
    alike = ours.keys() == theirs.keys() and all(ours[key] is theirs[key] for key in ours)
    return alike and repr(one) == repr(other)


def install(root: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer at a path, with empty modules on the way where there are none; what else is at the path stays."""
    if (there := _find(root, path)) is not None and there is not layer:
        for old, new in zip(_contents(there), _contents(layer), strict=True):
            new.update({name: value for name, value in old.items() if name not in new})
    parent, _, name = path.rpartition(".")
    _room(root, parent).add_module(name, layer)


def keep(root: nn.Module, path: str, tensor: Tensor) -> None:
    """Store a parameter or a buffer at a path."""
    parent, _, name = path.rpartition(".")
    room = _room(root, parent)
    if isinstance(tensor, nn.Parameter):
        room.register_parameter(name, tensor)
    else:
        room.register_buffer(name, tensor)


def stored(root: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at a path."""
    parent, _, name = path.rpartition(".")
    tensor = getattr(root.get_submodule(parent), name)
    assert isinstance(tensor, Tensor)
    return tensor


def drop_unused(root: nn.Module, used: set[str]) -> None:
    """Take out layers, parameters and buffers that are neither named in `used` nor part of what is."""
    above = {room for path in used for room in _rooms_of(path)}

    def needed(path: str) -> bool:
        return path in used or any(room in used for room in _rooms_of(path))

    for path, module in list(root.named_modules(remove_duplicate=False)):
        if path and not needed(path) and path not in above:
            parent, _, name = path.rpartition(".")
            if (room := _find(root, parent) if parent else root) is not None and name in room._modules:
                del room._modules[name]
        elif not needed(path):
            for kind in _contents(module)[1:]:
                for name in [each for each in kind if not needed(f"{path}.{each}".lstrip("."))]:
                    del kind[name]


def _rooms_of(path: str) -> list[str]:
    """The modules that a path leads through: `a` and `a.b` for `a.b.c`."""
    return [path[:end] for end, character in enumerate(path) if character == "."]


def _contents(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._modules, module._parameters, module._buffers


def _room(root: nn.Module, path: str) -> nn.Module:
    for name in filter(None, path.split(".")):
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root._modules[name] or nn.Module()
    return root


def _find(root: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        if (child := root._modules.get(name)) is None:
            return None
        root = child
    return root


def _mode_of(graph: fx.Graph) -> FakeTensorMode:
    values: Iterable[Any] = (node.meta.get("val") for node in graph.nodes)
    return detect_fake_mode([value for value in values if isinstance(value, Tensor)]) or FakeTensorMode()


def shape_of(node: Node) -> tuple[int, ...]:
    """The sizes of a node's tensor; of dynamic ones, what the example has."""
    return tuple(hinted(size) for size in node.meta["val"].shape)
