"""Students of the user's own: what `file.py:factory` or `package.module:factory` builds, or a module itself.

`factory(site)` returns a `torch.nn.Module`. Like every student, it is called with the site's inputs by name, batch N,
and returns the site's outputs by name, or a bare tensor where there is one.
"""

from __future__ import annotations

import torch
from torch import nn

from edgekit.distill.architecture.sizing import StudentRecord
from edgekit.distill.cutting.boundary import check_student, site_feeds
from edgekit.distill.cutting.site import Site
from edgekit.distill.training.schedule import trained
from edgekit.errors import InvalidInput, UnsupportedModel
from edgekit.model import Model
from edgekit.sources.python import call_factory
from edgekit.types import ModelSource

FACTORY, MODULE = "python", "module"  # kinds of sources


def is_own(name: str) -> bool:
    """Whether the name of a student is a factory's."""
    return ":" in name


def build(factory: str, site: Site, *, seed: int = 0) -> nn.Module:
    """What a factory returns for a site, the same for the same seed. This runs somebody's code.

    Raises `InvalidInput` as `call_factory` does, and where it returns no module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = call_factory(factory, site)
    if not isinstance(made, nn.Module):
        raise UnsupportedModel(
            f"factory '{factory}' returned a {type(made).__name__}; a student's must return a torch.nn.Module"
        )
    return made


def own_student(given: str | nn.Module, model: Model, site: Site, *, seed: int = 0) -> tuple[nn.Module, StudentRecord]:
    """A student that answers as the site does, and its record; `given` is a factory's name, or the module.

    Raises `InvalidInput` where it fails, gives other names, shapes or dtypes, NaN or Inf, or has nothing to train.
    """
    made = build(given, site, seed=seed) if isinstance(given, str) else given
    one = site_feeds(model, site, model.example)
    for feeds in (one, {name: torch.cat((tensor, tensor)) for name, tensor in one.items()}):
        for name, answer in check_student(made, site, feeds).items():
            if not answer.isfinite().all():
                raise InvalidInput(f"the student's output '{name}' is NaN or Inf on the model's own example")
    trained(made)
    kind, ref = (FACTORY, given) if isinstance(given, str) else (MODULE, type(given).__name__)
    source = ModelSource(kind=kind, ref=ref)
    params = sum(parameter.numel() for parameter in made.parameters())
    return made, StudentRecord(name=source.name, options={}, params=params, source=source)
