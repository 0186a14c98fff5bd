"""Folders in the DFloat11 layout: groups of a model, the groups in files, and configurations from strangers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from dfloat11_package import installed, package_compress_model
from hypothesis import given
from hypothesis import strategies as st
from weights import Bits

from edgekit.codec import Parts
from edgekit.dfloat11 import CONFIG, DFloat11Config, Group, plan_groups, stored_groups
from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.formats.df11 import NAMES, encode_group

LAYERS = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj",
          "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj")  # fmt: skip
PATTERNS = {"lm_head": (), r"model\.embed_tokens": (), r"model\.layers\.\d+": LAYERS}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` leaves it, with weights of the usual spread."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=12, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=64, tie_word_embeddings=False)  # fmt: skip
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file; bf16 as patterns."""
    import torch
    from safetensors.torch import load_file

    found = load_file(path)
    return {
        name: tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        for name, tensor in found.items()
    }


def shapes_of(tensors: dict[str, Bits]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


# --- models and files ------------------------------------------------------------------------------------------------


def test_groups_of_a_transformers_model(llama: Path) -> None:
    patterns, groups = plan_groups(shapes_of(read(llama / "model.safetensors")))
    assert patterns == PATTERNS
    assert [group.path for group in groups[:3]] == ["lm_head", "model.embed_tokens", "model.layers.0"]
    assert len(groups) == 14
    assert groups[0].tensors == ("lm_head.weight",)
    assert groups[2].tensors == tuple(f"model.layers.0.{layer}.weight" for layer in LAYERS)


def test_the_groups_of_a_model_are_found_again_in_its_files_and_decode(llama: Path) -> None:
    tensors = read(llama / "model.safetensors")
    patterns, groups = plan_groups(shapes_of(tensors))
    stored: dict[str, Parts] = {}
    for group in groups:
        stored[group.path] = encode_group([tensors[name] for name in group.tensors])
    names = [f"{path}.{part}" for path in stored for part in NAMES] + ["model.norm.weight"]
    config = DFloat11Config.from_json(DFloat11Config(pattern_dict=patterns).to_json())
    assert sorted(stored_groups(names, config), key=str) == sorted(groups, key=str)
    for group in groups:
        found = group.decode(stored[group.path], shapes_of(tensors))
        assert found.keys() == set(group.tensors)
        assert all(np.array_equal(found[name], tensors[name]) for name in found)


@pytest.mark.skipif(not installed(), reason="needs dfloat11 and dahuffman")
def test_a_folder_made_by_the_package_decodes_exactly(llama: Path, tmp_path: Path) -> None:
    package_compress_model(llama, tmp_path, PATTERNS)
    source, stored = read(llama / "model.safetensors"), read(tmp_path / "model.safetensors")
    config = DFloat11Config.from_json(json.dumps(json.loads((tmp_path / "config.json").read_text())[CONFIG]))
    for group in stored_groups(stored, config):
        parts = {part: stored.pop(key) for part, key in group.keys.items()}
        stored |= group.decode(parts, shapes_of(source))
    assert stored.keys() == source.keys()
    assert all(np.array_equal(stored[name], source[name]) for name in source)


def test_blocks_that_hold_other_layers_have_a_pattern_of_their_own() -> None:
    names = ["h.0.up", "h.1.up", "h.1.down", "h.10.down", "h.10.up", "top.0", "top.0.low", "tail.0"]
    patterns, groups = plan_groups({f"{name}.weight": (4, 4) for name in names})
    assert patterns == {
        r"h\.(0)": ("up",),
        r"h\.(1|10)": ("down", "up"),
        r"tail\.\d+": (),
        r"top\.\d+": ("low",),
    }
    config = DFloat11Config(pattern_dict=patterns)
    assert sorted(stored_groups([key for group in groups for key in group.keys.values()], config), key=str) == sorted(
        groups, key=str
    )


def test_only_matrices_called_weight_are_coded() -> None:
    shapes = {"a.weight": (4,), "b.weight": (2, 3, 4), "c.bias": (3, 3), "weight": (3, 3), "e.weight": (1, 1)}
    assert plan_groups(shapes) == ({"e": ()}, (Group(path="e", tensors=("e.weight",)),))


@given(st.sets(st.lists(st.sampled_from(["a", "b-c", "0", "12", "ü", "x y"]), min_size=1, max_size=5).map(".".join)))
def test_whatever_the_names_the_files_lead_back_to_the_groups(modules: set[str]) -> None:
    patterns, groups = plan_groups({f"{module}.weight": (2, 2) for module in modules})
    keys = [key for group in groups for key in group.keys.values()]
    assert set(stored_groups(keys, DFloat11Config(pattern_dict=patterns))) == set(groups)
    assert len({name for group in groups for name in group.tensors}) == sum(len(group.tensors) for group in groups)


# --- what strangers write --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        (r"model\.layers\.\d+", "model.layers.12", True),
        (r"model\.layers\.\d+", "model.layers.12.mlp", False),
        (r"model.layers.[0-9]+", "model.layers.3", True),
        (r"h\.(1|12)\.mlp", "h.12.mlp", True),
        (r"h\.(?:1|12)\.mlp", "h.1.mlp", True),
        (r"(model\.)?lm_head", "lm_head", True),
        (r"(model\.)?lm_head", "model.lm_head", True),
        (r"a\-b", "a-b", True),
        (r"a\.b", "axb", False),
    ],
)
def test_patterns_as_the_package_reads_them(pattern: str, path: str, matches: bool) -> None:
    config = DFloat11Config(pattern_dict={pattern: ()})
    names = [f"{path}.{part}" for part in NAMES]
    if matches:
        assert stored_groups(names, config) == (Group(path=path, tensors=(f"{path}.weight",)),)
    else:
        with pytest.raises(CorruptWeights, match=f"no pattern of {CONFIG} says which weights are coded in '{path}"):
            stored_groups(names, config)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", ".*", "a{9999}", "[a-z]+", r"\w+", "a|b", "(?=a)", "(?P<n>a)", r"(a)\1", "(", "a\\"],
)
def test_patterns_that_could_run_for_ever_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="edgekit does not read the pattern"):
        stored_groups([], DFloat11Config(pattern_dict={pattern: ()}))


