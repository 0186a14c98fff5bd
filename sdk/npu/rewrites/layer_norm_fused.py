"""Layer norms that a model spells out as the one op that NPUs with a fused kernel want.

Over channels, as SAM's and ConvNeXt's `LayerNorm2d`, or over the last axis: `(x - mean) / sqrt(variance + eps)` with a
factor and a shift. The Apple Neural Engine wants the opposite: `layer_norm_channels`.
Source: qualcomm/ai-hub-models' patches of Segment Anything, which put F.layer_norm in place of LayerNorm2d.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._movements import move
from edgekit.npu.rewrites._ops import arguments, calls, constant, name_of, sizes
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "spelled-out layer norms as one op"
EXACTNESS = "exact"
STAGE, RANK = "layers", 5
aten = torch.ops.aten


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every division of a centred tensor by the root of its mean square along one axis."""
    for node in calls(model, "div", "mul"):
        found = _normed(node)
        if found is None:
            continue
        source, axis, eps = found
        if sizes(source) is None:
            yield skipped(node, "its sizes are dynamic: fix them first with static_shapes")
            continue
        end, factor, shift = _affine(model, node, axis)
        _fuse(model, end, source, axis, eps, factor, shift)
        yield done(end)


def _normed(node: Node) -> tuple[Node, int, float] | None:
    """Source, axis and eps of `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)`, or `* rsqrt(...)`."""
    for centred, root in (node.args[:2], node.args[1::-1]):
        if not isinstance(centred, Node) or not isinstance(root, Node):
            continue
        if name_of(root) != ("sqrt" if name_of(node) == "div" else "rsqrt"):
            continue
        if (added := _eps(root.args[0])) is None or (found := _centred(centred)) is None:
            continue
        square = _mean_of(added[0], found[1])
        if square is not None and _is_square(square, centred, found[0]):
            return *found, added[1]
    return None


def _eps(node: object) -> tuple[Node, float] | None:
    if not isinstance(node, Node) or name_of(node) != "add" or not isinstance(node.args[1], float | int):
        return None
    return (node.args[0], float(node.args[1])) if isinstance(node.args[0], Node) else None


def _centred(node: Node) -> tuple[Node, int] | None:
    """x and the axis, of `x - mean(x)`."""
    if name_of(node) != "sub" or len(node.all_input_nodes) != 2 or node.kwargs:
        return None
    source, mean = node.all_input_nodes
    rank = len(source.meta["val"].shape)
    for axis in range(rank):
        if _mean_of(mean, axis) is source:
            return source, axis
    return None


def _mean_of(node: Node, axis: int) -> Node | None:
    """What a node is the mean of along one axis, which it keeps."""
    if name_of(node) != "mean" or not node.all_input_nodes:
        return None
    (source,), given = node.all_input_nodes, arguments(node)
    axes = [each % len(source.meta["val"].shape) for each in given.get("dim") or ()]
    return source if axes == [axis] and given.get("keepdim") else None


def _is_square(node: Node, centred: Node, source: Node) -> bool:
    """Whether a node is `(x - mean)^2`, be the difference this one or taken again."""
    base = node.args[0] if node.args else None
    again = isinstance(base, Node) and (
        base is centred or ((other := _centred(base)) is not None and other[0] is source)
    )
    if name_of(node) == "pow":
        return again and bool(node.args[1] == 2)
    return name_of(node) == "mul" and again and node.args[1] is base


def _affine(model: LayeredModule, node: Node, axis: int) -> tuple[Node, Tensor | None, Tensor | None]:
    """The last op of the norm, with its factor and shift `[C]` where each channel has one."""
    factor = shift = None
    if (after := _by_channel(model, node, "mul", axis)) is not None:
        node, factor = after
    if (after := _by_channel(model, node, "add", axis)) is not None:
        node, shift = after
    return node, factor, shift


def _by_channel(model: LayeredModule, node: Node, name: str, axis: int) -> tuple[Node, Tensor] | None:
    if len(node.users) != 1 or name_of(user := next(iter(node.users))) != name or len(user.args) != 2 or user.kwargs:
        return None
    other = user.args[1] if user.args[0] is node else user.args[0]
    tensor, shape = _stored(model, other), node.meta["val"].shape
    if tensor is None or tensor.dim() > len(shape) or tensor.numel() != shape[axis]:
        return None
    whole = tensor.detach().reshape([1] * (len(shape) - tensor.dim()) + list(tensor.shape))
    return (user, whole.flatten()) if whole.shape[axis] == shape[axis] else None


def _stored(model: LayeredModule, node: object) -> Tensor | None:
    """A stored tensor, perhaps behind reshapes."""
    if isinstance(node, Node) and name_of(node) in ("reshape", "view", "unsqueeze"):
        tensor = _stored(model, node.args[0])
        return None if tensor is None else tensor.reshape(sizes(node) or ())
    return constant(model, node)


def _fuse(
    model: LayeredModule, end: Node, source: Node, axis: int, eps: float, factor: Tensor | None, shift: Tensor | None
) -> None:
    rank, channels = len(sizes(source) or ()), (sizes(source) or ())[axis]
    order = (*[each for each in range(rank) if each != axis], axis)
    back = tuple(order.index(each) for each in range(rank))
    layer = nn.LayerNorm(channels, eps=eps, device="meta").eval()
    like = torch.ones(channels, dtype=source.meta["val"].dtype)
    layer.weight = nn.Parameter(like if factor is None else factor.clone(), requires_grad=False)
    layer.bias = nn.Parameter(torch.zeros_like(like) if shift is None else shift.clone(), requires_grad=False)
    normed = model.call(_path(model, end), layer, move(model, source, order, at=end), at=end)
    end.replace_all_uses_with(move(model, normed, back, at=end))
    model.tidy()


def _path(model: LayeredModule, node: Node) -> str:
    taken = dict(model.named_modules())
    path, count = f"norms.{node.name}", 0
    while path in taken:
        path, count = f"norms.{node.name}_{count}", count + 1
    return path


class _Norm(nn.Module):
    def __init__(self, channels: int, axis: int, squared: bool, affine: bool) -> None:
        super().__init__()
        self.axis, self.squared = axis, squared
        shape = (channels, 1, 1) if axis == 1 else (channels,)
        self.weight = nn.Parameter(torch.randn(shape)) if affine else None
        self.bias = nn.Parameter(torch.randn(shape)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(self.axis, keepdim=True)
        if self.squared:
            x = centred / (centred.pow(2).mean(self.axis, keepdim=True) + 1e-6).sqrt()
        else:
            x = centred * ((centred * centred).mean(self.axis, keepdim=True) + 1e-5).rsqrt()
        return x if self.weight is None or self.bias is None else x * self.weight + self.bias


@seeded
def example(seed: int) -> Example:
    """Norms over channels and over the last axis, written in two ways, with and without factors."""
    channels, axis = size(2, 7), (1, -1)[seed % 2]
    shape = [size(1, 3), size(1, 4), size(1, 4)]
    shape.insert(1 if axis == 1 else 3, channels)
    return Example(_Norm(channels, axis, bool(seed // 2 % 2), bool(seed // 4 % 2)), {"x": torch.randn(shape) * 2})
