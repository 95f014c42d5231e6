"""The error shown to users for bad input, and how its message is built."""

# changes no number: how errors are worded
from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

MOST_MISTAKES = 20  # lines
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


class Mistakes(UserError):  # noqa: N818 - says what they are
    """Several mistakes of one input, a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        rest = [f"and {len(lines) - MOST_MISTAKES} more mistakes"] if len(lines) > MOST_MISTAKES else []
        Exception.__init__(self, "\n".join([*(str(UserError(line)) for line in lines[:MOST_MISTAKES]), *rest]))


def mistaken(errors: Iterable[UserError]) -> UserError:
    """The error to raise for all of these, each line once; a single one is raised as it is."""
    unique = list({str(error): error for error in errors}.values())
    return unique[0] if len(unique) == 1 else Mistakes([str(error) for error in unique])


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


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that is most like a word, whatever its case; None if none is like it."""
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(word[:LONGEST].casefold(), folded, n=1, cutoff=0.4)
    return folded[near[0]] if near else None


def one_of(what: str, value: object, allowed: Iterable[str]) -> str:
    """Build the message for a value that is not allowed, with the nearest allowed name.

    Args:
        what: the kind of thing, in the singular ("precision").
        value: the one that is not allowed.
        allowed: every value that would have been accepted.
    """
    names = [str(name) for name in allowed]
    near = nearest(str(value), names)
    hint = f" (did you mean {near!r}?)" if near else ""
    shown = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"… ({len(names)} in all)"]
    return f"unknown {what} {brief_repr(value)}; allowed: {', '.join(shown) or 'none'}{hint}"
