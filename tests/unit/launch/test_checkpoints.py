"""A run that is preempted goes on at its next start, ends with the same bits, and counts every joule once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import tiny_run
from patience import PATIENCE_S, wait_for

from joulesweep.core import files
from joulesweep.core.outcome import CheckpointFile
from joulesweep.core.spec import strip
from joulesweep.launch import checkpoints, node
from joulesweep.launch.checkpoints import Checkpoint
from joulesweep.measure import machine
from joulesweep.plan import grid, sweep
from joulesweep.plan.config import validate
from joulesweep.runs import record
from joulesweep.runs.identity import run_id

pytestmark = pytest.mark.usefixtures("nothing_is_left", "own_places")

LONG = {"max_steps": 60, "keep_model": "last"}  # a second or two, most of them rests: tests/support/load
BASIS = {"code": "1", "model": "2"}


@pytest.fixture
def attempt(assets, tmp_path, monkeypatch):
    """Start `scripts.train` for a run, as a process of its own, which rests after each step."""
    monkeypatch.setenv("LOAD", "{}")
    monkeypatch.setenv("PYTHONPATH", str(tiny_run.SUPPORT / "load"))
    grid_file = tmp_path / "grid.json"

    def attempt(spec, where="run", grace_s=30.0):
        config = validate(tiny_run.config(measure__grace_s=grace_s))
        files.write_json(grid_file, grid.manifest(sweep.Sweep(config).config))
        folder = tmp_path / where / run_id(spec)
        paths = {"model-folder": assets.model_folder, "tokens": assets.tokens, "grid": grid_file, "folder": folder}
        paths |= {"log": folder / "run.log", "texts": tmp_path / "texts.jsonl"}
        job = json.dumps({"spec": strip(spec), "code": "c0de"})
        options = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        command = [sys.executable, "-m", "scripts.train", "--job", job, "--gpus", "0", *options]
        return subprocess.Popen(command, cwd=tiny_run.REPOSITORY, stderr=subprocess.PIPE, text=True), folder

    return attempt


@pytest.fixture
def faulty(attempt, monkeypatch):
    """Start an attempt that never gets further than half of its checkpoint, and ask it to stop."""

    def faulty(spec, **given):
        with monkeypatch.context() as changed:
            changed.setenv("PYTHONPATH", str(tiny_run.SUPPORT / "faults"))
            changed.setenv("FAULTS", json.dumps([[{"rank": 0}, "half_written"]]))
            parent, folder = attempt(spec, **given)
        wait_for(lambda: (folder / ".work" / "listens0").exists() or parent.poll() is not None)
        parent.send_signal(signal.SIGTERM)
        wait_for(lambda: (folder / ".work" / "halfway").exists() or parent.poll() is not None)
        return parent, folder

    return faulty


def preempted(parent, folder, num_ranks=1):
    """Send SIGTERM as soon as all ranks listen. Returns what the attempt said."""
    wait_for(lambda: len(list(folder.glob(".work/listens*"))) == num_ranks or parent.poll() is not None)
    parent.send_signal(signal.SIGTERM)
    return parent.communicate(timeout=PATIENCE_S)[1]


def ended(parent):
    said = parent.communicate(timeout=PATIENCE_S)[1]
    assert parent.returncode == 0, said
    return said


def test_ranks_that_stopped_by_a_signal_of_their_own_are_waited_for(tmp_path):
    """A batch system signals all processes, in any order."""
    (tmp_path / "has-stopped0").touch()
    assert node._ask(tmp_path, 1)
    assert not node._ask(tmp_path, 2), "one rank is not ready yet"
    (tmp_path / "listens1").write_text("999999999", encoding="ascii")
    assert not node._ask(tmp_path, 2), "one rank has ended"


def test_a_rank_that_begins_to_listen_in_this_moment_is_asked(tmp_path):
    """Its file is there, and its number is written a moment later."""
    file = tmp_path / "listens0"
    file.touch()
    rank = subprocess.Popen(["sleep", str(PATIENCE_S)])
    writer = threading.Timer(0.1, file.write_text, [str(rank.pid)])
    writer.start()
    assert node._ask(tmp_path, 1)
    assert rank.wait(PATIENCE_S) == -signal.SIGUSR1
    writer.join()


def test_a_file_that_names_no_rank_is_no_listener(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "POLL_S", 0.0)
    (tmp_path / "listens0").touch()
    assert not node._ask(tmp_path, 1)


def learned(folder):
    found = files.read_json(folder / "record.json", "record")
    epochs = [{name: row[name] for name in row if "_loss" in name or "accuracy" in name} for row in found["epochs"]]
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return (folder / "steps.jsonl").read_text(), epochs, found["quality"], weights


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"strategy": "ddp", "devices": 2}], ids=["single", "ddp"])
def test_a_preempted_run_goes_on_and_ends_with_the_same_bits(attempt, changes):
    spec, num_ranks = tiny_run.spec(**LONG, **changes), changes.get("devices", 1)
    whole, steps = None, []
    if num_ranks == 1:  # that two end with the same bits, and with less ado, tests/unit/train/test_checkpoint.py proves
        parent, folder = attempt(spec, "whole")
        ended(parent)
        whole = learned(folder)
    for _ in range(1 if num_ranks > 1 else 2):
        parent, folder = attempt(spec)
        said = preempted(parent, folder, num_ranks)
        assert parent.returncode == 128 + signal.SIGTERM, said
        assert said.splitlines()[-1].startswith(f"{folder.name}: preempted after step "), said
        assert "Traceback" not in said
        steps.append(checkpoints.brief(folder)[0])
        assert len(list((folder / ".checkpoint").iterdir())) == 1 + num_ranks
    if num_ranks == 1:  # one more, of which nothing is kept
        parent, folder = attempt(spec)
        wait_for(lambda: list(folder.glob(".work/listens*")))
        parent.kill()
        parent.communicate()
    parent, folder = attempt(spec)
    assert f"goes on after step {steps[-1]} of 60" in ended(parent)
    assert whole is None or learned(folder) == whole
    assert not (folder / ".checkpoint").exists()
    row = record.read(folder / "record.json")
    parts = row.measurement.segments
    assert [(part.first_step, part.last_step) for part in parts] == list(
        zip([1, *(step + 1 for step in steps)], [*steps, 60], strict=True)
    )
    assert row.measurement.total_window_s == pytest.approx(sum(part.window_s for part in parts))
    assert row.measurement.cpu_s == pytest.approx(sum(part.cpu_s for part in parts))
    assert [flag.flag for flag in row.measurement.flags].count("resumed") == 1
    assert [epoch.elapsed_s for epoch in row.epochs] == sorted(epoch.elapsed_s for epoch in row.epochs)
    assert row.epochs[-1].elapsed_s <= row.measurement.total_window_s
    notes = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert [note["status"] for note in notes if "status" in note] == ["preempted"] * len(steps) + ["ok"]
    began = [note["attempt"] for note in notes if "began" in note]
    lost = [one.attempt for one in row.measurement.lost]
    assert lost == (began[-2:-1] if num_ranks == 1 else [])
    assert [part.attempt for part in parts] == [name for name in began if name not in lost]


@pytest.mark.slow
def test_a_kill_in_the_very_write_leaves_the_checkpoint_before(attempt, faulty):
    spec = tiny_run.spec(**LONG)
    parent, folder = faulty(spec)
    assert list(folder.glob(".checkpoint/*.part"))
    parent.kill()
    parent.communicate()
    assert checkpoints.brief(folder) is None
    parent, folder = attempt(spec)
    assert "goes on" not in preempted(parent, folder).splitlines()[0]
    before = checkpoints.brief(folder)
    parent, folder = faulty(spec)
    parent.kill()
    parent.communicate()
    assert checkpoints.brief(folder) == before
    parent, folder = attempt(spec)
    said = preempted(parent, folder)
    assert f"goes on after step {before[0]} of 60" in said
    assert checkpoints.brief(folder) > before


@pytest.mark.slow
def test_what_cannot_be_kept_in_the_grace_time_ends_without(faulty):
    parent, folder = faulty(tiny_run.spec(**LONG), grace_s=1.0)
    said = parent.communicate(timeout=PATIENCE_S)[1]
    assert parent.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1] == f"{folder.name}: nothing was kept within 1 s"
    assert checkpoints.brief(folder) is None


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once(faulty):
    parent, _ = faulty(tiny_run.spec(**LONG), grace_s=3600.0)
    parent.send_signal(signal.SIGTERM)
    parent.communicate(timeout=PATIENCE_S)
    assert parent.returncode == 128 + signal.SIGTERM


@pytest.fixture
def kept(tmp_path):
    """A checkpoint of two ranks in a folder, and a file that is not of it."""
    folder, parts = tmp_path / "run", []
    for rank in (0, 1):
        path = folder / ".checkpoint" / f"step5-rank{rank}.pt"
        files.write_bytes(path, b"state" * (rank + 1))
        size, digest = path.stat().st_size, files.sha256_of(path)
        parts.append(CheckpointFile(name=path.name, num_bytes=size, sha256=digest, write_s=0.1))
    checkpoint = Checkpoint(
        run="run", basis=BASIS, written="now", step=5, num_steps=9, files=parts, segments=[], epochs=[], power=[]
    )
    checkpoints.keep(folder, checkpoint)
    files.write_bytes(folder / ".checkpoint" / "step7-rank0.part", b"half")
    return folder, checkpoint


def test_a_checkpoint_is_found_again_without_what_is_not_of_it(kept, capsys):
    folder, checkpoint = kept
    assert checkpoints.find(folder, "run", BASIS) == checkpoint
    names = {path.name for path in (folder / ".checkpoint").iterdir()}
    assert names == {"manifest.json", "step5-rank0.pt", "step5-rank1.pt"}
    assert "run: goes on after step 5 of 9" in capsys.readouterr().err
    assert checkpoints.brief(folder) == (5, 9)


def test_nothing_is_found_where_nothing_was_kept(kept, tmp_path, capsys):
    assert checkpoints.find(tmp_path / "other", "run", BASIS) is None
    (kept[0] / ".checkpoint" / "manifest.json").unlink()  # killed before it was written
    assert checkpoints.find(kept[0], "run", BASIS) is None
    assert not (kept[0] / ".checkpoint").exists()
    assert capsys.readouterr().err == ""


def truncate(folder):
    path = folder / ".checkpoint" / "step5-rank1.pt"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder):
    (folder / ".checkpoint" / "step5-rank0.pt").write_bytes(b"stale")


def tear(folder):
    (folder / ".checkpoint" / "manifest.json").write_text('{"format": ')


def fail(folder):
    for _ in range(3):
        checkpoints.note_failure(folder, checkpoints.find(folder, "run", BASIS))


@pytest.mark.parametrize(
    ("run", "basis", "harm", "reason"),
    [
        ("run", {**BASIS, "code": "3"}, None, "not the same any more: code"),
        ("run", {"code": "0", "model": "0"}, None, "not the same any more: code, model"),
        ("other", BASIS, None, "it is of run"),
        ("run", BASIS, truncate, "step5-rank1.pt: missing or damaged"),
        ("run", BASIS, flip, "step5-rank0.pt: missing or damaged"),
        ("run", BASIS, tear, "its manifest cannot be read"),
        ("run", BASIS, fail, "3 attempts that went on from it failed"),
    ],
)
def test_a_checkpoint_that_cannot_serve_is_discarded_with_a_line(kept, capsys, run, basis, harm, reason):
    folder, _ = kept
    if harm is not None:
        harm(folder)
    capsys.readouterr()
    assert checkpoints.find(folder, run, basis) is None
    said = capsys.readouterr().err
    assert said == f"{run}: the checkpoint is discarded, and the training begins again: {reason}\n"
    assert not (folder / ".checkpoint").exists()


def test_the_basis_tells_what_changed():
    environment = machine.describe(1)
    inputs = {"model": {"sha": "1"}, "tokens": None}
    before = checkpoints.basis("c0de", inputs, environment)
    assert before == checkpoints.basis("c0de", inputs, replace(environment, hostname="elsewhere"))
    for name, after in {
        "code": checkpoints.basis("other", inputs, environment),
        "model": checkpoints.basis("c0de", {**inputs, "model": {"sha": "2"}}, environment),
        "tokens": checkpoints.basis("c0de", {**inputs, "tokens": {}}, environment),
        "versions of libraries": checkpoints.basis("c0de", inputs, replace(environment, versions={"torch": "1"})),
        "kinds of devices": checkpoints.basis("c0de", inputs, replace(environment, cpu_model="another")),
    }.items():
        assert [key for key in after if after[key] != before[key]] == [name]
