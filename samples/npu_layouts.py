"""A model that an NPU can run from end to end: train it, see what runs where, and export it to three formats.

Run it:  python samples/npu_layouts.py --out DIR [--steps N]

The model sees a scene and says how many shapes lie in it, and in which quarter the largest one: "two top left". It has
the form of AutoNeural's: convolutions for the image, products without a norm, and a decoder of gated convolutions with
one layer of attention. It leaves `model.pt2` in DIR, which every verb takes with `-m`, `scenes.npz`, and the bundles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import edgekit
from edgekit.npu import reference_task
from edgekit.npu.auditing.audit import audit

DEVICE = "qcom-htp-v68"


def main(out: Path, steps: int) -> None:
    module = reference_task.trained(steps=steps, progress=print)
    unseen = reference_task.answered(300, seed=1000)
    counted, row, column = reference_task.accuracy(module, unseen)
    print(f"right on new scenes: {counted:.0%} how many (chance 33%), {row:.0%} and {column:.0%} where (chance 50%)")
    reference_task.save(module, out)

    model = edgekit.load(f"{out}/model.pt2")
    found = audit(model, edgekit.find_device(DEVICE))
    ops, macs = found.coverage_ops, found.coverage_macs
    print(f"{DEVICE}: {ops:.0%} of ops and {macs:.0%} of MACs run on the NPU ({found.basis})")
    for op in found.placements:
        if op.verdict != "runs":
            print(f"  {op.op} at {op.module} ({op.source}): {op.verdict}, {op.reason}")

    for name in ("onnx", "tflite", "executorch"):
        options = edgekit.ExportOptions(format=name, precision="fp32", samples=f"{out}/scenes.npz", measure=False)
        bundle = edgekit.export(model, "raspberrypi5", out / name, options)
        parity = edgekit.verify(bundle)
        print(f"{bundle.path}: verified: {parity.ok}, SQNR {parity.sqnr_db:.1f} dB against PyTorch")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train, audit and export a model that an NPU can run.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=reference_task.STEPS)
    given = parser.parse_args()
    main(given.out, given.steps)
