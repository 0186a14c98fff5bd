"""transformers' Segment Anything (`SamModel`) with tensors of fixed sizes, one prompt a picture.

pixel_values  float32 [N, 3, S, S]
input_points  float32 [N, P, 2]     x, y in these pixels
input_labels  int32   [N, P]        `edgekit.segmentation` names them; places that are not used change nothing
-> pred_masks float32 [N, 3, S/4, S/4], iou_scores float32 [N, 3]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import InvalidInput
from edgekit.model import Loaded
from edgekit.processing import ImagePreprocess
from edgekit.segmentation import HERE, LOWER_RIGHT, UNUSED, UPPER_LEFT, Segmentation

ARCHITECTURE = "SamModel"
PLACES = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IGNORED = -1e4  # added to a score: exp of it is 0 in every float, and float16 holds it


class SegmentAnything(nn.Module):
    """A `SamModel` that answers like its own forward with the points and the box that the places hold.

    Its own takes boxes apart and as many points as there are; graphs have one size. So the box's corners are labelled
    points, and no token attends to a place that is not used.
    """

    def __init__(self, sam: nn.Module) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, pixel_values: Tensor, input_points: Tensor, input_labels: Tensor) -> dict[str, Tensor]:
        """Three candidates for the mask of what the prompt marks, and how good the model takes each to be."""
        embeddings = self.sam.vision_encoder(pixel_values).last_hidden_state  # type: ignore[operator]
        return self.decode(embeddings, input_points, input_labels)

    def decode(self, image_embeddings: Tensor, input_points: Tensor, input_labels: Tensor) -> dict[str, Tensor]:
        """The same from embeddings `[N, C, S/16, S/16]`."""
        sam: Any = self.sam
        labels = input_labels.unsqueeze(1)  # transformers' second axis is for several prompts a picture
        tokens, dense = sam.prompt_encoder(input_points.unsqueeze(1), labels, input_boxes=None, input_masks=None)
        for corner in (UPPER_LEFT, LOWER_RIGHT):
            marked = (labels == corner).unsqueeze(-1)
            embedded = nn.functional.pad(marked * sam.prompt_encoder.point_embed[corner].weight, (0, 0, 0, 1))
            tokens = tokens + embedded
        hooks = self._ignore_places(input_labels)
        try:
            masks, scores = sam.mask_decoder(
                image_embeddings=image_embeddings,
                image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
                sparse_prompt_embeddings=tokens,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
        finally:
            for hook in hooks:
                hook.remove()
        return {"pred_masks": masks[:, 0], "iou_scores": scores[:, 0]}

    def _ignore_places(self, labels: Tensor) -> list[Any]:
        """Mask unused places wherever tokens are what is attended to.

        transformers adds a token that is no point, and leaves it out where there is a box.
        """
        decoder: Any = self.sam.mask_decoder
        boxed = (labels == UPPER_LEFT).any(dim=1, keepdim=True)
        unused = torch.cat([labels == UNUSED, boxed], dim=1)
        mask = nn.functional.pad(unused * IGNORED, (1 + decoder.num_mask_tokens, 0))[:, None, None]

        def ignore(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return inputs, named | {"attention_similarity": mask}

        attending = [
            a for layer in decoder.transformer.layers for a in (layer.self_attn, layer.cross_attn_image_to_token)
        ]
        return [attention.register_forward_pre_hook(ignore, with_kwargs=True) for attention in attending]


def load_segment_anything(sam: nn.Module, preprocess: ImagePreprocess | None) -> Loaded:
    """A `SamModel` with its preprocessing, by default that of the published checkpoints.

    Raises `InvalidInput` where the preprocessing makes another size than the model takes.
    """
    config: Any = sam.config
    side = config.vision_config.image_size
    preprocess = preprocess or ImagePreprocess(
        input="pixel_values", height=side, width=side, resize="longest_side", mean=MEAN, std=STD
    )
    if (preprocess.height, preprocess.width) != (side, side):
        raise InvalidInput(
            f"the model takes {side} x {side} pixels, "
            f"and its preprocessing makes {preprocess.height} x {preprocess.width}"
        )
    points, labels = torch.full((1, PLACES, 2), side / 2), torch.full((1, PLACES), UNUSED, dtype=torch.int32)
    labels[0, 0] = HERE
    return Loaded(
        module=SegmentAnything(sam).eval(),
        example={"pixel_values": torch.zeros(1, 3, side, side), "input_points": points, "input_labels": labels},
        preprocess=preprocess,
        segmentation=Segmentation(encoder="sam.vision_encoder", places=PLACES),
        evaluation="builtin:photos-heldout",
    )


def with_prompts(loaded: Loaded) -> Loaded:
    """What a factory made, with fixed places for prompts where it is a bare `SamModel`."""
    if type(loaded.module).__name__ != ARCHITECTURE:
        return loaded
    preprocess = loaded.preprocess if isinstance(loaded.preprocess, ImagePreprocess) else None
    return load_segment_anything(loaded.module, preprocess)
