"""Folders of the dfloat11 package become ordinary ones again: its own, and ours without our manifest."""

from __future__ import annotations

import json
import sys
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
from edgekit.dfloat11_folder import decompress_dfloat11, is_dfloat11, verify_dfloat11
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


def test_what_is_compressed_already_is_sent_to_decompress(
    stored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["compress", "-m", str(stored), "-o", str(tmp_path / "again")]) == 2
    assert f"edgekit decompress -m {stored} -o PLAIN gives the weights back" in capfd.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_folder_without_our_manifest_becomes_the_model_again(source: Path, stored: Path, tmp_path: Path) -> None:
    assert is_dfloat11(stored)
    files = decompress_dfloat11(stored, tmp_path / "back")
    assert same(bits(tmp_path / "back"), bits(source))
    assert {file.path for file in files} == {path.name for path in (tmp_path / "back").iterdir()}
    assert json.loads((tmp_path / "back" / "config.json").read_bytes()) == json.loads(
        (source / "config.json").read_bytes()
    )
    assert same(loaded(tmp_path / "back"), bits(source))


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """The bits of what transformers reads."""
    state = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    return {name: tensor.view(torch.int16) for name, tensor in state.items()}


def test_files_get_the_names_that_transformers_looks_for(source: Path, stored: Path, tmp_path: Path) -> None:
    """The package can write a file for each module, and what is left as `model.safetensors`."""
    first, *others = sorted(stored.glob("*.safetensors"))
    first.rename(stored / "model.safetensors")
    for number, path in enumerate(others):
        path.rename(stored / f"model_layers_{number}.safetensors")
    decompress_dfloat11(stored, tmp_path / "back")
    assert same(loaded(tmp_path / "back"), bits(source))


@pytest.mark.skipif(not installed(), reason="needs dfloat11 and dahuffman")
@pytest.mark.parametrize("one_file", [True, False])
def test_a_folder_that_the_package_made_is_verified_and_becomes_the_model_again(
    one_file: bool, source: Path, stored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    patterns = json.loads((stored / "config.json").read_bytes())[CONFIG]["pattern_dict"]
    theirs = tmp_path / "theirs"
    package_compress_model(source, theirs, patterns, one_file)
    assert run(["verify", str(theirs), "-q"]) == 0
    if one_file:  # then config.json holds dfloat11_config alone
        assert run(["decompress", "-m", str(theirs), "-o", str(tmp_path / "back"), "-q"]) == 2
        assert "add to it what the model's own config.json has" in capfd.readouterr().err
        both = json.loads((source / "config.json").read_bytes()) | json.loads((theirs / "config.json").read_bytes())
        (theirs / "config.json").write_text(json.dumps(both))
    assert run(["decompress", "-m", str(theirs), "-o", str(tmp_path / "back"), "-q"]) == 0
    assert same(loaded(tmp_path / "back"), bits(source))


def test_verify_says_what_it_checked_and_what_nobody_can(
    source: Path, stored: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without_them:
        for name in ("torch", "transformers"):
            without_them.setitem(sys.modules, name, None)
        assert run(["verify", str(stored), "-q", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    matrices = [tensor.numel() for tensor in bits(source).values() if tensor.dim() == 2]
    assert (found["tensors"], found["weights"]) == (len(matrices), sum(matrices))
    assert found["raw_tensors"] == len(bits(source)) - len(matrices)
    assert found["files"] == len(list(stored.glob("*.safetensors")))
    assert run(["verify", str(stored), "-q"]) == 0
    assert "not checked: whether these are the source's bits" in capfd.readouterr().out
    assert run(["verify", str(stored), "-q", "--min-cosine", "0.9"]) == 2


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


def edit_parts(folder: Path, part: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for path in folder.glob("*.safetensors"):
        found = load_file(path)
        edited = {name: edit(tensor).clone() for name, tensor in found.items() if name.endswith(f".{part}")}
        save_file(found | edited, path)


WHOLE_MODEL = (  # what only shapes can show
    (lambda f: edit_config(f, lambda c: c.pop("model_type")), InvalidInput, "names no architecture"),
    (lambda f: edit_config(f, lambda c: c.update(model_type="none")), InvalidInput, "cannot build the model"),
    (lambda f: edit_config(f, lambda c: c.update(num_hidden_layers=2)), InvalidInput, "model.layers.2."),
    (lambda f: edit_config(f, lambda c: c.update(hidden_size=128)), CorruptWeights, "model."),
)
STREAMS = (
    (lambda f: edit_config(f, lambda c: c.pop(CONFIG)), InvalidInput, "has no dfloat11_config"),
    (lambda f: edit_config(f, lambda c: c.update({CONFIG: 1})), InvalidInput, "DFloat11Config"),
    (lambda f: edit_config(f, lambda c: c[CONFIG].update(pattern_dict={})), CorruptWeights, "no pattern"),
    (lambda f: (f / "config.json").unlink(), InvalidInput, "has no dfloat11_config"),
    (lambda f: [path.unlink() for path in f.glob("*.safetensors")], CorruptWeights, "holds no DFloat11 stream"),
    (lambda f: without(f, ".luts"), CorruptWeights, "luts' is missing"),
    (lambda f: edit_parts(f, "encoded_exponent", lambda part: part[:-9]), CorruptWeights, "'model."),
    (lambda f: edit_parts(f, "sign_mantissa", lambda part: part[:-1]), CorruptWeights, "'model."),
    (lambda f: edit_parts(f, "luts", lambda part: part * 0), CorruptWeights, "'model."),
    (lambda f: edit_parts(f, "split_positions", lambda part: part[1:]), CorruptWeights, "'model."),
    (lambda f: edit_parts(f, "split_positions", lambda part: part.flip(0)), CorruptWeights, "'model."),
    (lambda f: edit_parts(f, "split_positions", lambda part: part.int()), CorruptWeights, "'model."),
)


@pytest.mark.parametrize(("damage", "error", "words"), STREAMS + WHOLE_MODEL)
def test_what_cannot_be_decoded_is_said_and_leaves_nothing(
    damage: Callable[[Path], Any], error: type[EdgekitError], words: str, stored: Path, tmp_path: Path
) -> None:
    damage(stored)
    with pytest.raises(error) as caught:
        decompress_dfloat11(stored, tmp_path / "back")
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["stored"]


@pytest.mark.parametrize(("damage", "error", "words"), STREAMS)
def test_what_cannot_be_decoded_is_not_verified(
    damage: Callable[[Path], Any], error: type[EdgekitError], words: str, stored: Path
) -> None:
    damage(stored)
    with pytest.raises(error) as caught:
        verify_dfloat11(stored)
    assert words in str(caught.value)
