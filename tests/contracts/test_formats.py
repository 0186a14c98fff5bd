"""Every lossless codec, by existing, goes through these."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import Bits, layer, layer_with_every_pattern

from edgekit import registry
from edgekit.codec import FORMATS, Encoded, NoGain, bits_per_weight, decode, encode
from edgekit.errors import CorruptWeights
from edgekit.processing import Array

NAMES = registry.names(FORMATS)
SHAPES = [(9600,), (40, 241), (0, 240), (), (-40, -240), (1 << 62, 1 << 62)]  # one of them fits
PART_TYPES = {np.dtype(kind) for kind in ("u1", "<u2", "<u4", "<i4", "<i8")}


@pytest.fixture(scope="module")
def every_pattern() -> Bits:
    return layer_with_every_pattern()


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_gets_smaller_and_comes_back_bit_for_bit(name: str) -> None:
    weights = layer(200, 1280)
    before = weights.copy()
    coded = encode(weights, name)
    assert bits_per_weight(coded) < 12.2
    assert np.array_equal(decode(coded), weights)
    assert np.array_equal(weights, before)


@pytest.mark.parametrize("name", NAMES)
def test_its_parts_are_plain_arrays_and_the_same_every_time(name: str) -> None:
    first, second = encode(layer(64, 256), name), encode(layer(64, 256), name)
    assert {part.dtype for part in first.parts.values()} <= PART_TYPES
    assert all(part.flags.c_contiguous for part in first.parts.values())
    assert {n: p.tobytes() for n, p in first.parts.items()} == {n: p.tobytes() for n, p in second.parts.items()}


@pytest.mark.parametrize("name", NAMES)
def test_all_patterns_come_back_or_are_refused(name: str, every_pattern: Bits) -> None:
    with suppress(NoGain):
        assert np.array_equal(decode(encode(every_pattern, name)), every_pattern)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(4096,), (64, 64), (33, 127), (5, 7, 131), (2, 1, 2200), (17, 256), (20000,), (4097, 1)]),
    rare=st.lists(st.integers(0, 0xFFFF), max_size=60),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_any_patterns_come_back_or_are_refused(
    name: str, shape: tuple[int, ...], rare: list[int], seed: int
) -> None:
    size = int(np.prod(shape))
    weights = layer(1, size, seed).reshape(-1)
    weights[np.random.default_rng(seed).choice(size, len(rare), replace=False)] = rare
    with suppress(NoGain):
        assert np.array_equal(decode(encode(weights.reshape(shape), name)), weights.reshape(shape))


@pytest.fixture(scope="module", params=NAMES)
def coded(request: pytest.FixtureRequest) -> Encoded:
    weights = layer(40, 240)  # not a multiple of anything
    weights[::7, 5] = 0x7780  # far from the others, and no codec refuses it
    return encode(weights, request.param)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_or_changes_no_weight(coded: Encoded, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(coded.parts)))
    damaged = {**coded.parts, name: damage(coded.parts[name], data)}
    shape = data.draw(st.sampled_from([coded.shape] * len(SHAPES) + SHAPES))
    with suppress(CorruptWeights):
        found = decode(replace(coded, parts=damaged, shape=shape))
        assert np.array_equal(found.reshape(-1), decode(coded).reshape(-1))


def damage(part: Array, data: st.DataObject) -> Array:
    """A part cut, grown, of another type or shape, or with some of its bits or elements changed."""
    kind = data.draw(st.sampled_from(["bits", "element", "cut", "grow", "type", "axes"]))
    raw = bytearray(part.tobytes())
    if kind == "bits" and raw:
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        return np.frombuffer(bytes(raw), part.dtype).reshape(part.shape)
    if kind == "element" and part.size:
        ends = np.iinfo(part.dtype)
        changed = part.copy()
        changed.flat[data.draw(st.integers(0, part.size - 1))] = data.draw(st.sampled_from([ends.min, 0, 1, ends.max]))
        return changed
    if kind == "cut":
        return part[: data.draw(st.integers(0, len(part)))]
    if kind == "grow":
        return np.concatenate([part, part[: data.draw(st.integers(1, 3))]])
    if kind == "type":
        return part.astype(data.draw(st.sampled_from(["u1", "<u2", "<i4", "<u4", ">u4", "<i8", "<f4"])))
    return part.reshape(data.draw(st.sampled_from([(1, *part.shape), (-1,), (*part.shape, 1)])))


@pytest.mark.parametrize("change", ["lose", "add"])
def test_parts_that_are_missing_or_not_its_own_are_named(coded: Encoded, change: str) -> None:
    parts = dict(coded.parts)
    if change == "lose":
        parts.pop(lost := sorted(parts)[0])
    else:
        parts[lost := "colour"] = np.zeros(3, np.uint8)
    with pytest.raises(CorruptWeights, match=lost):
        decode(replace(coded, parts=parts))
