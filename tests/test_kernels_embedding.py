"""Rows of a table that stays coded: those that are asked for, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from weights import Bits, layer

from edgekit.errors import InvalidInput
from edgekit.formats import df11x as df11x_format
from edgekit.formats import df12 as df12_format

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from kernel_devices import on_all  # noqa: E402

from edgekit.kernels import df11x, df12  # noqa: E402

each_format = pytest.mark.parametrize(("ops", "codec"), [(df11x, df11x_format), (df12, df12_format)])


def with_odd_values(rows: int, columns: int) -> Bits:
    bits = layer(rows, columns)
    bits[1, [0, 3, columns - 1]] = 0x7F81, 0xFFFF, 0x5380  # two kinds of NaN, and 2**40
    bits[rows - 1, 5] = 0x8000
    return bits


@on_all
@each_format
@pytest.mark.parametrize("shape", [(40, 128), (50, 1_000), (3, 24_576)])
def test_rows_come_back_bit_for_bit(ops: Any, codec: Any, shape: tuple[int, int], device: str) -> None:
    bits = with_odd_values(*shape)
    weights = ops.upload(codec.encode(bits), shape, device)
    expected = torch.from_numpy(bits.view(np.int16))
    last = shape[0] - 1
    for ids, dtype in (([[1, 2], [1, last]], torch.int64), ([1], torch.int32), ([[], []], torch.int64)):
        chosen = torch.tensor(ids, dtype=dtype, device=device)
        rows = ops.embedding(chosen, *weights, shape)
        assert rows.shape == (*chosen.shape, shape[1])
        assert torch.equal(rows.view(torch.int16).cpu(), expected[chosen.long().cpu()])
    rows = ops.embedding(torch.tensor([-1, last, shape[0]], device=device), *weights, shape)
    assert rows[[0, 2]].isnan().all()
    assert torch.equal(rows[1].view(torch.int16).cpu(), expected[last])


@on_all
@each_format
def test_torch_can_trace_the_look_up(ops: Any, codec: Any, device: str) -> None:
    weights = ops.upload(codec.encode(layer(20, 128)), (20, 128), device)
    torch.library.opcheck(ops.embedding, (torch.tensor([[3, 19]], device=device), *weights, (20, 128)))
    with pytest.raises(InvalidInput, match=r"'ids' is torch.float32, not torch.int64"):
        ops.embedding(torch.ones(2, device=device), *weights, (20, 128))
