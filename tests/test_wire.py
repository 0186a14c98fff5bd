"""Arrays go through a line of JSON bit by bit, and nothing else does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekit.errors import InvalidInput
from edgekit.wire import decoded, encoded

DTYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")


NUMBERS = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0)))


@given(st.dictionaries(st.text(), NUMBERS))
def test_every_bit_comes_through(named: dict[str, Any]) -> None:
    back = decoded(json.loads(json.dumps(encoded(named))))
    assert list(back) == list(named)
    for name, array in named.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def test_other_strides_and_byte_orders_come_through_as_values() -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4).T
    back = decoded(encoded({"x": array}))["x"]
    np.testing.assert_array_equal(back, array)
    assert back.dtype == np.float32


GOOD = {"dtype": "float32", "shape": [1], "data": "AACAPw=="}


@pytest.mark.parametrize(
    "change",
    [{"dtype": "object"}, {"dtype": "U4"}, {"dtype": "float31"}, {"dtype": None}, {"shape": [2]}, {"shape": "x"},
     {"data": "!!!!"}, {"data": "AAA="}, {"data": 3}],
    ids=str,
)  # fmt: skip
def test_what_is_no_array_is_refused_by_name(change: dict[str, Any]) -> None:
    assert decoded({"pixels": GOOD})["pixels"] == [1.0]
    with pytest.raises(InvalidInput, match="'pixels' is no array on the wire"):
        decoded({"pixels": GOOD | change})


@pytest.mark.parametrize("document", [None, [], "x", 3])
def test_a_document_that_is_no_object_is_refused(document: Any) -> None:
    with pytest.raises(InvalidInput, match="an object of names"):
        decoded(document)
