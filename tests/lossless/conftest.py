"""A folder of weights as transformers saves it, and what compress makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lossless_folders import special, weights
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from edgekit import compress_weights


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it, in three shards, with a folder of its own in it. Never written to."""
    folder = tmp_path_factory.mktemp("lossless") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=640,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
    model.save_pretrained(folder, max_shard_size="500KB")
    (folder / "extra").mkdir()
    save_file(special(), folder / "extra" / "special.safetensors", metadata={"made": "by hand"})
    (folder / "extra" / "readme.txt").write_text("kept as it is\n")
    return folder


@pytest.fixture(scope="session")
def compressed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source in df11x. Never written to."""
    out = tmp_path_factory.mktemp("compressed") / "out"
    compress_weights(source, out)
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a little of everything, and what df11 makes of it."""
    root = tmp_path_factory.mktemp("small")
    (root / "source").mkdir()
    tensors = {"l.0.a.weight": weights(64, 64), "l.0.b.weight": weights(64, 64, seed=1), "bias": torch.ones(3)}
    big = torch.ones(1 << 14)
    save_file({**tensors, "one": big, "two": big.clone()}, root / "source" / "m.safetensors")
    (root / "source" / "config.json").write_text("{}")
    compress_weights(root / "source", root / "out", "df11")
    return root / "source", root / "out"


@pytest.fixture
def copy(compressed: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(compressed, tmp_path / "copy"))


@pytest.fixture(scope="session")
def grouped(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source in df11. Never written to."""
    out = tmp_path_factory.mktemp("grouped") / "out"
    compress_weights(source, out, "df11")
    return out
