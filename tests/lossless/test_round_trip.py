"""Folders of weights are compressed and brought back byte by byte; the manifest says what became of each tensor."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from lossless_folders import contents, records, same_bits, special, weights
from safetensors.torch import load_file, save_file

from edgekit import compress_weights, decompress_weights, verify_weights
from edgekit.codec import encode
from edgekit.dfloat11 import DFloat11Config, stored_groups
from edgekit.lossless_folder import LosslessFolder, LosslessManifest, Place, one_ahead
from edgekit.tensorfile import TensorFile

CODECS = ("auto", "df11", "df11x", "df12")


@pytest.mark.parametrize("codec", CODECS)
def test_a_folder_comes_back_byte_by_byte(codec: str, source: Path, tmp_path: Path) -> None:
    manifest = compress_weights(source, tmp_path / "out", codec)
    assert verify_weights(tmp_path / "out") == manifest
    assert decompress_weights(tmp_path / "out", tmp_path / "back") == manifest
    assert contents(tmp_path / "back") == contents(source)
    assert sum(file.path.startswith("model-0") for file in manifest.files) >= 3
    assert {path.name for path in tmp_path.iterdir()} == {"out", "back"}


@pytest.mark.parametrize(("codec", "most"), [("df11x", 0.75), ("df12", 0.80)])
def test_what_gains_is_coded_and_the_rest_says_why_not(codec: str, most: float, source: Path, tmp_path: Path) -> None:
    found = records(compress_weights(source, tmp_path / "out", codec))
    coded = [tensor for tensor in found.values() if tensor.codec == codec]
    assert {"rare", "vector", "twin", "model.layers.0.mlp.up_proj.weight"} <= {tensor.name for tensor in coded}
    assert sum(t.stored_bytes for t in coded) < most * sum(t.bytes for t in coded)
    assert all((tensor.reason is not None) == (tensor.codec == "raw") for tensor in found.values())
    for name, reason in {
        "float": "F32: only BF16 is coded",
        "ids": "I64: only BF16 is coded",
        "empty": "fewer than 4096 weights",
        "scalar": "fewer than 4096 weights",
        "clash": "another tensor is called 'clash." + ("sm'" if codec == "df11x" else "lo'"),
    }.items():
        assert reason in (found[name].reason or "")
    assert found["patterns"].codec == "raw"


def test_a_record_holds_what_the_source_and_the_file_hold(source: Path, compressed: Path) -> None:
    folder = LosslessFolder.open(compressed)
    for file in folder.manifest.files:
        given, stored = TensorFile.open(source / file.path), TensorFile.open(compressed / file.path)
        assert file.header.encode() == given.header
        assert file.stored_bytes == (compressed / file.path).stat().st_size
        assert sum(tensor.stored_bytes for tensor in file.tensors) == sum(entry.bytes for entry in stored.tensors)
        for tensor, entry in zip(file.tensors, given.tensors, strict=True):
            raw = given.read(entry).tobytes()
            assert tensor.sha256 == hashlib.sha256(raw).hexdigest()
            assert folder.raw(Place(file=file.path, tensor=tensor.name)).tobytes() == raw
    assert LosslessManifest.from_json(folder.manifest.to_json()) == folder.manifest
    assert folder.manifest.tool_versions["numpy"] == np.__version__


def test_stored_files_open_in_the_package_with_raw_tensors_under_their_names(compressed: Path) -> None:
    found = load_file(compressed / "extra" / "special.safetensors")
    for name in ("patterns", "float", "ids", "mask", "norm2", "clash.lo"):
        assert same_bits(found[name], special()[name])
    assert found["rare.sm"].dtype == torch.uint8
    assert "rare" not in found


def test_the_parts_are_those_of_the_codec(compressed: Path) -> None:
    folder = LosslessFolder.open(compressed)
    stored = folder.encoded(Place(file="extra/special.safetensors", tensor="odd"))
    made = encode(special()["odd"].view(torch.uint16).numpy(), "df11x")
    assert (stored.codec, stored.shape, stored.crc32) == (made.codec, made.shape, made.crc32)
    assert stored.parts.keys() == made.parts.keys()
    assert all(np.array_equal(stored.parts[name], part) for name, part in made.parts.items())


def test_identical_tensors_are_stored_once(compressed: Path) -> None:
    found = records(LosslessFolder.open(compressed).manifest)
    twins = {"twin", "twin2", "twin_flat"}
    assert sorted(found[name].codec for name in twins) == ["df11x", "tied", "tied"]
    assert {found[name].same_as.tensor for name in twins if found[name].same_as} <= twins  # type: ignore[union-attr]
    assert found["norm2"].codec == "raw"  # small ones stay where readers look for them


def test_tensors_of_two_files_are_tied(compressed: Path) -> None:
    found = records(LosslessFolder.open(compressed).manifest)
    tied = {name: found[name] for name in ("lm_head.weight", "model.embed_tokens.weight")}
    [one] = [tensor for tensor in tied.values() if tensor.codec == "tied"]
    assert one.same_as is not None
    assert one.same_as.tensor in tied.keys() - {one.name}
    assert one.stored_bytes == 0


def test_one_file_is_compressed_into_a_folder(source: Path, tmp_path: Path) -> None:
    file = source / "extra" / "special.safetensors"
    compress_weights(file, tmp_path / "out")
    decompress_weights(tmp_path / "out", tmp_path / "back")
    assert contents(tmp_path / "back") == {"special.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_links_to_files_are_read_as_the_hub_cache_has_them(source: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for path in source.glob("*.*"):
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    compress_weights(tmp_path / "snapshot", tmp_path / "out")
    decompress_weights(tmp_path / "out", tmp_path / "back")
    assert contents(tmp_path / "back") == {n: h for n, h in contents(source).items() if not n.startswith("extra")}


def test_a_header_is_kept_to_the_letter(tmp_path: Path) -> None:
    """Spaces, order, escapes and metadata are as the file had them, not as a writer would put them."""
    header = b'{ "__metadata__":{"\\u00e9":"\xc3\xa9"} , "b":{"shape":[1],"dtype":"U8","data_offsets":[2,3]},\n'
    header += b'"\\u0061":{"data_offsets":[0,2],"shape":[],"dtype":"BF16"}} \t '
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    compress_weights(tmp_path / "m.safetensors", tmp_path / "out")
    decompress_weights(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "m.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_one_tensor_is_made_while_one_is_used_and_no_more() -> None:
    made = list[int]()

    def make(number: int) -> int:
        made.append(number)
        return number

    for used, number in enumerate(one_ahead(make, range(9))):
        sleep(0.01)  # enough for a thread that would run on
        assert number == used
        assert len(made) <= used + 2
    assert list(one_ahead(make, [])) == []


PEAK = """
import sys
from edgekit import compress_weights, decompress_weights, lossless, verify_weights
from edgekit.host import peak_rss_bytes
verbs = {"compress": lambda: compress_weights(sys.argv[3], sys.argv[4], sys.argv[2]),
         "decompress": lambda: decompress_weights(sys.argv[4], sys.argv[5]),
         "verify": lambda: verify_weights(sys.argv[4])}
