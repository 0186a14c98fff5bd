"""One bit that is off anywhere is found, and a manifest from a stranger is refused by name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lossless_folders import flip
from safetensors.torch import load_file, save_file

from edgekit import compress_weights, decompress_weights, verify_weights
from edgekit.errors import CorruptWeights, EdgekitError, InvalidInput, UnknownName
from edgekit.lossless_folder import MANIFEST, LosslessFolder
from edgekit.tensorfile import TensorFile


def test_a_bit_that_is_off_anywhere_is_found(copy: Path) -> None:
    """In every stored tensor, in every header, and in every other file; what is off is named."""
    damaged = 0
    for file in LosslessFolder.open(copy).manifest.files:
        path = copy / file.path
        whole = path.read_bytes()
        stored = TensorFile.open(path)
        start = 8 + len(stored.header)
        for at in [
            0,
            8,
            9,
            start - 1,
            *(start + e.begin for e in stored.tensors if e.bytes),
            start + stored.tensors[-1].end - 1,
        ]:
            flip(path, at)
            with pytest.raises(CorruptWeights, match=file.path):
                verify_weights(copy)
            path.write_bytes(whole)
            damaged += 1
    assert damaged > 40
    verify_weights(copy)


@pytest.mark.parametrize("part", ["sm", "stream", "lengths", "group_off", "lane_off"])
def test_a_damaged_part_names_file_and_tensor(part: str, copy: Path, tmp_path: Path) -> None:
    path = copy / "extra" / "special.safetensors"
    stored = TensorFile.open(path)
    [entry] = [entry for entry in stored.tensors if entry.name == f"odd.{part}"]
    flip(path, 8 + len(stored.header) + (entry.begin + entry.end) // 2)
    for verb in (lambda: verify_weights(copy), lambda: decompress_weights(copy, tmp_path / "back")):
        with pytest.raises(CorruptWeights, match=r"tensor 'odd' of '.*special\.safetensors'"):
            verb()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 5), lambda path: flip(path, 0)])
@pytest.mark.parametrize("name", ["config.json", "extra/special.safetensors"])
def test_a_file_that_is_missing_cut_or_altered_is_named(
    name: str, damage: Callable[[Path], Any], copy: Path, tmp_path: Path
) -> None:
    damage(copy / name)
    for verb in (lambda: verify_weights(copy), lambda: decompress_weights(copy, tmp_path / "back")):
        with pytest.raises(InvalidInput, match=name):
            verb()
    assert not (tmp_path / "back").exists()


def special_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return next(file for file in manifest["files"] if file["path"] == "extra/special.safetensors")


def tensor_of(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(tensor for tensor in special_of(manifest)["tensors"] if tensor["name"] == name)


def other(file: str = "extra/special.safetensors", tensor: str = "rare") -> dict[str, str]:
    return {"file": file, "tensor": tensor}


def first_tied(manifest: dict[str, Any]) -> str:
    return next(t["name"] for t in special_of(manifest)["tensors"] if t["codec"] == "tied")


def tied_twin(manifest: dict[str, Any]) -> dict[str, Any]:
    return next(t for t in reversed(special_of(manifest)["tensors"]) if t["codec"] == "tied")


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "absolute": (lambda m: special_of(m).update(path="/etc/passwd"), "'/etc/passwd', which is not a path inside"),
    "up": (lambda m: special_of(m).update(path="a/../../m.safetensors"), "not a path inside the folder"),
    "up in others": (lambda m: m["others"][0].update(path="../config.json"), "not a path inside the folder"),
    "backslash": (lambda m: m["others"][0].update(path="..\\x"), "not a path inside the folder"),
    "drive": (lambda m: m["others"][0].update(path="C:x"), "not a path inside the folder"),
    "no path": (lambda m: m["others"][0].update(path=""), "not a path inside the folder"),
    "itself": (lambda m: m["others"][0].update(path="./lossless.json"), "twice"),
    "twice": (lambda m: m["others"].append(m["others"][0]), "twice"),
    "another file": (lambda m: special_of(m).update(path="other.safetensors"), "cannot read"),
    "version 2": (lambda m: m.update(schema_version=2), "pip install --upgrade"),
    "version 0": (lambda m: m.update(schema_version=0), "schema version 0"),
    "no version": (lambda m: m.pop("schema_version"), "schema_version"),
    "unknown field": (lambda m: m.update(more=1), "more"),
    "wrong type": (lambda m: tensor_of(m, "odd").update(crc32="x"), "crc32"),
    "header": (lambda m: special_of(m).update(header="{"), "broken header"),
    "header of others": (lambda m: special_of(m).update(header=m["files"][1]["header"]), "header of extra/special"),
    "size": (lambda m: special_of(m).update(bytes=10**15), "cut or added to"),
    "tensor left out": (lambda m: special_of(m)["tensors"].pop(), "tensors"),
    "tensor added": (lambda m: special_of(m)["tensors"].append(tensor_of(m, "odd")), "tensors"),
    "other name": (lambda m: tensor_of(m, "odd").update(name="even"), "'odd'"),
    "other shape": (lambda m: tensor_of(m, "odd").update(shape=[5, 3, 1001]), "'odd'"),
    "other dtype": (lambda m: tensor_of(m, "odd").update(dtype="F16"), "'odd'"),
    "other size": (lambda m: tensor_of(m, "odd").update(bytes=2), "'odd'"),
    "unknown codec": (lambda m: tensor_of(m, "odd").update(codec="df99"), "no codec is called 'df99'"),
    "path as codec": (lambda m: tensor_of(m, "odd").update(codec="../df12"), "no codec is called"),
    "private module": (lambda m: tensor_of(m, "odd").update(codec="_parts"), "no codec is called '_parts'"),
    "other codec": (lambda m: tensor_of(m, "odd").update(codec="df12"), "tensor 'odd'"),
    "coded is raw": (lambda m: tensor_of(m, "odd").update(codec="raw"), "'odd' is not in the file"),
    "raw is coded": (lambda m: tensor_of(m, "float").update(codec="df11x", parts=[]), "df11x holds BF16, not F32"),
    "part missing": (lambda m: tensor_of(m, "odd")["parts"].remove("sm"), "'odd.sm'"),
    "part of nobody": (lambda m: tensor_of(m, "odd")["parts"].append("x"), "'odd.x' is not in the file"),
    "wrong crc": (lambda m: tensor_of(m, "odd").update(crc32=1), "tensor 'odd'"),
    "wrong sha256": (lambda m: tensor_of(m, "odd").update(sha256="0" * 64), "tensor 'odd'"),
    "wrong raw sha256": (lambda m: tensor_of(m, "float").update(sha256="0" * 64), "tensor 'float'"),
    "wrong file sha256": (lambda m: special_of(m).update(sha256="0" * 64), "special.safetensors"),
    "wrong stored sha256": (lambda m: special_of(m).update(stored_sha256="0" * 64), "special.safetensors"),
    "wrong copy": (lambda m: m["others"][0].update(sha256="0" * 64), "was altered"),
    "tied to nothing": (lambda m: tensor_of(m, "twin2").update(codec="tied", same_as=other(tensor="no")), "'twin2'"),
    "tied to another": (lambda m: tensor_of(m, "norm2").update(codec="tied", same_as=other()), "'norm2'"),
    "tied to itself": (lambda m: tensor_of(m, "odd").update(codec="tied", same_as=other(tensor="odd")), "'odd'"),
    "tied without": (lambda m: tensor_of(m, "odd").update(codec="tied"), "'odd'"),
    "tied to a tied one": (lambda m: tied_twin(m).update(same_as=other(tensor=first_tied(m))), "tied to"),
    "raw and tied": (lambda m: tensor_of(m, "norm2").update(same_as=other(tensor="norm")), "'norm2'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_manifest_that_is_wrong_is_refused(fault: str, copy: Path, tmp_path: Path) -> None:
    damage, word = FAULTS[fault]
    manifest = json.loads((copy / MANIFEST).read_bytes())
    damage(manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises((CorruptWeights, InvalidInput)) as caught:
        verify_weights(copy)
    assert word in str(caught.value)
    with pytest.raises((CorruptWeights, InvalidInput)) if "stored" not in fault else contextlib.nullcontext():
        decompress_weights(copy, tmp_path / "back")
    assert (tmp_path / "back").exists() == ("stored" in fault)
    assert {path.name for path in tmp_path.iterdir()} <= {"copy", "back"}


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"schema_version": "1"}', "[" * 100_000])
def test_what_is_no_manifest_is_refused(text: str, copy: Path) -> None:
    (copy / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(CorruptWeights, match=r"lossless\.json' is not what compress writes"):
        LosslessFolder.open(copy)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_manifest_with_another_byte_is_refused_or_says_the_same(
    small: tuple[Path, Path], share: float, byte: int
) -> None:
    source, folder = small
    whole = (folder / MANIFEST).read_bytes()
    damaged = bytearray(whole)
    damaged[int(share * len(whole))] = byte
    (folder / MANIFEST).write_bytes(damaged)
    try:
        with contextlib.suppress(EdgekitError), tempfile.TemporaryDirectory() as scratch:
            decompress_weights(folder, Path(scratch) / "back")
            given_bytes = {path.read_bytes() for path in source.iterdir()}
            assert {path.read_bytes() for path in (Path(scratch) / "back").rglob("*") if path.is_file()} == given_bytes
    finally:
        (folder / MANIFEST).write_bytes(whole)


def test_a_tensor_that_nobody_named_is_refused(copy: Path) -> None:
    path = copy / "extra" / "special.safetensors"
    save_file({**load_file(path), "stranger": torch.ones(3)}, path)
    with pytest.raises(CorruptWeights, match=r"tensor 'stranger' of '.*special\.safetensors' is not in lossless\.json"):
        verify_weights(copy)


def test_parts_of_another_kind_are_refused(copy: Path) -> None:
    path = copy / "extra" / "special.safetensors"
    save_file({**load_file(path), "odd.sm": torch.ones(3)}, path)
    with pytest.raises(CorruptWeights, match=r"'odd\.sm' of '.*' is no array of bits: F32\[3\]"):
        verify_weights(copy)


def test_a_raw_tensor_of_another_kind_is_refused(copy: Path) -> None:
    path = copy / "extra" / "special.safetensors"
    save_file({**load_file(path), "mask": torch.ones(3, dtype=torch.uint8)}, path)
    with pytest.raises(CorruptWeights, match=r"tensor 'mask' of .* the file has U8\[3\], not BOOL\[3\]"):
        verify_weights(copy)


def test_what_cannot_be_compressed_is_said(source: Path, compressed: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").touch()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "m.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "a\\b.safetensors").touch()
    out = tmp_path / "out"
    for wrong, words in {
        tmp_path / "none": "is no folder and no .safetensors file",
        tmp_path / "text" / "notes.txt": "is no folder and no .safetensors file",
        tmp_path / "text": "holds no .safetensors file",
        tmp_path / "bad": "m.safetensors' is cut, or no safetensors file",
        tmp_path / "named": "which other systems cannot have",
        compressed: "was written by compress",
        tmp_path: "lies inside the source",
    }.items():
        with pytest.raises(InvalidInput) as caught:
            compress_weights(wrong, out)
        assert words in str(caught.value)
    with pytest.raises(UnknownName, match=r"no format is called 'df11y'\. Did you mean 'df11'"):
        compress_weights(source, out, "df11y")
    with pytest.raises(InvalidInput, match=r"has no lossless\.json.*edgekit compress"):
        verify_weights(source)
    assert not out.exists()


def long_group(manifest: dict[str, Any]) -> dict[str, Any]:
    return next(group for group in manifest["groups"] if len(group["tensors"]) > 2)


def edited_file(manifest: dict[str, Any]) -> dict[str, Any]:
    return next(other for other in manifest["others"] if "original" in other)


GROUP_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no group": (lambda m: m["groups"].pop(0), "is in no group called"),
    "no part": (lambda m: m["groups"][0]["parts"].pop(), "is not in lossless.json"),
    "part of nobody": (lambda m: m["groups"][0]["parts"].append("x"), "is not in the file"),
    "no tensor": (lambda m: m["groups"][0]["tensors"].pop(), "is in no group called"),
    "strange tensor": (lambda m: m["groups"][0]["tensors"].append({"file": "x", "tensor": "y"}), "not recorded so"),
    "another's tensor": (lambda m: m["groups"][0]["tensors"].extend(m["groups"][1]["tensors"]), "not recorded so"),
    "other order": (lambda m: long_group(m)["tensors"].reverse(), "tensor 'model"),
    "other place": (lambda m: m["groups"][0]["at"].update(file="x"), "is not in the file"),
    "config": (lambda m: edited_file(m).update(original="{}"), "does not hold the source's 'config.json'"),
}


@pytest.mark.parametrize("fault", GROUP_FAULTS)
def test_a_manifest_with_wrong_groups_is_refused(fault: str, grouped: Path, tmp_path: Path) -> None:
    damage, word = GROUP_FAULTS[fault]
    shutil.copytree(grouped, tmp_path / "copy")
    manifest = json.loads((grouped / MANIFEST).read_bytes())
    damage(manifest)
    (tmp_path / "copy" / MANIFEST).write_text(json.dumps(manifest))
    for verb in (
        lambda: verify_weights(tmp_path / "copy"),
        lambda: decompress_weights(tmp_path / "copy", tmp_path / "b"),
    ):
        with pytest.raises(CorruptWeights) as caught:
            verb()
        assert word in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
