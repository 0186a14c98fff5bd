"""Folders of the dfloat11 package become ordinary ones again: its own, and ours without our manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dfloat11_package import installed, package_compress_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from edgekit import compress_weights
from edgekit.cli.app import run
from edgekit.dfloat11 import CONFIG
from edgekit.dfloat11_folder import decompress_dfloat11, is_dfloat11
from edgekit.errors import CorruptWeights, EdgekitError, InvalidInput


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it, in several files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dfloat11") / "model"
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                         vocab_size=128, tie_word_embeddings=False)  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="80KB")
    return folder


@pytest.fixture
def stored(source: Path, tmp_path: Path) -> Path:
    """What the package's reader sees of a folder of ours."""
    compress_weights(source, tmp_path / "stored", "df11")
    (tmp_path / "stored" / "lossless.json").unlink()
    return tmp_path / "stored"


def bits(folder: Path) -> dict[str, torch.Tensor]:
    found = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    return {name: tensor.view(torch.int16) for name, tensor in found.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_without_our_manifest_becomes_the_model_again(source: Path, stored: Path, tmp_path: Path) -> None:
    assert is_dfloat11(stored)
    files = decompress_dfloat11(stored, tmp_path / "back")
    assert same(bits(tmp_path / "back"), bits(source))
    assert {file.path for file in files} == {path.name for path in (tmp_path / "back").iterdir()}
    assert json.loads((tmp_path / "back" / "config.json").read_bytes()) == json.loads(
        (source / "config.json").read_bytes()
    )
    model = LlamaForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.bfloat16)
    assert same({name: tensor.view(torch.int16) for name, tensor in model.state_dict().items()}, bits(source))


@pytest.mark.skipif(not installed(), reason="needs dfloat11 and dahuffman")
def test_a_folder_that_the_package_made_becomes_the_model_again(
    source: Path, stored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    patterns = json.loads((stored / "config.json").read_bytes())[CONFIG]["pattern_dict"]
    package_compress_model(source, tmp_path / "theirs", patterns)
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_bytes())  # it holds dfloat11_config alone
    published = json.loads((source / "config.json").read_bytes()) | theirs
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(published))
    assert run(["decompress", "-m", str(tmp_path / "theirs"), "-o", str(tmp_path / "back"), "-q", "--json"]) == 0
    assert "model.safetensors" in {file["path"] for file in json.loads(capfd.readouterr().out)}
    assert same(bits(tmp_path / "back"), bits(source))


def test_a_folder_with_our_manifest_is_ours(source: Path, tmp_path: Path) -> None:
    compress_weights(source, tmp_path / "out", "df11")
    assert not is_dfloat11(tmp_path / "out")
    assert not is_dfloat11(source)


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def without(folder: Path, ending: str) -> None:
    for path in folder.glob("*.safetensors"):
        save_file({name: tensor for name, tensor in load_file(path).items() if not name.endswith(ending)}, path)


def cut_a_stream(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        found = load_file(path)
        cut = {name: tensor[:-9].clone() for name, tensor in found.items() if name.endswith("encoded_exponent")}
        save_file(found | cut, path)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda f: edit_config(f, lambda c: c.pop(CONFIG)), InvalidInput, "has no dfloat11_config"),
        (lambda f: edit_config(f, lambda c: c.update({CONFIG: 1})), InvalidInput, "DFloat11Config"),
        (lambda f: edit_config(f, lambda c: c[CONFIG].update(pattern_dict={})), CorruptWeights, "no pattern"),
        (lambda f: edit_config(f, lambda c: c.update(model_type="none")), InvalidInput, "cannot build the model"),
        (lambda f: edit_config(f, lambda c: c.update(num_hidden_layers=2)), InvalidInput, "model.layers.2."),
        (lambda f: edit_config(f, lambda c: c.update(hidden_size=128)), CorruptWeights, "model."),
        (lambda f: without(f, ".luts"), CorruptWeights, "luts' is missing"),
        (cut_a_stream, CorruptWeights, "'model."),
        (lambda f: (f / "config.json").unlink(), InvalidInput, "has no dfloat11_config"),
    ],
)
def test_what_cannot_be_decoded_is_said_and_leaves_nothing(
    damage: Callable[[Path], Any], error: type[EdgekitError], words: str, stored: Path, tmp_path: Path
) -> None:
    damage(stored)
    with pytest.raises(error) as caught:
        decompress_dfloat11(stored, tmp_path / "back")
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["stored"]
