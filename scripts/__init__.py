"""Entry points of the rules: each parses its arguments, calls the package once, and writes files."""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

from joulesweep.core import interrupts, processes
from joulesweep.core.errors import UserError
from joulesweep.measure.machine import too_new

#: Errors of a place to write to, not of a program.
OF_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE}
SUFFIX = re.compile(r"[.](jsonl|json|safetensors)$")

if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("scripts."):
    interrupts.end_silently()  # as long as the script imports what it needs
    processes.seldom_look_for_cycles()


def run_script(work: Callable[[], None], begins: str = "") -> None:
    """Run a script's work; bad input gives one line on stderr and exit code 2, without a traceback.

    So does a disk that is full or may not be written to, with exit code 1. A script that is interrupted says nothing:
    the workflow does.

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
        with interrupts.heeded():
            work()
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in OF_PLACE:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(interrupts.EXIT_CODE)


def note_versions() -> None:
    """Print which libraries of the training are newer than tested.

    Raises:
        UserError: a library is too old.
    """
    for line in too_new():
        print(f"note: {line}", file=sys.stderr)
