"""The error shown to users for bad input, and how its message is built."""

# changes no number: how errors are worded
from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

MOST_NAMES = 18  # more would not be one line
LONGEST = 100  # characters of a value that an error shows
LONGEST_LINE = 2000
MOST_LETTERS = 400  # of the reason why a file is corrupt


class UserError(Exception):
    """Bad input: one line that says where, what is allowed and the nearest name.

    Programs print ``str(error)`` and exit with 2; they never show a traceback for it. The message is always a single
    line: unprintable characters are escaped, and long messages are shortened.
    """

    def __init__(self, line: str) -> None:
        line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
        super().__init__(line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 300]} … {line[-300:]}")


def brief_repr(value: object) -> str:
    """Format a value for an error message, shortened if it is long."""
    shown = repr(value)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 4 :]}"


class Corrupt(UserError):  # noqa: N818 - says what the file is
    """A file that the workflow wrote is damaged: it is moved aside and written again.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, reason: str) -> None:
        line = " ".join(reason.split())
        super().__init__(f"{path}: {line[:MOST_LETTERS]}")
        self.path = path


def one_of(what: str, value: object, allowed: Iterable[str]) -> str:
    """Build the message for a value that is not allowed, with the nearest allowed name.

    Args:
        what: the kind of thing, in the singular ("precision").
        value: the one that is not allowed.
        allowed: every value that would have been accepted.
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(value)[:LONGEST], names, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    shown = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"… ({len(names)} in all)"]
    return f"unknown {what} {brief_repr(value)}; allowed: {', '.join(shown) or 'none'}{hint}"
