"""A Segment Anything of 419 thousand parameters, trained on scenes in two minutes: a teacher for tries and tests.

No weights of the real one can be had offline, and transformers' own initialisation is of no use as a teacher: its
embeddings are the same for every image (`initializer_range` 1e-10).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.compression import Progress, silent
from edgekit.distill.scenes import SIDE, Scene, scenes
from edgekit.quiet import quiet

if TYPE_CHECKING:
    from transformers import SamModel

PATCH, WIDTH = 8, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as SAM's own preprocessing has them
POINTS = 3  # at most, in a prompt
STEPS, BATCH, LEARNING_RATE = 1500, 8, 2e-3
SCENES = 4000
POSITIVE = 1  # label of a point on the object; 0 is one off it
Prompt = dict[str, Tensor]


def toy_sam(seed: int = 0) -> SamModel:
    """The untrained model: images of 64 pixels, patches of 8, an encoder of 259 thousand parameters.

    `initializer_range` lets embeddings vary, and the Fourier frequencies of positions are drawn from N(0, 1), as
    the real SAM has them, where transformers' default would be 32 times as wild.
    """
    with quiet():
        from transformers import SamConfig, SamModel

    torch.manual_seed(seed)
    places = SIDE // PATCH
    model = SamModel(
        SamConfig(
            vision_config=dict(
                hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE, patch_size=PATCH,
                window_size=4, global_attn_indexes=[1, 3], output_channels=WIDTH, num_pos_feats=WIDTH // 2,
                mlp_ratio=4.0, mlp_dim=4 * WIDTH, initializer_range=0.02,
            ),
            prompt_encoder_config=dict(
                hidden_size=WIDTH, image_size=SIDE, patch_size=PATCH, image_embedding_size=places
            ),
            mask_decoder_config=dict(
                hidden_size=WIDTH, mlp_dim=2 * WIDTH, num_attention_heads=4, iou_head_hidden_dim=WIDTH
            ),
            initializer_range=0.02,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.normal_(0, 1)
    return model.eval()


def trained_toy_sam(
    seed: int = 0, *, steps: int = STEPS, cache: Path | None = None, progress: Progress = silent
) -> SamModel:
    """Train on points, boxes and both; about two minutes on one core.

    With `cache`, a folder, the weights are kept there and training is skipped where they lie already.
    """
    from safetensors.torch import load_file, save_file

    model = toy_sam(seed)
    kept = cache / f"toy_sam-{seed}-{steps}-{_recipe()}.safetensors" if cache else None
    if kept and kept.is_file():
        model.load_state_dict(load_file(kept), strict=False)  # the tied positional embedding is stored once
        return model
    _train(model, seed, steps, progress)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        save_file(_untied(model), partial)
        partial.rename(kept)
    return model


def save_toy_sam(model: SamModel, folder: Path) -> None:
    """A Hugging Face folder that any source of edgekit reads: config, safetensors and how to prepare an image."""
    with quiet():
        model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    prepare: dict[str, Any] = {
        "image_processor_type": "SamImageProcessor", "do_resize": True, "size": {"longest_edge": SIDE}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD,
        "do_pad": True, "pad_size": size, "mask_size": {"longest_edge": SIDE // 2},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(prepare, indent=2) + "\n", encoding="utf-8")


def pixel_values(made: Sequence[Scene]) -> Tensor:
    """The images of scenes as SAM takes them: float32 `[N, 3, 64, 64]`."""
    images = np.stack([scene.image for scene in made]).astype(np.float32) / 255
    return (
        torch.from_numpy((images - np.array(MEAN, np.float32)) / np.array(STD, np.float32))
        .permute(0, 3, 1, 2)
        .float()
        .contiguous()
    )


def _recipe() -> str:
    """Changes with what training depends on, so that no stale weights are taken."""
    places = (Path(__file__), Path(__file__).with_name("scenes.py"))
    return hashlib.sha256(b"".join(place.read_bytes() for place in places)).hexdigest()[:12]


def _untied(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("prompt_encoder.shared_embedding")}


def _train(model: SamModel, seed: int, steps: int, progress: Progress) -> None:
    generator = np.random.default_rng(seed)
    made = scenes(max(BATCH, min(SCENES, 4 * steps)), seed)
    images, masks = pixel_values(made), torch.from_numpy(np.stack([scene.masks for scene in made]))
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    model.train()
    for step in range(steps):
        rows = torch.from_numpy(generator.choice(len(made), BATCH, replace=False))
        flips = [axis for axis in (-2, -1) if generator.random() < 0.5]
        truth = masks[rows].flip(flips)
        loss = mask_loss(model, images[rows].flip(flips), truth, drawn_prompt(truth, generator))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            progress(f"teacher step {step + 1} of {steps}, loss {loss.item():.3f}")
    model.eval()


def mask_loss(model: SamModel, images: Tensor, truth: Tensor, prompt: Prompt) -> Tensor:
    """Cross entropy and Dice of all three masks, and the error of the scores as forecasts of their IoU."""
    given = model(pixel_values=images, **prompt)
    logits: Tensor = given.pred_masks  # [N, objects, 3, 32, 32]
    soft = functional.adaptive_avg_pool2d(truth.float(), (logits.shape[-2], logits.shape[-1]))[:, :, None].expand_as(
        logits
    )
    probability = logits.sigmoid()
    overlap = (probability * soft).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + soft.sum((-2, -1)) + 1)
    with torch.no_grad():
        on, wanted = logits > 0, soft > 0.5
        iou = (on & wanted).sum((-2, -1)) / (on | wanted).sum((-2, -1)).clamp(min=1)
    entropy = functional.binary_cross_entropy_with_logits(logits, soft)
    return entropy + dice.mean() + functional.mse_loss(given.iou_scores, iou)


def drawn_prompt(truth: Tensor, generator: np.random.Generator) -> Prompt:
    """Points, boxes or both, drawn from masks `[N, objects, side, side]`."""
    kind = generator.choice(["points", "boxes", "both"], p=[0.55, 0.3, 0.15])
    prompt: Prompt = {}
    if kind != "boxes":
        prompt |= _points(truth, generator)
    if kind != "points":
        prompt["input_boxes"] = _boxes(truth)
    return prompt


def _points(truth: Tensor, generator: np.random.Generator) -> Prompt:
    """One to `POINTS` points for each object: the first lies on it, the others on it or off it."""
    labels = generator.integers(0, 2, (*truth.shape[:2], generator.integers(1, POINTS + 1)))
    labels[..., 0] = POSITIVE
    label = torch.from_numpy(labels)
    flat = truth.flatten(2)[:, :, None]
    weight = torch.where(label[..., None] == POSITIVE, flat, ~flat).float()
    clocks = torch.from_numpy(generator.exponential(size=tuple(weight.shape))).float()
    at = (weight / clocks).argmax(-1)  # the first clock to ring is drawn evenly among places of weight one
    return {
        "input_points": torch.stack([at % truth.shape[-1], at // truth.shape[-1]], -1).float(),
        "input_labels": label,
    }


def _boxes(truth: Tensor) -> Tensor:
    """`[N, objects, 4]`: left, top, right and bottom pixel of each mask."""
    columns, rows = truth.any(-2).float(), truth.any(-1).float()
    last = truth.shape[-1] - 1
    edges = (columns.argmax(-1), rows.argmax(-1), last - columns.flip(-1).argmax(-1), last - rows.flip(-1).argmax(-1))
    return torch.stack(edges, -1).float()
