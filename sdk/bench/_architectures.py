"""Small models of the architectures people deploy, with random weights: what converts does not depend on training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import ToolchainMissing

Made = tuple[nn.Module, dict[str, Tensor]]  # a module and one example by argument name
IMAGE = 64  # pixels a side; SAM and Whisper have sizes of their own


class _Field(nn.Module):
    """A transformers model that returns one field of its output, so that the graph has one answer."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, pixel_values: Tensor) -> Tensor:
        answer: Tensor = getattr(self.model(pixel_values), self.field)
        return answer


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ToolchainMissing("the matrix needs transformers: pip install 'edgekit[huggingface]'") from error
    return transformers


def _image(model: nn.Module, field: str, size: int = IMAGE) -> Made:
    return _Field(model.eval(), field), {"pixel_values": torch.rand(1, 3, size, size)}


def vit() -> Made:
    """Vision transformer, 2 layers of width 64."""
    t = _transformers()
    config = t.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=IMAGE,
        patch_size=8, num_labels=10, attn_implementation="eager",
    )  # fmt: skip
    return _image(t.ViTForImageClassification(config), "logits")


def mobilevit() -> Made:
    """MobileViT: convolutions with attention over unfolded patches."""
    t = _transformers()
    config = t.MobileViTConfig(
        image_size=IMAGE, hidden_sizes=[32, 48, 64], neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64],
        num_attention_heads=4, num_labels=10, attn_implementation="eager",
    )  # fmt: skip
    return _image(t.MobileViTForImageClassification(config), "logits")


def convnext() -> Made:
    """ConvNeXt: depthwise 7x7, LayerNorm, GELU."""
    t = _transformers()
    config = t.ConvNextConfig(hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 2, 1], num_labels=10, image_size=IMAGE)
    return _image(t.ConvNextForImageClassification(config), "logits")


def segformer() -> Made:
    """SegFormer: hierarchical encoder, dense output."""
    t = _transformers()
    config = t.SegformerConfig(
        hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=32, num_labels=5, attn_implementation="eager",
    )  # fmt: skip
    return _image(t.SegformerForSemanticSegmentation(config), "logits")


class _Sam(nn.Module):
    """SAM with one point as prompt."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_points: Tensor) -> dict[str, Tensor]:
        found = self.model(pixel_values=pixel_values, input_points=input_points, multimask_output=False)
        return {"pred_masks": found.pred_masks, "iou_scores": found.iou_scores}


def sam() -> Made:
    """Segment Anything, reduced: image encoder, prompt encoder, mask decoder."""
    t = _transformers()
    vision = t.SamVisionConfig(
        hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=2, image_size=128, patch_size=16,
        global_attn_indexes=[1], window_size=4, mlp_dim=64, num_pos_feats=16,
    )  # fmt: skip
    prompt = t.SamPromptEncoderConfig(hidden_size=32, image_size=128, patch_size=16, mask_input_channels=4)
    decoder = t.SamMaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
    )
    config = t.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    config._attn_implementation = "eager"
    model = t.SamModel(config).eval()
    return _Sam(model), {"pixel_values": torch.rand(1, 3, 128, 128), "input_points": torch.rand(1, 1, 1, 2) * 128}


class _WhisperEncoder(nn.Module):
    """The encoder of Whisper: log-mel frames in, hidden states out."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_features: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_features).last_hidden_state
        return hidden


def whisper_encoder() -> Made:
    """Whisper's encoder in the sizes of `tiny`, over 100 positions (2 seconds)."""
    t = _transformers()
    config = t.WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536, max_source_positions=100,
        attn_implementation="eager",
    )  # fmt: skip
    return _WhisperEncoder(t.WhisperModel(config).encoder.eval()), {"input_features": torch.randn(1, 80, 200)}


class _Detr(nn.Module):
    """DETR's half after the backbone: learned queries attend to image features; classes and boxes."""

    def __init__(self, width: int = 64, queries: int = 20, classes: int = 10) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(width, 4, 128, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.queries = nn.Parameter(torch.randn(1, queries, width))
        self.labels, self.boxes = nn.Linear(width, classes), nn.Linear(width, 4)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        hidden = self.decoder(self.queries, features)
        return {"logits": self.labels(hidden), "boxes": self.boxes(hidden).sigmoid()}


def detr_decoder() -> Made:
    """DETR-style decoder over 7x7 features."""
    return _Detr().eval(), {"features": torch.randn(1, 49, 64)}


class _LstmClassifier(nn.Module):
    """Two LSTM layers over a sequence, a linear layer on the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(frames)[0][:, -1])
        return logits


def lstm_classifier() -> Made:
    """LSTM over 20 frames."""
    return _LstmClassifier().eval(), {"frames": torch.randn(1, 20, 16)}


class _UNet(nn.Module):
    """Two scales down and up, with skips: strided and transposed convolutions, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.middle = self._block(3, 16), self._block(16, 32), self._block(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.up_second, self.up_first = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.merge_second, self.merge_first = self._block(64, 32), self._block(32, 16)
        self.head = nn.Conv2d(16, 2, 1)

    @staticmethod
    def _block(given: int, made: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU())

    def forward(self, pixel_values: Tensor) -> Tensor:
        first = self.first(pixel_values)
        second = self.second(self.pool(first))
        up = self.up_second(self.middle(self.pool(second)))
        up = self.up_first(self.merge_second(torch.cat((up, second), 1)))
        masks: Tensor = self.head(self.merge_first(torch.cat((up, first), 1)))
        return masks


def unet() -> Made:
    """U-Net on 64x64."""
    return _UNet().eval(), {"pixel_values": torch.rand(1, 3, IMAGE, IMAGE)}


class _Branching(nn.Module):
    """Takes another way for bright images, which no static graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.day, self.night = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.mean() > 0.5:
            bright: Tensor = self.day(pixel_values)
            return bright
        dark: Tensor = self.night(pixel_values)
        return dark


def data_dependent_branch() -> Made:
    """A branch on the values of a tensor: must be refused with its source line."""
    return _Branching().eval(), {"pixel_values": torch.rand(1, 3, 16, 16)}


RANDOM: dict[str, Callable[[], Made]] = {
    factory.__name__: factory
    for factory in (
        vit, mobilevit, sam, whisper_encoder, convnext, segformer, detr_decoder, lstm_classifier, unet,
        data_dependent_branch,
    )
}  # fmt: skip
