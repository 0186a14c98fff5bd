"""The errors edgekit raises on purpose, and the exit code each one becomes on the command line.

    EdgekitError
    ├── GateMissed              1  the work was done and a promise was not kept
    │   ├── ParityFailed           the artifact answers differently from PyTorch
    │   ├── DelegationMissed       too few ops run on the unit meant for them
    │   └── PlanInfeasible         a budget or the device cannot be met
    ├── InvalidInput            2  something given to edgekit cannot be used as it is
    │   ├── UnknownName            no such device, model, plugin
    │   ├── UnsupportedModel       the model cannot be loaded, traced or converted
    │   ├── BundleCorrupt          a bundle's files are not what its manifest says
    │   ├── CorruptWeights         compressed weights that cannot be what was stored
    │   └── OutputExists           the output is there already
    ├── ToolchainMissing        3  an optional package is missing or of a wrong version
    │   └── MeterMissing           nothing here can measure energy
    └── DeviceUnreachable       4  there is no way to the device
        ├── DeviceLost             it went away in the middle
        └── DeviceBusy             it measures for somebody else

A message says what was asked, what was found, what is allowed, and the command or edit that fixes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import ClassVar

SHOWN = 40  # names in a message


class EdgekitError(Exception):
    """Any error with a message meant for the person at the keyboard."""

    exit_code: ClassVar[int] = 2


class GateMissed(EdgekitError):
    """The command finished its work, and the result misses a promise."""

    exit_code = 1


class ParityFailed(GateMissed):
    """The exported artifact does not answer like the PyTorch model."""


class DelegationMissed(GateMissed):
    """Too few ops of the artifact run on the unit that is meant to run them."""


class PlanInfeasible(GateMissed):
    """No plan meets the device's limits or the given budgets."""


class InvalidInput(EdgekitError):
    """An argument, file or value that cannot be used as it is."""


class UnknownName(InvalidInput):
    """A name that nothing carries; the message offers the nearest ones."""


class UnsupportedModel(InvalidInput):
    """A model that cannot be loaded, traced or converted."""


class BundleCorrupt(InvalidInput):
    """A bundle whose files are not what its manifest says."""


class CorruptWeights(InvalidInput):
    """Compressed weights that cannot be what was stored."""


class OutputExists(InvalidInput):
    """An output folder that is already there."""


class ToolchainMissing(EdgekitError):
    """An optional package is missing or of a version edgekit was not tested with."""

    exit_code = 3


class MeterMissing(ToolchainMissing):
    """No energy meter that fits can be read here; the message says of each why, and how to enable it."""


class DeviceUnreachable(EdgekitError):
    """A device that cannot be spoken to."""

    exit_code = 4


class DeviceLost(DeviceUnreachable):
    """A device that was there and answers no more; the message says what was reached."""


class DeviceBusy(DeviceUnreachable):
    """A device that measures for somebody else."""


def reason_of(error: BaseException) -> str:
    """The first line of a toolchain's error, and those after it while they end in a colon: what is named comes last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    count = next((i for i, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:count])


def unknown_name(kind: str, name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> UnknownName:
    """The error for a name that is not in `known`, with the nearest match if one is near; `aliases` lead to names."""
    choices = sorted(known)
    spellings = {choice: choice for choice in choices} | {alias.lower(): to for alias, to in (aliases or {}).items()}
    near = get_close_matches(name.lower(), spellings, n=1, cutoff=0.5)
    hint = f" Did you mean '{spellings[near[0]]}'?" if near else ""
    more = f" and {len(choices) - SHOWN} more" if len(choices) > SHOWN else ""
    return UnknownName(f"no {kind} is called '{name}'.{hint} There are: {', '.join(choices[:SHOWN]) or 'none'}{more}.")
