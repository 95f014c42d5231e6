"""Entry points of the rules: each parses its arguments, calls the package once, and writes files."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

from joulesweep.core.errors import UserError
from joulesweep.measure.machine import too_new

SUFFIX = re.compile(r"[.](jsonl|json|safetensors)$")


def run_script(work: Callable[[], None], begins: str = "") -> None:
    """Run a script's work; bad input gives one line on stderr and exit code 2, without a traceback.

    Args:
        work: the script's `main`.
        begins: printed first, so that a long silence has a name; `{folder}` is the file name given with `--folder`.
    """
    options = {word.lstrip("-").replace("-", "_"): value for word, value in itertools.pairwise(sys.argv[1:])}
    names = {option: SUFFIX.sub("", Path(value).name) for option, value in options.items()}
    if begins and options:
        with contextlib.suppress(KeyError):  # a command line that the script will refuse
            print(begins.format_map(names), file=sys.stderr, flush=True)
    try:
        work()
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(2)


def note_versions() -> None:
    """Print which libraries of the training are newer than tested.

    Raises:
        UserError: a library is too old.
    """
    for line in too_new():
        print(f"note: {line}", file=sys.stderr)
