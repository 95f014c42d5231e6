"""Entry points of the rules: each parses its arguments, calls the package once, and writes files."""

from __future__ import annotations

import sys
from collections.abc import Callable

from joulesweep.core.errors import UserError
from joulesweep.measure.machine import too_new


def run_script(work: Callable[[], None]) -> None:
    """Run a script's work; bad input gives one line on stderr and exit code 2, without a traceback."""
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def note_versions() -> None:
    """Print which libraries of the training are newer than tested.

    Raises:
        UserError: a library is too old.
    """
    for line in too_new():
        print(f"note: {line}", file=sys.stderr)
