"""The dfloat11 package's encoder, and `dfloat11_golden.npz`, which `python tests/dfloat11_package.py` makes with it.

`pip install --no-deps dfloat11==0.5.0 dahuffman==0.4.2`. The package itself imports CuPy and starts CUDA; the one file
that holds its encoder does not, and is imported alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
from weights import Bits

from edgekit.codec import Parts

GOLDEN = Path(__file__).parent / "dfloat11_golden.npz"
BYTES_PER_THREAD, THREADS = 8, 512


def installed() -> bool:
    return find_spec("dfloat11") is not None and find_spec("dahuffman") is not None


@cache
def _encoder() -> ModuleType:
    package = find_spec("dfloat11")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "dfloat11_utils.py"
    spec = spec_from_file_location("dfloat11_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package_encode_group(group: Sequence[Bits]) -> Parts:
    """What the package's `compress_model` stores for one module, its own functions called as it calls them."""
    import torch

    encoder = _encoder()
    weights = [torch.from_numpy(bits.reshape(-1).view(np.int16).copy()).view(torch.bfloat16) for bits in group]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        _, counter = encoder.get_codec(torch.cat(weights))
        codec, _, table = encoder.get_32bit_codec(counter)
        luts = encoder.get_luts(table)
        stream, low, positions, gaps, splits = encoder.encode_weights(weights, codec, BYTES_PER_THREAD, THREADS)
    return {
        "encoded_exponent": stream.numpy(),
        "sign_mantissa": low.numpy(),
        "luts": luts.numpy(),
        "gaps": gaps.numpy(),
        "output_positions": positions.view(torch.uint8).numpy(),
        "split_positions": splits.numpy(),
    }


COMPRESS = """
import json, sys
from unittest.mock import MagicMock
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="bfloat16")
sys.modules.update({name: MagicMock() for name in ("cupy", "pkg_resources", "accelerate", "accelerate.utils")})
from dfloat11 import compress_model
compress_model(model, json.loads(sys.argv[3]), sys.argv[2], save_single_file=bool(sys.argv[4]), check_correctness=False)
"""


def package_compress_model(
    source: Path, out: Path, patterns: Mapping[str, Sequence[str]], one_file: bool = True
) -> None:
    """Have the package compress a Hugging Face folder; what it imports to decode on a GPU is left out."""
    command = [sys.executable, "-c", COMPRESS, str(source), str(out), json.dumps(patterns), "one" * one_file]
    subprocess.run(command, check=True, capture_output=True)


def golden_groups() -> dict[str, list[Bits]]:
    """Weights made of integers alone: three layers of a block, and a deep code that fills two of the kernel's blocks.

    In the deep one half of the third table belongs to the package's end-of-file code: it is filled with pointers to
    that very table.
    """
    mixed = [number * 2654435761 % 2**32 for number in range(1600)]
    block = np.array([n >> 16 & 0x8000 | 115 + (n & 0xFFF).bit_count() << 7 | n >> 24 & 0x7F for n in mixed], np.uint16)
    counts = [1, 1]
    while len(counts) < 16:
        counts.append(counts[-1] + counts[-2])
    deep = np.repeat(np.arange(101, 118), [*counts, 30000]).astype(np.uint16) << 7
    return {
        "block": [block[:768].reshape(24, 32), block[768:1024].reshape(8, 32), block[1024:].reshape(18, 32)],
        "deep": [deep],
    }


def main() -> None:
    parts = {name: package_encode_group(group) for name, group in golden_groups().items()}
    np.savez_compressed(GOLDEN, **{f"{name}.{part}": parts[name][part] for name in parts for part in parts[name]})


if __name__ == "__main__":
    main()
