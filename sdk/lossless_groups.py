"""Tensors that the DFloat11 layout codes together: which they are, their stream, and what config.json says of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import msgspec

from edgekit.codec import RAW_BITS, SMALLEST, WORTH, NoGain, Parts
from edgekit.dfloat11 import CONFIG, DFloat11Config, Patterns, plan_groups
from edgekit.formats.df11 import encode_group
from edgekit.lossless_folder import CODED_DTYPE, Place
from edgekit.tensorfile import TensorEntry, TensorFile


@dataclass(frozen=True)
class Planned:
    """Tensors to be coded as one stream, in its order, and where its parts go: into the file of the first to be met."""

    at: Place  # its `tensor` is the module path
    members: dict[Place, TensorEntry]

    @property
    def bytes(self) -> int:
        """Size of all members."""
        return sum(entry.bytes for entry in self.members.values())

    def share(self, place: Place, stored_bytes: int) -> int:
        """The part of the stream's bytes that one member answers for; all of them make the whole."""
        before = sum(entry.bytes for entry in list(self.members.values())[: list(self.members).index(place)])
        after = before + self.members[place].bytes
        return stored_bytes * after // self.bytes - stored_bytes * before // self.bytes


@dataclass(frozen=True)
class GroupPlan:
    """The groups of a source, and the patterns that describe them, by the folder of the files."""

    groups: dict[Place, Planned]  # by member
    patterns: dict[PurePosixPath, Patterns]


def plan(weights: Mapping[str, TensorFile]) -> GroupPlan:
    """The groups of all files, which are one model in each folder. A name that two files use is in none."""
    folders: dict[PurePosixPath, dict[str, list[tuple[Place, TensorEntry]]]] = defaultdict(lambda: defaultdict(list))
    order: dict[Place, int] = {}
    for path, file in weights.items():
        for entry in file.tensors:
            if entry.dtype == CODED_DTYPE and entry.bytes:
                place = Place(file=path, tensor=entry.name)
                order[place] = len(order)
                folders[PurePosixPath(path).parent][entry.name].append((place, entry))
    found = GroupPlan({}, {})
    for folder, named in folders.items():
        patterns, groups = plan_groups({name: all_[0][1].shape for name, all_ in named.items() if len(all_) == 1})
        found.patterns[folder] = patterns
        for group in groups:
            members = dict(named[name][0] for name in group.tensors)
            planned = Planned(Place(file=min(members, key=order.__getitem__).file, tensor=group.path), members)
            found.groups.update(dict.fromkeys(members, planned))
    return found


def encode(planned: Planned, weights: Mapping[str, TensorFile]) -> Parts:
    """The stream of a group. Raises `NoGain` with the reason when its tensors should stay raw."""
    count = planned.bytes * 8 // RAW_BITS
    if count < SMALLEST:
        raise NoGain(f"fewer than {SMALLEST} weights")
    parts = encode_group([weights[place.file].array(entry) for place, entry in planned.members.items()])
    if (rate := 8 * sum(part.nbytes for part in parts.values()) / count) > WORTH * RAW_BITS:
        raise NoGain(f"df11 needs {rate:.2f} bits a weight, more than {WORTH:.0%} of {RAW_BITS}")
    return parts


def configured(text: bytes, patterns: Patterns) -> bytes | None:
    """A config.json that tells the dfloat11 package how to read the files beside it; None for what is no object."""
    try:
        config = json.loads(text.decode())
    except ValueError:
        return None
    if not isinstance(config, dict):
        return None
    said = msgspec.to_builtins(DFloat11Config(pattern_dict=patterns))
    return json.dumps(config | {CONFIG: said}, indent=2).encode() + b"\n"
