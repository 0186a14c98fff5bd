"""A vision-language model of the shape that AutoNeural gave theirs, small enough to train on one core.

Convolutions with BatchNorm and ReLU6 see the image, two products without a norm connect, and a decoder of four gated
convolutions and one attention layer answers. All tokens are `[B, WIDTH, 1, S]`, every norm folds into the product after
it, every width is a multiple of 32, and no size depends on the input. Source: AutoNeural (arXiv 2512.02924).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.distill.architecture.geometry import Geometry, Level, Step
from edgekit.distill.architecture.pyramid import Design, Head, Pyramid
from edgekit.distill.scenes import SIDE
from edgekit.distill.students import npu_conv
from edgekit.npu.gated_conv import GatedConv

WIDTH, HEADS, INNER = 64, 2, 128
ATTENTION, LAYERS = 2, 5  # of five layers the third attends; the others are gated convolutions
GRID = 4  # image tokens along each axis
WORDS = ("<start>", "one", "two", "three", "top", "bottom", "left", "right")
LENGTH = 3  # words of an answer
MASKED = -30.0  # exp(-30) is nothing to a softmax, and a range that integers still resolve


class ReferenceModel(nn.Module):
    """Image float32 `[B, 3, 64, 64]` and tokens int32 `[B, 3]` to `logits` `[B, 3, words]` of the word after each."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = _tower()
        self.connector = nn.Sequential(nn.Conv2d(WIDTH, INNER, 1), nn.ReLU6(), nn.Conv2d(INNER, WIDTH, 1))
        self.words = nn.Embedding(len(WORDS), WIDTH)
        self.decoder = Decoder(GRID * GRID + LENGTH)
        self.head = nn.Conv2d(WIDTH, len(WORDS), 1)

    def forward(self, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """The image's tokens come first, then the words."""
        seen = self.connector(self.tower(image=image)["map"])
        seen = seen.reshape(-1, WIDTH, 1, GRID * GRID)
        words = self.words(tokens).transpose(1, 2).unsqueeze(2)
        hidden = self.decoder(torch.cat((seen, words), 3))
        return {"logits": self.head(hidden[..., GRID * GRID :]).squeeze(2).transpose(1, 2)}


class Decoder(nn.Module):
    """`[B, WIDTH, 1, tokens]` to the same; no token sees one that comes after it."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(1, WIDTH, 1, tokens))
        mixers = (Attention(tokens) if layer == ATTENTION else GatedConv(WIDTH) for layer in range(LAYERS))
        self.layers = nn.Sequential(*map(DecoderLayer, mixers))
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """Add the places and run the layers."""
        normed: Tensor = self.norm(self.layers(hidden + self.places))
        return normed


class DecoderLayer(nn.Module):
    """A mixer of tokens and a feed-forward part, each behind a norm and beside the stream."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = nn.BatchNorm2d(WIDTH), mixer
        self.norm = nn.BatchNorm2d(WIDTH)
        self.mlp = nn.Sequential(nn.Conv2d(WIDTH, INNER, 1), nn.ReLU6(), nn.Conv2d(INNER, WIDTH, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Add what both parts say."""
        hidden = hidden + self.mixer(self.mixer_norm(hidden))
        return hidden + self.mlp(self.norm(hidden))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal attention with products of its own for every head: no reshape splits one tensor into heads."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(AttentionHead(tokens) for _ in range(HEADS))
        self.out_proj = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[B, WIDTH, 1, S]` to the same."""
        mixed: Tensor = self.out_proj(torch.cat([head(hidden) for head in self.heads], 1))
        return mixed


class AttentionHead(nn.Module):
    """One head: `[B, WIDTH, 1, S]` to `[B, WIDTH / HEADS, 1, S]`."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.query, self.key, self.value = (nn.Conv2d(WIDTH, size, 1) for _ in range(3))
        self.scale = size**-0.5
        later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        self.register_buffer("mask", torch.zeros(1, 1, tokens, tokens).masked_fill(later, MASKED))

    def forward(self, hidden: Tensor) -> Tensor:
        """Products on `[B, 1, S, channels]`, which is how NPUs lay out `[B, channels, 1, S]` anyway."""
        query, key, value = (part(hidden).permute(0, 2, 3, 1) for part in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(2, 3) * self.scale + self.mask, -1)
        mixed: Tensor = weights @ value
        return mixed.permute(0, 3, 1, 2)


def _tower() -> Pyramid:
    """A student of `edgekit distill` with sizes of its own: 64 pixels in, 16 places of `WIDTH` channels out."""
    sizes = [(SIDE // 2**step, SIDE // 2**step) for step in range(1, 5)]
    steps = [Step(stride=2, size=size) for size in sizes]
    level = Level(name="map", form="map", channels=WIDTH, size=(GRID, GRID))
    geometry = Geometry(
        image="image", channels=3, dtype="float32", stem=steps[0], stages=tuple(steps[1:]), levels=(level,)
    )
    design = Design(widths=(32, 32, 64, 96), depths=(1, 2, 2), ratio=2.0)
    return Pyramid(geometry, design, npu_conv, [Head(design.widths[-1], level)])
