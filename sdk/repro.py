"""Cut the smallest submodule that a format cannot take out of a model, and save it as a script that fails alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgekit import isolation, registry
from edgekit.compression import Progress, silent, tensor_spec
from edgekit.errors import InvalidInput, ToolchainMissing, reason_of
from edgekit.exporting import Exporter, ExportJob
from edgekit.model import Model
from edgekit.planning import EXPORTERS
from edgekit.quiet import quiet
from edgekit.types import ModelSource

CONVERTING = """# {subject}: the {format} toolchain cannot convert it.
# {reason}

from pathlib import Path

import torch

program = torch.export.load(Path(__file__).with_name("submodule.pt2"))
{call}
"""
TRACING = """# {subject}: torch.export cannot trace it.
# {reason}{missing}

from pathlib import Path

import torch

import edgekit

model = {model}
tensors = torch.load(Path(__file__).with_name("inputs.pt"))
args = {args}
kwargs = {kwargs}
torch.export.export(model.module.get_submodule({path!r}), args, kwargs, strict=False)
"""
FILL_IN = "\n# Where it says `...` an argument could not be stored: put it there. Left out: "


PLAIN = (int, float, bool, str, type(None), torch.dtype)  # what `repr` writes as Python reads it


@dataclass(frozen=True)
class _Call:
    """The arguments a submodule was first called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Failure:
    """Why a submodule fails; its program where it could be traced."""

    reason: str
    program: ExportedProgram | None


class _Bound(nn.Module):
    """A submodule whose arguments other than tensors are fixed to those of its call."""

    def __init__(self, inner: nn.Module, call: _Call) -> None:
        super().__init__()
        self.inner = inner
        self._leaves, self._tree = pytree.tree_flatten((call.args, call.kwargs))

    def tensors(self) -> tuple[Tensor, ...]:
        """What `forward` takes."""
        return tuple(leaf for leaf in self._leaves if isinstance(leaf, Tensor))

    def forward(self, *tensors: Tensor) -> Any:
        """Call the submodule as it was called, with these tensors."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        return self.inner(*args, **kwargs)


def save_repro(
    model: Model,
    format: str,
    folder: Path,
    *,
    inputs: Sequence[str] = (),
    dynamic: Sequence[str] = (),
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> str | None:
    """Write `folder/repro.py` with the program or the inputs of the smallest submodule that fails.

    `inputs`, `dynamic` and `trust_remote_code` are those that `edgekit.load` made the model with: a script that loads
    it again repeats them. Returns the submodule's path in the model, "" for the model itself, None when the model
    converts. Raises `InvalidInput` when the folder is not empty, `ToolchainMissing`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"'{folder}' is not empty: choose another --save-repro")
    calls = _first_calls(model)

    def failure(path: str) -> _Failure | None:
        progress(f"try {path or 'the whole model'}")
        return _failure(model.module.get_submodule(path), calls[path], format)

    found = failure("")
    if found is None:
        return None
    path, found = _smallest("", found, calls, failure)
    folder.mkdir(parents=True, exist_ok=True)
    subject = f"'{path}' of {model.name}" if path else f"The whole {model.name}"
    if found.program is None:
        stored = _Stored()
        args, kwargs = stored.source(calls[path].args), stored.source(calls[path].kwargs)
        torch.save(stored.tensors, folder / "inputs.pt")
        text = TRACING.format(
            subject=subject,
            reason=found.reason,
            missing=FILL_IN + ", ".join(stored.missing) if stored.missing else "",
            model=_load_call(model.source, inputs, dynamic, trust_remote_code),
            args=args,
            kwargs=kwargs,
            path=path,
        )
    else:
        torch.export.save(found.program, folder / "submodule.pt2")
        exporter: Exporter = registry.load(EXPORTERS, format)
        text = CONVERTING.format(subject=subject, reason=found.reason, format=format, call=exporter.REPRO)
    (folder / "repro.py").write_text(text, encoding="utf-8")
    return path


