"""Build a student by name, sized by a budget of parameters."""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from edgekit import registry
from edgekit.distill.architecture.geometry import Form, Geometry, Level, geometry
from edgekit.distill.architecture.layers import multiple_of
from edgekit.distill.architecture.pyramid import Design, Head, Parts, Pyramid
from edgekit.distill.cutting.site import Site
from edgekit.errors import InvalidInput, unknown_name
from edgekit.types import ModelSource, Value

STUDENTS = "edgekit.distill.students"
LEAST_USED = 0.9  # of a budget
WIDEST = 4096  # channels of the last stage
BLOCKS_PER_DOUBLING = 1.5  # of that width, from 8 on


class StudentRecord(Value, frozen=True, kw_only=True):
    """Enough to build a student again; its weights are stored elsewhere."""

    name: str
    options: dict[str, Any]  # of `Design`, and whether it ends in the teacher's neck; none of one's own
    params: int
    source: ModelSource | None = None  # of one's own: its factory (python), or its class (module); see `own_student`


class Student(Pyramid):
    """A student that edgekit built, with the record to build it again."""

    record: StudentRecord


def student(
    name: str, site: Site, *, params: float, neck: nn.Module | None = None, train_neck: bool = False, seed: int = 0
) -> Student:
    """The largest student of that name within a budget, at most 10 % below it, with random weights.

    `params` up to 1 is a share of the site's parameters, above 1 a number of them; buffers do not count. `neck` is the
    last module of the teacher's encoder: a copy of it, frozen unless `train_neck`, ends the student and counts too.
    Takes the site's image [B, C, H, W] by name, and returns its outputs by name.

    Raises `UnknownName`, and `InvalidInput` where the site takes no image, the neck does not fit or the budget is too
    small.
    """
    if not 0 < params < math.inf:
        raise InvalidInput(f"{params} is no size: give a share of the site's parameters (0.1) or a number of them")
    parts, asked = _parts(name), geometry(site)
    budget = int(params * site.params if params <= 1 else params)
    last = _before_neck(neck, asked, site) if neck else None
    design = _design(name, parts, asked, last, budget - (_count(neck) if neck else 0))
    ending = None if neck is None else "trained" if train_neck else "frozen"
    record = StudentRecord(
        name=_public(name),
        options={**msgspec.to_builtins(design), "neck": ending},
        params=_size(parts, asked, design, last) + (_count(neck) if neck else 0),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return rebuild(record, site, neck=neck)


def rebuild(record: StudentRecord, site: Site, *, neck: nn.Module | None = None) -> Student:
    """The student of a record, with random weights; `neck` where it ends in the teacher's.

    Raises `InvalidInput` when the record does not fit the site or itself.
    """
    options = dict(record.options)
    ending = options.pop("neck", None)
    if (neck is None) != (ending is None):
        raise InvalidInput(f"student '{record.name}' was built {'with' if ending else 'without'} the teacher's neck")
    try:
        design = msgspec.convert(options, Design)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"student '{record.name}' has options that are no design: {error}") from error
    parts, asked = _parts(record.name), geometry(site)
    if len(design.widths) != len(asked.stages) + 1 or len(design.depths) != len(asked.stages):
        raise InvalidInput(
            f"student '{record.name}' has {len(design.depths)} stages, and its site asks for {len(asked.stages)}"
        )
    last = _before_neck(neck, asked, site) if neck else None
    if record.params != (params := _size(parts, asked, design, last) + (_count(neck) if neck else 0)):
        raise InvalidInput(f"student '{record.name}' says {record.params} parameters; its options make {params}")
    built = Student(asked, design, parts, _heads(asked, design, last))
    if neck is not None:
        ended = nn.Sequential(built.heads[0], copy.deepcopy(neck).requires_grad_(ending == "trained"))
        built.heads[0] = ended
    built.record = record
    return built.to(getattr(torch, asked.dtype))