before = peak_rss_bytes()
verbs[sys.argv[1]]()
print(peak_rss_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["df11x", "df12"])
def test_memory_is_that_of_three_tensors_at_most_and_not_of_the_model(codec: str, tmp_path: Path) -> None:
    """Resident memory of a process for each verb, maps included, over a file of 8 tensors of 32 MB."""
    tensor_bytes = 32 << 20
    save_file({f"w{i}": weights(4096, 4096, seed=i) for i in range(8)}, tmp_path / "m.safetensors")
    arguments = [str(tmp_path / name) for name in ("m.safetensors", "out", "back")]
    for verb in ("compress", "verify", "decompress"):
        run = [sys.executable, "-P", "-c", PEAK, verb, codec, *arguments]
        peak = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
        # 40 MB: what a codec works in, libraries, and what malloc keeps for each thread
        assert tensor_bytes < peak < 3 * tensor_bytes + (40 << 20), (verb, peak)
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "back" / "m.safetensors").read_bytes()


def test_df11_codes_a_block_as_one_stream_where_the_dfloat11_package_looks_for_it(source: Path, grouped: Path) -> None:
    """`stored_groups` and `Group.decode` know no lossless.json: names and config.json are all they get."""
    config = DFloat11Config.from_json(json.dumps(json.loads((grouped / "config.json").read_bytes())["dfloat11_config"]))
    stored: dict[str, np.ndarray[Any, Any]] = {}
    for path in grouped.glob("*.safetensors"):
        file = TensorFile.open(path)
        stored |= {entry.name: file.array(entry) for entry in file.tensors}
    given = {name: tensor for path in source.glob("*.safetensors") for name, tensor in load_file(path).items()}
    groups = stored_groups(stored.keys(), config)
    assert {"model.layers.0", "model.layers.2", "lm_head", "model.embed_tokens"} == {g.path for g in groups} - {
        "model.layers.1"
    }
    for group in groups:
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        parts = {part: stored[key] for part, key in group.keys.items()}
        for name, bits in group.decode(parts, shapes).items():
            assert np.array_equal(bits, given.pop(name).view(torch.uint16).numpy())
    for name, tensor in given.items():  # what is in no group is there as it was
        assert np.array_equal(stored[name], tensor.view(torch.uint16).numpy())


