"""One rank of two gets into trouble: the run ends at once with the reason, and no process is left.

Real torchrun, real gloo, real training; `faults/sitecustomize.py` makes one rank fail in its first step, while the
other waits for it in a collective.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import tiny_run
from outcomes import rank

from joulesweep.core import processes
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import BadInput, Stopped, as_json
from joulesweep.launch import launcher, node
from joulesweep.launch.node import RunFailed
from joulesweep.runs import record
from joulesweep.runs.identity import run_id

TWO = {"strategy": "ddp", "devices": 2, "max_steps": 10**7}
ONE = {"strategy": "single", "devices": 1}  # where a second rank proves nothing more
pytestmark = pytest.mark.usefixtures("own_places")
HOPELESS = {"timeout_s": 240.0}  # no test that passes waits for it


@pytest.fixture
def start(assets, tmp_path, monkeypatch):
    """Launch a run of endless training on two ranks with faults, and see to it that nothing of it is left."""

    def start(*faults, **changes):
        monkeypatch.setenv("FAULTS", json.dumps(faults))
        monkeypatch.setenv("MARK_OF_TEST", str(tmp_path))  # every process that comes of the run inherits it
        monkeypatch.setenv("PYTHONPATH", str(tiny_run.SUPPORT / "faults"))
        paths = {"model_folder": assets.model_folder, "tokens": assets.tokens, "log": tmp_path / "run.log"}
        spec = tiny_run.spec(**{**TWO, **HOPELESS, **changes})
        try:
            return as_json(launcher.launch(spec, "c0de", **paths, folder=tmp_path / run_id(spec)))
        finally:
            assert marked(tmp_path) == []

    return start


def marked(mark):
    """Living processes that inherited the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environ = (path / "environ").read_bytes().split(b"\0")
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it ended meanwhile
            continue
        if f"MARK_OF_TEST={mark}".encode() in environ and state != "Z":
            found.append(int(path.name))
    return found


def log(tmp_path):
    return (tmp_path / "run.log").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_one_rank_without_memory_speaks_for_both(start, tmp_path, rank):
    found = start([{"rank": rank}, "oom"])
    assert (found["status"], found["oom_bytes"]) == ("oom", 2**50)
    assert f"tried to allocate {2**50} bytes" in found["reason"]
    assert as_json(record.read(tmp_path / found["run"] / "record.json")) == found


@pytest.mark.slow
def test_a_run_whose_host_has_no_memory_left_needs_no_words_for_it(start):
    found = start([{}, "no_host_memory"], **ONE)
    assert (found["status"], found["reason"], found["oom_bytes"]) == ("oom", "out of host memory", None)


@pytest.mark.slow
def test_a_rank_that_cannot_even_end_is_not_waited_for(start):
    assert start([{"rank": 1}, "oom_and_no_end"])["status"] == "oom"


@pytest.mark.slow
def test_one_rank_that_refuses_does_not_leave_the_other_at_the_rendezvous(start):
    found = start([{"rank": 1}, "refuse"])
    assert (found["status"], found["reason"]) == ("unsupported", "this rank cannot")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_stops_both(start):
    found = start([{"rank": 1}, "nan"])
    assert (found["status"], found["measurement"]) == ("diverged", None)
    assert "not finite" in found["reason"]


@pytest.mark.slow
def test_one_rank_that_hangs_is_a_timeout_and_its_offspring_ends_too(start, tmp_path, monkeypatch):
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 1e6 * any(tmp_path.glob("*/.work/hangs")))
    found = start([{"rank": 1}, "offspring_and_hang"])
    assert (found["status"], found["reason"]) == ("timeout", "stopped after timeout_s = 240 s")
    assert "offspring lives" in log(tmp_path)


@pytest.mark.slow
def test_a_bug_is_a_failure_with_its_words_in_the_log(start, tmp_path):
    with pytest.raises(RunFailed, match="exit code 1 and left no result"):
        start([{}, "bug"], **ONE)
    assert "RuntimeError: a bug of one rank" in log(tmp_path)
    assert list(tmp_path.rglob("record.json")) == []


@pytest.mark.slow
@pytest.mark.parametrize(  # tests/unit/launch/test_launcher.py kills one of two too, and the kernel says nothing
    ("num_kills", "status"), [pytest.param(0, None, marks=pytest.mark.long), (1, "oom")]
)
def test_a_killed_rank_ran_out_of_memory_only_if_the_kernel_says_so(start, monkeypatch, num_kills, status):
    counts = iter([5, 5 + num_kills])
    monkeypatch.setattr(processes, "oom_kills", lambda: next(counts))
    if status is None:
        with pytest.raises(RunFailed):
            start([{"rank": 1}, "killed"])
    else:
        found = start([{"rank": 1}, "killed"])
        assert (found["status"], found["reason"]) == (status, "killed by the kernel's out-of-memory killer")
        assert found["oom_bytes"] is None


def result(folder, number, status, age_s, reason="because"):
    path = folder / f"rank{number}.json"
    left = {"ok": rank(), "error": BadInput(reason=reason)}.get(status) or Stopped(status=status, reason=reason)
    path.write_text(json.dumps(as_json(left)))
    at = time.time() - age_s
    os.utime(path, (at, at))


def test_the_rank_that_stopped_first_speaks(tmp_path):
    result(tmp_path, 0, "diverged", age_s=1)
    result(tmp_path, 1, "oom", age_s=5)
    result(tmp_path, 2, "ok", age_s=9)
    assert node._outcome(tmp_path, 3).status == "oom"


def test_a_rank_that_found_the_input_at_fault_speaks_too(tmp_path):
    result(tmp_path, 0, "error", age_s=1, reason="mend this")
    with pytest.raises(UserError, match="mend this"):
        node._outcome(tmp_path, 2)


def test_one_rank_without_result_leaves_the_run_without(tmp_path):
    result(tmp_path, 0, "ok", age_s=1)
    assert node._outcome(tmp_path, 2) is None


TORCHRUNS = "  exitcode  : {} (pid: 417)\n  traceback : Signal {} received by PID 417\n"


@pytest.mark.parametrize(
    ("num_ranks", "exit_code", "said", "killed"),
    [
        (1, -9, "", True),
        (1, 1, TORCHRUNS.format(-9, "9 (SIGKILL)"), False),
        (1, -11, "", False),
        (2, -9, "", True),  # torchrun itself
        (2, 1, TORCHRUNS.format(-9, "9 (SIGKILL)"), True),
        (2, 1, TORCHRUNS.format(-11, "11 (SIGSEGV)"), False),
        (2, 1, "RuntimeError: a bug of one rank", False),
    ],
)
def test_which_end_of_a_process_is_a_kill(tmp_path, num_ranks, exit_code, said, killed):
    (tmp_path / "run.log").write_text(said)
    assert node._killed(num_ranks, exit_code, tmp_path / "run.log") is killed


def test_without_a_log_only_the_exit_code_tells():
    assert not node._killed(2, 1, None)
