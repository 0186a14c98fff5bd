"""Edits of the traced graph before ExecuTorch sees it: one form per op, so that XNNPACK fuses what can be fused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from edgekit.exporting import ExportJob
from edgekit.graph import specialise
from edgekit.runtimes._executorch_file import METHOD
from edgekit.types import entry_points

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv_transpose2d.input)
PRODUCTS = (*CONVOLUTIONS, aten.linear.default)
NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
FUSED = (aten.relu.default, aten.hardtanh.default)  # what XNNPACK takes into the op before it
CONV2D_DEFAULTS = (None, None, None, [1, 1], [0, 0], [1, 1], 1)  # after the bias: stride, padding, dilation, groups
CLAMPS = (aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.relu6.default)


def editable(program: ExportedProgram) -> GraphModule:
    """The program as a graph module of functional ops, with clamps and pads in the form that XNNPACK fuses."""
    if any(_is_mutable(node) for node in program.graph.nodes):
        program = program.run_decompositions({})
    module = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        if node.target in CLAMPS:
            _rewrite_clamp(node)
        elif is_zero_pad(node):
            _fold_pad(node)
        elif node.target == aten.mean.dim:
            _keep_axes(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def trace_again(module: GraphModule, job: ExportJob) -> dict[str, ExportedProgram]:
    """Trace an edited module: method -> program, over the same weights; one for each listed size of a dimension."""
    write_out_tanh_gelu(module)
    sizes = entry_points(job.dynamic)
    traced = {name: specialise(module, job.inputs, job.dynamic, size) for name, size in sizes.items()}
    if not traced:
        args, kwargs = job.program.example_inputs
        dynamic = _dynamic_shapes(job.program)
        with torch.no_grad():
            traced[METHOD] = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    for program in traced.values():
        for node in program.graph.nodes:  # its history, which every pass to come would copy: a fifth of the time
            node.meta.pop("from_node", None)
    return traced


def write_out_tanh_gelu(module: GraphModule) -> None:
    """gelu(approximate="tanh") -> x sigmoid(x (a + b x^2)), which is the same since 1 + tanh(u) = 2 sigmoid(2 u).

    XNNPACK's lowering drops the argument and computes the exact GELU: 74 dB apart on normal numbers, 63 dB after Gemma
    3's 18 layers (fixed upstream after 1.5: pytorch/executorch pull request 22851). Quantisation sees the GELU whole.
    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.
    """
    graph = module.graph
    a = math.sqrt(8 / math.pi)
    for node in graph.find_nodes(op="call_function", target=aten.gelu.default):
        if node.kwargs.get("approximate") != "tanh" or not is_float(node):
            continue
        x = node.args[0]
        with graph.inserting_before(node):
            square = graph.call_function(aten.mul.Tensor, (x, x))
            scaled = graph.call_function(aten.mul.Tensor, (square, 0.044715 * a))
            factor = graph.call_function(aten.add.Tensor, (scaled, a))
            inner = graph.call_function(aten.mul.Tensor, (x, factor))
            gate = graph.call_function(aten.sigmoid.default, (inner,))
            product = graph.call_function(aten.mul.Tensor, (x, gate))
        for made in (square, scaled, factor, inner, gate, product):
            made.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        graph.erase_node(node)
    module.recompile()


def add_outputs(module: GraphModule, nodes: Sequence[Node]) -> None:
    """Make the module return the tensors of `nodes` after its own outputs, all as one flat tuple."""
    output = module.graph.output_node()
    flat = (*pytree.tree_leaves(output.args[0]), *nodes)
    output.args = (flat,)
    codegen: Any = module.graph._codegen
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=pytree.tree_structure(flat))
    module.recompile()


def fused_clamp(node: Node) -> Node | None:
    """The clamp that is the only reader of `node`, which XNNPACK computes together with it."""
    reader = only_reader(node)
    return reader if reader is not None and reader.target in FUSED else None


def only_reader(node: Node) -> Node | None:
    """The reader of a tensor that has just one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_float(node: object) -> bool:
    """Whether a graph's node is a float32 tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _is_mutable(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _rewrite_clamp(node: Node) -> None:
    """clamp and relu6 -> relu or hardtanh; a clamp with one end other than 0 has no fused form and stays."""
    low, high = clamp_ends(node)
    if not is_float(node.args[0]) or not all(isinstance(end, int | float | None) for end in (low, high)):
        return
    if low == 0 and high is None:
        node.target, node.args, node.kwargs = aten.relu.default, (node.args[0],), {}
    elif low is not None and high is not None:
        node.target, node.args, node.kwargs = aten.hardtanh.default, (node.args[0], low, high), {}


def clamp_ends(node: Node) -> tuple[Any, Any]:
    """Lower and upper end of a clamp; None where it has none."""
    if node.target == aten.relu6.default:
        return 0, 6
    one_sided: dict[Any, tuple[str, ...]] = {aten.clamp_min.default: ("min",), aten.clamp_max.default: ("max",)}
    names = one_sided.get(node.target, ("min", "max"))
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    return given.get("min"), given.get("max")


def _fold_pad(node: Node) -> None:
    """A pad with as many zeros on both sides, read by one convolution, becomes that convolution's own padding.

    On its own it is a copy of the whole tensor. Source of the case: "same" padding ported from other frameworks.
    """
    arguments: Any = node.args
    widths, reader = list(arguments[1]), only_reader(node)
    if reader is None or reader.target != aten.conv2d.default or len(widths) != 4:
        return
    left, right, top, bottom = widths
    if left != right or top != bottom:
        return
    given: list[Any] = [*reader.args, *CONV2D_DEFAULTS[len(reader.args) :]]
    height, width = given[4] if len(given[4]) == 2 else given[4] * 2
    given[0], given[4] = node.args[0], [height + top, width + left]
    reader.args = tuple(given)


def is_zero_pad(node: Node) -> bool:
    """Whether a node adds zeros around height and width, as a convolution's kernel can."""
    if node.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return False
    names = ("value",) if node.target == aten.constant_pad_nd.default else ("mode", "value")
    given: dict[str, Any] = dict(zip(names, node.args[2:], strict=False)) | dict(node.kwargs)
    widths: Any = node.args[1]
    inside = len(widths) <= 2 * (node.meta["val"].dim() - 2) and all(width >= 0 for width in widths)
    return inside and given.get("mode", "constant") == "constant" and not given.get("value")


