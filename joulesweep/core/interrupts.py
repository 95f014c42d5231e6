"""What Ctrl-C does to a process of ours: it ends, with no traceback."""

# changes no number: how a process ends
from __future__ import annotations

import _thread
import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGINT


def end_silently() -> None:
    """End at once at an interrupt, for as long as there is nothing to clean up; one that is ignored stays so."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """In the block, an interrupt raises KeyboardInterrupt; further ones do not disturb the cleaning up."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, _once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ignore() -> None:
    """Ignore from now on what would end this process early, as it ends by itself."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def handle_in_a_thread(signum: int) -> None:
    """Let the present handler of a signal run in a thread of its own.

    Snakemake's handler of SIGTERM waits for a lock: in the main thread, for ever if that holds the lock at the moment.
    """
    handler = signal.getsignal(signum)
    if callable(handler):
        signal.signal(signum, lambda *given: _thread.start_new_thread(handler, given) and None)


def _once(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt
