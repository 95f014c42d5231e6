from __future__ import annotations

import os
import signal

import pytest

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
