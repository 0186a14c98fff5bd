"""Where kernels are tested: on the CPU in Triton's interpreter, and on a CUDA device."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from weights import Bits

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="TRITON_INTERPRET is not 1")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
CPU = pytest.param("cpu", marks=interpreted)
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])
on_all = pytest.mark.parametrize("device", [CPU, CUDA])
on_gpu = pytest.mark.parametrize("device", [CUDA])


def patterns(tensor: torch.Tensor) -> Bits:
    """The bits of bf16 weights, from any device."""
    assert tensor.dtype == torch.bfloat16
    return np.asarray(tensor.view(torch.int16).cpu()).view(np.uint16)
