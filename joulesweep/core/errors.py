"""The one error that is the user's to mend, and how a mistake is worded."""

# changes no number: how errors are worded
from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

MOST_NAMES = 18  # more would not be one line
LONGEST = 100  # characters of a value that an error shows
LONGEST_LINE = 2000
MOST_LETTERS = 400  # of what a corrupt file says of itself


class UserError(Exception):
    """Bad input: one line that says where, what was allowed and the nearest name.

    Programs print ``str(error)`` and exit with 2; they never show a traceback for it. Whatever the input holds, the
    line stays one: what cannot be printed is written as escapes, and it is cut where long.
    """

    def __init__(self, line: str) -> None:
        line = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)
        super().__init__(line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 300]} … {line[-300:]}")


def brief_repr(value: object) -> str:
    """A value as an error shows it."""
    shown = repr(value)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 4 :]}"


class Corrupt(UserError):  # noqa: N818 - says what the file is
    """A file that the workflow wrote is not what it should be: moved aside, it is made again.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, reason: str) -> None:
        line = " ".join(reason.split())
        super().__init__(f"{path}: {line[:MOST_LETTERS]}")
        self.path = path


def one_of(what: str, given: object, allowed: Iterable[str]) -> str:
    """Word the mistake "given is not among allowed", with the nearest allowed name.

    Args:
        what: the kind of thing, in the singular ("precision").
        given: the value found.
        allowed: every value that would have been accepted.
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(given)[:LONGEST], names, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    shown = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"… ({len(names)} in all)"]
    return f"unknown {what} {brief_repr(given)}; allowed: {', '.join(shown) or 'none'}{hint}"
