"""The policy for one tensor, and the checksum that proves it came back."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from weights import Bits, layer

from edgekit.codec import LEAST_SHARE, NoGain, Parts, bits_per_weight, decode, encode
from edgekit.errors import CorruptWeights, InvalidInput, UnknownName
from edgekit.formats import df12


def test_auto_is_the_smallest_form_and_comes_back_bit_for_bit() -> None:
    weights = layer(64, 256)
    coded = encode(weights, "auto")
    assert coded.codec == "df11x"
    assert bits_per_weight(coded) < bits_per_weight(encode(weights, "df12"))
    assert np.array_equal(decode(coded), weights)


def test_bits_per_weight_counts_the_bytes_of_every_part() -> None:
    coded = encode(layer(64, 256), "df12")
    assert bits_per_weight(coded) == sum(len(part.tobytes()) for part in coded.parts.values()) * 8 / (64 * 256)


@pytest.mark.parametrize(
    ("weights", "cores", "threads"),
    [
        (1 << 14, 8, 1),
        (2 * LEAST_SHARE - 1024, 8, 1),
        (2 * LEAST_SHARE, 8, 2),
        (3 * LEAST_SHARE, 1, 1),
        (3 * LEAST_SHARE, 2, 2),
        (3 * LEAST_SHARE, 8, 3),
    ],
)
def test_every_core_takes_a_share_that_is_worth_its_start(
    weights: int, cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, decode_df12 = list[int](), df12.decode

    def spy(parts: Parts, shape: tuple[int, ...], threads: int) -> Bits:
        asked.append(threads)
        return decode_df12(parts, shape, threads)

    monkeypatch.setattr(df12, "decode", spy)
    monkeypatch.setattr("edgekit.codec.cores", lambda: cores)
    bits = np.full((weights // 1024, 1024), 0x3F80, np.uint16)
    assert np.array_equal(decode(encode(bits, "df12")), bits)
    assert asked == [threads]


def test_the_checksum_is_that_of_the_raw_little_endian_bytes() -> None:
    weights = np.full((64, 128), 0x3F80, np.uint16)
    assert encode(weights, "df12").crc32 == zlib.crc32(bytes.fromhex("803f") * 64 * 128)


def test_weights_that_lie_in_strides_are_coded_in_the_order_of_their_shape() -> None:
    weights = layer(256, 256)[:, ::2].T
    for codec in ("df11x", "df12"):
        coded = encode(weights, codec)
        assert coded.shape == (128, 256)
        assert np.array_equal(decode(coded), weights)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 5), (), (4095,), (1, 4095)])
@pytest.mark.parametrize("codec", ["auto", "df11x", "df12"])
def test_small_and_empty_tensors_stay_raw(codec: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(NoGain, match=r"weights are too few: 4096 are the least"):
        encode(np.zeros(shape, np.uint16), codec)


def test_noise_stays_raw_with_the_rate_as_the_reason() -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 16, (256, 256)).astype(np.uint16)
    with pytest.raises(NoGain, match=r"^df11x needs 16\.\d\d bits a weight, more than 90% of 16$"):
        encode(noise, "auto")
    with pytest.raises(NoGain, match=r"^9\d\.\d% of the weights are outside df12's palette, more than 2%$"):
        encode(noise, "df12")


def test_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(InvalidInput, match="uint16 bit patterns of bf16, not as float32"):
        encode(np.zeros(4096, np.float32), "auto")


def test_an_unknown_codec_is_named_with_those_there_are() -> None:
    with pytest.raises(UnknownName, match=r"'df13'.*Did you mean 'df1"):
        encode(layer(64, 64), "df13")
    with pytest.raises(UnknownName, match="'zip'"):
        decode(replace(encode(layer(64, 128), "df12"), codec="zip"))


@pytest.mark.parametrize("codec", ["df11x", "df12"])
def test_one_flipped_mantissa_bit_breaks_the_checksum(codec: str) -> None:
    coded = encode(layer(64, 256), codec)
    name = {"df11x": "sm", "df12": "lo"}[codec]
    flipped = coded.parts[name].copy()
    flipped.reshape(-1)[1000] ^= 1
    with pytest.raises(CorruptWeights, match=r"the decoded weights have crc32 [0-9a-f]{8}, not the recorded"):
        decode(replace(coded, parts={**coded.parts, name: flipped}))


@pytest.mark.parametrize("codec", ["df11x", "df12"])
def test_another_shape_of_as_many_weights_is_caught_where_the_bytes_can_show_it(codec: str) -> None:
    coded = encode(layer(64, 256), codec)
    with pytest.raises(CorruptWeights):
        decode(replace(coded, shape=(64, 257)))