def _parts(name: str) -> Parts:
    """The file of a student; its public name has `-` for `_`, and both are taken."""
    known = {_public(plugin): plugin for plugin in registry.names(STUDENTS)}
    if _public(name) not in known:
        raise unknown_name("student", name, known)
    parts: Parts = registry.load(STUDENTS, known[_public(name)])
    return parts


def _public(name: str) -> str:
    return name.replace("_", "-")


def _design(name: str, parts: Parts, asked: Geometry, last: Level | None, budget: int) -> Design:
    """The design with most parameters within the budget: the widest at every ratio, and the largest of these."""
    least, most = parts.RATIOS

    def size(steps: int, ratio: float) -> int:
        return _size(parts, asked, _scaled(parts, asked, steps * parts.MULTIPLE, ratio), last)

    found: dict[int, Design] = {}
    steps = bisect_right(range(1, WIDEST // parts.MULTIPLE + 1), budget, key=lambda steps: size(steps, least))
    for quarter in range(round(4 * least), round(4 * most) + 1):  # with the ratio the widest that fits gets narrower
        while steps and (params := size(steps, quarter / 4)) > budget:
            steps -= 1
        if steps:
            found[params] = _scaled(parts, asked, steps * parts.MULTIPLE, quarter / 4)
    if not found:
        raise InvalidInput(
            f"{max(0, budget)} parameters are too few for a student '{_public(name)}' of this site, whose smallest has "
            f"{size(1, least)} without a neck: raise --params, or take another student"
        )
    if max(found) < LEAST_USED * budget:
        raise InvalidInput(
            f"no student '{_public(name)}' of this site has nearly {budget} parameters; the next smaller one has "
            f"{max(found)}: change --params"
        )
    return found[max(found)]


def _scaled(parts: Parts, asked: Geometry, width: int, ratio: float) -> Design:
    """The design whose last stage has this width: half of it, and half the blocks, in each stage before."""
    shares = [2.0 ** (index + 1 - len(asked.stages)) for index in range(len(asked.stages))]
    widths = [multiple_of(parts.MULTIPLE, width * share) for share in (shares[0] / 2, *shares)]
    blocks = max(1.0, BLOCKS_PER_DOUBLING * math.log2(width / 8))
    return Design(widths=tuple(widths), depths=tuple(max(1, round(blocks * share)) for share in shares), ratio=ratio)


def _heads(asked: Geometry, design: Design, last: Level | None) -> list[nn.Module]:
    levels = [last] if last else asked.levels
    return [Head(design.widths[1 + asked.stage_of(level)], level) for level in levels]


def _size(parts: Parts, asked: Geometry, design: Design, last: Level | None) -> int:
    """Parameters of a student without its neck."""
    with torch.device("meta"):
        return _count(Pyramid(asked, design, parts, _heads(asked, design, last)))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _before_neck(neck: nn.Module, asked: Geometry, site: Site) -> Level:
    """What the neck takes: the form in which it answers with the site's output. Raises `InvalidInput`."""
    if len(site.outputs) != 1:
        raise InvalidInput(f"a neck makes one output, and site '{site.path}' has {len(site.outputs)}: leave it out")
    (output,), (level,) = site.outputs, asked.levels
    weight = next(neck.parameters(), None)
    if weight is None:
        raise InvalidInput(f"the neck, a {type(neck).__name__}, has no weights: leave it out")
    channels, size = weight.shape[1 if weight.dim() > 1 else 0], level.size or asked.stages[-1].size
    forms: dict[Form, tuple[int, ...]] = {
        "map": (channels, *size),
        "channels_last": (*size, channels),
        "tokens": (size[0] * size[1], channels),
        "vector": (channels,),
    }
    for form, shape in forms.items():
        try:
            with torch.no_grad():
                answer = neck(torch.zeros(2, *shape, dtype=weight.dtype))
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue
        if isinstance(answer, Tensor) and answer.shape == (2, *output.shape[1:]):
            return Level(name=level.name, form=form, channels=channels, size=None if form == "vector" else size)
    raise InvalidInput(
        f"the neck, a {type(neck).__name__}, does not make '{output}' of {channels} channels at {size[0]}x{size[1]}: "
        "leave it out"
    )
