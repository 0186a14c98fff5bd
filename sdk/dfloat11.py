"""Folders in the DFloat11 layout: which tensors are coded together, and under which names they are stored.

`config.json` carries `dfloat11_config`, whose `pattern_dict` leads from a regular expression of module paths to the
linear layers below such a module, in the order in which they are coded: `model\\.layers\\.\\d+` to `self_attn.q_proj`
and so on. A module without any is coded itself, as an embedding is. Weights that no pattern covers are stored as they
are. Shapes are stored nowhere: they come from the model. Source: dfloat11 0.5.0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise

from edgekit.codec import Bits
from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.formats.df11 import NAMES, decode_group
from edgekit.processing import Array
from edgekit.types import Value

CONFIG = "dfloat11_config"  # in config.json
MARK = "encoded_exponent"  # the part that shows that a module's weights are coded
WEIGHT = "weight"
NUMBERED = re.compile(r"(.+?\.\d+)\.(.+)")  # the first numbered module on a path, and what is below it
ATOM = re.compile(
    r"(?P<digits>(?:\\d|\[0-9\])\+?)"
    r"|\((?:\?:)?(?P<choice>(?:[^\\()\[\]{}*+?^$]|\\[^a-zA-Z0-9|])*)\)(?P<maybe>\??)"
    r"|(?P<literal>[^\\()\[\]{}*+?|^$]|\\[^a-zA-Z0-9])"
)  # what patterns are made of; a dot may be any character

Patterns = dict[str, tuple[str, ...]]


class DFloat11Config(Value, frozen=True, kw_only=True):
    """What a reader must know beside the tensors; the fields are the package's."""

    version: str = "0.5.0"
    threads_per_block: tuple[int, ...] = (512,)
    bytes_per_thread: int = 8
    pattern_dict: Patterns

    def __post_init__(self) -> None:
        """Refuse a layout that is not the one `formats/df11.py` describes."""
        if self.threads_per_block != (512,) or self.bytes_per_thread != 8:
            found = f"{list(self.threads_per_block)} threads of {self.bytes_per_thread} bytes"
            raise InvalidInput(f"{CONFIG} has blocks of {found}; edgekit reads those of [512] threads of 8 bytes")


class Group(Value, frozen=True, kw_only=True):
    """Tensors that are coded as one stream, in this order, and the path under which its parts are stored."""

    path: str
    tensors: tuple[str, ...]

    @property
    def keys(self) -> dict[str, str]:
        """The name of every part in the file, by its name in `formats/df11.py`."""
        return {part: f"{self.path}.{part}" for part in NAMES}

    def decode(self, parts: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Bits]:
        """The bit patterns of every tensor; `shapes` may have others too. Raises `InvalidInput` if it lacks one."""
        if unknown := [name for name in self.tensors if name not in shapes]:
            raise InvalidInput(f"the shape of '{unknown[0]}' is not known, and DFloat11 files do not store shapes")
        try:
            found = decode_group(parts, [shapes[name] for name in self.tensors])
        except CorruptWeights as error:
            raise CorruptWeights(f"'{self.path}': {error}") from error
        return dict(zip(self.tensors, found, strict=True))

    def check(self, parts: Mapping[str, Array]) -> int:
        """Decode the stream without shapes and return its number of weights. Raises `CorruptWeights`."""
        cuts = parts["split_positions"]
        if cuts.size + 1 != len(self.tensors):
            raise CorruptWeights(f"'{self.path}' holds {cuts.size + 1} tensors, and {CONFIG} names {len(self.tensors)}")
        edges = [0, *cuts.reshape(-1).tolist(), parts["sign_mantissa"].size]
        sizes = [(end - begin,) for begin, end in pairwise(edges)]
        return sum(bits.size for bits in self.decode(parts, dict(zip(self.tensors, sizes, strict=True))).values())


def plan_groups(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Patterns, tuple[Group, ...]]:
    """The patterns and the groups for a model, given the shapes of its bf16 tensors.

    Matrices called `weight` are coded: those below a numbered module, such as `model.layers.7`, in one group, the
    others each in its own.
    """
    modules: dict[str, list[str]] = {}  # path -> what is coded below it; nothing for the module itself
    for name in sorted(name for name, shape in shapes.items() if len(shape) == 2):
        path, _, last = name.rpartition(".")
        numbered = NUMBERED.fullmatch(path)
        if path and last == WEIGHT:
            modules.setdefault(numbered[1] if numbered else path, []).extend([numbered[2]] if numbered else [])
    groups = tuple(_group(path, below) for path, below in modules.items())
    return _describe(modules), groups


def _describe(modules: Mapping[str, Iterable[str]]) -> Patterns:
    """Patterns for these modules: one for all blocks of a list that hold the same layers."""
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for path, below in modules.items():
        parent, _, last = path.rpartition(".")
        key, number = (f"{parent}.", last) if parent and last.isdecimal() else (path, "")
        alike.setdefault((key, tuple(below)), []).append(number)
    kinds = Counter(key for key, _ in alike)
    return {
        re.escape(key) + (_numbers(numbers, alone=kinds[key] == 1) if key.endswith(".") else ""): below
        for (key, below), numbers in alike.items()
    }


def _numbers(numbers: Iterable[str], alone: bool) -> str:
    return r"\d+" if alone else f"({'|'.join(sorted(numbers, key=int))})"


def stored_groups(names: Collection[str], config: DFloat11Config) -> tuple[Group, ...]:
    """The groups in files with tensors of these names. Raises `CorruptWeights` when the patterns do not fit them."""
    patterns = [(_compile(pattern), below) for pattern, below in config.pattern_dict.items()]
    taken = set(names)
    groups = []
    for path in sorted(name.rpartition(".")[0] for name in names if name.rpartition(".")[2] == MARK):
        below = next((below for pattern, below in patterns if pattern.fullmatch(path)), None)
        if below is None:
            raise CorruptWeights(f"no pattern of {CONFIG} says which weights are coded in '{path}.{MARK}'")
        group = _group(path, below)
        if lost := [key for key in group.keys.values() if key not in taken]:
            raise CorruptWeights(f"'{lost[0]}' is missing beside '{path}.{MARK}'")
        for name in group.tensors:
            if name in taken:
                raise CorruptWeights(f"'{name}' is stored twice; once in '{path}.{MARK}'")
            taken.add(name)
        groups.append(group)
    return tuple(groups)


def _group(path: str, below: Iterable[str]) -> Group:
    return Group(path=path, tensors=tuple(f"{path}.{layer}.{WEIGHT}" for layer in below) or (f"{path}.{WEIGHT}",))


def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern that matches the same paths in a time that only grows with their length, whoever wrote it.

    It takes back nothing: all the digits that follow, and of a choice the longest that fits.
    """
    parts, at = [], 0
    while at < len(pattern):
        atom = ATOM.match(pattern, at)
        if atom is None:
            raise InvalidInput(
                f"edgekit does not read the pattern '{pattern}' of {CONFIG} from '{pattern[at:]}' on: "
                r"names, \d+ and (a|b) are what it knows"
            )
        if atom["digits"]:
            parts.append(atom["digits"].replace("+", "++"))
        elif atom["choice"] is not None:
            choice = sorted(atom["choice"].split("|"), key=len, reverse=True)
            parts.append(f"(?>{'|'.join(choice)}){'?+' if atom['maybe'] else ''}")
        else:
            parts.append(atom["literal"])
        at = atom.end()
    return re.compile("".join(parts))
