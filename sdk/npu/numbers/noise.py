"""Signal to quantisation-noise ratios, for a tensor as a whole and for each of its channels.

A tensor's total hides what few loud channels hide: a channel that rounds to zero everywhere is dead at 0 dB, and the
total may still rise with the outlier that killed it. So the worst channel is always told beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.parity import EXACT_DB
from edgekit.types import Value

DROWNED_DB = 20.0  # a tenth of the loud channels' precision


class Sqnr(Value, frozen=True, kw_only=True):
    """Ratios in dB, within [-200, 200]; 200 means equal."""

    total_db: float
    median_db: float  # of the channels that are not zero everywhere
    worst_db: float
    worst_channel: int | None  # None: the tensor is zero everywhere, or a single number

    @property
    def drowned(self) -> bool:
        """Whether a few loud channels take the grid's steps from most others, which the total hides."""
        return self.total_db - self.median_db > DROWNED_DB


@dataclass(frozen=True, eq=False)
class Powers:
    """Sums of squares of a signal and of its error, float64 `[channels]`. Adds up over samples."""

    signal: Tensor
    noise: Tensor

    @classmethod
    def of(cls, exact: Tensor, other: Tensor, axis: int | None) -> Powers:
        """Where the exact values are finite; `axis` holds the channels, None: one channel."""
        signal, error = exact.double(), (exact - other).double()
        if not (known := torch.isfinite(exact)).all():
            signal, error = (torch.where(known, part, 0.0) for part in (signal, error))
        if axis is None or not exact.dim():
            return cls(signal.square().sum()[None], error.square().sum()[None])
        others = [d for d in range(exact.dim()) if d != axis % exact.dim()]
        return cls(*(part.square().sum(others) if others else part.square() for part in (signal, error)))

    def __add__(self, other: Powers) -> Powers:
        """Both together; where sizes vary between samples, place k joins place k."""
        return Powers(_joined(self.signal, other.signal), _joined(self.noise, other.noise))

    def sqnr(self) -> Sqnr:
        """The ratios of these sums."""
        total = float(decibels(self.signal.sum()[None], self.noise.sum()[None])[0])
        heard = torch.nonzero((self.signal > 0) | (self.noise > 0) | self.noise.isnan()).flatten()
        if not len(heard):
            return Sqnr(total_db=total, median_db=total, worst_db=total, worst_channel=None)
        each = decibels(self.signal, self.noise)[heard]
        worst = int(each.argmin())
        return Sqnr(
            total_db=total,
            median_db=float(each.quantile(0.5)),
            worst_db=float(each[worst]),
            worst_channel=int(heard[worst]) if len(self.signal) > 1 else None,
        )


def decibels(signal: Tensor, noise: Tensor) -> Tensor:
    """`10 log10(signal / noise)`, within [-200, 200]: 200 without noise, -200 where noise has no signal or no end."""
    ratio = 10 * torch.log10(signal / noise)
    ratio = torch.where(torch.isfinite(noise) & (signal > 0), ratio, -EXACT_DB)
    return torch.where(noise == 0, EXACT_DB, ratio).clamp(-EXACT_DB, EXACT_DB)


def _joined(one: Tensor, other: Tensor) -> Tensor:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return longer + torch.nn.functional.pad(shorter, (0, len(longer) - len(shorter)))
