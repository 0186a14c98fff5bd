"""Outliers that are planted in small ViTs are told where they are, and rewriting takes them out."""

from __future__ import annotations

import pytest
import torch

from edgekit.bench import _npu_outliers as bench
from edgekit.npu.rewriting import rewrite

SAMPLES = bench.images(48)


def test_exactly_the_layers_with_planted_outliers_are_told() -> None:
    clean, planted = (bench.load_on(each, SAMPLES) for each in bench.behind_norms())
    with torch.no_grad():
        torch.testing.assert_close(planted.module(**planted.example), clean.module(**clean.example))
    assert bench.drowned(clean, SAMPLES[:8]) == set()
    assert bench.drowned(planted, SAMPLES[:8]) == set(bench.PLANTED)


@pytest.mark.parametrize(
    ("pair", "names"),
    [(bench.behind_norms, ["fold_norm_affine"]), (bench.behind_norms, ["smooth_outliers"]),
     (bench.in_the_stream, ["rotate_residual"])],
)  # fmt: skip
def test_rewriting_brings_eight_bits_back_to_the_clean_model(pair, names) -> None:  # type: ignore[no-untyped-def]
    clean, planted = (bench.load_on(each, SAMPLES) for each in pair())
    repaired = rewrite(planted, bench.RULES, only=names)
    right, wrong, found = (bench.quantised_db(each, SAMPLES) for each in (clean, planted, repaired.model))
    assert wrong < right - 5
    assert found >= right - 1
    assert repaired.log[0].error is not None
    assert repaired.log[0].error < 1e-12
