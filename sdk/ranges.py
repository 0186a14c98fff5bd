"""Ranges of values, and the steps that integers of few bits divide them into."""

from __future__ import annotations


def zero_on_step(low: float, high: float, steps: int = 255) -> tuple[float, float]:
    """The narrowest range around [low, high] that has zero on one of its steps, instead of a rounded zero point.

    Pixels in [-1, 1] have their zero between two of 256 steps; rounding it would put every pixel half a step off.
    With z steps below zero a step must be -low / z wide or wider for the lower end, and high / (steps - z) for the
    upper; the first falls with z and the second grows, so the best z is one of the two beside the exact quotient. Its
    step is at most steps / (steps - 2) of the original: 0.8 percent more for 8 bits. Without zero inside, as it was.
    """
    if not low < 0 < high:
        return low, high
    below = min(int(-low / (high - low) * steps), steps - 1)
    step, zero = min((max(-low / z, high / (steps - z)), z) for z in (below, below + 1) if 0 < z < steps)
    return min(low, -zero * step), max(high, (steps - zero) * step)
