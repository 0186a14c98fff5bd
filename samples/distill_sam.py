"""Segment Anything with a light encoder: distil it, export it for a board, and segment a photograph with two clicks.

Run it:  python samples/distill_sam.py --out DIR [--steps N]

The teacher is a toy that is trained first, so that nothing has to be downloaded. Shapes that were pasted on photographs
are all the objects that it knows, so the photograph at the end has two of them. With a folder of a real `SamModel` and
a folder of photographs, `distill` and what follows it are the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import edgekit
from edgekit.distill import DistillOptions, FitOptions, RefineOptions, card_table, distill, scenes, toy_sam

CLICKS = [(115, 213), (60, 240)]  # x, y


def main(out: Path, steps: int) -> None:
    toy_sam.save_toy_sam(toy_sam.trained_toy_sam(steps=steps, progress=print), out / "teacher")
    scenes.write_scenes(scenes.scenes(2000, seed=1), out / "scenes", out / "truth")
    options = DistillOptions(
        site="vision_encoder", student="npu-conv", params=1 / 6, data=f"{out}/scenes", truth=f"{out}/truth",
        fit=FitOptions(steps=steps, lr=4e-3), refine=RefineOptions(steps=max(1, steps // 20)),
    )  # fmt: skip
    card = distill(f"{out}/teacher", out / "student", options, progress=print)
    (out / "card.json").write_text(card.to_json(), encoding="utf-8")
    columns, rows = card_table(card)
    for row in (columns, *rows):
        print("".join(f"{cell:>22}" for cell in row))
    print(*card.verdicts, sep="\n")

    edgekit.export_parts(f"{out}/student", "raspberrypi5", out / "bundle", progress=print)
    photo = scenes.scenes(1, seed=4, side=320)[0].image
    with edgekit.open_session(out / "bundle") as session:
        found = session.segment(photo, points=CLICKS)
    shown = Image.fromarray(np.where(found.mask[..., None], photo, photo // 4))
    for x, y in CLICKS:
        ImageDraw.Draw(shown).ellipse((x - 5, y - 5, x + 5, y + 5), fill="yellow", outline="black")
    shown.save(out / "mask.png")
    print(f"{out}/mask.png: {found.mask.mean():.1%} of the photograph, score {found.scores[0]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Distil a toy Segment Anything, and try it.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500, help="of the teacher and of the student")
    given = parser.parse_args()
    main(given.out, given.steps)
