"""The one error that is the user's to mend, and how a mistake is worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 18  # more would not be one line


class UserError(Exception):
    """Bad input: one line that says where, what was allowed and the nearest name.

    Programs print ``str(error)`` and exit with 2; they never show a traceback for it.
    """


def one_of(what: str, given: object, allowed: Iterable[str]) -> str:
    """Word the mistake "given is not among allowed", with the nearest allowed name.

    Args:
        what: the kind of thing, in the singular ("precision").
        given: the value found.
        allowed: every value that would have been accepted.
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    shown = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"… ({len(names)} in all)"]
    return f"unknown {what} {given!r}; allowed: {', '.join(shown) or 'none'}{hint}"
