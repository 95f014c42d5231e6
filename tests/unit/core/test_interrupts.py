from __future__ import annotations

import os
import signal
import threading

import pytest
from patience import PATIENCE_S

from joulesweep.core import interrupts


@pytest.fixture(autouse=True)
def as_before():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_only_the_first_interrupt_disturbs_and_then_all_is_as_before():
    before = signal.getsignal(signal.SIGINT)
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts.heeded():
        try:
            interrupt()
        finally:
            interrupt()
            steps.append("cleaned up")
    assert steps == ["cleaned up"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.end_silently()
    with interrupts.heeded():
        interrupt()
    interrupt()


def test_a_handler_that_waits_for_a_lock_of_the_main_thread_gets_it():
    lock, done = threading.Lock(), threading.Event()

    def handler(signum, frame):
        with lock:
            done.set()

    signal.signal(signal.SIGINT, handler)
    interrupts.handle_in_a_thread(signal.SIGINT)
    with lock:
        interrupt()
    assert done.wait(PATIENCE_S)
