"""Public models that torchvision, timm, transformers and diffusers build, at the inputs AI Hub measured them with.

They are traced without memory for weights and without downloads: what a call costs does not depend on their values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram

from edgekit.bench._public_modules import (
    DecoderStep,
    DeepLab,
    ImageDecoder,
    Keypoints,
    Part,
    PoseNet,
    TextDetector,
    UNet,
    WhisperEncoder,
    library,
)
from edgekit.quiet import quiet

Inputs = dict[str, Tensor]
Made = tuple[nn.Module, Inputs]


class PublicModel(NamedTuple):
    """One graph that was measured."""

    model: str  # as in the measurements
    component: str | None  # None: the model has one
    family: str  # the line of architectures it belongs to; held out as a whole
    make: Callable[[], Made]
    large: bool = False  # weights that would take gigabytes; others need values to be built


def trace(public: PublicModel) -> ExportedProgram:
    """The traced graph."""
    memory = FakeTensorMode(allow_non_fake_inputs=True) if public.large else contextlib.nullcontext()
    with memory, torch.no_grad(), quiet():
        module, inputs = public.make()
        return torch.export.export(module.eval(), (), inputs, strict=False)


def _image(height: int, width: int = 0, channels: int = 3, name: str = "x") -> Inputs:
    return {name: torch.rand(1, channels, height, width or height)}


def _tokens(length: int, mask: bool = True) -> Inputs:
    ones = torch.ones(1, length, dtype=torch.long)
    return {"input_ids": ones, "attention_mask": ones} if mask else {"input_ids": ones}


def _classifier(name: str, size: int = 224, group: str = "", **options: Any) -> Callable[[], Made]:
    """A model of torchvision on one image."""

    def make() -> Made:
        model = getattr(library(f"torchvision.models{group}"), name)(weights=None, **options)
        return model, _image(size)

    return make


def _video(name: str) -> Callable[[], Made]:
    return lambda: (
        getattr(library("torchvision.models.video"), name)(weights=None),
        {"x": torch.rand(1, 3, 16, 112, 112)},
    )


def _timm(name: str, size: int = 224) -> Callable[[], Made]:
    return lambda: (library("timm").create_model(name), _image(size))


def _transformers(
    kind: str,
    config: Callable[[Any], Any],
    inputs: Callable[[], Inputs],
    keep: str | int = 0,
    part: str = "",
    **fixed: Any,
) -> Callable[[], Made]:
    """A model of transformers, or the named part of it."""

    def make() -> Made:
        t = library("transformers")
        model = getattr(t, kind)(config(t))
        for name in filter(None, part.split(".")):
            model = getattr(model, name)
        return Part(model, keep), inputs()

    return make


def _whisper(width: int, layers: int, mels: int = 80, decoder_layers: int = 0) -> Callable[[], Made]:
    def make() -> Made:
        t, heads = library("transformers"), width // 64
        config = t.WhisperConfig(
            d_model=width, encoder_layers=layers, decoder_layers=decoder_layers or layers, num_mel_bins=mels,
            encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
        )  # fmt: skip
        return WhisperEncoder(t.WhisperModel(config)), {"input_features": torch.rand(1, mels, 3000)}

    return make


def _decoder_step(layers: int, width: int, words: int, past: int, over: int) -> Callable[[], Made]:
    def make() -> Made:
        heads = width // 64
        cache, states = torch.rand(layers, 1, heads, past, 64), torch.rand(layers, 1, heads, over, 64)
        inputs = {"token": torch.zeros(1, 1, dtype=torch.long), "keys": cache, "values": cache,
                  "cross_keys": states, "cross_values": states}  # fmt: skip
        return DecoderStep(layers, width, heads, words), inputs

    return make


def _detr(kind: str, depth: int, dilation: bool = False) -> Callable[[], Made]:
    def config(t: Any) -> Any:
        backbone = t.ResNetConfig(depths=[3, 4, 23 if depth == 101 else 6, 3], out_features=["stage4"])
        return getattr(t, f"{kind}Config")(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone
        )

    return _transformers(f"{kind}ForObjectDetection", config, lambda: _image(480, name="pixel_values"), keep="logits")


def _diffusion(part: str, cross: int = 768, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        d = library("diffusers")
        if part == "vae":
            channels = [128, 256, 512, 512]
            model = d.AutoencoderKL(
                block_out_channels=channels, layers_per_block=2, latent_channels=4,
                down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
            )  # fmt: skip
            return ImageDecoder(model), {"z": torch.rand(1, 4, 64, 64)}
        model = d.UNet2DConditionModel(cross_attention_dim=cross, sample_size=64, **options)
        inputs = {
            "sample": torch.rand(1, 4, 64, 64),
            "timestep": torch.ones(1),
            "encoder_hidden_states": torch.rand(1, 77, cross),
        }
        return Part(model, "sample"), inputs

    return make


def _clip(width: int, layers: int, heads: int, act: str) -> Callable[[], Made]:
    return _transformers(
        "CLIPTextModel",
        lambda t: t.CLIPTextConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                                   intermediate_size=4 * width, hidden_act=act, projection_dim=width),
        lambda: _tokens(77, mask=False),
    )  # fmt: skip


def _marian(t: Any) -> Any:
    return t.MarianConfig(d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, vocab_size=65001,
                          decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, pad_token_id=65000,
                          max_position_embeddings=512)  # fmt: skip


PAIRS = ("en_es", "en_zh", "es_en", "zh_en")
PUBLIC = (
    PublicModel("resnet18", None, "resnet", _classifier("resnet18")),
    PublicModel("wideresnet50", None, "resnet", _classifier("wide_resnet50_2")),
    PublicModel("fcn_resnet50", None, "resnet", _classifier(
        "fcn_resnet50", 520, ".segmentation", weights_backbone=None)),
    PublicModel("resnet_3d", None, "video resnet", _video("r3d_18")),
    PublicModel("resnet_2plus1d", None, "video resnet", _video("r2plus1d_18")),
    PublicModel("resnet_mixed", None, "video resnet", _video("mc3_18")),
    PublicModel("squeezenet1_1", None, "squeezenet", _classifier("squeezenet1_1")),
    PublicModel("shufflenet_v2", None, "shufflenet", _classifier("shufflenet_v2_x0_5")),
    PublicModel("regnet", None, "regnet", _classifier("regnet_x_3_2gf")),
    PublicModel("regnet_y_800mf", None, "regnet", _classifier("regnet_y_800mf")),
    PublicModel("googlenet", None, "inception", _classifier("googlenet", init_weights=False, aux_logits=False)),
    PublicModel("inception_v3", None, "inception", _classifier("inception_v3", init_weights=False, aux_logits=False)),
    PublicModel("mnasnet05", None, "mnasnet", _classifier("mnasnet0_5")),
    PublicModel("efficientnet_b0", None, "efficientnet", _classifier("efficientnet_b0")),
    PublicModel("efficientnet_b4", None, "efficientnet", _classifier("efficientnet_b4", 380)),
    PublicModel("efficientnet_v2_s", None, "efficientnet", _classifier("efficientnet_v2_s", 384)),
    PublicModel("dla102x", None, "dla", _timm("dla102x")),
    PublicModel("efficientvit_b2_cls", None, "efficientvit", _timm("efficientvit_b2")),
    PublicModel("efficientvit_l2_cls", None, "efficientvit", _timm("efficientvit_l2")),
    PublicModel("efficientformer", None, "efficientformer", _timm("efficientformer_l1")),
    PublicModel("nasnet", None, "nasnet", _timm("nasnetalarge", 331)),
    PublicModel("unet_segmentation", None, "unet", lambda: (UNet(), _image(640, 1280))),
    PublicModel("hrnet_pose", None, "hrnet", lambda: (Keypoints("hrnet_w32", 17), _image(256, 192))),
    PublicModel("easyocr", "EasyOCRDetector", "vgg", lambda: (TextDetector(), _image(608, 800))),
    PublicModel("deeplabv3_plus_mobilenet", None, "mobilenet", lambda: (DeepLab(), _image(513))),
    PublicModel("posenet_mobilenet", None, "mobilenet", lambda: (PoseNet(), _image(513, 257, name="pixel_values"))),
    PublicModel("sam2", "SAM2Encoder", "sam", _transformers(
        "Sam2VisionModel", lambda t: t.Sam2VisionConfig(), lambda: _image(1024, name="pixel_values"))),
    PublicModel("mobile_vit", None, "mobilevit", _transformers(
        "MobileViTForImageClassification", lambda t: t.MobileViTConfig(num_labels=1000),
        lambda: _image(256, name="pixel_values"))),
    PublicModel("albert_base_v2_hf", None, "bert", _transformers(
        "AlbertForMaskedLM", lambda t: t.AlbertConfig(embedding_size=128, hidden_size=768, num_attention_heads=12,
                                                     intermediate_size=3072), lambda: _tokens(384))),
    PublicModel("mobile_bert_uncased_google", None, "bert", _transformers(
        "MobileBertForMaskedLM", lambda t: t.MobileBertConfig(), lambda: _tokens(384))),
    PublicModel("nomic_embed_text", None, "bert", _transformers(
        "NomicBertModel", lambda t: t.NomicBertConfig(), lambda: _tokens(128))),
    PublicModel("openai_clip", None, "clip", _transformers(
        "CLIPModel", lambda t: t.CLIPConfig(vision_config={"patch_size": 16, "image_size": 224}),
        lambda: {**_tokens(77, mask=False), **_image(224, name="pixel_values")}, keep="logits_per_image")),
    PublicModel("detr_resnet50", None, "detr", _detr("Detr", 50)),
    PublicModel("detr_resnet101", None, "detr", _detr("Detr", 101)),
    PublicModel("conditional_detr_resnet50", None, "detr", _detr("ConditionalDetr", 50)),
    *(PublicModel(f"opus_mt_{pair}", "OpusMTEncoder", "marian", _transformers(
        "MarianModel", _marian, lambda: _tokens(256), part="encoder")) for pair in PAIRS),
    *(PublicModel(f"opus_mt_{pair}", "OpusMTDecoder", "marian", _decoder_step(6, 512, 65001, 255, 256))
      for pair in PAIRS),
    PublicModel("whisper_tiny", "HfWhisperEncoder", "whisper", _whisper(384, 4)),
    PublicModel("whisper_base", "HfWhisperEncoder", "whisper", _whisper(512, 6)),
    PublicModel("whisper_small", "HfWhisperEncoder", "whisper", _whisper(768, 12)),
    PublicModel("whisper_large_v3_turbo", "HfWhisperEncoder", "whisper", _whisper(1280, 32, 128, 4), large=True),
    PublicModel("whisper_tiny", "HfWhisperDecoder", "whisper", _decoder_step(4, 384, 51865, 199, 1500)),
    PublicModel("whisper_base", "HfWhisperDecoder", "whisper", _decoder_step(6, 512, 51865, 199, 1500)),
    PublicModel("whisper_small", "HfWhisperDecoder", "whisper", _decoder_step(12, 768, 51865, 199, 1500)),
    PublicModel("whisper_large_v3_turbo", "HfWhisperDecoder", "whisper",
                _decoder_step(4, 1280, 51866, 199, 1500), large=True),
    PublicModel("whisper_small_quantized", "WhisperSmallEncoderQuantizable", "whisper", _whisper(768, 12)),
    PublicModel("whisper_small_quantized", "WhisperSmallDecoderQuantizable", "whisper",
                _decoder_step(12, 768, 51865, 199, 1500)),
    PublicModel("stable_diffusion_v1_5", "text_encoder", "stable diffusion", _clip(768, 12, 12, "quick_gelu")),
    PublicModel("stable_diffusion_v1_5", "unet", "stable diffusion", _diffusion("unet"), large=True),
    PublicModel("stable_diffusion_v1_5", "vae", "stable diffusion", _diffusion("vae")),
    PublicModel("stable_diffusion_v2_1", "text_encoder", "stable diffusion", _clip(1024, 23, 16, "gelu"), large=True),
    PublicModel("stable_diffusion_v2_1", "unet", "stable diffusion", _diffusion(
        "unet", 1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True), large=True),
    PublicModel("stable_diffusion_v2_1", "vae", "stable diffusion", _diffusion("vae")),
)  # fmt: skip
