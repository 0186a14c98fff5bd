"""The energy of power rails in a perfetto trace, without perfetto's own package.

A trace is a protobuf message: packets are field 1, power rails field 40 of a packet; these hold descriptors (1: index,
2: name) and readings (1: index, 2: milliseconds, 3: microwatt-seconds). Source: perfetto, power_rails.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.errors import EdgekitError


def rails_j(trace: bytes) -> dict[str, float]:
    """Rail -> its newest joules, from a perfetto trace. Raises `EdgekitError` for bytes that are none."""
    names: dict[int, str] = {}
    energy: dict[int, tuple[int, int]] = {}
    for packet in _messages(trace, 1):
        for rails in _messages(packet, 40):
            for descriptor in _messages(rails, 1):
                fields = dict(_fields(descriptor))
                names[_integer(fields.get(1, 0))] = bytes(fields.get(2, b"")).decode(errors="replace")
            for data in _messages(rails, 2):
                fields = dict(_fields(data))
                index, stamp, uj = (_integer(fields.get(k, 0)) for k in (1, 2, 3))
                energy[index] = max(energy.get(index, (0, 0)), (stamp, uj))
    return {names[index]: uj / 1e6 for index, (_, uj) in sorted(energy.items()) if index in names}


def _messages(data: bytes, number: int) -> Iterator[bytes]:
    return (value for field, value in _fields(data) if field == number and isinstance(value, bytes))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message: integers, or the bytes of strings and inner messages."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        value: int | bytes
        if key & 7 == 0:
            value, position = _varint(data, position)
        elif key & 7 in (1, 2, 5):
            size, position = _varint(data, position) if key & 7 == 2 else (8 if key & 7 == 1 else 4, position)
            value, position = data[position : position + size], position + size
        else:
            raise EdgekitError("the phone's perfetto sent no trace")
        if position > len(data):
            raise EdgekitError("the phone's perfetto sent a trace that is cut short")
        yield key >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
    raise EdgekitError("the phone's perfetto sent a trace that is cut short")


def _integer(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0
