"""The small values that every part of edgekit shares."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

import msgspec

from edgekit.errors import InvalidInput

DType = Literal[
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"
]  # fmt: skip
DTYPES: tuple[DType, ...] = get_args(DType)
Layout = Literal["NCHW", "NHWC"]
Precision = Literal["fp32", "lossless", "fp16", "int8", "int8-dynamic", "int8-weight-only", "w4a8"]
FULL_PRECISION: tuple[Precision, ...] = ("fp32", "lossless")  # that compute with PyTorch's own numbers
Shape = tuple[int | str, ...]

V = TypeVar("V", bound="Value")


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record that compares with `==` and goes to JSON and back unchanged."""

    def to_json(self) -> str:
        """The value as indented JSON. NaN and infinity have no JSON form and must not be stored."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    @classmethod
    def from_json(cls: type[V], text: str | bytes) -> V:
        """Parse and check; raises `InvalidInput` that names the offending field."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"not a valid {cls.__name__}: {error}") from error
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise InvalidInput(f"not valid JSON for a {cls.__name__}: {error}") from error

    @classmethod
    def from_toml(cls: type[V], text: str, schema: str, origin: str) -> V:
        """Parse and check; raises `InvalidInput` that begins with `origin` and names the offending field."""
        try:
            return msgspec.convert(tomllib.loads(text), cls)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InvalidInput(f"{origin} is not valid TOML: {error}") from error
        except msgspec.ValidationError as error:
            raise InvalidInput(f"{origin} does not follow {schema}: {error}") from error


class TensorSpec(Value, frozen=True, kw_only=True):
    """A named tensor: dtype and shape. A `str` in the shape names a dynamic dimension."""

    name: str
    dtype: DType
    shape: Shape
    layout: Layout | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class DynamicDim(Value, frozen=True, kw_only=True):
    """A dimension that may take any size from `minimum` to `maximum`, both included, or only the given `sizes`.

    A format without dynamic shapes can still serve a few sizes: one entry point for each, over the same weights.
    """

    name: str
    minimum: int
    maximum: int
    sizes: tuple[int, ...] = ()  # ascending, from `minimum` to `maximum`; empty: all between

    def __post_init__(self) -> None:
        if not 1 <= self.minimum < self.maximum:
            raise ValueError(f"dynamic dimension {self} needs 1 <= low < high")
        ends, ascending = (self.sizes[:1] + self.sizes[-1:]), tuple(sorted({*self.sizes}))
        if self.sizes and (ends != (self.minimum, self.maximum) or self.sizes != ascending):
            raise ValueError(f"dynamic dimension {self} needs ascending sizes from its lowest to its highest")

    def __str__(self) -> str:
        return f"{self.name}={','.join(map(str, self.sizes)) or f'{self.minimum}:{self.maximum}'}"

    def allows(self, size: int) -> bool:
        """Whether the dimension may have this size."""
        return size in self.sizes if self.sizes else self.minimum <= size <= self.maximum

    def fitting(self, size: int) -> int:
        """The largest allowed size that is not above `size`, or the smallest there is."""
        if self.sizes:
            return max((allowed for allowed in self.sizes if allowed <= size), default=self.minimum)
        return min(max(size, self.minimum), self.maximum)

    @property
    def axis_name(self) -> str:
        """What shapes call it: graph formats allow no dot in a name."""
        return self.name.replace(".", "_")


def entry_points(dynamic: Sequence[DynamicDim]) -> dict[str, int]:
    """Method or signature -> the size it serves, in formats without dynamic shapes; empty where no sizes are listed."""
    return {f"{dim.axis_name}_{size}": size for dim in dynamic for size in dim.sizes}


class ModelSource(Value, frozen=True, kw_only=True):
    """Where a model came from, and which weights it held."""

    kind: str  # the file name of the loader in `sdk/sources/`
    ref: str  # what the user typed after the kind
    sha256: str | None = None  # over names, dtypes, shapes and bytes of all parameters and buffers
    part: str | None = None  # of a model that was cut in several graphs

    @property
    def name(self) -> str:
        """A short name for folders and tables: `efficientnet_lite0`, `my_model`."""
        tail = self.ref.rpartition(":")[2] if self.kind == "python" else Path(self.ref).name
        return (tail.removesuffix(".pt2") or self.kind) + (f"-{self.part}" if self.part else "")


class Change(Value, frozen=True, kw_only=True):
    """What one pass did to one tensor, or why it left it as it was."""

    tensor: str
    step: str  # the pass, by its public name
    before: str  # "float32"
    after: str  # "int8 per_channel axis 0"; equal to `before` when kept
    bytes_before: int
    bytes_after: int
    reason: str | None = None  # always given when the tensor was kept
