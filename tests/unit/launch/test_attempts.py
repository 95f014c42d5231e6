"""Every attempt is noted beside its run's record: whole, failed, stopped, and killed ones by their begin."""

from __future__ import annotations

import inspect
import json
import multiprocessing
from dataclasses import replace

import pytest
import synthetic

from joulesweep.core.errors import UserError
from joulesweep.core.files import write_json
from joulesweep.core.outcome import CheckpointFile, Segment
from joulesweep.core.spec import strip
from joulesweep.launch import attempts, lease, node
from joulesweep.launch.attempts import FILE, Attempt
from joulesweep.launch.checkpoints import Checkpoint, RunPreempted
from joulesweep.launch.lease import Lease
from joulesweep.launch.node import RunFailed
from joulesweep.measure import meters
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import CPU, GPU, WALL, Traits
from joulesweep.plan.config import validate
from joulesweep.plan.grid import expand, manifest
from joulesweep.runs import attempted, record
from scripts import train

BOARD = Board(index=0, uuid="GPU-0", name="NVIDIA H200", memory_bytes=2**37, has_counter=True, mig=False)


class Sensor:
    """A counter that shows the values that it is given, one after the other."""

    failure = None

    def __init__(self, device, *values, kind=GPU, range_j=None):
        self.device, self.values = device, list(values)
        self.traits = Traits(kind=kind, source="test", range_j=range_j)

    def energy_j(self):
        value = self.values.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    def power_w(self):
        return None


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "folder", lambda: tmp_path)
    monkeypatch.setattr(meters, "of_host", lambda settings: ([], {}))


@pytest.fixture
def kept(tmp_path):
    """A record, as `launch` returns it."""
    run, spec = next(iter(expand(validate(synthetic.raw_config())).runs.items()))
    write_json(tmp_path / run / "record.json", synthetic.ok_record(run, spec))
    return record.read(tmp_path / run / "record.json")


def held(boards=(), exclusive="gpu"):
    return Lease(list(boards), len(boards), exclusive, lambda: None)


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def test_a_whole_attempt_has_a_line_for_each_end(tmp_path, kept):
    with Attempt(tmp_path) as attempt:
        assert [set(row) for row in lines(tmp_path)] == [
            {"attempt", "began", "hostname", "pid", "cpu_model", "cpu_cores"}
        ]
        with held():
            pass
        assert attempt.ended(kept) is kept
    began, ended = lines(tmp_path)
    assert began["attempt"] == ended["attempt"]
    assert (ended["status"], ended["reason"], ended["energy"]) == ("ok", None, [])
    assert 0 <= ended["held_s"] < 60
    assert 0 <= ended["waited_s"] < 60
    assert ended["cpu_s"] >= 0


def test_an_attempt_in_a_batch_job_names_the_job_and_its_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    with pytest.raises(RunFailed), Attempt(tmp_path, minutes=30):
        raise RunFailed("again")
    (note,) = attempted.notes(tmp_path / FILE)
    assert {key: note["batch"][key] for key in ("system", "job", "node", "minutes")} == {
        "system": "slurm",
        "job": "4711",
        "node": "n1",
        "minutes": 30,
    }


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RunFailed("a process ended"), "failed", "a process ended"),
        (UserError("the input is at fault"), "failed", "the input is at fault"),
        (ZeroDivisionError("a\nbug"), "failed", "ZeroDivisionError: a bug"),
        (SystemExit(143), "stopped", "ended from outside"),
        (KeyboardInterrupt(), "stopped", "ended from outside"),
    ],
)
def test_an_attempt_that_fails_is_noted_and_fails_on(tmp_path, error, status, reason):
    with pytest.raises(type(error)), Attempt(tmp_path), held():
        raise error
    ended = lines(tmp_path)[1]
    assert (ended["status"], ended["reason"]) == (status, reason)
    assert ended["held_s"] is not None


