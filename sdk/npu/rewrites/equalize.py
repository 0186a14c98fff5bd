"""Ranges of channels balanced between two layers, across activations that let a positive factor through.

With `s_i = sqrt(r1_i / r2_i)`, the largest weights of output channel i of the first layer and of input channel i of the
second: `W1' = W1 / s`, `b1' = b1 / s`, `W2' = W2 s`. ReLU, LeakyReLU and PReLU commute with it. ReLU6 and other clamps
cut at a fixed height, which a factor moves: across them it is wrong, and is refused.
Source: Nagel et al., Data-Free Quantization (arXiv 1906.04721), section 4.1, equations 7 to 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.cost.kernels import op_name
from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.channel_maps import named
from edgekit.npu.channels import POSITIVE, passage, stream
from edgekit.npu.products import Owners, Product, channel_axis, product_of, set_product
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "ranges of channels balanced between layers"
EXACTNESS = "exact"
STAGE, RANK = "ranges", 2
SWEEPS, CLOSE, LIMIT = 20, 1e-3, 1e4  # a chain of layers settles in a few; factors stay where float32 is exact
ACTIVATIONS = ("relu6", "hardtanh", "clamp", "clamp_max", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "silu",
               "elu", "selu", "softplus", "mish")  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Pair:
    writer: str  # path of the first layer
    readers: tuple[str, ...]


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every product that only products read, directly or through activations and moves."""
    owners, pairs = Owners(model), list[_Pair]()
    for node in list(model.graph.nodes):
        if product_of(model.layer_of(node)) is None:
            continue
        found = _pair(model, node, owners)
        if isinstance(found, _Pair):
            pairs.append(found)
            yield done(node)
        elif found:
            yield skipped(node, found)
    paths = {path for pair in pairs for path in (pair.writer, *pair.readers)}
    products = {path: each for path in paths if (each := product_of(model.get_submodule(path)))}
    for path, product in _balanced(products, pairs).items():
        set_product(model.get_submodule(path), product)


def _pair(model: LayeredModule, node: Node, owners: Owners) -> _Pair | str | None:
    """The layer with those that read it; a reason where an activation or a shared weight is in the way; else None."""
    found = stream(node, channel_axis(model.layer_of(node), len(shape_of(node))), passage(POSITIVE))
    if found is None or found.writers != (node,) or not found.readers:
        return None
    for tensor, reader in found.readers:
        layer = model.layer_of(reader)
        if op_name(reader) in ACTIVATIONS and reader.op == "call_function":
            return f"{named(reader)} lets no factor through: it bends at fixed heights"
        if product_of(layer) is None or channel_axis(layer, len(shape_of(tensor))) != found.axis[tensor]:
            return None
    readers = list(dict.fromkeys(reader for _, reader in found.readers))
    if reason := next(filter(None, map(owners.shared, (node, *readers))), None):
        return reason
    return _Pair(str(node.target), tuple(str(reader.target) for reader in readers))


def _balanced(products: dict[str, Product], pairs: list[_Pair]) -> dict[str, Product]:
    """Pair after pair, until no factor moves any more."""
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in pairs:
            factors = _factors(products[pair.writer], [products[path] for path in pair.readers])
            products[pair.writer] = products[pair.writer].scale_outputs(1 / factors)
            for path in pair.readers:
                products[path] = products[path].scale_inputs(factors)
            moved = max(moved, float((factors - 1).abs().max()))
        if moved < CLOSE:
            break
    return products


def _factors(writer: Product, readers: list[Product]) -> Tensor:
    """`sqrt(r1 / r2)` for each channel; 1 where a side is all zeros."""
    ours = writer.output_range()
    theirs = torch.stack([reader.input_range() for reader in readers]).amax(0)
    alive = (ours > 0) & (theirs > 0)
    factors = torch.where(alive, ours / torch.where(alive, theirs, 1.0), 1.0).sqrt()
    return factors.clamp(1 / LIMIT, LIMIT)


@seeded
def example(seed: int) -> Example:
    """Chains of convolutions, depthwise ones among them, and of linear layers, with ranges that differ by channel."""
    inner, middle, outer = size(1, 4), size(2, 6), size(1, 4)
    activation = (nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(middle), nn.Identity())[seed % 4]
    if seed % 3 == 0:
        layers: list[nn.Module] = [nn.Linear(inner, middle), nn.ReLU(), nn.Linear(middle, outer)]
        image = torch.randn(3, inner)
    else:
        depthwise = nn.Conv2d(middle, middle, 3, padding=1, groups=middle)
        layers = [
            nn.Conv2d(inner, middle, 3, padding=1),
            activation,
            depthwise,
            nn.MaxPool2d(2),
            nn.Conv2d(middle, outer, 1),
        ]
        image = torch.randn(2, inner, 6, 5)
    first = layers[0]
    assert isinstance(first, nn.Linear | nn.Conv2d)
    with torch.no_grad():
        first.weight.mul_(torch.logspace(-1.5, 1.5, middle).reshape(-1, *[1] * (first.weight.dim() - 1)))
    return Example(nn.Sequential(*layers), {"input": image})
