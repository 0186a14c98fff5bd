"""Exported programs load and answer the same, and no archive gets to run code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from edgekit.errors import EdgekitError, InvalidInput, UnsupportedModel
from edgekit.graph import capture
from edgekit.source import load

MODELS = Path(__file__).with_name("models.py")
SAMPLES, PROGRAM = "data/sample_inputs/model.pt", "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


class Runs:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


class Scaled(nn.Module):
    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return x * scale + shift


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small linear model with a dynamic batch, so that its program holds symbolic sizes too."""
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(2, 3),), dynamic_shapes=({0: Dim("b", max=8)},))
    torch.export.save(program, tmp_path / "linear.pt2")
    return tmp_path / "linear.pt2"


@pytest.fixture
def marker(tmp_path: Path) -> Any:
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists(), "code in the archive was run"


def members(archive: Path | bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive) if isinstance(archive, bytes) else archive) as opened:
        return {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}


def packed(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"linear/{name}", content)
    return buffer.getvalue()


def refused(path: Path, content: bytes, said: str, kind: type[EdgekitError] = InvalidInput) -> None:
    path.write_bytes(content)
    with pytest.raises(kind, match=said):
        load(str(path))


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("factory", ["mlp", "small_conv", "two_inputs"])
def test_a_saved_program_answers_like_the_model(tmp_path: Path, factory: str) -> None:
    model = load(f"{MODELS}:{factory}")
    torch.export.save(capture(model), tmp_path / "model.pt2")
    program = load(str(tmp_path / "model.pt2"))
    assert (program.source.kind, program.name) == ("pt2", "model")
    assert (program.inputs, program.outputs, program.warnings) == (model.inputs, model.outputs, ())
    feeds = {name: tensor.numpy() for name, tensor in model.example.items()}
    expected, actual = model(feeds), program(feeds)
    assert all(np.allclose(actual[name], expected[name], atol=1e-6) for name in expected)
    assert capture(program).graph_signature.user_inputs == tuple(feeds)


@pytest.mark.parametrize("order", [("x", "scale", "shift"), ("shift", "x", "scale")])
@pytest.mark.parametrize("positional", [0, 1, 3])
def test_positional_and_keyword_inputs_keep_their_names(
    tmp_path: Path, order: tuple[str, ...], positional: int
) -> None:
    values = {"x": torch.full((1, 4), 3.0), "scale": torch.full((1, 4), 5.0), "shift": torch.full((1, 4), 7.0)}
    args = tuple(values.values())[:positional]
    kwargs = {name: values[name] for name in order if name not in list(values)[:positional]}
    torch.export.save(torch.export.export(Scaled().eval(), args, kwargs), tmp_path / "scaled.pt2")
    model = load(str(tmp_path / "scaled.pt2"))
    assert {name: float(t[0, 0]) for name, t in model.example.items()} == {"x": 3, "scale": 5, "shift": 7}
    output = model({name: tensor.numpy() for name, tensor in values.items()})["output"]
    assert output.tolist() == [[22.0] * 4]


def test_a_program_with_a_dynamic_batch_stays_dynamic(saved: Path) -> None:
    model = load(str(saved), dynamic=["batch=2:8"])
    assert model.inputs[0].shape == ("batch", 3)
    assert len(capture(model).range_constraints) == 1


def test_a_program_without_example_inputs_is_refused(saved: Path) -> None:
    empty = packed(members(saved) | {SAMPLES: pickled(((), {}))})
    refused(saved, empty, "example inputs that are not all plain tensors", UnsupportedModel)


def test_repacking_alone_is_not_refused(saved: Path) -> None:
    saved.write_bytes(packed(members(saved), zipfile.ZIP_STORED))
    assert load(str(saved)).outputs[0].shape == (2, 2)


def test_example_inputs_that_run_code_are_refused(saved: Path, marker: Path) -> None:
    evil = packed(members(saved) | {SAMPLES: pickled(((Runs(marker),), {}))})
    refused(saved, evil, rf"is refused: record '{SAMPLES}' holds more than tensors.*torch.export.save")


@pytest.mark.parametrize("which", [WEIGHTS, CONSTANTS])
@pytest.mark.parametrize("change", [{"use_pickle": True}, {"path_name": "custom_obj_0"}, {"path_name": "../weight_0"}])
def test_pickled_weights_and_constants_are_refused(
    saved: Path, marker: Path, which: str, change: dict[str, Any]
) -> None:
    records = members(saved)
    entry = next(iter(json.loads(records[WEIGHTS])["config"].values())) | change
    config = json.loads(records[which])
    config["config"]["weight"] = entry
    folder = which.rpartition("/")[0]
    evil = records | {which: json.dumps(config).encode(), f"{folder}/weight_0": pickled(Runs(marker))}
    refused(saved, packed(evil), r"is refused: record 'weight' is stored as a pickle and could run code")


@pytest.mark.parametrize(
    "record",
    ["data/aotinductor/model/model.so", "data/constants/custom_obj_0", "data/weights/../../x", "extra/../x",
     "models/other.json", "data/sample_inputs/other.pt", "serialized_state_dict.pt", "serialized_example_inputs.pt",
     "DATA/sample_inputs/model.pt", "data\\sample_inputs\\model.pt", "/etc/passwd", "data/weights/weight_0\n"],
)  # fmt: skip
def test_a_record_of_another_kind_is_refused_by_name(saved: Path, marker: Path, record: str) -> None:
    evil = packed(members(saved) | {record: pickled(Runs(marker))})
    refused(saved, evil, r"(?s)is refused: record '.*' is no plain tensor, JSON or text and could run code")


def test_a_size_expression_that_runs_code_is_refused(saved: Path, marker: Path) -> None:
    """torch hands these strings to sympy, which evaluates them as Python."""
    records = members(saved)
    evil = json.dumps(f"__import__('os').mkdir({str(marker)!r})").encode()
    program, count = re.subn(rb'"expr_str": "[^"]*"', lambda _: b'"expr_str": ' + evil, records[PROGRAM])
    assert count
    refused(saved, packed(records | {PROGRAM: program}), "expression|refused")


def test_guards_and_operators_that_run_code_do_not(saved: Path, marker: Path) -> None:
    program = json.loads(members(saved)[PROGRAM])
    guarded = program | {"guards_code": [f"__import__('os').mkdir({str(marker)!r})"]}
    saved.write_bytes(packed(members(saved) | {PROGRAM: json.dumps(guarded).encode()}))
    assert load(str(saved)).outputs[0].shape == (2, 2)
    node = program["graph_module"]["graph"]["nodes"][0]
    node |= {"target": "torch.os.mkdir", "inputs": [{"name": "path", "arg": {"as_string": str(marker)}, "kind": 1}]}
    refused(saved, packed(members(saved) | {PROGRAM: json.dumps(program).encode()}), "mkdir")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("evil_first", [True, False])
def test_a_record_that_is_there_twice_is_refused(saved: Path, marker: Path, evil_first: bool) -> None:
    contents = [pickled(((Runs(marker),), {})), members(saved)[SAMPLES]]
    buffer = io.BytesIO(packed({name: c for name, c in members(saved).items() if name != SAMPLES}))
    with zipfile.ZipFile(buffer, "a") as archive:
        for content in contents if evil_first else contents[::-1]:
            archive.writestr(f"linear/{SAMPLES}", content)
    refused(saved, buffer.getvalue(), "twice|refused")


def moved(directory: bytes, by: int) -> bytes:
    """A zip's central directory with the offset of every member changed."""
    changed, at = bytearray(directory), 0
    while at < len(directory):
        lengths = struct.unpack_from("<HHH", directory, at + 28)
        struct.pack_into("<I", changed, at + 42, struct.unpack_from("<I", directory, at + 42)[0] + by)
        at += 46 + sum(lengths)
    return bytes(changed)


def test_an_archive_that_two_readers_read_differently_cannot_run_code(saved: Path, marker: Path) -> None:
    """Python takes the directory before the end record, torch the one at the offset given, which holds the code."""
    evil = packed(members(saved) | {SAMPLES: pickled(((Runs(marker), "x" * 4096), {}))})
    good = packed(members(saved))
    (size, evil_at), (_, good_at) = (struct.unpack_from("<II", data, len(data) - 10) for data in (evil, good))
    assert evil_at > good_at
    both = evil[:-22] + good[:good_at] + moved(good[good_at:-22], evil_at - good_at)
    crafted = both + good[-22:-10] + struct.pack("<II", size, evil_at) + b"\0\0"
    saved.write_bytes(crafted)
    assert members(saved)[SAMPLES] == members(good)[SAMPLES]  # what a check by zipfile sees is harmless
    with contextlib.suppress(EdgekitError):  # refused, or loaded as what was checked
        load(str(saved))


def encrypted(content: bytes) -> bytes:
    changed = bytearray(content)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for match in re.finditer(re.escape(signature), content):
            changed[match.start() + flags] |= 1
    return bytes(changed)


def squeezed_and_broken(content: bytes) -> bytes:
    data = bytearray(packed(members(content), zipfile.ZIP_DEFLATED))
    for match in re.finditer(rb"config\.json", bytes(data)):
        data[match.end() : match.end() + 8] = b"\xff" * 8
        break
    return bytes(data)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty file": lambda content: b"",
    "no zip": lambda content: b"not a zip at all" * 100,
    "a zip of nothing": lambda content: packed({}),
    "cut in half": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-10],
    "encrypted": lambda content: encrypted(packed(members(content))),
    "broken compression": squeezed_and_broken,
    "no program": lambda content: packed({n: c for n, c in members(content).items() if n != PROGRAM}),
    "no index": lambda content: packed({n: c for n, c in members(content).items() if n != WEIGHTS}),
    "no weight": lambda content: packed({n: c for n, c in members(content).items() if not n.endswith("weight_0")}),
    "no samples": lambda content: packed({n: c for n, c in members(content).items() if n != SAMPLES}),
    "short weight": lambda content: packed(members(content) | {"data/weights/weight_0": b"\0" * 5}),
    "deep index": lambda content: packed(members(content) | {WEIGHTS: b"[" * 100_000}),
    "binary index": lambda content: packed(members(content) | {WEIGHTS: b"\xff\xfe"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_archive_is_refused(saved: Path, damage: str) -> None:
    refused(saved, DAMAGE[damage](saved.read_bytes()), "linear.pt2'", EdgekitError)


@pytest.mark.parametrize("index", ["{}", "[]", "3", '{"config": []}', '{"config": {"w": 3}}', '{"config": {"w": {}}}'])
def test_an_index_of_nonsense_is_refused(saved: Path, index: str) -> None:
    refused(saved, packed(members(saved) | {WEIGHTS: index.encode()}), "linear.pt2' has a damaged index of weights")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no file '.*gone.pt2'"):
        load(f"{tmp_path}/gone.pt2")
