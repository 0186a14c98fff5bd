"""A model of your own as edgekit takes it: a factory that returns the module and example inputs.

Run it:  edgekit export -m samples/own_model.py:tiny_classifier -d raspberrypi4 -o out
"""

from __future__ import annotations

import torch
from torch import nn


def tiny_classifier() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    return module.eval(), torch.rand(1, 3, 64, 64)
