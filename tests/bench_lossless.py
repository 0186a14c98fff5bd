"""`make bench-lossless`: the lossless codecs beside their peers, measured here and written to lossless_benchmarks.json.

A peer that is not installed has a row that says so. Ratios are of runs that took turns in one process; absolute times
are of this machine on this day.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from bench_df11_encoder import df11_encoder
from weights import Bits, exponent_entropy, layer

from edgekit import registry
from edgekit.codec import FORMATS, Codec, bits_per_weight, decode, encode
from edgekit.formats._native_decoder import library
from edgekit.host import host_state

RESULTS = Path(__file__).parent / "lossless_benchmarks.json"
WANTED_OVER_ZIPNN = {"df11x": 1.0, "df12": 2.0}


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int = 15) -> dict[str, float]:
    """Median CPU seconds of each call, which other work on the machine does not stretch; every round runs all once."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_decode() -> dict[str, Any]:
    """GB/s of bf16 that come out of each decoder on one thread, into new memory; the checksum is not part of it."""
    weights = layer(4096, 4096)
    calls: dict[str, Callable[[], Any]] = {"copy": weights.copy}
    rows: dict[str, dict[str, Any]] = {"copy": {"bits_per_weight": 16}}
    for name in WANTED_OVER_ZIPNN:
        module: Codec = registry.load(FORMATS, name)
        coded = encode(weights, name)
        assert np.array_equal(decode(coded), weights)
        calls[name] = partial(module.decode, coded.parts, coded.shape)
        rows[name] = {"bits_per_weight": bits_per_weight(coded)}
    try:
        calls["zipnn"], rows["zipnn"] = zipnn(weights)
    except ImportError as error:
        rows["zipnn"] = {"missing": f"{error}: pip install zipnn"}
    seconds = in_turns(calls)
    for name, taken in seconds.items():
        rows[name]["gb_per_s"] = weights.nbytes / taken / 1e9
    if "zipnn" in seconds:
        for name, wanted in WANTED_OVER_ZIPNN.items():
            rows[name] |= {"over_zipnn": seconds["zipnn"] / seconds[name], "over_zipnn_wanted": wanted}
    return {
        "shape": weights.shape,
        "exponent_entropy_bits": exponent_entropy(weights),
        "decoder": "native" if library() else "numpy",
        "rows": rows,
    }


def zipnn(weights: Bits) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The peer's decoder of these weights, and its row. Raises `ImportError` where it is not installed."""
    from zipnn import ZipNN

    peer = ZipNN(bytearray_dtype="bfloat16", threads=1)
    coded = bytes(peer.compress(bytearray(weights.tobytes())))
    assert bytes(peer.decompress(coded)) == weights.tobytes()
    return partial(peer.decompress, coded), {
        "bits_per_weight": 8 * len(coded) / weights.size,
        "version": version("zipnn"),
    }


SECTIONS = {"cpu_decode": cpu_decode, "df11_encoder": df11_encoder}


def main() -> None:
    results = {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": msgspec.to_builtins(host_state()),
        "versions": {"numpy": version("numpy")},
    }
    results |= {name: section() for name, section in SECTIONS.items()}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
