"""What a worker and who asks it write to each other: its answers, and arrays inside JSON.

An array is `{"dtype": "float32", "shape": [1, 3], "data": ...}` under its name, with base64 of little-endian C order.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from edgekit.energy import MeterInfo
from edgekit.errors import InvalidInput
from edgekit.measurement import HostState
from edgekit.processing import Arrays

KINDS = "biuf"  # numbers: nothing that numpy would unpickle
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a worker. What it says beyond the fields is left alone; what it says wrongly is refused."""


class Failed(Answer, frozen=True, kw_only=True):
    """The last line of a worker that met an error."""

    error: str
    type: str = "EdgekitError"


class Ended(Answer, frozen=True, kw_only=True):
    """The last line of a board: how the worker ended, where it could not say so itself."""

    ended: int  # its exit code, -N for signal N
    words: str = ""  # the last it wrote to its standard error


class Opening(Answer, frozen=True, kw_only=True):
    """How loading went."""

    load_s: Seconds
    first_run_s: Seconds
    runtime_version: str
    state: HostState


class Times(Answer, frozen=True, kw_only=True):
    """Seconds of calls, or from the start of a text to each of its tokens."""

    times_s: tuple[Seconds, ...]
    prompt_tokens: Annotated[int, msgspec.Meta(gt=0)] | None = None
    ids: tuple[int, ...] = ()  # of a text's tokens


class Outputs(Answer, frozen=True, kw_only=True):
    """What one call gave."""

    time_s: Seconds
    outputs: dict[str, Any]  # for `decoded`


class Watch(Answer, frozen=True, kw_only=True):
    """The meter that was opened, or why none was."""

    info: MeterInfo | None = None
    reason: str = ""


class Closing(Answer, frozen=True, kw_only=True):
    """What is known when all is done."""

    peak_rss_bytes: Annotated[int, msgspec.Meta(gt=0)]
    state: HostState
    overhead_s: Seconds | None = None  # None: a worker without edgekit's session
    runtime_build: str | None = None


def encoded(arrays: Arrays) -> dict[str, dict[str, Any]]:
    """Plain data for `json.dumps`."""
    return {
        name: {
            "dtype": array.dtype.newbyteorder("=").name,
            "shape": list(array.shape),
            "data": base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode(),
        }
        for name, array in arrays.items()
    }


def decoded(document: Any) -> Arrays:
    """The inverse of `encoded`. Raises `InvalidInput` for anything else."""
    if not isinstance(document, Mapping):
        raise InvalidInput("arrays on the wire are an object of names")
    arrays: Arrays = {}
    for name, fields in document.items():
        try:
            dtype = np.dtype(fields["dtype"])
            if dtype.kind not in KINDS:
                raise ValueError(f"dtype {dtype} holds no numbers")
            data = base64.b64decode(fields["data"], validate=True)
            arrays[name] = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(fields["shape"])
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise InvalidInput(f"'{name}' is no array on the wire: {error}") from error
    return arrays
