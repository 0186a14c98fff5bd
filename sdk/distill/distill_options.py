"""What a run of `edgekit distill` was asked for."""

from __future__ import annotations

import math

from edgekit.distill.architecture.own_student import is_own
from edgekit.distill.refine import RefineOptions
from edgekit.distill.training.fit_options import FitOptions
from edgekit.errors import InvalidInput
from edgekit.types import Value


class DistillOptions(Value, frozen=True, kw_only=True):
    """What to swap for what, and how to learn it."""

    site: str  # module path, or its unique end: "vision_encoder"
    data: str  # in the grammar of `edgekit.dataset`; needs no labels
    student: str = "npu-conv"  # file in `sdk/distill/students/`, or `file.py:factory`, as `own_student` describes it
    params: float | None = None  # a share of the site's up to 1, a number above; 0.1 if left out; no factory's concern
    neck: str | None = None  # module of the site to end the student with, as a path in it: "neck"
    task: str | None = None  # file in `sdk/distill/tasks/`; what fits the model if left out
    truth: str | None = None  # folder with what is true of the images, as the task reads it
    judged_share: float = 0.1  # of the images: kept aside, for the card
    cache: str = "ram"  # embeddings: "ram", "stream" to compute them each time, or a folder
    fit: FitOptions = FitOptions()
    refine: RefineOptions | None = None
    device: str = "cpu"
    min_r2: float | None = None
    min_agreement: float | None = None
    min_quality_share: float | None = None  # of the teacher's quality
    force: bool = False

    def __post_init__(self) -> None:
        """Raises `InvalidInput` that names the option and what it may be."""
        if self.params is not None and not 0 < self.params < math.inf:
            raise InvalidInput(f"params must be a share of the site's up to 1, or a number above, not {self.params:g}")
        if is_own(self.student):
            for name in ("params", "neck"):
                if getattr(self, name) is not None:
                    raise InvalidInput(f"{name} is for students that edgekit builds, and '{self.student}' is your own")
        if not 0 < self.judged_share < 1:
            raise InvalidInput(f"judged_share must be between 0 and 1, not {self.judged_share:g}")
        for name in ("min_r2", "min_agreement", "min_quality_share"):
            if not math.isfinite(getattr(self, name) or 0.0):
                raise InvalidInput(f"{name} must be a number, not {getattr(self, name):g}")
