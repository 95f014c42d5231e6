"""Calls with a time limit, for drivers and kernel files that may hang instead of returning an error.

Each call runs in its own daemon thread. A thread that hangs cannot be stopped, so it is abandoned; it does not keep
the process from exiting.
"""

# changes no number: how long a call is waited for
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 10.0


def within(limit_s: float, call: Callable[..., T], *args: object) -> tuple[T | None, str | None]:
    """Call a function with a time limit.

    Args:
        limit_s: how long it may take.
        call: the function.
        args: its arguments.

    Returns:
        (its result, None); or (None, why it failed: it took too long, or it raised), in one line.
    """
    outcomes: list[tuple[T | None, str | None]] = []

    def answer() -> None:
        try:
            outcomes.append((call(*args), None))
        except Exception as error:
            outcomes.append((None, said(error)))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(limit_s)
    return outcomes[0] if outcomes else (None, f"no answer within {limit_s:g} s")


def said(error: Exception) -> str:
    """Format an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class Asker:
    """Calls to one meter; after the first one that fails, no more are made.

    Attributes:
        silent: why it is not called any more; None while it answers.
    """

    def __init__(self) -> None:
        self.silent: str | None = None

    def ask(self, call: Callable[..., T], *args: object, more_s: float = 0.0) -> T | None:
        """Return the result of a call, or None if it takes longer than `LIMIT_S` plus the `more_s` that it needs."""
        if self.silent is not None:
            return None
        answer, self.silent = within(LIMIT_S + more_s, call, *args)
        return answer
