"""One traced graph of a model, with the module and source line of every op."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, Node

from edgekit.errors import UnsupportedModel, reason_of
from edgekit.model import Model, dynamic_axes
from edgekit.quiet import quiet
from edgekit.types import DynamicDim, TensorSpec


def capture(model: Model) -> ExportedProgram:
    """Trace the model with `torch.export`. Raises `UnsupportedModel` with the line that cannot be traced."""
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(
                model.module,
                (),
                dict(model.example),
                dynamic_shapes=_dynamic_shapes(model),
                strict=False,
                # a size of 1 is a special case to torch, which would else refuse ranges that start there
                prefer_deferred_runtime_asserts_over_guards=any(dim.minimum == 1 for dim in model.dynamic),
            )
    except Exception as error:  # torch.export raises dozens of types
        raise UnsupportedModel(_trace_message(model, error)) from error
    _cast_mixed_parts(program)
    return program


def specialise(
    module: torch.nn.Module, inputs: Sequence[TensorSpec], dynamic: Sequence[DynamicDim], size: int
) -> ExportedProgram:
    """A traced module with its dynamic dimensions at `size`, over the same weights: for formats without such shapes."""
    axes = {dim.axis_name for dim in dynamic}
    example = {
        spec.name: torch.zeros([size if axis in axes else int(axis) for axis in spec.shape], dtype=_dtype(spec))
        for spec in inputs
    }
    with torch.no_grad(), quiet():
        return torch.export.export(module, (), example, strict=False)


def _cast_mixed_parts(program: ExportedProgram) -> None:
    """Spell out the casts of parts that are joined with parts of a wider dtype, which only PyTorch does unasked."""
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
        dtype = node.meta["val"].dtype
        parts: Any = node.args[0]
        for part in {part for part in parts if part.meta["val"].dtype != dtype}:
            with program.graph.inserting_before(node):
                cast = program.graph.call_function(torch.ops.aten.to.dtype, (part, dtype))
            cast.meta = {**node.meta, "val": part.meta["val"].to(dtype)}
            node.replace_input_with(part, cast)
    program.graph_module.recompile()


def op_counts(program: ExportedProgram) -> Counter[str]:
    """How often each aten op occurs: `conv2d`, `linear`."""
    return Counter(str(node.target).split(".")[1] for node in op_nodes(program.graph))


MOVES = ("dropout", "to", "_to_copy", "expand", "view", "reshape", "clone", "contiguous", "slice")


def attention_ops(program: ExportedProgram) -> int:
    """Softmaxes whose weights multiply values, and fused attention; a classifier's last softmax is none."""
    found = 0
    for node in op_nodes(program.graph):
        name = str(node.target).split(".")[1]
        found += name == "scaled_dot_product_attention" or (name in ("softmax", "_softmax") and is_multiplied(node))
    return found


def is_multiplied(node: Node) -> bool:
    """Whether a product reads the node, directly or through ops that only reshape, cast or drop."""
    for user in node.users:
        name = str(user.target).split(".")[1] if str(user.target).count(".") >= 2 else ""
        if name in ("matmul", "bmm", "mm", "einsum"):
            return True
        if name in MOVES and is_multiplied(user):
            return True
    return False


def module_path(node: Node) -> str:
    """The path of the innermost module that a node of a traced graph belongs to."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0])


def source_line(node: Node) -> str | None:
    """`file.py:41`, the innermost line outside of torch that called this op; libraries from their package on.

    Without the folders of this machine: what is kept with a bundle must not tell where it was made.
    """
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    if not frames:
        return None
    path, line = next((frame for frame in reversed(frames) if "site-packages/torch/" not in frame[0]), frames[-1])
    folders, installed, inside = path.partition("site-packages/")
    return f"{inside if installed else Path(folders).name}:{line}"


def place_of(node: Node) -> str:
    """The innermost module of a node's op with its source line, where the trace knows it."""
    line = source_line(node)
    return (module_path(node) or "the model itself") + (f" ({line})" if line else "")


def op_nodes(graph: Graph) -> list[Node]:
    """The calls of aten and other dispatcher ops, without Python's own such as `getitem`."""
    return [node for node in graph.nodes if node.op == "call_function" and str(node.target).count(".") >= 2]


def peak_activation_bytes(program: ExportedProgram) -> int:
    """The most bytes of inputs and intermediate tensors alive at one op, each tensor its own memory.

    An upper bound for a runtime that frees each tensor after its last use; in-place ops and fusion need less.
    """
    last_use = {source: index for index, node in enumerate(program.graph.nodes) for source in node.all_input_nodes}
    inputs = set(program.graph_signature.user_inputs)
    alive: dict[Node, int] = {}
    peak = 0
    for index, node in enumerate(program.graph.nodes):
        if node.op == "call_function" or (node.op == "placeholder" and node.name in inputs):
            alive[node] = _node_bytes(node)
        peak = max(peak, sum(alive.values()))
        alive = {source: size for source, size in alive.items() if last_use.get(source, -1) > index}
    return peak


def _node_bytes(node: Node) -> int:
    values = node.meta.get("val")
    tensors = [values] if isinstance(values, torch.Tensor) else list(values) if isinstance(values, list | tuple) else []
    return sum(hinted(t.numel()) * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def _dtype(spec: TensorSpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return dtype


def hinted(size: int | torch.SymInt) -> int:
    """A size of a traced shape; of a dynamic one, what the example has."""
    return size.node.hint if isinstance(size, torch.SymInt) else size


def _dynamic_shapes(model: Model) -> dict[str, dict[int, Dim]] | None:
    if not model.dynamic:
        return None
    shapes: dict[str, dict[int, Dim]] = {name: {} for name in model.example}
    for dynamic in model.dynamic:
        dim = Dim(dynamic.axis_name, min=dynamic.minimum, max=dynamic.maximum)
        for name, axis in dynamic_axes(dynamic, model.example):
            shapes[name][axis] = dim
    return shapes


def _trace_message(model: Model, error: Exception) -> str:
    message = f"torch.export cannot trace '{model.name}': {reason_of(error)}"
    torch_folder = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", torch_folder))]
    if user := [f for f in frames if f.filename != __file__]:
        message += f" (at {user[-1].filename}:{user[-1].lineno}: {user[-1].line})"
    if "data-dependent" in str(error).lower():
        message += ". A branch on tensor values has no static graph: compute both sides and choose with torch.where"
    if model.dynamic:
        message += ". Try without --dynamic, or with wider limits"
    return message
