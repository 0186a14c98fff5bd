"""Universal inverted bottlenecks with BatchNorm and ReLU6: what NPUs do in their convolution engine, and nothing else.

No attention, no layer scale, no padding that depends on the input; each BatchNorm folds into the convolution before it.
Source: MobileNetV4 (arXiv 2404.10518), section 3.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgekit.distill.architecture import layers
from edgekit.distill.architecture.geometry import Size
from edgekit.distill.architecture.layers import ConvNorm, multiple_of
from edgekit.distill.architecture.pyramid import Design

MULTIPLE = 8
RATIOS = (1.5, 6.0)
# (kernel before the expansion, kernel within), 0 for none: ExtraDW, inverted bottleneck, ConvNeXt-like, feed forward
BLOCKS = ((5, 3), (0, 3), (5, 0), (0, 0))


def stem(channels: int, out: int, stride: int) -> nn.Module:
    """A plain convolution."""
    return layers.stem(channels, out, stride, nn.ReLU6())


def stage(channels: int, design: Design, index: int, stride: int, size: Size) -> nn.Module:
    """An ExtraDW block that changes size and width, then the four kinds in turn."""
    out = design.widths[index + 1]
    kinds = [BLOCKS[block % len(BLOCKS)] for block in range(design.depths[index])]
    blocks = [InvertedBottleneck(channels, out, stride, design.ratio, *kinds[0])]
    return nn.Sequential(*blocks, *(InvertedBottleneck(out, out, 1, design.ratio, *kind) for kind in kinds[1:]))


class InvertedBottleneck(nn.Module):
    """Expand, project, and a depthwise convolution before or between, or both, or none. The last layer is linear."""

    def __init__(self, channels: int, out: int, stride: int, ratio: float, before: int, within: int) -> None:
        super().__init__()
        inner = multiple_of(MULTIPLE, ratio * channels)
        self.before = ConvNorm(channels, channels, before, groups=channels) if before else nn.Identity()
        self.expand = ConvNorm(channels, inner, activation=nn.ReLU6())
        self.within = ConvNorm(inner, inner, within, stride, inner, activation=nn.ReLU6()) if within else nn.Identity()
        self.project = ConvNorm(inner, out)
        self.residual = stride == 1 and channels == out

    def forward(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] to [B, out, ceil(H / stride), ceil(W / stride)]."""
        change: Tensor = self.project(self.within(self.expand(self.before(image))))
        return image + change if self.residual else change
