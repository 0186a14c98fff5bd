"""How many bits weights and activations get, and the grids of steps that they are rounded to.

A scheme `w8a16` has weights of 8 bits with one scale per output channel, symmetric around zero, and activations of 16
bits with one range per tensor, fixed beforehand: asymmetric below 16 bits, symmetric at 16, as LiteRT's 16x8 kernels
have it. Biases are added to the accumulator, whose 32 or more bits lose nothing here.

Rounding is to the nearest step, half to even, as `QuantizeLinear` of ONNX, PyTorch and ai-edge-quantizer do; LiteRT's
own QUANTIZE rounds halves away from zero, which differs on exact halves alone. Values beyond the range saturate.
Source: Jacob et al. (arXiv 1712.05877), equation 1 and section 3 (zero on a step); Krishnamoorthi (arXiv 1806.08342),
section 3.1 (a scale per channel); LiteRT's 8-bit quantisation specification (weights in [-127, 127]).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.errors import InvalidInput, unknown_name
from edgekit.ranges import zero_on_step
from edgekit.types import Value

SYMMETRIC_FROM = 16  # bits of activations


class Scheme(Value, frozen=True, kw_only=True):
    """Bits of weights and of activations; what has 32 stays float."""

    name: str
    weight_bits: int
    activation_bits: int


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="w8a8", weight_bits=8, activation_bits=8),
        Scheme(name="w8a16", weight_bits=8, activation_bits=16),
        Scheme(name="w4a16", weight_bits=4, activation_bits=16),
    )
}


def scheme(name: str) -> Scheme:
    """The scheme of this name. Raises `UnknownName`."""
    if name not in SCHEMES:
        raise unknown_name("scheme", name, SCHEMES)
    return SCHEMES[name]


class Grid(Value, frozen=True, kw_only=True):
    """The steps of one tensor: `(step - zero_point) * scale` for every step from `first` to `last`."""

    scale: float
    zero_point: int
    first: int
    last: int

    def round(self, tensor: Tensor) -> Tensor:
        """The nearest step's value for every element, in the tensor's dtype; NaN stays, infinities saturate."""
        values = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
        steps = (values / self.scale).round_().clamp_(self.first - self.zero_point, self.last - self.zero_point)
        return (steps * self.scale).to(tensor.dtype)


def activation_grid(low: float, high: float, bits: int) -> Grid:
    """The grid for values in [low, high], widened until it holds zero, and zero lies on a step: so padding is exact."""
    if not low <= high:  # also where one of them is NaN
        raise InvalidInput(f"a range from {low} to {high} has no grid")
    low, high = min(low, 0.0), max(high, 0.0)
    if bits >= SYMMETRIC_FROM:
        last = 2 ** (bits - 1) - 1
        return Grid(scale=_positive(max(-low, high) / last), zero_point=0, first=-last, last=last)
    last = 2**bits - 1
    low, high = zero_on_step(low, high, last)
    scale = _positive(high / last - low / last)
    return Grid(scale=scale, zero_point=round(-low / scale), first=0, last=last)


def rounded_weight(weight: Tensor, bits: int, axis: int) -> Tensor:
    """The weight on its symmetric grid, `[-(2^(b-1) - 1), 2^(b-1) - 1]` steps of `max|w| / last` for each channel.

    `axis` is the one of output channels. The same shape and dtype.
    """
    last = 2 ** (bits - 1) - 1
    values = weight.detach().double()
    others = [d for d in range(values.dim()) if d != axis % values.dim()]
    largest = values.abs().amax(dim=others, keepdim=True) if values.numel() else values
    scale = torch.where(largest > 0, largest / last, torch.ones_like(largest))
    return (torch.round(values / scale).clamp_(-last, last) * scale).to(weight.dtype)


def _positive(scale: float) -> float:
    """A tensor that is zero everywhere, or nearly, has any step at all."""
    return scale if scale > 0 else 1.0
