"""Files of a model folder, which anyone may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidInput


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no file. Raises `InvalidInput`."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"'{path}' must hold a JSON object")
    return content
