"""Swap a heavy encoder for a light one: the student learns the teacher's embeddings, and the rest stays as it is.

    site = edgekit.distill.find_site(model, "vision_encoder")
    small = edgekit.distill.splice(model, site, edgekit.distill.student("npu-conv", site, params=0.1))

Importing this package does not import torch; each name loads its module on first use.
Source: MobileSAM (arXiv 2306.14289) for the decoupling, EdgeSAM (arXiv 2312.06660) for what makes it work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.distill.architecture.sizing import student as student
    from edgekit.distill.card_page import card_table as card_table
    from edgekit.distill.cutting.site import find_site as find_site
    from edgekit.distill.cutting.site import sites as sites
    from edgekit.distill.cutting.splicing import splice as splice
    from edgekit.distill.decoupled import distill as distill
    from edgekit.distill.distill_options import DistillOptions as DistillOptions
    from edgekit.distill.refine import RefineOptions as RefineOptions
    from edgekit.distill.restoring import restore as restore
    from edgekit.distill.training.fit_options import FitOptions as FitOptions

_HOME = {
    "DistillOptions": "distill_options",
    "FitOptions": "training.fit_options",
    "RefineOptions": "refine",
    "card_table": "card_page",
    "distill": "decoupled",
    "find_site": "cutting.site",
    "restore": "restoring",
    "sites": "cutting.site",
    "splice": "cutting.splicing",
    "student": "architecture.sizing",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"edgekit.distill.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edgekit.distill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