@pytest.fixture
def preempted(kept):
    """What an attempt raises that did a part of a run."""
    row = kept.measurement
    part = Segment(
        attempt="a",
        hostname="here",
        first_step=1,
        last_step=5,
        window_s=9.0,
        cpu_s=1.0,
        took_s=20.0,
        energy=row.energy,
        flags=[],
        conditions=row.conditions,
        overhead=row.overhead,
        checkpoint_bytes=2048,
        checkpoint_s=0.5,
    )
    file = CheckpointFile(name="step5-rank0.pt", num_bytes=2048, sha256="0", write_s=0.5)
    return RunPreempted(
        Checkpoint(
            run="r", basis={}, written="", step=5, num_steps=9, files=[file], segments=[part], epochs=[], power=[]
        )
    )


def test_an_attempt_that_was_preempted_notes_its_part_of_the_window(tmp_path, preempted, kept):
    with pytest.raises(RunPreempted), Attempt(tmp_path), held():
        raise preempted
    note = lines(tmp_path)[1]
    assert note["status"] == "preempted"
    assert note["reason"] == "preempted after step 5 of 9: 2.00 KiB kept in 0.500 s; the next start goes on from there"
    window = [(row["device"], row["kind"], row["energy_j"], row["status"]) for row in note["window"]]
    energy = kept.measurement.energy
    assert (note["window_s"], window) == (
        9.0,
        [(row.device, row.kind, row.total_energy_j, row.status) for row in energy],
    )
    whole = replace(kept, measurement=replace(kept.measurement, segments=[preempted.segment] * 2))
    with Attempt(tmp_path) as attempt, held():
        attempt.ended(whole)
    assert lines(tmp_path)[3]["window"] == note["window"]


def test_an_attempt_that_never_got_the_machine_held_nothing(tmp_path):
    with pytest.raises(UserError), Attempt(tmp_path):
        raise UserError("not the right input")
    ended = lines(tmp_path)[1]
    assert ended["held_s"] is None
    assert ended["energy"] == []


def test_attempts_add_up_in_one_file(tmp_path):
    for _ in range(3):
        with pytest.raises(RunFailed), Attempt(tmp_path):
            raise RunFailed("again")
    assert len(lines(tmp_path)) == 6


def energy(tmp_path, monkeypatch, sensor, exclusive="gpu", host=()):
    monkeypatch.setattr(meters, "sensor", lambda board: sensor)
    monkeypatch.setattr(meters, "of_host", lambda settings: (list(host), {}))
    with pytest.raises(RunFailed), Attempt(tmp_path), held([BOARD], exclusive):
        raise RunFailed("of memory")
    return lines(tmp_path)[-1]["energy"]


def test_a_failed_attempt_has_the_joules_of_its_boards(tmp_path, monkeypatch):
    assert energy(tmp_path, monkeypatch, Sensor("gpu:0", 1000.0, 1750.0)) == [
        {"device": "gpu:0", "kind": "gpu", "energy_j": 750.0, "reason": None}
    ]


def test_the_host_counts_where_the_run_has_it_to_itself(tmp_path, monkeypatch):
    def host():
        return [Sensor("cpu:0", 5.0, 25.0, kind=CPU, range_j=1e9), Sensor("wall:0", 1.0, 2.0, kind=WALL)]

    shared = energy(tmp_path, monkeypatch, Sensor("gpu:0", 0.0, 1.0), host=host())
    own = energy(tmp_path, monkeypatch, Sensor("gpu:0", 0.0, 1.0), "node", host())
    assert [row["device"] for row in shared] == ["gpu:0"]
    assert [(row["device"], row["energy_j"]) for row in own] == [
        ("gpu:0", 1.0),
        ("cpu:0", 20.0),
    ]  # no plug: it has both


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([None], "it has no counter"),
        ([OSError("lost")], "OSError: lost"),
        ([5.0, None], "its counter did not answer any more"),
        ([5.0, OSError("lost")], "OSError: lost"),
        ([5.0, 1.0], "its counter was reset"),
    ],
)
def test_joules_nobody_read_are_null_with_the_reason(tmp_path, monkeypatch, values, reason):
    (row,) = energy(tmp_path, monkeypatch, Sensor("gpu:0", *values))
    assert (row["energy_j"], row["reason"]) == (None, reason)


