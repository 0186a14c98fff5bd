"""A training run on disk: one file that is replaced when its successor is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgekit.errors import InvalidInput
from edgekit.folder import write_errors
from edgekit.types import Value

FILE = "fit.pt"


class Checkpoint:
    """The file of a run in a folder; `run` says which run it is."""

    def __init__(self, folder: Path, run: Value) -> None:
        self.path, self._run = folder / FILE, msgspec.to_builtins(run)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file. Raises `InvalidInput` where the disk is full; the file that was there stays."""
        part = self.path.with_name(f"{FILE}.part")
        with write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as stream:
                    torch.save({"run": self._run, "state": state}, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """What was saved of this run, None where nothing was.

        Raises `InvalidInput` where the file is another run's, with what differs, or damaged.
        """
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            run, state = found["run"], found["state"]
        except Exception as error:  # zipfile, pickle and torch raise a dozen types for damaged files
            raise InvalidInput(f"'{self.path}' is no whole checkpoint: delete it to begin anew") from error
        if run != self._run:
            raise InvalidInput(
                f"'{self.path}' is of another run ({_differences(run, self._run)}): "
                "choose another folder, or delete it to begin anew"
            )
        return dict(state)


def _differences(then: Any, now: Any) -> str:
    """`lr was 0.1 and is 0.2`."""
    if not isinstance(then, dict) or then.keys() != now.keys():
        return "it was written by another version of edgekit"
    found = []
    for name, value in now.items():
        if isinstance(value, dict):
            found.append(_differences(then[name], value))
        elif then[name] != value:
            found.append(f"{name} was {_short(then[name])} and is {_short(value)}")
    return ", ".join(filter(None, found))


def _short(value: object) -> str:
    return str(value)[:12]