class _Stored:
    """Arguments as Python source: tensors by their place in a file, plain values as they are written."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.missing: list[str] = []  # types of what is neither

    def source(self, value: Any) -> str:
        """The expression that makes `value` where `tensors` holds the file's content."""
        if isinstance(value, Tensor):
            self.tensors.append(value.detach().clone())  # a view would take its whole storage along
            return f"tensors[{len(self.tensors) - 1}]"
        if type(value) is float and not math.isfinite(value):
            return f"float('{value}')"
        if type(value) in PLAIN:
            return repr(value)
        if type(value) in (list, tuple):
            inner = "".join(f"{self.source(each)}, " for each in value)
            return f"[{inner}]" if type(value) is list else f"({inner})"
        if type(value) is dict:
            return "{" + "".join(f"{self.source(key)}: {self.source(each)}, " for key, each in value.items()) + "}"
        self.missing.append(type(value).__name__)
        return "..."


def _load_call(source: ModelSource, inputs: Sequence[str], dynamic: Sequence[str], trust_remote_code: bool) -> str:
    """The expression that loads the model again, from any folder; `package.module:factory` must be importable there."""
    if source.kind == "module":
        return f"...  # put here: edgekit.load of the {source.ref}, with its example"
    place, colon, factory = source.ref.rpartition(":")
    ref = source.ref
    if source.kind == "zoo":
        ref = f"zoo:{ref}"
    elif source.kind == "python":
        ref = f"{os.path.abspath(place)}{colon}{factory}" if place.endswith(".py") else ref
    else:
        ref = os.path.abspath(ref)
    given = {"inputs": list(inputs), "dynamic": list(dynamic), "trust_remote_code": trust_remote_code}
    return f"edgekit.load({ref!r}{''.join(f', {name}={value!r}' for name, value in given.items() if value)})"


def _smallest(
    path: str, found: _Failure, calls: Mapping[str, _Call], failure: Callable[[str], _Failure | None]
) -> tuple[str, _Failure]:
    """Descend into the first child that fails on its own, until none does."""
    inside = [other for other in calls if other != path and other.startswith(f"{path}." if path else "")]
    for child in inside:
        if any(child.startswith(f"{other}.") for other in inside):
            continue  # a grandchild; modules that are never called, such as lists, do not count as parents
        if inner := failure(child):
            return _smallest(child, inner, calls, failure)
    return path, found


def _first_calls(model: Model) -> dict[str, _Call]:
    """The first call of every submodule during one run on the example, parents before children."""
    calls: dict[str, _Call] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(path, _Call(args, kwargs))

        return hook

    named = list(model.module.named_modules())
    handles = [module.register_forward_pre_hook(note(path), with_kwargs=True) for path, module in named]
    try:
        model(model.example_arrays)
    finally:
        for handle in handles:
            handle.remove()
    return {path: calls[path] for path, _ in named if path in calls}


def _failure(module: nn.Module, call: _Call, format: str) -> _Failure | None:
    """Trace and convert one submodule; None when both work."""
    bound = _Bound(module, call)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(bound, bound.tensors(), strict=False)
    except Exception as error:  # torch.export raises dozens of types
        return _Failure(reason_of(error), None)
    try:
        with TemporaryDirectory() as scratch:
            options = registry.load(EXPORTERS, format).Options()
            isolation.export(format, _job(program), Path(scratch), options, silent)
    except ToolchainMissing:
        raise
    except Exception as error:  # whatever it is, it is what the script shows
        return _Failure(reason_of(error), program)
    return None


def _job(program: ExportedProgram) -> ExportJob:
    """A job from nothing but a program: its user inputs and outputs under the names in the graph."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = [(name, values[name]) for name in program.graph_signature.user_inputs if isinstance(name, str)]
    outputs = [(name, values[name]) for name in program.graph_signature.user_outputs if isinstance(name, str)]
    return ExportJob(
        name="submodule",
        program=program,
        inputs=tuple(tensor_spec(name, value) for name, value in inputs if isinstance(value, Tensor)),
        outputs=tuple(tensor_spec(name, value) for name, value in outputs if isinstance(value, Tensor)),
        precision="fp32",
    )
