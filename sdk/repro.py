"""Cut the smallest submodule that a format cannot take out of a model, and save it as a script that fails alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from edgekit.errors import InvalidInput, ToolchainMissing
from edgekit.exporting import Exporter, ExportJob
from edgekit.model import Model
from edgekit.planning import EXPORTERS
from edgekit.quiet import quiet

CONVERTING = '''"""`{path}` of {model}: the {format} toolchain cannot convert it.

{reason}
"""

from pathlib import Path

import torch

program = torch.export.load(Path(__file__).with_name("submodule.pt2"))
{call}
'''
TRACING = '''"""`{path}` of {model}: torch.export cannot trace it.

{reason}
"""

from pathlib import Path

import torch

import edgekit

module = edgekit.load({ref!r}).module.get_submodule({path!r})
args, kwargs = torch.load(Path(__file__).with_name("inputs.pt"))
torch.export.export(module, args, kwargs, strict=False)
'''


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


def save_repro(model: Model, format: str, folder: Path, *, progress: Progress = silent) -> str | None:
    """Write `folder/repro.py` with the program or the inputs of the smallest submodule that fails.

    Returns the submodule's path in the model, None when the model converts. Raises `InvalidInput` when the folder is
    not empty, `ToolchainMissing`.
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
    facts = {"path": path, "model": model.name, "format": format, "reason": found.reason}
    if found.program is None:
        torch.save((calls[path].args, calls[path].kwargs), folder / "inputs.pt")
        text = TRACING.format(**facts, ref=f"{'zoo:' * (model.source.kind == 'zoo')}{model.source.ref}")
    else:
        torch.export.save(found.program, folder / "submodule.pt2")
        exporter: Exporter = registry.load(EXPORTERS, format)
        text = CONVERTING.format(**facts, call=exporter.REPRO)
    (folder / "repro.py").write_text(text, encoding="utf-8")
    return path


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
        return _Failure(_first_line(error), None)
    try:
        with TemporaryDirectory() as scratch:
            options = registry.load(EXPORTERS, format).Options()
            isolation.export(format, _job(program), Path(scratch), options, silent)
    except ToolchainMissing:
        raise
    except Exception as error:  # whatever it is, it is what the script shows
        return _Failure(_first_line(error), program)
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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
