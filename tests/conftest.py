"""Shared fixtures: small models that export in a second, and the bundles made from them."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy or torch start their pools
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads are several times slower than one on small machines."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return
