"""Modules that public models are measured as and no library has in one piece."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import ToolchainMissing


def library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ToolchainMissing(f"this model's graph needs {package}: pip install {package}") from error


class UNet(nn.Module):
    """U-Net (Ronneberger et al., arXiv 1505.04597) with batch norms and padded convolutions, 31 M parameters."""

    def __init__(self, width: int = 64, depth: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(map(self._block, [3, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * each, each, 2, 2) for each in reversed(widths[:-1]))
        self.merge = nn.ModuleList(self._block(2 * each, each) for each in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _block(given: int, made: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for source in (given, made):
            layers += [nn.Conv2d(source, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.down:
            x = block(nn.functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat((skip, up(x)), 1))
        masks: Tensor = self.head(x)
        return masks


class Part(nn.Module):
    """A model of which one tensor of its answer is kept."""

    def __init__(self, model: nn.Module, keep: str | int) -> None:
        super().__init__()
        self.model, self.keep = model, keep

    def forward(self, **inputs: Tensor) -> Any:
        answer = self.model(**inputs)
        return answer[self.keep] if isinstance(self.keep, int) else getattr(answer, self.keep)


class _DecoderLayer(nn.Module):
    """Self-attention over a cache, attention over an encoder's keys and values, two linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o, self.cross_q, self.cross_o = (nn.Linear(width, width) for _ in range(6))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second, self.third = (nn.LayerNorm(width) for _ in range(3))
        self.heads = heads

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor]) -> Any:
        q, k, v = (self._split(layer(x)) for layer in (self.q, self.k, self.v))
        k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
        x = self.first(x + self.o(self._attend(q, k, v)))
        x = self.second(x + self.cross_o(self._attend(self._split(self.cross_q(x)), *states)))
        return self.third(x + self.down(nn.functional.gelu(self.up(x)))), k, v

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class DecoderStep(nn.Module):
    """One token through a text decoder that reads earlier ones from a cache, and states of an encoder."""

    def __init__(self, layers: int, width: int, heads: int, words: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(width, heads) for _ in range(layers))
        self.words = nn.Embedding(words, width)

    def forward(self, token: Tensor, keys: Tensor, values: Tensor, cross_keys: Tensor, cross_values: Tensor) -> Any:
        x, made = self.words(token), []
        for index, layer in enumerate(self.layers):
            x, k, v = layer(x, (keys[index], values[index]), (cross_keys[index], cross_values[index]))
            made += [k, v]
        return nn.functional.linear(x, self.words.weight), *made


class Keypoints(nn.Module):
    """HRNet with one map for each keypoint (Sun et al., arXiv 1902.09212)."""

    def __init__(self, backbone: str, keypoints: int) -> None:
        super().__init__()
        self.backbone = library("timm").create_model(backbone, features_only=True, feature_location="")
        self.head = nn.Conv2d(32, keypoints, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.head(self.backbone(x)[1])
        return maps


class PoseNet(nn.Module):
    """MobileNetV1 at a sixteenth of the resolution with PoseNet's four heads."""

    def __init__(self) -> None:
        super().__init__()
        t = library("transformers")
        self.backbone = t.MobileNetV1Model(t.MobileNetV1Config(output_stride=16, image_size=513))
        self.heads = nn.ModuleList(nn.Conv2d(1024, maps, 1) for maps in (17, 34, 32, 32))

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        features = self.backbone(pixel_values).last_hidden_state
        return [head(features) for head in self.heads]


class WhisperEncoder(nn.Module):
    """Whisper's encoder with the keys and values that its decoder reads at every step."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.reads = nn.ModuleList(each for layer in model.decoder.layers
                                   for each in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj))  # fmt: skip

    def forward(self, input_features: Tensor) -> Any:
        states = self.encoder(input_features).last_hidden_state
        return [read(states) for read in self.reads]


class ImageDecoder(nn.Module):
    """The half of an autoencoder that makes images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(z))
        return image


def _normed(given: int, made: int, size: int = 3, dilation: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(given, made, size, padding=dilation * (size // 2), dilation=dilation, bias=False)
    return [layer, nn.BatchNorm2d(made), nn.ReLU()]


class TextDetector(nn.Module):
    """CRAFT (Baek et al., arXiv 1904.01941): VGG-16 with batch norms, joined upwards to two maps of half the size."""

    def __init__(self) -> None:
        super().__init__()
        layers = library("torchvision.models").vgg16_bn(weights=None).features
        self.stages = nn.ModuleList(layers[low:high] for low, high in ((0, 13), (13, 20), (20, 30), (30, 40)))
        self.last = nn.Sequential(
            nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
        )
        sizes = ((1536, 512, 256), (768, 256, 128), (384, 128, 64), (192, 64, 32))
        self.up = nn.ModuleList(nn.Sequential(*_normed(a, b, 1), *_normed(b, c)) for a, b, c in sizes)
        self.head = nn.Sequential(*_normed(32, 32), *_normed(32, 16), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        x = self.last(x)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(torch.cat((nn.functional.interpolate(x, skip.shape[2:], mode="bilinear"), skip), 1))
        maps: Tensor = self.head(x)
        return maps


class DeepLab(nn.Module):
    """DeepLabV3+ over MobileNetV2 at a sixteenth of the resolution (Chen et al., arXiv 1802.02611), 21 classes."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        layers = library("torchvision.models").mobilenet_v2(weights=None).features[:-1]
        for module in layers[14].modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
        self.near, self.far = layers[:4], layers[4:]
        self.scales = nn.ModuleList(
            nn.Sequential(*_normed(320, 256, size, dilation)) for size, dilation in ((1, 1), (3, 6), (3, 12), (3, 18))
        )
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_normed(320, 256, 1))
        self.join, self.skip = nn.Sequential(*_normed(1280, 256, 1)), nn.Sequential(*_normed(24, 48, 1))
        self.head = nn.Sequential(*_normed(304, 256), *_normed(256, 256), nn.Conv2d(256, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        near = self.near(x)
        far = self.far(near)
        whole = self.whole(far).expand(-1, -1, *far.shape[2:])
        joined = self.join(torch.cat([*(scale(far) for scale in self.scales), whole], 1))
        joined = nn.functional.interpolate(joined, near.shape[2:], mode="bilinear")
        masks: Tensor = self.head(torch.cat((joined, self.skip(near)), 1))
        return nn.functional.interpolate(masks, x.shape[2:], mode="bilinear")
