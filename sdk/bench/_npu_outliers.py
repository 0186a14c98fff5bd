"""Small ViTs with outliers planted in them: what the ranges say, and what rewriting makes of them.

Behind some norms, one channel is made 300 times as loud and the columns that read it 300 times as quiet; or the
residual stream is turned until its common part lies in one channel. In float nothing changes; a grid of 8 bits holds
that channel and little else. Large transformers get both from long training.
Source: Bondarenko et al. (arXiv 2306.12929), section 3; Sun et al., Massive Activations (arXiv 2402.17762), section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.bench._npu_figure import Figure
from edgekit.compression import Progress
from edgekit.model import Model
from edgekit.npu.numbers.quantsim import model_sqnr, simulate
from edgekit.npu.numbers.ranges import tensor_ranges
from edgekit.npu.numbers.scheme import scheme
from edgekit.npu.rewriting import rewrite
from edgekit.npu.rules import NpuRules
from edgekit.processing import Arrays
from edgekit.source import load

LOUDER, SCHEME, BAR_DB, SAMPLES = 300.0, "w8a8", 1.0, 32
PLANTED = {"blocks.0.norm1": 3, "blocks.1.norm2": 17, "blocks.3.norm1": 8}  # norm -> channel
COMMON = 30.0  # of every channel of the stream, in either direction
READERS = {"norm1": "qkv", "norm2": "fc1"}
RULES = NpuRules(schema="edgekit.npu/1", id="any", title="Any NPU", sources={}, evidence={}, dtypes=("int8",))


def figures(progress: Progress) -> Iterator[Figure]:
    """Which tensors are told as drowned, and how far each repair's w8a8 is from that of the clean model."""
    samples = images(2 * SAMPLES)
    clean, planted = (load_on(model, samples) for model in behind_norms())
    progress("ranges")
    yield _wrongly_told(planted, samples[:SAMPLES])
    for name in ("fold_norm_affine", "smooth_outliers"):
        progress(name)
        yield _repaired("outliers behind norms", clean, planted, name, samples)
    progress("rotate_residual")
    clean, planted = (load_on(model, samples) for model in in_the_stream())
    yield _repaired("an outlier in the residual stream", clean, planted, "rotate_residual", samples)


def _repaired(defect: str, clean: Model, planted: Model, name: str, samples: Sequence[Arrays]) -> Figure:
    repaired = rewrite(planted, RULES, only=[name]).model
    right, wrong, found = (quantised_db(each, samples) for each in (clean, planted, repaired))
    return Figure(
        name=f"{defect}, after {name}: {SCHEME} below that of the clean model",
        value=right - found,
        unit="dB",
        bar=BAR_DB,
        at_most=True,
        how=f"clean {right:.1f} dB, planted {wrong:.1f} dB, repaired {found:.1f} dB",
    )


def _wrongly_told(planted: Model, samples: Sequence[Arrays]) -> Figure:
    told = drowned(planted, samples)
    return Figure(
        name="planted outliers: layers told wrongly or not told",
        value=len(told ^ set(PLANTED)),
        bar=0,
        at_most=True,
        how=f"told: {', '.join(sorted(told))}",
    )


def drowned(model: Model, samples: Sequence[Arrays]) -> set[str]:
    """The modules that write tensors in which a few channels drown the others."""
    return {each.module for each in tensor_ranges(model, samples, [SCHEME]) if each.sqnr[SCHEME].drowned}


def quantised_db(model: Model, samples: Sequence[Arrays]) -> float:
    """Of the outputs in 8 bits; the first half of the samples gives ranges, the second is judged."""
    half = len(samples) // 2
    return model_sqnr(model, simulate(model, samples[:half], scheme(SCHEME)), samples[half:]).total_db


def load_on(model: nn.Module, samples: Sequence[Arrays]) -> Model:
    """The module as a model, with the first sample as its example."""
    return load(model, {name: torch.from_numpy(array) for name, array in samples[0].items()})


def behind_norms() -> tuple[nn.Module, nn.Module]:
    """A small ViT, and the same function with loud channels behind three of its norms."""
    torch.manual_seed(0)
    clean = SmallViT(nn.LayerNorm).eval()
    for norm in (each for each in clean.modules() if isinstance(each, nn.LayerNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    planted = copy.deepcopy(clean)
    for path, channel in PLANTED.items():
        plant(planted, path, channel)
    return clean, planted


def in_the_stream() -> tuple[nn.Module, nn.Module]:
    """A small ViT whose stream has a common part in all channels, and the same function with that part in one."""
    torch.manual_seed(0)
    clean = SmallViT(partial(nn.RMSNorm, elementwise_affine=False)).eval()
    common = torch.randint(0, 2, (clean.positions.shape[-1],)) * 2.0 - 1
    with torch.no_grad():
        clean.positions.add_(COMMON * common)
    planted = copy.deepcopy(clean)
    turn(planted, common)
    return clean, planted


def turn(model: SmallViT, common: Tensor) -> None:
    """Reflect the residual stream so that a direction becomes its first channel."""
    mirror = common / common.norm() - torch.eye(len(common))[0]
    matrix = torch.eye(len(common)) - 2 * torch.outer(mirror, mirror) / mirror.square().sum()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            layer = name.rpartition(".")[0].rpartition(".")[2]
            if layer in ("patches", "proj", "fc2"):
                tensor.copy_(torch.einsum("po,o...->p...", matrix, tensor))
            elif name in ("token", "positions") or (layer in ("qkv", "fc1", "head") and name.endswith("weight")):
                tensor.copy_(tensor @ matrix)


def plant(model: nn.Module, path: str, channel: int) -> None:
    """Make one channel of a norm louder, and what reads it quieter."""
    parent, _, name = path.rpartition(".")
    norm, reader = model.get_submodule(path), model.get_submodule(f"{parent}.{READERS[name]}")
    with torch.no_grad():
        norm.get_parameter("weight")[channel] *= LOUDER
        norm.get_parameter("bias")[channel] *= LOUDER
        reader.get_parameter("weight")[:, channel] /= LOUDER


def images(count: int) -> list[Arrays]:
    """Smooth random images, `[1, 3, 16, 16]` float32."""
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.normal(size=(count, 3, 4, 4)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, size=16, mode="bilinear", align_corners=True)
    return [{"pixels": each[None].numpy()} for each in smooth]


class SmallViT(nn.Module):
    """Four blocks of 32 channels over 16 patches and a class token. Its weights are drawn."""

    def __init__(self, norm: Callable[[int], nn.Module], width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width) / 2)
        self.blocks = nn.ModuleList(Block(norm, width, heads=4) for _ in range(depth))
        self.norm, self.head = norm(width), nn.Linear(width, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        stream = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.head(self.norm(stream)[:, 0])
        return logits


class Block(nn.Module):
    """Attention and a perceptron, each on a normalised stream and added to it."""

    def __init__(self, norm: Callable[[int], nn.Module], width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = norm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = norm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, stream: Tensor) -> Tensor:
        batch, length, width = stream.shape
        parts = self.qkv(self.norm1(stream)).reshape(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (queries @ keys.mT * (width // self.heads) ** -0.5).softmax(-1)
        stream = stream + self.proj((weights @ values).transpose(1, 2).reshape(batch, length, width))
        wider: Tensor = stream + self.fc2(nn.functional.gelu(self.fc1(self.norm2(stream))))
        return wider
