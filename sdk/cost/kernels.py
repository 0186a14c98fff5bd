"""What a traced model computes: one kernel for each op that does work, with its class, its shape and what it moves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.errors import UnsupportedModel
from edgekit.graph import hinted, module_path, op_nodes, place_of
from edgekit.profile import OpClass
from edgekit.types import Value

PRODUCTS: tuple[OpClass, ...] = ("conv", "dwconv", "gemm", "gemv", "attention")
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}
TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
# Ops that do nothing at all when a model only infers, and those that change how data is looked at.
NOTHING = {
    "alias", "clone", "contiguous", "detach", "detach_", "dropout", "dropout_", "feature_dropout", "identity",
    "lift_fresh_copy", "numel", "positive", "sym_size", "to", "type_as", "_assert_tensor_metadata",
}  # fmt: skip
VIEWS = {
    "broadcast_to", "expand", "expand_as", "flatten", "reshape", "reshape_as", "squeeze", "unflatten", "unsqueeze",
    "view", "view_as", "_unsafe_view",
}  # fmt: skip
FREE = NOTHING | VIEWS
LAYOUT = {
    "permute", "transpose", "t", "mT", "numpy_T", "movedim", "swapaxes", "cat", "concat", "stack", "hstack", "vstack",
    "split", "split_with_sizes", "chunk", "tensor_split", "unbind", "slice", "select", "narrow", "pad",
    "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "roll", "flip", "repeat", "tile", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "unfold", "im2col", "col2im", "repeat_interleave", "_to_copy", "copy",
    "copy_", "meshgrid", "tril", "triu", "slice_scatter", "select_scatter",
}  # fmt: skip
GATHER = {
    "embedding", "index", "index_select", "gather", "take_along_dim", "scatter", "scatter_add", "index_put",
    "index_put_", "index_copy", "grid_sampler", "grid_sampler_2d", "topk", "sort", "argsort", "nonzero",
    "masked_select", "one_hot", "embedding_bag",
}  # fmt: skip
# Element by element, or a few passes over their input; what torch itself tags as pointwise or reduction is not listed.
ELEMENTWISE = {
    "softmax", "_softmax", "log_softmax", "layer_norm", "native_layer_norm", "group_norm", "instance_norm", "rms_norm",
    "batch_norm", "_native_batch_norm_legit_no_training", "hardswish", "hardswish_", "prelu", "glu", "swiglu",
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "cumsum", "norm", "linalg_vector_norm", "normalize", "argmax", "argmin", "std", "var", "var_mean", "logsumexp",
    "floor_divide", "__and__", "__or__", "fill", "fill_", "zeros_like", "ones_like", "full_like", "local_response_norm",
    "max", "min", "sum", "mean", "clamp", "relu6_", "silu_", "hardtanh_", "cosine_similarity", "layer_norm_",
    "softplus", "where", "new_zeros", "new_ones", "cummax", "bucketize", "diff", "square",
}  # fmt: skip
# What runtimes compute while a product's result is still at hand.
ACTIVATIONS = {
    "relu", "relu_", "relu6", "relu6_", "clamp", "hardtanh", "hardtanh_", "silu", "silu_", "hardswish", "hardswish_",
    "hardsigmoid", "sigmoid", "gelu", "leaky_relu", "leaky_relu_", "tanh", "elu", "prelu",
}  # fmt: skip
NORMS = {"batch_norm", "_native_batch_norm_legit_no_training"}  # folded into the product before them
SCALES = {"mul", "add", "sub", "div", "mul_", "add_"}  # by constants: folded too


class Kernel(Value, frozen=True, kw_only=True):
    """One op as a grid of products: `groups` times [rows, taps * inner] x [taps * inner, outer].

    Ops that multiply no matrices have `outer` channels and `rows` elements of each.
    """

    op: str  # "conv2d"
    module: str
    op_class: OpClass
    groups: int = 1
    rows: int
    taps: int = 1  # of a convolution's window
    inner: int = 1  # channels in, of one group
    outer: int = 1  # channels out, of one group
    read: int  # elements of activations
    written: int
    weights: int = 0  # elements

    @property
    def ops(self) -> int:
        """Arithmetic operations, 1 MAC = 2; one for each element where nothing is multiplied."""
        return self.padded_ops(1)

    def padded_ops(self, multiple: int) -> int:
        """Operations when the unit fills channels up to a multiple, as vectors and matrix tiles do."""

        def padded(channels: int) -> int:
            return multiple * math.ceil(channels / multiple)

        if self.op_class == "dwconv":  # channels lie in the groups, one after the other
            return 2 * self.rows * self.taps * padded(self.groups * self.outer)
        if self.op_class in PRODUCTS:
            return 2 * self.groups * self.rows * self.taps * padded(self.inner) * padded(self.outer)
        return self.rows * padded(self.outer)


class Work(Value, frozen=True, kw_only=True):
    """All kernels of a model in the order of its trace, and the ops that the model of costs does not know."""

    kernels: tuple[Kernel, ...]
    boundary: int = 0  # elements of the model's inputs and outputs
    not_modelled: dict[str, int] = {}  # op -> how often


def work(program: ExportedProgram) -> Work:
    """The kernels of a traced program at the sizes of its example.

    Batch norms and activations that alone read a product's result are part of that product; what depends on weights
    only is computed once, before the first call. Recurrent ops and ops of others are named and not counted.
    """
    live = live_nodes(program)
    kernels, unknown = list[Kernel](), Counter[str]()
    for node, *_ in steps(program, live):
        if (name := op_name(node)) in FREE or is_padding(node, name):
            continue
        kernel = kernel_of(node, live)
        if kernel is None:
            unknown[name] += 1
        elif kernel.ops:
            kernels.append(kernel)
    outputs = program.graph.output_node().all_input_nodes
    given = [node for node in live if node.op == "placeholder"]
    return Work(kernels=tuple(kernels), boundary=sum(map(elements, [*given, *outputs])), not_modelled=dict(unknown))


def live_nodes(program: ExportedProgram) -> set[Node]:
    """The model's inputs and all that depends on them; the rest is computed once, before the first call."""
    inputs = set(program.graph_signature.user_inputs)
    live = {node for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(source in live for source in node.all_input_nodes):
            _check_sizes(node)
            live.add(node)
    return live


def steps(
    program: ExportedProgram, live: Container[Node], activations: Container[str] = ACTIVATIONS
) -> list[tuple[Node, ...]]:
    """Every op that depends on an input and makes a tensor, first in a tuple with what is computed along with it.

    Those are norms, factors that are constant, and `activations` that alone read a product. In the order of their ends.
    """
    found: dict[Node, tuple[Node, ...]] = {}
    for node in op_nodes(program.graph):
        if node in live and made(node):
            before = found.pop(node.all_input_nodes[0], ()) if _is_computed_along(node, live, activations) else ()
            found[node] = (*before, node)
    return list(found.values())


def _check_sizes(node: Node) -> None:
    """Raise `UnsupportedModel` for a size that is only known when the model runs, such as that of `nonzero`."""
    sizes: list[Any] = [size for tensor in made(node) for size in tensor.shape]
    if any(isinstance(size, torch.SymInt) and size.node.hint is None for size in sizes):
        raise UnsupportedModel(
            f"{op_name(node)} in {place_of(node)} gives a tensor whose size depends on values, so that its cost is not "
            "known: keep all elements and multiply by a mask, or take a fixed number with topk"
        )


def op_name(node: Node) -> str:
    """`conv2d` for `aten.conv2d.default`; empty for Python's own functions and for inputs."""
    parts = str(node.target).split(".")
    return parts[1] if len(parts) > 2 else ""


def op_class(node: Node) -> OpClass | None:
    """The class of an op that multiplies no matrices; None when it is not known."""
    name, tags = op_name(node), getattr(node.target, "tags", ())
    if name in LAYOUT:
        return "layout"
    if name in GATHER:
        return "gather"
    return "elementwise" if name in ELEMENTWISE or {torch.Tag.pointwise, torch.Tag.reduction} & set(tags) else None


def is_padding(node: Node, name: str) -> bool:
    """Whether an op only adds a border that convolutions can add themselves."""
    return name in ("pad", "constant_pad_nd") and all(op_name(user) in CONVOLUTIONS for user in node.users)


def _is_computed_along(node: Node, live: Container[Node], activations: Container[str]) -> bool:
    """Whether the kernel of the product before a node computes the node too."""
    name, source = op_name(node), node.all_input_nodes[0]
    scales = name in SCALES and sum(each in live for each in node.all_input_nodes) == 1
    return (name in NORMS or name in activations or scales) and len(source.users) == 1 and is_product(source)


def is_product(node: Node) -> bool:
    """Whether a node is a product, or a norm or activation that a product computes."""
    while node.op == "call_function":
        name = op_name(node)
        if name in PRODUCT_SHAPES:
            return True
        if name not in NORMS | ACTIVATIONS | SCALES or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return False


def kernel_of(node: Node, live: Container[Node]) -> Kernel | None:
    """What one op computes; None when it is not known."""
    name = op_name(node)
    sources = [source for source in node.all_input_nodes if source in live]
    constants = [source for source in node.all_input_nodes if source not in live]
    moved = {
        "read": sum(elements(source) for source in sources),
        "written": elements(node),
        "weights": sum(elements(source) for source in constants),
    }
    if name in PRODUCT_SHAPES:
        grid = PRODUCT_SHAPES[name](node)
        if grid is None:
            return None
        product = _product_class(name, grid, live, node)
        return Kernel(op=name, module=module_path(node), op_class=product, **grid, **moved)
    kind = op_class(node)
    if kind is None:
        return None
    if kind in ("layout", "gather"):  # a slice or a table is not read whole
        moved |= {"read": moved["written"], "weights": 0}
    shape = _shape(node if kind != "elementwise" or moved["written"] >= moved["read"] else sources[0])
    channels = (shape[1] if len(shape) == 4 else shape[-1]) if shape else 1
    rows = max(moved["written"], math.prod(shape)) // channels if channels else 0
    return Kernel(op=name, module=module_path(node), op_class=kind, rows=rows, outer=channels, **moved)


def _product_class(name: str, grid: dict[str, int], live: Container[Node], node: Node) -> OpClass:
    if name in CONVOLUTIONS | TRANSPOSED:
        return "dwconv" if grid["groups"] > 1 and grid["inner"] == 1 else "conv"
    if sum(source in live for source in node.all_input_nodes) > 1 and name not in ("linear", "addmm"):
        return "attention"
    return "gemv" if grid["groups"] * grid["rows"] == 1 else "gemm"


def _convolution(node: Node) -> dict[str, int]:
    image, weight, out = _shape(node.args[0]), _shape(node.args[1]), _shape(node)
    turned = op_name(node) in TRANSPOSED or (op_name(node) == "convolution" and bool(node.args[6]))
    groups = (image[1] if not turned else weight[0]) // weight[1] if not turned else out[1] // weight[1]
    spread = image if turned else out  # a transposed convolution spreads each pixel of its input
    return {
        "groups": groups,
        "rows": spread[0] * math.prod(spread[2:]),
        "taps": math.prod(weight[2:]),
        "inner": image[1] // groups,
        "outer": out[1] // groups,
    }


def _linear(node: Node) -> dict[str, int]:
    outer, inner = _shape(node.args[1])
    return {"groups": 1, "rows": math.prod(_shape(node)) // outer, "inner": inner, "outer": outer}


def _matmul(node: Node) -> dict[str, int]:
    tensors = [arg for arg in node.args if isinstance(arg, Node)][-2:]
    left, right = (_shape(tensor) for tensor in tensors)
    inner = left[-1]
    outer = right[-1] if len(right) > 1 else 1
    rows = left[-2] if len(left) > 1 else 1
    groups = math.prod(_shape(node)) // (rows * outer)
    if len(right) == 2:  # one matrix for the whole batch
        return {"groups": 1, "rows": groups * rows, "inner": inner, "outer": outer}
    return {"groups": groups, "rows": rows, "inner": inner, "outer": outer}


def _attention(node: Node) -> dict[str, int]:
    """Scores and values as one product; the softmax between them is small beside both."""
    query, key, value = (_shape(arg) for arg in node.args[:3])
    return {"groups": math.prod(query[:-2]), "rows": query[-2], "inner": key[-2], "outer": query[-1] + value[-1]}


def _einsum(node: Node) -> dict[str, int] | None:
    equation, operands = node.args[:2]
    if not isinstance(equation, str) or not isinstance(operands, list | tuple) or len(operands) != 2:
        return None
    terms, _, answer = equation.replace(" ", "").partition("->")
    left, _, right = terms.partition(",")
    if "." in terms or not answer:
        return None
    sizes = {axis: size for term, operand in zip((left, right), operands, strict=True)
             for axis, size in zip(term, _shape(operand), strict=True)}  # fmt: skip

    def over(chosen: Callable[[str], bool]) -> int:
        return math.prod(size for axis, size in sizes.items() if chosen(axis))

    return {
        "groups": over(lambda axis: axis in left and axis in right and axis in answer),
        "rows": over(lambda axis: axis not in right),
        "inner": over(lambda axis: axis in left and axis in right and axis not in answer),
        "outer": over(lambda axis: axis not in left),
    }


PRODUCT_SHAPES: dict[str, Callable[[Node], dict[str, int] | None]] = {
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED, _convolution),
    "linear": _linear,
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm", "baddbmm", "__matmul__"), _matmul),
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
}


def made(node: Node) -> list[torch.Tensor]:
    """The tensors that a node makes."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, torch.Tensor)]


def elements(node: Node) -> int:
    """Elements of all tensors that a node makes."""
    return sum(math.prod(map(hinted, tensor.shape)) for tensor in made(node))


def _shape(node: Any) -> list[int]:
    tensors = made(node) if isinstance(node, Node) else []
    return [hinted(size) for size in tensors[0].shape] if tensors else [0]