def test_a_counter_that_starts_again_is_followed_once(tmp_path, monkeypatch):
    (row,) = energy(tmp_path, monkeypatch, Sensor("cpu:0", 990_000.0, 10_000.0, kind=CPU, range_j=1_000_000.0))
    assert row["energy_j"] == 20_000.0


def test_a_counter_that_may_have_started_again_twice_is_unknown(tmp_path, monkeypatch):
    (row,) = energy(tmp_path, monkeypatch, Sensor("cpu:0", 1.0, 2.0, kind=CPU, range_j=1e-9))
    assert row["energy_j"] is None
    assert "more than once" in row["reason"]


def test_a_disk_that_refuses_costs_the_note_not_the_run(tmp_path, capsys, kept):
    (tmp_path / FILE).mkdir()
    with Attempt(tmp_path) as attempt:
        attempt.ended(kept)
    assert "is not noted" in capsys.readouterr().err


def _attempt(folder):
    for _ in range(20):
        with Attempt(folder) as attempt:
            attempt._energy = [{"device": "gpu:0", "kind": "gpu", "energy_j": None, "reason": "x" * 5000}]


def test_lines_of_two_processes_never_mix(tmp_path):
    both = [multiprocessing.get_context("fork").Process(target=_attempt, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert len(lines(tmp_path)) == 80
    assert len({row["attempt"].split()[-1] for row in lines(tmp_path)}) == 2


def test_nothing_is_watched_after_an_attempt(tmp_path):
    with Attempt(tmp_path):
        assert len(Lease.watchers) == 1
    assert Lease.watchers == []
    assert attempts.FAILED not in record.STATUSES


@pytest.fixture
def script(tmp_path, kept, monkeypatch):
    """Call the job's script as if `launch` had left a record; returns the run's folder."""
    config = validate(synthetic.raw_config())
    write_json(tmp_path / "grid.json", manifest(config))
    folder = tmp_path / kept.run

    def call(made, *options):
        monkeypatch.setattr(train, "launch", lambda *args, **kwargs: made)
        words = ["--job", json.dumps({"spec": strip(kept.spec), "code": "c0de"}), "--grid", tmp_path / "grid.json"]
        for name in ("model-folder", "tokens", "texts"):
            words += [f"--{name}", tmp_path / name]
        words += ["--folder", folder, "--log", folder / "run.log", "--gpus", 8, *options]
        monkeypatch.setattr("sys.argv", ["train", *map(str, words)])
        train.main()
        return folder

    return call


def test_a_batch_job_that_lacked_memory_is_tried_with_more_and_recorded_at_last(script, kept, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    lacking, path = (
        replace(kept, status="oom", reason=attempted.HOST_OOM, measurement=None, quality=None),
        tmp_path / kept.run / "record.json",
    )
    for _ in range(attempted.MOST_DOUBLINGS):
        write_json(path, {})
        with pytest.raises(SystemExit, match="the next attempt asks the batch system for more memory"):
            script(lacking, "--minutes", "30", "--attempt", "2")
        assert not path.exists()
    write_json(path, {})
    script(lacking, "--attempt", "2")
    assert path.exists()
    assert [note["status"] for note in attempted.notes(tmp_path / kept.run / FILE)] == ["failed", "failed", "oom"]
    assert f'"{attempted.HOST_OOM}"' in inspect.getsource(node), "the reason that a run is given"


def test_what_failed_of_itself_is_not_tried_again(script, kept):
    folder = script(kept)
    with pytest.raises(SystemExit, match=f"{kept.run}: not tried again: .*its output: "):
        script(kept, "--attempt", "2")
    assert len(attempted.notes(folder / FILE)) == 1
