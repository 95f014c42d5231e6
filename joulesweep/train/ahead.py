"""Prepare batches ahead of their step in another thread, so that the GPU never waits for them.

Collating a step takes 1 to 3 ms of a core, and copying it from pageable memory makes the host wait until the GPU
reaches the copy. So a thread prepares the next few steps, in pinned memory, while the current one computes. On the CPU
there is no such thread: it would compete with the cores that train.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
DEPTH = 4  #: largest number of prepared steps


def ahead(made: Generator[T, None, None], depth: int = DEPTH) -> Generator[T, None, None]:
    """Yield the same items in the same order, made in another thread before they are requested.

    An exception of `made` is raised here, in its place. Close the result, or exhaust it: this ends the thread and
    closes `made`.

    Args:
        made: makes the items; runs in the other thread only.
        depth: largest number of items that wait.
    """
    ready: queue.SimpleQueue[tuple[bool, T | BaseException | None]] = queue.SimpleQueue()
    room, running = threading.Semaphore(depth), threading.Event()
    running.set()
    thread = threading.Thread(target=_make, args=(made, ready, room, running), name="batches", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = ready.get()
            if not is_item:
                if value is not None:
                    raise value  # type: ignore[misc] # it is an error
                return
            room.release()
            yield value  # type: ignore[misc]
    finally:
        running.clear()
        room.release()
        thread.join()


def _make(
    made: Generator[T, None, None],
    ready: queue.SimpleQueue[tuple[bool, T | BaseException | None]],
    room: threading.Semaphore,
    running: threading.Event,
) -> None:
    """Put every item, then the reason why there are no more: None at the end, or an error."""
    error: BaseException | None = None
    try:
        with contextlib.closing(made):
            while room.acquire() and running.is_set():
                ready.put((True, next(made)))
    except StopIteration:
        pass
    except BaseException as raised:
        error = raised
    ready.put((False, error))
