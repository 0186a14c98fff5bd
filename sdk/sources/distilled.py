"""A folder that `edgekit distill` wrote: the teacher's architecture with the student in it, and the weights of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from edgekit import registry
from edgekit.distill.architecture.layers import fused
from edgekit.distill.architecture.own_student import FACTORY, build
from edgekit.distill.architecture.sizing import rebuild
from edgekit.distill.cutting.site import Site
from edgekit.distill.cutting.splicing import Adapter, splice
from edgekit.distill.record import WEIGHTS, Distilled, read_record, read_weights
from edgekit.errors import CorruptWeights, EdgekitError, InvalidInput
from edgekit.model import Loaded, LoadOptions, Model, make_model, weights_sha256
from edgekit.sources import huggingface
from edgekit.sources._segment_anything import with_prompts
from edgekit.types import ModelSource

SOURCES = "edgekit.sources"
RUNS_CODE = ("python",)  # kinds of sources whose reference is somebody's Python


def load(ref: str, options: LoadOptions, student: nn.Module | None = None) -> Loaded:
    """Build the teacher again, put the student in, and load the weights of both.

    A Hugging Face teacher is built from the config in this folder, any other from where it came from; so is a student
    of the user's own, unless it is given. Raises `InvalidInput` and `CorruptWeights` for a folder that is not what
    `edgekit distill` writes.
    """
    folder = Path(ref)
    record = read_record(folder)
    _check(folder, record, options, student)
    own = _own(folder, record) if student is None else student
    loaded = with_prompts(_teacher(folder, record, options))
    teacher = make_model(record.source, loaded, options)
    try:
        spliced = splice(teacher, record.site, _rebuilt(teacher, record) if own is None else own)
    except EdgekitError as error:
        raise InvalidInput(f"'{folder}' does not fit its teacher '{record.source.ref}': {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:  # nonsense in distilled.json
        raise InvalidInput(
            f"'{folder}' does not fit its teacher '{record.source.ref}': {type(error).__name__}: {error}"
        ) from error
    read_weights(spliced, folder / WEIGHTS)
    if weights_sha256(spliced) != record.sha256:
        raise CorruptWeights(f"'{folder / WEIGHTS}' was altered: its weights are not those that were distilled")
    _fuse(spliced, record.site)
    return replace(loaded, module=spliced.eval())


def _check(folder: Path, record: Distilled, options: LoadOptions, student: nn.Module | None) -> None:
    teacher, own = record.source, record.student.source
    if teacher.kind not in registry.names(SOURCES) or teacher.kind == "distilled":
        raise InvalidInput(f"'{folder}' names a teacher of kind '{teacher.kind}', which nothing can be distilled from")
    _check_code(folder, "teacher", teacher, options)
    if own is not None and student is None:
        if own.kind != FACTORY:
            raise InvalidInput(
                f"the student in '{folder}' is a {own.ref} that a program gave as a module, which no folder can build: "
                "give one to edgekit.distill.restore(folder, student)"
            )
        _check_code(folder, "student", own, options)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise InvalidInput(f"'{weights}' is missing: copy the whole folder again")
    if record.student.params > weights.stat().st_size:  # before memory is asked for
        raise CorruptWeights(f"'{weights}' is too small for a student of {record.student.params} parameters")


def _check_code(folder: Path, role: str, source: ModelSource, options: LoadOptions) -> None:
    if source.kind in RUNS_CODE and not options.trust_remote_code:
        raise InvalidInput(
            f"'{folder}' needs its {role}'s own code, '{source.ref}', and did not run it: "
            "read it, and add --trust-remote-code if you trust it"
        )


def _teacher(folder: Path, record: Distilled, options: LoadOptions) -> Loaded:
    if record.source.kind == "huggingface":
        return huggingface.load_untrained(str(folder), options)
    loaded: Loaded = registry.load(SOURCES, record.source.kind).load(record.source.ref, options)
    return loaded


def _own(folder: Path, record: Distilled) -> nn.Module | None:
    """The student of the user's own from its factory; None where edgekit built it."""
    if record.student.source is None:
        return None
    try:
        return build(record.student.source.ref, record.site)
    except EdgekitError as error:
        raise InvalidInput(f"the student of '{folder}' cannot be built again: {error}") from error


def _rebuilt(teacher: Model, record: Distilled) -> nn.Module:
    module, neck = teacher.module.get_submodule(record.site.path), record.options.neck
    return rebuild(record.student, record.site, neck=module.get_submodule(neck) if neck else None)


def _fuse(spliced: nn.Module, site: Site) -> None:
    """Branches that only training needs become one convolution; the answers stay."""
    adapter = spliced.get_submodule(site.path)
    if isinstance(adapter, Adapter):
        adapter.student = fused(adapter.student)