def mean_axes(node: Node) -> list[int]:
    """The axes that a mean runs over, ascending; all where it names none."""
    arguments: Any = node.args
    rank = arguments[0].meta["val"].dim()
    return sorted(axis % max(rank, 1) for axis in arguments[1] or range(rank))


def _keep_axes(node: Node) -> None:
    """A mean over height and width that drops them -> one that keeps them, which XNNPACK has, and a view."""
    arguments: Any = node.args
    source, over, keeps = arguments[0], mean_axes(node), len(arguments) > 2 and arguments[2]
    sizes, value = source.meta["val"].shape, node.meta["val"]
    static = all(isinstance(size, int) for size in value.shape)
    if keeps or not is_float(source) or len(sizes) != 4 or over != [2, 3] or not static:
        return
    with node.graph.inserting_after(node):
        view = node.graph.call_function(aten.view.default, (node, list(value.shape)))
    node.replace_all_uses_with(view, delete_user_cb=lambda reader: reader is not view)
    view.meta = dict(node.meta)
    node.args, node.meta["val"] = (source, over, True), value[..., None, None]


def _dynamic_shapes(program: ExportedProgram) -> dict[str, dict[int, Dim]] | None:
    """The dynamic axes of the inputs, as `torch.export` wants to hear them again."""
    values = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    shapes: dict[str, dict[int, Dim]] = {}
    for name, value in zip(program.example_inputs[1], values, strict=True):
        shapes[name] = {}
        for axis, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                limits = program.range_constraints[size.node.expr]
                shapes[name][axis] = Dim(str(size.node.expr), min=int(limits.lower), max=int(limits.upper))
    return shapes if any(shapes.values()) else None
