"""Every exact rewrite on fifty random modules: it acts, and the answers stay."""

from __future__ import annotations

import pytest

from edgekit import registry
from edgekit.bench._npu_rewrites import BARS, MODULES, errors_of
from edgekit.npu.rewriting import REWRITES, load


@pytest.mark.parametrize("name", registry.names(REWRITES))
def test_a_rewrite_acts_and_keeps_the_answers(name: str) -> None:
    bars = BARS | ({"float32": 0.0} if load(name).EXACTNESS == "bit-equal" else {})
    for seed in range(MODULES):
        errors = errors_of(name, seed)  # infinite where it does not act
        assert all(errors[dtype] <= bar for dtype, bar in bars.items()), f"seed {seed}: {errors}"
