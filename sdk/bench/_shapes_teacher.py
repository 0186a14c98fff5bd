"""A Segment Anything of a size to be set, trained on the spot on scenes of shapes: a teacher for `bench distill-gpu`.

No weights of the real one can be had offline. This one finds the ellipses and polygons that were pasted on photographs,
which is enough for its embeddings to mean something.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compression import Progress
from edgekit.dataset import image_files
from edgekit.distill.scenes import scenes, write_scenes
from edgekit.distill.toy_sam import MEAN, STD, Prompt, drawn_prompt, mask_loss
from edgekit.distill.training.feeding import loaded_ahead
from edgekit.host import cores
from edgekit.processing import ImagePreprocess, open_image
from edgekit.quiet import quiet
from edgekit.types import Value

if TYPE_CHECKING:
    from transformers import SamModel

PATCH, OUT, DECODER_HEADS = 16, 256, 8
SCENE_SIDE, SCENES_A_PART = 320, 32  # pixels, of the shipped photographs; the model's preprocessing enlarges them
LEARNING_RATE, WARMUP_SHARE, BATCH = 4e-4, 0.05, 32


class TeacherSize(Value, frozen=True, kw_only=True):
    """The encoder; patches are of 16 pixels, and every third layer attends to all of them."""

    side: int = 512  # of the image, in pixels
    hidden: int = 640
    layers: int = 12
    window: int = 8  # patches along a side, of the layers that attend to their neighbours

    @property
    def places(self) -> int:
        """Patches along a side."""
        return self.side // PATCH


def write_data(folder: Path, count: int) -> None:
    """`images/*.png` and their label maps `truth/*.png`, drawn by all cores."""
    parts = [f"{part:04}" for part in range(-(-count // SCENES_A_PART))]
    with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
        list(pool.map(_write_part, repeat(folder), parts))
    for kind in ("images", "truth"):
        (folder / kind).mkdir()
        for number, file in enumerate(sorted((folder / "parts").glob(f"*/{kind}/*.png"))[:count]):
            file.rename(folder / kind / f"{number:05}.png")
    shutil.rmtree(folder / "parts")


def _write_part(folder: Path, part: str) -> None:
    place = folder / "parts" / part
    write_scenes(scenes(SCENES_A_PART, int(part), side=SCENE_SIDE), place / "images", place / "truth")


def untrained(size: TeacherSize, seed: int = 0) -> SamModel:
    """Weights that let embeddings vary, and positions with the frequencies of the real SAM."""
    with quiet():
        from transformers import SamConfig, SamModel

    torch.manual_seed(seed)
    model = SamModel(
        SamConfig(
            vision_config=dict(
                hidden_size=size.hidden, num_hidden_layers=size.layers, num_attention_heads=size.hidden // 64 or 1,
                image_size=size.side, patch_size=PATCH, window_size=size.window, output_channels=OUT,
                global_attn_indexes=list(range(2, size.layers, 3)) or [0], num_pos_feats=OUT // 2,
                mlp_ratio=4.0, mlp_dim=4 * size.hidden, initializer_range=0.02,
            ),
            prompt_encoder_config=dict(
                hidden_size=OUT, image_size=size.side, patch_size=PATCH, image_embedding_size=size.places
            ),
            mask_decoder_config=dict(hidden_size=OUT, num_attention_heads=DECODER_HEADS, iou_head_hidden_dim=OUT),
            initializer_range=0.02,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.normal_(0, 1)
    return model


class Trained(Value, frozen=True, kw_only=True):
    """What training the teacher took."""

    steps: int
    seconds: float
    images_per_s: float
    loss: float  # mean of the last tenth of the steps


def train(model: SamModel, size: TeacherSize, data: Path, seconds: float, device: str, progress: Progress) -> Trained:
    """AdamW with warm-up and a cosine over the given time, in bf16 on a GPU; images are held on the device."""
    images, masks = _held(data, size, device, progress)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    draw, losses, begun, share = np.random.default_rng(0), list[Tensor](), time.perf_counter(), 0.0
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(share / WARMUP_SHARE + 1e-3, 0.5 * (1 + np.cos(np.pi * share)))
        rows = torch.from_numpy(draw.choice(len(images), min(BATCH, len(images)), replace=False))
        flips = [axis for axis in (-2, -1) if draw.random() < 0.5]
        truth = masks[rows].flip(flips)
        prompt = _enlarged(drawn_prompt(truth, draw), size.side / truth.shape[-1], device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            error = mask_loss(model, images[rows.to(device)].flip(flips), truth.to(device), prompt)
        optimizer.zero_grad(set_to_none=True)
        error.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(error.detach())
        if len(losses) % 50 == 0:
            progress(f"teacher step {len(losses)}, loss {float(error):.3f}")
        share = (time.perf_counter() - begun) / seconds
    last = torch.stack(losses[-max(1, len(losses) // 10) :])
    took = time.perf_counter() - begun
    model.eval().cpu()
    return Trained(
        steps=len(losses),
        seconds=took,
        images_per_s=len(losses) * min(BATCH, len(images)) / took,
        loss=float(last.mean()),
    )


def save(model: SamModel, size: TeacherSize, folder: Path) -> None:
    """A Hugging Face folder, as any other SAM's."""
    with quiet():
        model.save_pretrained(folder)
    said: dict[str, Any] = {
        "image_processor_type": "SamImageProcessor", "do_resize": True, "size": {"longest_edge": size.side},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN,
        "image_std": STD, "do_pad": True, "pad_size": {"height": size.side, "width": size.side},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _held(data: Path, size: TeacherSize, device: str, progress: Progress) -> tuple[Tensor, Tensor]:
    """All images on the device, and their masks `[N, objects, h, w]` at the resolution that the decoder answers in."""
    prepare = ImagePreprocess(input="x", height=size.side, width=size.side, resize="longest_side", mean=MEAN, std=STD)
    files, _ = image_files(data / "images", prepare)
    small = (4 * size.places, 4 * size.places)

    def load(numbers: Any) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(prepare(files[numbers[0]], {})["x"])
        labels = np.asarray(open_image(data / "truth" / files[numbers[0]].name))[..., 0]
        masks = torch.from_numpy(np.stack([labels == value for value in (1, 2)]))
        return image.bfloat16(), F.adaptive_avg_pool2d(masks.float(), small) > 0.5

    progress(f"read {len(files)} images")
    found = list(loaded_ahead([[number] for number in range(len(files))], load))
    return torch.cat([image for image, _ in found]).to(device), torch.stack([masks for _, masks in found])


def _enlarged(prompt: Prompt, scale: float, device: str) -> Prompt:
    """Places in masks as places in the image: the middle of a mask's pixel."""
    moved = {name: (tensor + 0.5) * scale if tensor.is_floating_point() else tensor for name, tensor in prompt.items()}
    return {name: tensor.to(device) for name, tensor in moved.items()}