def test_a_group_of_two_files_is_stored_in_the_first(source: Path, grouped: Path) -> None:
    folder = LosslessFolder.open(grouped)
    apart = [group for group in folder.manifest.groups if len({place.file for place in group.tensors}) > 1]
    assert apart  # a shard of the source ends inside a block
    assert all(group.at.file == min(place.file for place in group.tensors) for group in apart)
    for group in folder.manifest.groups:
        assert sum(folder.tensors[place].stored_bytes for place in group.tensors) == group.stored_bytes
        assert group.stored_bytes < 0.75 * sum(folder.tensors[place].bytes for place in group.tensors)


def test_what_df11_cannot_hold_stays_raw_for_the_whole_group(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.{name}.weight": weights(64, 128) for i in range(2) for name in ("up", "down")}
    tensors["layers.1.down.weight"][0, 0] = torch.nan
    save_file({**tensors, "layers.0.bias": weights(5000), "tiny.weight": weights(2, 2)}, tmp_path / "m.safetensors")
    found = records(compress_weights(tmp_path / "m.safetensors", tmp_path / "out", "df11"))
    assert [found[f"layers.0.{name}.weight"].codec for name in ("up", "down")] == ["df11", "df11"]
    for name in ("up", "down"):
        assert "cannot hold infinities, NaN" in (found[f"layers.1.{name}.weight"].reason or "")
    assert "codes matrices called 'weight'" in (found["layers.0.bias"].reason or "")
    assert "fewer than 4096 weights" in (found["tiny.weight"].reason or "")
    decompress_weights(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "m.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_matrices_that_are_too_small_alone_are_coded_together(tmp_path: Path) -> None:
    save_file({f"l.0.{name}.weight": weights(40, 64) for name in "abcde"}, tmp_path / "m.safetensors")
    found = records(compress_weights(tmp_path / "m.safetensors", tmp_path / "out", "df11"))
    assert {tensor.codec for tensor in found.values()} == {"df11"}


def test_headers_cost_little_where_tensors_do_not_gain(tmp_path: Path) -> None:
    save_file({f"layers.{i}.norm.weight": weights(1000, seed=i) for i in range(300)}, tmp_path / "m.safetensors")
    [file] = compress_weights(tmp_path / "m.safetensors", tmp_path / "out").files
    assert file.stored_bytes < 1.1 * file.bytes


def test_a_config_that_is_no_json_is_copied(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"w.weight": weights(64, 128)}, tmp_path / "model" / "m.safetensors")
    for text in (b"{", b"[1]", b"\xff"):
        (tmp_path / "model" / "config.json").write_bytes(text)
        compress_weights(tmp_path / "model", tmp_path / "out", "df11", force=True)
        assert (tmp_path / "out" / "config.json").read_bytes() == text
