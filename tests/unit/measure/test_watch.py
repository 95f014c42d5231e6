"""A meter that hangs or fails costs its readings; the run, its deadline and its end go on."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace

import pytest
from patience import PATIENCE_S, wait_for

from joulesweep.core import bounded
from joulesweep.measure import contention, watch
from joulesweep.measure.watch import BoardLook, Watch


class Trace:
    """Readings that come back when the gate is open."""

    def __init__(self, sensors=()):
        self.series = self.boards = dict(sensors)
        self.gate, self.read, self.last = threading.Event(), 0, 0
        self.gate.set()
        self.error = None

    def wait_s(self):
        return 0.001

    def sample(self, last=False):
        self.gate.wait()
        if self.error:
            raise self.error
        self.read += 1
        self.last += last


def sensor(*pids, limit_w=300.0):
    return SimpleNamespace(process_ids=lambda: None if None in pids else list(pids), power_limit_w=lambda: limit_w)


@pytest.fixture
def trace():
    made = Trace({"gpu:0": sensor(os.getpid(), 1)})
    yield made
    made.gate.set()


def test_readings_are_taken_while_this_thread_does_something_else_and_a_last_time_at_the_end(trace):
    with Watch(trace) as seen:
        wait_for(lambda: trace.read > 3, every_s=0.001)
        assert trace.last == 0
    assert (trace.last, seen.stopped) == (1, None)
    assert [look.at_s for look in seen.looks.cpu] == sorted(look.at_s for look in seen.looks.cpu)
    assert len(seen.looks.cpu) == len(seen.looks.boards) >= 2  # at the begin and at the end
    assert seen.looks.boards[0][1:] == ("gpu:0", BoardLook(own=True, others=[1], power_limit_w=300.0))


def test_a_reading_that_does_not_come_back_ends_the_readings_and_nothing_else(trace, monkeypatch):
    monkeypatch.setattr(bounded, "LIMIT_S", 0.05)
    with Watch(trace) as seen:
        trace.gate.clear()
        wait_for(lambda: seen.check() or seen.stopped, every_s=0.001)
        assert seen.stopped == "no answer within 0.05 s"
    assert trace.last == 0


def test_a_last_reading_that_does_not_come_back_is_waited_for_to_the_limit(trace, monkeypatch):
    monkeypatch.setattr(bounded, "LIMIT_S", 0.05)
    with Watch(trace) as seen:
        trace.gate.clear()
        read = trace.read
        assert seen.stopped is None
    assert seen.stopped == "no answer within 0.05 s"
    assert trace.read <= read + 1


def test_a_run_that_ends_by_an_exception_waits_for_no_reading(trace):
    with pytest.raises(ZeroDivisionError), Watch(trace):
        trace.gate.clear()
        raise ZeroDivisionError
    assert not trace.gate.is_set()  # it hangs, and its limit is ten seconds


@pytest.mark.parametrize("error", [ImportError("no\nhttpx"), RuntimeError("no\nhttpx"), TypeError("no\nhttpx")])
def test_whatever_a_meter_raises_ends_the_readings_alone(trace, error):
    with Watch(trace) as seen:
        trace.error = error
        wait_for(lambda: seen.stopped, every_s=0.001)
    assert seen.stopped == f"{type(error).__name__}: no httpx"


def test_a_run_without_meters_is_watched_once_a_second_and_not_without_pause():
    trace = Trace()
    with Watch(trace) as seen:
        wait_for(lambda: len(seen.looks.cpu) > 1, every_s=0.001)
    assert trace.read <= len(seen.looks.cpu) + 1
    assert seen.looks.boards == []


def test_this_process_and_its_children_are_its_own():
    assert watch.look_at(sensor(os.getpid())) == BoardLook(own=True, others=[], power_limit_w=300.0)
    assert watch.look_at(sensor(os.getppid(), 1)).others == [os.getppid(), 1]
    assert watch.look_at(sensor(None)) == BoardLook(own=None, others=None, power_limit_w=300.0)


def test_a_call_that_answers_raises_or_hangs():
    gate = threading.Event()
    assert bounded.within(PATIENCE_S, divmod, 7, 2) == ((3, 1), None)
    assert bounded.within(PATIENCE_S, divmod, 7, 0)[1].startswith("ZeroDivisionError: ")
    assert bounded.within(0.01, gate.wait) == (None, "no answer within 0.01 s")
    gate.set()


def test_what_did_not_answer_is_not_asked_again(monkeypatch):
    monkeypatch.setattr(bounded, "LIMIT_S", 0.01)
    gate, asked, asker = threading.Event(), [], bounded.Asker()
    assert asker.ask(len, "four") == 4
    assert asker.ask(gate.wait) is None
    assert (asker.ask(asked.append, 1), asked) == (None, [])
    assert asker.silent == "no answer within 0.01 s"
    gate.set()


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A made-up /proc, in which this process has a child, and that one has another."""
    monkeypatch.setattr(contention, "PROC", tmp_path)
    monkeypatch.setattr(contention.os, "getpid", lambda: 10)
    monkeypatch.setattr(contention, "TICKS_PER_S", 100)

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def process(pid, children="", ticks=0, ran_ns=0, waited_ns=0):
        write(f"{pid}/task/{pid}/children", children)
        write(f"{pid}/task/{pid}/schedstat", f"{ran_ns} {waited_ns} 5\n")
        write(f"{pid}/stat", f"{pid} (a b) c) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 10 100 1000 20 0 1 0\n")

    def machine(busy=500, steal=7, pressure_us=2_000_000):
        write("stat", f"cpu  {busy} 20 30 99999 999 4 6 {steal} 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
        write("pressure/cpu", f"some avg10=1.00 avg60=1.00 avg300=1.00 total={pressure_us}\nfull avg10=0 total=0\n")

    process(10, "11 ", 100, 10**9, 0)
    process(11, "12 ", 200, 3 * 10**9, 10**9)
    process(12, "", 300, 0, 0)
    process(13, "", 999, 9 * 10**9, 9 * 10**9)
    machine()
    return SimpleNamespace(path=tmp_path, write=write, process=process, machine=machine)


def test_the_cpu_is_read_as_the_kernel_tells_it(proc):
    found = contention.Reader().read(5.0)
    assert found == contention.Reading(
        at_s=5.0, busy_s=5.6, steal_s=0.07, pressure_s=2.0, own_s=pytest.approx(39.3), ran_s=4.0, waited_s=1.0
    )


def test_threads_that_end_keep_what_they_had(proc):
    reader = contention.Reader()
    reader.read(5.0)
    (proc.path / "11" / "task" / "11" / "schedstat").unlink()
    proc.process(10, "11 ", 100, 2 * 10**9, 0)
    found = reader.read(6.0)
    assert (found.ran_s, found.waited_s) == (5.0, 1.0)


@pytest.mark.parametrize(
    ("lacks", "unknown"),
    [
        ("stat", ["busy_s", "steal_s"]),
        ("pressure/cpu", ["pressure_s"]),
        ("10/task/10/children", ["own_s", "ran_s", "waited_s"]),
    ],
)
@pytest.mark.parametrize("garbage", [None, "", "some\n", "cpu 1 2 x 4 5 6 7 8\n"])
def test_what_the_kernel_does_not_tell_is_unknown(proc, lacks, unknown, garbage):
    (proc.path / lacks).unlink()
    if garbage is not None and "children" not in lacks:
        proc.write(lacks, garbage)
    found = contention.Reader().read(5.0)
    assert [name for name, value in vars(found).items() if value is None] == unknown


def test_this_process_is_read_on_this_machine():
    before = contention.Reader().read(1.0)
    until_s = time.process_time() + 0.1
    while time.process_time() < until_s:
        pass
    after = contention.Reader().read(2.0)
    if before.own_s is None or before.busy_s is None:
        pytest.skip("this kernel does not tell")
    assert after.own_s - before.own_s >= 0.08
    assert after.busy_s - before.busy_s >= 0.08
