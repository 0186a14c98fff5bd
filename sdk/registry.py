"""Find plugins by file name, without importing them.

A plugin is one public module in a package's folder: its file name is its public name. Third parties add theirs with an
entry point in the group of the same name, for example `[project.entry-points."edgekit.exporters"]`.
"""

from __future__ import annotations

import ast
import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from edgekit.errors import unknown_name


def names(package: str) -> tuple[str, ...]:
    """The plugins of `package`, for example `edgekit.exporters`. Imports only the (empty) package itself."""
    paths = import_module(package).__path__
    found = pkgutil.iter_modules(paths)
    own = {module.name for module in found if not module.ispkg and not module.name.startswith("_")}
    return tuple(sorted(own | set(_external(package))))


def load(package: str, name: str) -> ModuleType:
    """Import one plugin. Raises `UnknownName` with the nearest match when there is none."""
    if name not in names(package):
        raise unknown_name(_kind(package), name, names(package))
    external = _external(package)
    if name in external:
        module = external[name].load()
        if not isinstance(module, ModuleType):
            raise TypeError(f"entry point '{name}' of group '{package}' must name a module, not {module!r}")
        return module
    return import_module(f"{package}.{name}")


def summary(package: str, name: str) -> str:
    """First docstring line of a plugin, read from its source so that its toolchain is not imported."""
    external = _external(package)
    try:
        spec = find_spec(external[name].module if name in external else f"{package}.{name}")
    except ModuleNotFoundError:  # a third party's package that is half removed must not break the listing
        return ""
    if spec is None or spec.origin is None:
        return ""
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def _kind(package: str) -> str:
    plural = package.rpartition(".")[2].replace("_", " ")
    return plural.removesuffix("es") if plural.endswith("sses") else plural.removesuffix("s")


@cache
def _external(package: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=package)}