@pytest.mark.parametrize("pattern", [r"\d+" * 40 + "x", "(a|aa|aaa)" * 40 + "x", "(a)?" * 40 + "a" * 40])
def test_no_pattern_takes_long(pattern: str) -> None:
    begin = time.perf_counter()
    for path in ("1" * 4000, "a" * 4000):
        with pytest.raises(CorruptWeights):
            stored_groups([f"{path}.{part}" for part in NAMES], DFloat11Config(pattern_dict={pattern: ()}))
    assert time.perf_counter() - begin < 1


def test_parts_that_are_not_there_are_named() -> None:
    names = [f"a.{part}" for part in NAMES if part != "gaps"]
    with pytest.raises(CorruptWeights, match=r"'a\.gaps' is missing beside 'a\.encoded_exponent'"):
        stored_groups(names, DFloat11Config(pattern_dict={"a": ()}))


@pytest.mark.parametrize("patterns", [{"a": ("b", "b")}, {"a": ("b",), r"a\.b": ()}, {"a": ()}])
def test_weights_that_would_come_twice_are_named(patterns: dict[str, tuple[str, ...]]) -> None:
    names = [f"{path}.{part}" for path in ("a", "a.b")[: len(patterns)] for part in NAMES] + ["a.weight"]
    with pytest.raises(CorruptWeights, match=r"'a(\.b)?\.weight' is stored twice; once in 'a"):
        stored_groups(names, DFloat11Config(pattern_dict=patterns))


def test_a_layout_of_other_blocks_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"blocks of \[256\] threads of 8 bytes; edgekit reads those of \[512\]"):
        DFloat11Config.from_json('{"threads_per_block": [256], "bytes_per_thread": 8, "pattern_dict": {}}')


def test_a_shape_that_is_not_known_and_a_group_that_is_damaged_are_named() -> None:
    weights = (np.arange(6000) % 300 + 0x3C00).astype(np.uint16).reshape(60, 100)
    group, parts = Group(path="h.1", tensors=("h.1.up.weight",)), encode_group([weights])
    with pytest.raises(InvalidInput, match=r"the shape of 'h\.1\.up\.weight' is not known, and DFloat11 files"):
        group.decode(parts, {"h.0.up.weight": (60, 100)})
    with pytest.raises(CorruptWeights, match=r"^'h\.1': 'sign_mantissa' is uint8\[6000\], not uint8\[3600\]"):
        group.decode(parts, {"h.1.up.weight": (60, 60)})
