"""Compress a language model without losing a bit, load it again, and compare: same logits, less memory.

Run it:  python samples/lossless.py MODEL_FOLDER OUT

MODEL_FOLDER holds bf16 weights as transformers saves them. On a CUDA device the weights stay compressed in memory;
elsewhere they are decoded when they are loaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import edgekit
from edgekit.kernels.nn import load_lossless, resident_bytes, without_weights


def main(folder: str, out: str) -> None:
    if not Path(out).exists():
        edgekit.compress_weights(folder, out, progress=print)
    print(f"on disk: {size(Path(out)) / size(Path(folder)):.1%} of the original")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    ids = torch.arange(1, 17, device=device)[None]
    with torch.no_grad():
        expected = dense(ids).logits

    for resident in ("small", "fast") if device == "cuda" else ("bf16",):
        with without_weights():  # parameters take no memory until they are loaded
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16).eval()
        load_lossless(model, out, resident=resident, device=device)
        with torch.no_grad():
            logits = model(ids).logits
        same = torch.equal(logits.view(torch.int16), expected.view(torch.int16))
        away = (logits - expected).abs().max().item()
        share = resident_bytes(model) / resident_bytes(dense)
        print(f"{resident}: {share:.1%} of the memory, logits {'identical' if same else f'at most {away:.3g} away'}")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
