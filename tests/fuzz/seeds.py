"""`python tests/fuzz/seeds.py FOLDER`: real tensors as inputs of fuzz_native.c, for the fuzzer to damage."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np

from edgekit.formats import df11x, df12

SHAPES = ((1, 1), (2, 8), (18, 8), (3, 130), (20, 520), (17, 1024), (33, 512), (40, 900))
NO_PART = 255


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for rows, columns in SHAPES:
        weights = (rng.normal(0, 0.02, (rows, columns)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        weights[::-5, ::50] = 0x7F80  # infinity, an escape of df12
        palette = df12.choose_palette(np.bincount(weights.reshape(-1) >> 8 & 127, minlength=128))
        lanes, fixed = df11x.encode(weights), df12.pack(weights, palette)
        groups = -(-weights.size // df11x.GROUP)
        header = struct.pack("<BBhHHHHII", 0, NO_PART, 0, 0, 0, groups, 0, weights.size, lanes["stream"].size)
        content = b"".join(lanes[name].tobytes() for name in df11x.NAMES)
        (folder / f"df11x_{rows}x{columns}").write_bytes(header + content)
        header = struct.pack("<BBhHHHHII", 1, NO_PART, 0, columns, 0, rows, 0, weights.size, fixed["esc_val"].size)
        content = b"".join(fixed[name].tobytes() for name in df12.NAMES)
        (folder / f"df12_{rows}x{columns}").write_bytes(header + content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
