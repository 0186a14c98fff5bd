"""Find the modules of a model that another encoder can take the place of, with what each costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edgekit.compression import is_below
from edgekit.cost.kernels import PRODUCTS, work
from edgekit.distill.cutting.call import Constant
from edgekit.distill.cutting.flow import Calls, Flow, trace
from edgekit.errors import InvalidInput, unknown_name
from edgekit.model import Model
from edgekit.types import TensorSpec, Value

LEAST_SHARE = 0.01  # of parameters or MACs; lighter modules are not listed
TIMED_CALLS = 5


class Site(Value, frozen=True, kw_only=True):
    """A module whose outputs are all that the rest of the model sees of its inputs, or why it is not."""

    path: str  # in `model.module`: "vision_encoder"
    inputs: tuple[TensorSpec, ...]  # batch 1, by argument name
    outputs: tuple[TensorSpec, ...]  # those that the rest reads, batch 1, named as `model.name_outputs` does
    params: int  # elements of all distinct parameters
    params_share: float  # of the model's
    macs: int  # multiply-accumulates of one call
    macs_share: float
    time_share: float | None  # measured; None when it was not
    constants: dict[str, Constant] = {}  # arguments that are no tensors, the same in every call
    refused: str | None = None  # why nothing can take its place

    @property
    def weight(self) -> float:
        """How much of the model it is: the larger share of parameters and MACs."""
        return max(self.params_share, self.macs_share)


def sites(model: Model, *, timed: bool = True) -> tuple[Site, ...]:
    """The modules with at least 1 % of the parameters or MACs, heaviest first, and after them those that are refused.

    That the outputs are the only road is read from the trace of one call, which takes torch.export. `timed` also runs
    the model a few times. Raises `UnsupportedModel` when the model cannot be traced.
    """
    found = [site for site in _all_sites(model, timed=timed) if site.weight >= LEAST_SHARE]
    return tuple(sorted(found, key=lambda site: (site.refused is not None, -site.weight)))


def find_site(model: Model, name: str) -> Site:
    """The site at a module path, or at the only path that ends in `.name`.

    Raises `InvalidInput` when there is none, when several end so, or when nothing can take its place.
    """
    found = {site.path: site for site in _all_sites(model, timed=False)}
    paths = [name] if name in found else [path for path in found if path.endswith(f".{name}")]
    if len(paths) > 1:
        raise InvalidInput(f"site '{name}' may be any of {', '.join(paths)}: give the whole path")
    if not paths:
        if name in dict(model.module.named_modules()):
            raise InvalidInput(f"site '{name}' is not called by the model, or has no weights: {_allowed(found)}")
        raise unknown_name("site of this model", name, [path for path, site in found.items() if site.refused is None])
    site = found[paths[0]]
    if site.refused:
        raise InvalidInput(f"site '{site.path}' cannot be swapped: {site.refused}. {_allowed(found)}")
    return site


def _allowed(found: Mapping[str, Site]) -> str:
    names = sorted((site for site in found.values() if site.refused is None), key=lambda site: -site.weight)
    return (
        f"sites of this model are {', '.join(site.path for site in names[:5]) or 'none'}; see edgekit analyze --sites"
    )


def _all_sites(model: Model, *, timed: bool) -> list[Site]:
    """All modules with weights that ran, in the order of the model."""
    model = _batch_of_one(model)
    flow = trace(model)
    kernels = [kernel for kernel in work(flow.program).kernels if kernel.op_class in PRODUCTS]
    total_macs = sum(kernel.ops // 2 for kernel in kernels)
    total_params = _params(model.module)
    seconds = _seconds(model, list(flow.calls)) if timed else {}
    found = []
    for path, call in flow.calls.items():
        module = model.module.get_submodule(path)
        macs = sum(kernel.ops // 2 for kernel in kernels if is_below(kernel.module, [path]))
        consumed = flow.consumed(path)
        outputs = tuple(spec for spec in call.outputs if spec.name in consumed)
        found.append(
            Site(
                path=path,
                inputs=call.inputs,
                outputs=outputs,
                params=_params(module),
                params_share=_params(module) / total_params,
                macs=macs,
                macs_share=macs / total_macs if total_macs else 0.0,
                time_share=seconds.get(path),
                constants=call.constants,
                refused=_refusal(model, flow, path, call, outputs),
            )
        )
    return found


def _refusal(model: Model, flow: Flow, path: str, call: Calls, outputs: tuple[TensorSpec, ...]) -> str | None:
    """Why nothing can take the place of a module, or None."""
    if call.count > 1:
        return f"it is called {call.count} times in one call of the model, so its outputs are not one set of tensors"
    if call.trouble:
        return call.trouble
    if not outputs:
        return "the model's outputs do not depend on it"
    for spec in (*call.inputs, *outputs):
        if any(isinstance(size, str) for size in spec.shape):
            return f"'{spec}' has a dynamic size: load the model with fixed sizes, without --dynamic"
    for spec in outputs:
        if not spec.dtype.startswith(("float", "bfloat")):
            return f"its output '{spec.name}' is {spec.dtype}, which cannot be learned by regression"
    return _shared_weight(model.module, path) or flow.road_around(path)


def _shared_weight(module: nn.Module, path: str) -> str | None:
    """A weight that the module and the rest both hold."""
    inside = {id(tensor): name for name, tensor in _tensors(module) if is_below(name, [path])}
    for name, tensor in _tensors(module):
        if id(tensor) in inside and not is_below(name, [path]):
            return f"its weight '{inside[id(tensor)]}' is also '{name}' of the rest: give the rest a copy of its own"
    return None


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    parameters = module.named_parameters(remove_duplicate=False)
    return [*parameters, *module.named_buffers(remove_duplicate=False)]


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _batch_of_one(model: Model) -> Model:
    """The model with the first of the example's items, where every input has the same number of them."""
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in model.example.values()}
    if len(sizes) > 1 or model.dynamic or sizes <= {0, 1}:
        return model
    return replace(model, example={name: tensor[:1] for name, tensor in model.example.items()})


def _seconds(model: Model, paths: list[str]) -> dict[str, float]:
    """The measured share of a call that each module takes: medians over a few calls, after one that warms up."""
    spent: dict[str, list[float]] = {path: [] for path in ("", *paths)}
    started: dict[str, float] = {}

    def hooks(path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(*_: Any) -> None:
            started[path] = time.perf_counter()

        def leave(*_: Any) -> None:
            spent[path][-1] += time.perf_counter() - started[path]

        return enter, leave

    handles = []
    try:
        for path in spent:
            enter, leave = hooks(path)
            part = model.module.get_submodule(path)
            handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
        for _ in range(1 + TIMED_CALLS):
            for times in spent.values():
                times.append(0.0)
            with torch.no_grad():
                model.module(**model.example)
    finally:
        for handle in handles:
            handle.remove()
    middle = {path: statistics.median(times[1:]) for path, times in spent.items()}
    return {path: middle[path] / middle[""] for path in paths}
