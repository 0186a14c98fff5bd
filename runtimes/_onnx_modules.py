"""The PyTorch module of each node of an ONNX file, without the `onnx` package: boards need not have it.

Protocol buffers: a field is a number and a wire type, then a varint, 8 bytes, 4 bytes, or a length and so many bytes.
Fields of `onnx.proto` that are read: ModelProto.graph 7, GraphProto.node 1, NodeProto.name 3 and metadata_props 9,
StringStringEntryProto.key 1 and value 2.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

MODULE = b"edgekit.module"
ITSELF = "forward"  # what the path of the model itself, which is empty, is shown as
GRAPH, NODE, NAME, METADATA, KEY, VALUE = 7, 1, 3, 9, 1, 2
VARINT, EIGHT, LENGTH, FOUR = 0, 1, 2, 5  # wire types


def node_modules(path: Path) -> dict[str, str]:
    """Node name -> module path, of the nodes that say so; empty for a file that is no ONNX file."""
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
            memoryview(content) as data,
        ):
            return dict(_modules(data))
    except (ValueError, IndexError):  # an empty file, too
        return {}


def _modules(data: memoryview) -> Iterator[tuple[str, str]]:
    for start, end in _fields(data, 0, len(data), GRAPH):
        for node in _fields(data, start, end, NODE):
            names = [bytes(data[a:b]) for a, b in _fields(data, *node, NAME)]
            for entry in _fields(data, *node, METADATA):
                key, value = ([bytes(data[a:b]) for a, b in _fields(data, *entry, field)] for field in (KEY, VALUE))
                if names and value and key == [MODULE]:
                    yield names[0].decode(errors="replace"), value[0].decode(errors="replace") or ITSELF


def _fields(data: memoryview, at: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where the content of each field of a number lies. Raises `ValueError` for what is no message."""
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(data, at)
            continue
        size, at = _varint(data, at) if kind == LENGTH else ({EIGHT: 8, FOUR: 4}.get(kind, -1), at)
        if size < 0 or at + size > end:
            raise ValueError(f"a field of wire type {kind} that ends beyond its message")
        if kind == LENGTH and tag >> 3 == wanted:
            yield at, at + size
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a varint of more than ten bytes")
