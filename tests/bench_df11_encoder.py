"""How long df11 takes to encode a layer, beside the dfloat11 package: one thread, the same weights, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from dfloat11_package import installed, package_encode_group
from weights import exponent_entropy, layer

from edgekit.formats import df11

WANTED = 50  # times the package's speed
ROUNDS, OURS_IN_A_ROUND = 3, 5


def df11_encoder() -> dict[str, Any]:
    """Seconds and million weights a second of both, medians of rounds, and how many times faster ours is."""
    weights = layer(2048, 4096)
    found: dict[str, Any] = {"weights": weights.size, "exponent_entropy_bits": exponent_entropy(weights)}
    if not installed():
        return found | {"missing": "pip install --no-deps dfloat11==0.5.0 dahuffman==0.4.2"}
    assert np.array_equal(df11.decode(package_encode_group([weights]), weights.shape), weights)
    ours, package = [], []
    for _ in range(ROUNDS):
        package.append(seconds(lambda: package_encode_group([weights])))
        ours += [seconds(lambda: df11.encode(weights)) for _ in range(OURS_IN_A_ROUND)]
    taken = {"edgekit": statistics.median(ours), f"dfloat11 {version('dfloat11')}": statistics.median(package)}
    return found | {
        "seconds": taken,
        "million_weights_per_s": {name: weights.size / s / 1e6 for name, s in taken.items()},
        "times_faster": statistics.median(package) / statistics.median(ours),
        "times_faster_wanted": WANTED,
    }


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
