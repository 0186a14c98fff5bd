"""`file.py:factory` or `package.module:factory`: your own code.

The factory takes no arguments and returns a module, or `(module, example_inputs)` with a tensor, a tuple of tensors or
a dict of them, or an `edgekit.Loaded`, which carries preprocessing and labels too.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from edgekit.errors import InvalidInput, UnsupportedModel, unknown_name
from edgekit.model import Loaded, LoadOptions


def load(ref: str, options: LoadOptions) -> Loaded:
    """Import the file or module and call its factory."""
    made = call_factory(ref)
    if isinstance(made, Loaded):
        return made
    module, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise UnsupportedModel(
            f"factory '{ref}' returned a {type(made).__name__}; it must return a torch.nn.Module, "
            "or (module, example_inputs)"
        )
    return Loaded(module=module, example=example)


def call_factory(ref: str, *arguments: object) -> object:
    """What a factory returns for these arguments. This runs somebody's code.

    Raises `InvalidInput` for code that cannot be imported, `UnknownName` for a factory that is not in it, and
    `UnsupportedModel` for what the factory raises.
    """
    place, _, factory_name = ref.rpartition(":")
    with _neighbours(place):
        namespace = _import(place)
        factory = getattr(namespace, factory_name, None)
        if not callable(factory):
            found = (n for n, v in vars(namespace).items() if callable(v) and not n.startswith("_"))
            raise unknown_name(f"factory in '{place}'", factory_name, found)
        try:
            return factory(*arguments)
        except (Exception, SystemExit) as error:  # user code may raise anything
            raise UnsupportedModel(f"factory '{ref}' raised {type(error).__name__}: {error}") from error


@contextmanager
def _neighbours(place: str) -> Iterator[None]:
    """Let a file import what lies beside it, and a module be found in the working folder, as `python` itself would."""
    before = list(sys.path)
    sys.path.insert(0, str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _import(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place).resolve()
        if not path.is_file():
            raise InvalidInput(f"no file '{place}'")
        name = f"edgekit_source_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise InvalidInput(f"'{place}' cannot be imported as Python")
        namespace = importlib.util.module_from_spec(spec)
        sys.modules[name] = namespace  # classes defined in the file look themselves up here
        spec.loader.exec_module(namespace)
        return namespace
    except InvalidInput:
        raise
    except ModuleNotFoundError as error:
        raise InvalidInput(f"cannot import '{place}': {error}") from error
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise InvalidInput(f"importing '{place}' raised {type(error).__name__}: {error}") from error
