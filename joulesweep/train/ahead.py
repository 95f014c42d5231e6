"""Batches made ahead of their step, in a thread of their own: a GPU then waits for none.

Collating a step takes 1 to 3 ms of a core, and copying it from memory that the system may move makes the host wait
until the GPU has come that far. So the thread lays out the next few steps, in pinned memory, while the present one
computes. On the CPU there is no such thread: it would take its time from the cores that train.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
DEPTH = 4  #: steps that wait, at most


def ahead(made: Generator[T, None, None], depth: int = DEPTH) -> Generator[T, None, None]:
    """The same items in the same order, made in another thread before they are asked for.

    What `made` raises is raised here, in its place. Close the result, or take it to its end: the thread has then ended,
    and `made` is closed.

    Args:
        made: makes the items; runs in the other thread from its first line to its last.
        depth: how many may wait.
    """
    ready: queue.SimpleQueue[tuple[bool, T | BaseException | None]] = queue.SimpleQueue()
    room, wanted = threading.Semaphore(depth), threading.Event()
    wanted.set()
    thread = threading.Thread(target=_make, args=(made, ready, room, wanted), name="batches", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = ready.get()
            if not is_item:
                if value is not None:
                    raise value  # type: ignore[misc] # of what is no item
                return
            room.release()
            yield value  # type: ignore[misc]
    finally:
        wanted.clear()
        room.release()
        thread.join()


def _make(
    made: Generator[T, None, None],
    ready: queue.SimpleQueue[tuple[bool, T | BaseException | None]],
    room: threading.Semaphore,
    wanted: threading.Event,
) -> None:
    """Put every item, and then why there are no more: None, or an error."""
    error: BaseException | None = None
    try:
        with contextlib.closing(made):
            while room.acquire() and wanted.is_set():
                ready.put((True, next(made)))
    except StopIteration:
        pass
    except BaseException as raised:
        error = raised
    ready.put((False, error))
