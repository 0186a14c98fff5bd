"""`model.pt2`: a program saved by `torch.export.save`.

`torch.export.load` unpickles some records and loads native libraries, so a file could run code. Here only archives that
hold raw tensors, JSON and weights-only example inputs get that far: every record is checked against a list first.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekit.errors import InvalidInput, UnsupportedModel
from edgekit.layered import layered
from edgekit.model import Loaded, LoadOptions

PLAIN = re.compile(
    r"(archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|extra/[\w./-]+"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|data/(weights|constants)/model_(weights|constants)_config\.json|data/sample_inputs/model\.pt)"
)
FUNCTIONS = {  # what torch writes into size expressions
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Eq", "Ne", "Lt", "Le", "Gt",
    "Ge", "And", "Or", "Not", "floor", "ceiling", "StrictLessThan", "LessThan", "Equality", "FloorDiv", "PythonMod",
    "ModularIndexing", "CleanDiv", "CeilDiv", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "PowByNatural", "FloatPow",
    "TruncToInt", "TruncToFloat", "RoundToInt", "CeilToInt", "FloorToInt",
}  # fmt: skip
PLAIN_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator,
    ast.unaryop, ast.Compare, ast.cmpop,
)  # fmt: skip


def load(ref: str, options: LoadOptions) -> Loaded:
    """Load an exported program whose archive can run no code, with its layers at their paths."""
    path = Path(ref)
    if not path.is_file():
        raise InvalidInput(f"no file '{ref}'")
    checked = checked_copy(path)
    try:
        program = torch.export.load(checked)
    except Exception as error:  # torch raises many types for damaged archives
        raise InvalidInput(f"'{ref}' cannot be loaded by torch {torch.__version__}: {error}") from error
    args, kwargs = program.example_inputs or ((), {})
    tensors = [*args, *kwargs.values()]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise UnsupportedModel(
            f"'{ref}' was saved with example inputs that are not all plain tensors; export it with some"
        )
    module = layered(program)
    return Loaded(module=module, example=dict(zip(module.inputs, tensors, strict=True)))


def checked_copy(path: Path) -> io.BytesIO:
    """The archive written anew from records that can run no code; raises `InvalidInput` for any other record.

    torch reads this copy, never the file: zip readers disagree on crafted files, and it would run what was not checked.
    """
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as out:
            for name in archive.namelist():
                record, content = name.partition("/")[2], archive.read(name)
                if f"model/{record}" in out.NameToInfo:
                    raise _refusal(path, record, "is there twice")
                if not PLAIN.fullmatch(record) or ".." in record:
                    raise _refusal(path, record, "is no plain tensor, JSON or text")
                if record.endswith("_config.json"):
                    _refuse_pickled_tensors(path, json.loads(content)["config"])
                elif record.startswith("data/sample_inputs/"):
                    _refuse_objects(path, record, content)
                elif record == "models/model.json":
                    program = json.loads(content)
                    _refuse_expressions(path, program)
                    content = json.dumps(program | {"guards_code": []}).encode()  # Python, which torch would run
                out.writestr(f"model/{record}", content)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, SyntaxError) as error:
        raise InvalidInput(f"'{path}' has a damaged index of weights: {error!r}") from error
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise InvalidInput(f"'{path}' is not a .pt2 archive: {error}") from error
    copy.seek(0)
    return copy


def _refuse_expressions(path: Path, value: Any) -> None:
    """torch gives the strings of symbolic sizes to sympy, which evaluates them as Python."""
    if isinstance(value, dict):
        if "expr_str" in value and not _is_arithmetic(value["expr_str"]):
            raise _refusal(path, str(value["expr_str"])[:80], "is no size expression")
        if "default_factory_module" in str(value.get("in_spec", "")) + str(value.get("out_spec", "")):
            raise _refusal(path, "models/model.json", "names a Python module to import")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_expressions(path, item)


def _is_arithmetic(text: str) -> bool:
    """Numbers, symbols and calls of the sympy functions that torch writes: no attributes, no text but names."""
    tree = ast.parse(text, mode="eval")
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not (
            node.id in FUNCTIONS if id(node) in called else re.fullmatch(r"[a-z]+\d+", node.id)
        ):
            return False
        if isinstance(node, ast.Constant) and not re.fullmatch(r"[\w.+-]+", str(node.value)):
            return False
        if not isinstance(node, PLAIN_NODES):
            return False
    return True


def _refuse_pickled_tensors(path: Path, config: dict[str, Any]) -> None:
    for tensor, record in config.items():
        if record["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", record["path_name"]):
            raise _refusal(path, tensor, "is stored as a pickle")


def _refuse_objects(path: Path, record: str, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # damaged or not plain: either way torch.export.load would go on to unpickle it
        raise _refusal(path, record, "holds more than tensors") from error


def _refusal(path: Path, record: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"'{path}' is refused: record '{record}' {why} and could run code when loaded. Save it again with "
        "torch.export.save from dense CPU tensors, or give the module itself as file.py:factory"
    )
