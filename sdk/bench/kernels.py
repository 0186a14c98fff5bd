"""How fast the GPU kernels are, beside dense products and beside what the machine could do: `edgekit bench kernels`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec

from edgekit.codec import Encoded, bits_per_weight, encode
from edgekit.compression import Progress, silent
from edgekit.errors import InvalidInput
from edgekit.kernels._trained_like import layer
from edgekit.kernels.nn.bench import DecodeSpeed, decode_speed
from edgekit.kernels.nn.loading import Resident
from edgekit.types import Value

RESIDENT: tuple[Resident, ...] = ("bf16", "fast", "small")
SHAPES = ((14336, 4096), (4096, 14336), (28672, 8192), (4096, 4096))  # of layers in models of 7 to 70 B weights
MAIN = SHAPES[0]
CUBLAS, OWN_DENSE = DENSE = ("cuBLAS bf16 product", "Triton bf16 product")
# SASS instructions a weight for sm_90, counted in the kernels' main loops.
INSTRUCTIONS = {"df11 decode": 35.9, "df11x decode": 20.9, "df12 decode": 3.4, "df12 product": 3.8}


class Timing(Value, frozen=True, kw_only=True):
    """One kernel on one matrix, its inputs from memory, under a CUDA graph."""

    kernel: str
    rows: int
    columns: int
    lines: int = 0  # of x; 0 for a decode
    seconds: float
    moved_bytes: int  # read and written at least

    @property
    def dense_bytes_per_s(self) -> float:
        """bf16 bytes of the matrix over the time."""
        return 2 * self.rows * self.columns / self.seconds


class KernelBench(Value, frozen=True, kw_only=True):
    """All timings of a suite on one device."""

    suite: str
    device: str
    versions: dict[str, str]
    copy_bytes_per_s: float  # read and written, by a plain copy in the same run
    instructions_per_s: float | None = None  # of single threads, that the device can start
    bits_per_weight: dict[str, float]  # by codec, at the first shape
    timings: tuple[Timing, ...]
    decoding: tuple[DecodeSpeed, ...]  # of a transformer with about 1 G weights

    @property
    def bytes_per_s(self) -> float:
        """The most that memory gave in this run, to the copy or to a dense product."""
        dense = (t.moved_bytes / t.seconds for t in self.timings if t.kernel in DENSE)
        return max(self.copy_bytes_per_s, *dense)

    def bound(self, timing: Timing) -> tuple[str, float]:
        """What the kernel has to wait for at least, bytes or instructions, and for how many seconds."""
        needed = {"bytes": timing.moved_bytes / self.bytes_per_s}
        if self.instructions_per_s and timing.kernel in INSTRUCTIONS:
            started = INSTRUCTIONS[timing.kernel] * timing.rows * timing.columns
            needed["instructions"] = started / self.instructions_per_s
        return max(needed.items(), key=lambda item: item[1])


def run(suite: str = "lossless", progress: Progress = silent) -> KernelBench:
    """Time every kernel of a suite. Raises `InvalidInput` without a CUDA device and for suites that are not there."""
    import torch

    if suite != "lossless":
        raise InvalidInput(f"there is no suite '{suite}' of kernels: lossless is the one there is")
    if not torch.cuda.is_available():
        raise InvalidInput("torch sees no CUDA device, and only there kernels have a speed")
    from edgekit.kernels._timing import copy_bytes_per_s, instructions_per_s

    weights = layer(*MAIN)
    coded: dict[str, Encoded] = {name: encode(weights, name) for name in ("df11", "df11x", "df12")}
    return KernelBench(
        suite=suite,
        device=torch.cuda.get_device_name(),
        versions={name: version(name) for name in ("torch", "triton", "dfloat11") if find_spec(name)},
        copy_bytes_per_s=copy_bytes_per_s(),
        instructions_per_s=instructions_per_s(),
        bits_per_weight={name: bits_per_weight(found) for name, found in coded.items()},
        timings=(*_decoders(coded, progress), *_products(coded["df12"], progress)),
        decoding=tuple(_decoding(progress)),
    )


def _decoders(coded: dict[str, Encoded], progress: Progress) -> Iterator[Timing]:
    from edgekit.kernels.df11 import bench as df11
    from edgekit.kernels.df11x import bench as df11x
    from edgekit.kernels.df12 import bench as df12

    decoders: dict[str, tuple[str, Callable[[Encoded], float | None]]] = {
        "dfloat11 package's decode": ("df11", df11.package_decode_seconds),
        "df11 decode": ("df11", df11.decode_seconds),
        "df11x decode": ("df11x", df11x.decode_seconds),
        "df12 decode": ("df12", df12.decode_seconds),
    }
    for kernel, (name, time) in decoders.items():
        progress(kernel)
        if seconds := time(coded[name]):
            moved = _stored(coded[name]) + 2 * MAIN[0] * MAIN[1]
            yield Timing(kernel=kernel, rows=MAIN[0], columns=MAIN[1], seconds=seconds, moved_bytes=moved)


def _products(main: Encoded, progress: Progress) -> Iterator[Timing]:
    """`main` is the coded matrix of the shape `MAIN`."""
    from edgekit.kernels.df12 import bench

    def timed(kernel: str, lines: int, seconds: float, moved: int) -> Timing:
        progress(f"{kernel} {shape[0]}x{shape[1]}, {lines} rows of x")
        return Timing(kernel=kernel, rows=shape[0], columns=shape[1], lines=lines, seconds=seconds, moved_bytes=moved)

    for shape in SHAPES:
        bits = layer(*shape)
        coded = main if shape == MAIN else encode(bits, "df12")
        for lines in (1, 2, 4, 8, 16, 64) if shape == MAIN else (1,):
            yield timed(CUBLAS, lines, bench.dense_seconds(bits, lines), bits.nbytes)
            if lines == 1:
                yield timed(OWN_DENSE, 1, bench.dense_gemv_seconds(bits), bits.nbytes)
            yield timed("df12 product", lines, bench.linear_seconds(coded, lines), _stored(coded))


def _stored(coded: Encoded) -> int:
    """Bytes of all parts, which a kernel has to read."""
    return sum(part.nbytes for part in coded.parts.values())


def _decoding(progress: Progress) -> Iterator[DecodeSpeed]:
    for resident in RESIDENT:
        progress(f"decode greedily, weights {resident}")
        yield decode_speed(resident)


def table(found: KernelBench) -> tuple[list[str], list[list[str]]]:
    """Column names and rows."""
    rows = []
    for timing in found.timings:
        kind, seconds = found.bound(timing)
        rows.append(
            [
                timing.kernel,
                f"{timing.rows}x{timing.columns}",
                str(timing.lines or "-"),
                f"{1e6 * timing.seconds:.1f}",
                f"{timing.dense_bytes_per_s / 1e12:.2f}",
                f"{kind}, {1e6 * seconds:.1f} us",
                f"{timing.seconds / seconds:.2f}",
            ]
        )
    return ["kernel", "matrix", "rows of x", "us", "bf16 TB/s", "bound", "over it"], rows


def decoding_table(found: KernelBench) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: speed and memory of the transformer, and both over those of dense weights."""
    dense = next(speed for speed in found.decoding if speed.resident == "bf16")
    rows = [
        [
            speed.resident,
            f"{speed.tokens_per_s:.0f}",
            f"{speed.tokens_per_s / dense.tokens_per_s:.2f}",
            f"{speed.weight_bytes / 1e6:.0f}",
            f"{100 * speed.weight_bytes / dense.weight_bytes:.1f} %",
        ]
        for speed in found.decoding
    ]
    return ["weights resident as", "tokens/s", "over bf16", "MB", "of bf16"], rows
