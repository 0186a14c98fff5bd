"""Lossless coding of one bf16 tensor: what a codec is, when it is used, and the proof that nothing changed.

bf16 weights are handled as their bit patterns, numpy `uint16`: patterns compare exactly where floats do not (NaN,
-0.0). A codec is one module in `sdk/formats/`. Its file name is its public name, its docstring the specification of its
parts.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit import registry
from edgekit.errors import CorruptWeights, EdgekitError, InvalidInput
from edgekit.host import cores
from edgekit.processing import Array

FORMATS = "edgekit.formats"
AUTO = "df11x"  # the smallest on disk; what multiplies faster is made from it when it is loaded
SMALLEST = 4096  # weights; below it tables and offsets eat the gain, and nobody notices the bytes
WORTH = 0.9  # of the raw size: anything larger is not worth decoding
RAW_BITS = 16
LEAST_SHARE = 1 << 20  # weights that a thread decodes in about 1 ms; for fewer it is not worth its start
MOST_PARTS, LONGEST_PART, PART_DIMENSIONS = 8, 16, 3  # of any format

Bits = NDArray[np.uint16]
Parts = dict[str, NDArray[Any]]  # what a codec stores for one tensor: named arrays of u1, u2, u4, i4 or i8


class NoGain(EdgekitError):
    """A tensor that is better stored as it is; the message is the reason to record. A normal outcome."""


class Codec(Protocol):
    """What a module in `sdk/formats/` offers."""

    def encode(self, bits: Bits) -> Parts:
        """Code patterns of any shape with at least one weight. Raises `NoGain` for what the format should not hold."""

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...], threads: int = 1) -> Bits:
        """The patterns, of this shape. Raises `CorruptWeights` for parts that `encode` cannot have made."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One tensor in coded form."""

    codec: str
    shape: tuple[int, ...]
    parts: Parts
    crc32: int  # of the raw weights, little-endian and in C order


def encode(bits: Bits, codec: str) -> Encoded:
    """Code bf16 patterns of any shape. `codec` is a format's name, or `auto` for the smallest.

    Raises `NoGain` with the reason when the tensor should stay raw: it has few weights, the format refuses it, or the
    coded form is not well below the raw one.
    """
    if bits.dtype != np.uint16:
        raise InvalidInput(f"weights are coded as the uint16 bit patterns of bf16, not as {bits.dtype}")
    name = AUTO if codec == "auto" else codec
    module: Codec = registry.load(FORMATS, name)
    if bits.size < SMALLEST:
        raise NoGain(f"{bits.size} weights are too few: {SMALLEST} are the least")
    coded = Encoded(codec=name, shape=bits.shape, parts=module.encode(bits), crc32=_crc32(bits))
    if (rate := bits_per_weight(coded)) > WORTH * RAW_BITS:
        raise NoGain(f"{name} needs {rate:.2f} bits a weight, more than {WORTH:.0%} of {RAW_BITS}")
    return coded


def decode(encoded: Encoded) -> Bits:
    """The very patterns that were encoded. Raises `CorruptWeights` when parts, shape or checksum do not fit.

    All cores work on a large tensor where the native decoder was built; NumPy uses one.
    """
    module: Codec = registry.load(FORMATS, encoded.codec)
    threads = max(1, min(cores(), math.prod(encoded.shape) // LEAST_SHARE))
    bits = module.decode(encoded.parts, encoded.shape, threads)
    if (found := _crc32(bits)) != encoded.crc32:
        raise CorruptWeights(f"the decoded weights have crc32 {found:08x}, not the recorded {encoded.crc32:08x}")
    return bits


def bits_per_weight(encoded: Encoded) -> float:
    """Bits of all parts for each weight; bf16 itself has 16."""
    return 8 * sum(part.nbytes for part in encoded.parts.values()) / math.prod(encoded.shape)


def part_names(name: str) -> Iterator[tuple[str, int]]:
    """Names at least as long and as many as what a coded tensor is stored as, and the most dimensions of each."""
    return ((f"{name}.{'x' * LONGEST_PART}", PART_DIMENSIONS) for _ in range(MOST_PARTS))


def _crc32(bits: Bits) -> int:
    return zlib.crc32(np.ascontiguousarray(bits, dtype="<u2").data)
