"""The `edgekit` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors become one sentence and the exit code of their class."""
    from edgekit.cli.app import run

    sys.exit(run(sys.argv[1:]))
