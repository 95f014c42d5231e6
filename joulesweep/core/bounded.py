"""Calls that may never come back: a driver, or a file of the kernel, in trouble hangs rather than answers.

Such a call is made in a thread of its own. A thread that hangs cannot be ended, so it is left alone; it ends with the
process, which it does not keep from ending.
"""

# changes no number: how long a call is waited for
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 10.0


def within(limit_s: float, call: Callable[..., T], *args: object) -> tuple[T | None, str | None]:
    """What a call returns, or why it did not: it took too long, or raised an exception.

    Args:
        limit_s: how long it may take.
        call: the function.
        args: its arguments.

    Returns:
        (the answer, None), or (None, the reason in one line).
    """
    found: list[tuple[T | None, str | None]] = []

    def answer() -> None:
        try:
            found.append((call(*args), None))
        except Exception as error:
            found.append((None, said(error)))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(limit_s)
    return found[0] if found else (None, f"no answer within {limit_s:g} s")


def said(error: Exception) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class Asker:
    """Asks one meter several things; once it has not answered in time, it is not asked again.

    Attributes:
        silent: why it is not asked any more; None while it answers.
    """

    def __init__(self) -> None:
        self.silent: str | None = None

    def ask(self, call: Callable[..., T], *args: object, more_s: float = 0.0) -> T | None:
        """What a call returns, or None if that takes more than `LIMIT_S` and the seconds that it needs itself."""
        if self.silent is not None:
            return None
        answer, self.silent = within(LIMIT_S + more_s, call, *args)
        return answer
