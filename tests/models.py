"""Models small enough to export in a second, as factories for `tests/models.py:NAME`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallConv(nn.Module):
    """Conv, BatchNorm, ReLU6, depthwise conv, pooling, linear: what int8 recipes must get right. 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.clamp(self.norm(self.stem(pixels)), 0, 6)
        x = torch.relu(self.depthwise(x)) + x
        return self.head(x.mean((2, 3)))


class Mlp(nn.Module):
    """Two linear layers on vectors."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.second = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class TwoInputs(nn.Module):
    """Tokens and a float vector in, a dict of two tensors out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.mix = nn.Linear(8, 8)

    def forward(self, tokens: Tensor, offset: Tensor) -> dict[str, Tensor]:
        mean = self.table(tokens).mean(1) + offset
        return {"mean": mean, "mixed": self.mix(mean)}


class Branching(nn.Module):
    """A branch on tensor values, which has no static graph."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class Prompted(nn.Module):
    """Learned queries attend to each other before they read the input, which integers are appended to."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 6, 32))
        self.among, self.over = (nn.MultiheadAttention(32, 2, batch_first=True) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        queries = self.queries + self.among(self.queries, self.queries, self.queries)[0]
        numbered = torch.cat((features[..., 1:], torch.arange(features.shape[1])[None, :, None]), -1)
        answer: Tensor = self.over(queries, numbered, numbered)[0]
        return answer


def small_conv() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = SmallConv()
    with torch.no_grad():  # statistics as after training, so that BatchNorm does something
        model.norm.running_mean.uniform_(-0.5, 0.5)
        model.norm.running_var.uniform_(0.5, 2.0)
    return model.eval(), torch.rand(1, 3, 32, 32)


def mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Mlp().eval(), torch.randn(1, 16)


def bf16_mlp() -> tuple[nn.Module, Tensor]:
    """A checkpoint of bfloat16 in float32: its first weight is large enough for the lossless codecs."""
    torch.manual_seed(0)
    return Mlp(width=512).to(torch.bfloat16).float().eval(), torch.randn(1, 16)


def bf16_conv() -> tuple[nn.Module, Tensor]:
    """The same of a convolution with BatchNorm, whose weights are no bf16 values once the two are folded."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(64, 64, 3, bias=False), nn.BatchNorm2d(64))
    block[1].running_var.uniform_(0.5, 2.0)
    return block.to(torch.bfloat16).float().eval(), torch.rand(1, 64, 8, 8)


def prompted() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Prompted().eval(), torch.randn(1, 5, 32)


def wide_conv() -> tuple[nn.Module, Tensor]:
    """Few ops that each take long enough to be timed."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval(), torch.randn(1, 8, 48, 48)


def two_inputs() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return TwoInputs().eval(), {"tokens": torch.randint(0, 50, (1, 6)), "offset": torch.randn(1, 8)}


def branching() -> tuple[nn.Module, Tensor]:
    return Branching().eval(), torch.randn(1, 4)


def overflowing() -> tuple[nn.Module, Tensor]:
    """Correct in float32; in float16 the first layer's output is Inf and the second hides nothing."""
    model, x = mlp()
    with torch.no_grad():
        model.first.weight.mul_(3e5)
        model.second.weight.mul_(1e-5)
    return model, x


def with_nan() -> tuple[nn.Module, Tensor]:
    model, x = mlp()
    with torch.no_grad():
        model.first.weight[0, 0] = float("nan")
    return model, x


def raising() -> nn.Module:
    raise RuntimeError("weights were not found")


def not_a_module() -> str:
    return "model"


def no_example() -> nn.Module:
    return mlp()[0]


def large() -> tuple[nn.Module, Tensor]:
    """100 M parameters, 403 MB: for the memory an export takes."""
    torch.manual_seed(0)
    layers = [module for _ in range(24) for module in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(*layers).eval(), torch.randn(1, 2048)
