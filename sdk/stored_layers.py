"""The layer that an aten op on stored weights stands for: `aten.conv2d` on parameters is an `nn.Conv2d`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node


@dataclass(frozen=True, eq=False)
class Stored:
    """A layer over weights of the model, what it is called with, and the path that its weights' names suggest."""

    layer: nn.Module
    input: Node
    path: str


@dataclass(frozen=True, eq=False)
class _Call:
    """An op's arguments by the names of its schema, with defaults; stored tensors by path and by value."""

    given: dict[str, Any]
    paths: dict[str, str]
    tensors: dict[str, Tensor]

    def build(self, kind: type[nn.Module], *sizes: Any, input: str = "input", **options: Any) -> Stored | None:
        """A layer over the tensors of its own weights' names; None where one of them is computed by another op."""
        layer = kind(*sizes, **options, device="meta").eval()
        names = [name for name, tensor in layer.state_dict(keep_vars=True).items() if name in self.given]
        if not all(name in self.tensors for name in names) or not isinstance(self.given[input], Node):
            return None
        for name in names:
            tensor = self.tensors[name]
            if name in layer._buffers:
                layer._buffers[name] = tensor
            else:
                parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
                layer.register_parameter(name, parameter)
        if not names:
            return None
        path = self.paths[names[0]].removesuffix(names[0]).rstrip("._")
        return Stored(layer, self.given[input], path or kind.__name__.lower())


def _called(node: Node, root: nn.Module) -> _Call:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    given |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    paths = {n: str(v.target) for n, v in given.items() if isinstance(v, Node) and v.op == "get_attr"}
    tensors = {name: root.get_parameter(path) if _is_parameter(root, path) else root.get_buffer(path)
               for name, path in paths.items()}  # fmt: skip
    return _Call(given, paths, tensors)


def _is_parameter(root: nn.Module, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return name in root.get_submodule(parent)._parameters


def _linear(node: Node, root: nn.Module) -> Stored | None:
    call = _called(node, root)
    if "weight" not in call.tensors:
        return None
    out, inner = call.tensors["weight"].shape
    return call.build(nn.Linear, inner, out, bias=call.given["bias"] is not None)


def _convolution(kinds: dict[int, type[nn.Module]], turned: bool) -> Callable[[Node, nn.Module], Stored | None]:
    def layer(node: Node, root: nn.Module) -> Stored | None:
        call = _called(node, root)
        if "weight" not in call.tensors or len(node.meta["val"].shape) != call.tensors["weight"].dim():
            return None  # computed weights, or an image without its batch
        first, second, *kernel = call.tensors["weight"].shape
        given, groups = call.given, call.given["groups"]
        options: dict[str, Any] = {name: _sizes(given[name], len(kernel)) for name in ("stride", "padding", "dilation")}
        if turned:
            options["output_padding"] = _sizes(given["output_padding"], len(kernel))
        channels = (first, second * groups) if turned else (second * groups, first)
        bias = given["bias"] is not None
        return call.build(kinds[len(kernel)], *channels, tuple(kernel), groups=groups, bias=bias, **options)

    return layer


def _sizes(value: Any, rank: int) -> Any:
    return tuple(value) * (rank if len(value) == 1 else 1)


def _batch_norm(node: Node, root: nn.Module) -> Stored | None:
    call = _called(node, root)
    value = node.meta["val"]
    rank = len((value[0] if isinstance(value, tuple | list) else value).shape)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(rank)
    if kind is None or "running_mean" not in call.tensors or any(_reads_more(user) for user in node.users):
        return None
    channels = call.tensors["running_mean"].shape[0]
    found = call.build(kind, channels, eps=call.given["eps"], affine=call.given["weight"] is not None)
    if found:
        found.layer.num_batches_tracked = None  # type: ignore[assignment]  # only training counts them
    return found


def _reads_more(user: Node) -> bool:
    return user.op == "call_function" and user.target is operator.getitem and bool(user.args[1] != 0)


def _layer_norm(node: Node, root: nn.Module) -> Stored | None:
    call = _called(node, root)
    options: dict[str, Any] = {
        "elementwise_affine": call.given["weight"] is not None,
        "bias": call.given["bias"] is not None,
    }
    return call.build(nn.LayerNorm, tuple(call.given["normalized_shape"]), eps=call.given["eps"], **options)


def _rms_norm(node: Node, root: nn.Module) -> Stored | None:
    call = _called(node, root)
    return call.build(nn.RMSNorm, tuple(call.given["normalized_shape"]), eps=call.given["eps"])


def _group_norm(node: Node, root: nn.Module) -> Stored | None:
    call = _called(node, root)
    if "weight" not in call.tensors:
        return None
    groups, channels = call.given["num_groups"], call.tensors["weight"].shape[0]
    return call.build(nn.GroupNorm, groups, channels, eps=call.given["eps"])


def _embedding(node: Node, root: nn.Module) -> Stored | None:
    call = _called(node, root)
    if "weight" not in call.tensors:
        return None
    return call.build(nn.Embedding, *call.tensors["weight"].shape, input="indices")


CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LAYERS: dict[str, Callable[[Node, nn.Module], Stored | None]] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution(CONVOLUTIONS, turned=False)),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution(TRANSPOSED, turned=True)
    ),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
}
