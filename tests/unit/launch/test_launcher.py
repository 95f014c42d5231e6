"""A run leaves a whole record or none, and never a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import fake_meters
import lock_files
import pytest
import tiny_run
from outcomes import rank, trained
from patience import PATIENCE_S, wait_for

from joulesweep.core import bounded, files, processes
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import as_json
from joulesweep.core.spec import full, strip
from joulesweep.launch import launcher, lease, node
from joulesweep.launch.node import RunFailed
from joulesweep.measure import devices
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import nvidia
from joulesweep.measure.meters.nvidia import BoardSensor
from joulesweep.measure.window import reading
from joulesweep.plan import grid, sweep
from joulesweep.plan.config import validate
from joulesweep.report import evidence
from joulesweep.runs import record
from joulesweep.runs.identity import run_id
from scripts import train as script_of_a_run

pytestmark = pytest.mark.usefixtures("nothing_is_left", "own_places")

ENDLESS = {"max_steps": 10**7}
#: Texts that leave one for the last batch of 22, and so none for the second of two ranks.
ODD = {"source": {"local": "texts.txt"}, "format": "text", "validation_fraction": 0.25}


@pytest.fixture
def start(assets, tmp_path):
    """Launch a run in this process, in a folder of its name."""

    def start(exclusive="none", **changes):
        spec = tiny_run.spec(**changes)
        folder = tmp_path / run_id(spec)
        paths = {"model_folder": assets.model_folder, "tokens": assets.tokens, "log": folder / "run.log"}
        found = launcher.launch(spec, "c0de", **paths, folder=folder, exclusive=exclusive)
        assert record.read(folder / "record.json") == found
        return as_json(found), folder

    return start


@pytest.fixture
def script(monkeypatch):
    """Let a few lines of Python stand for the training process; `work` is its folder."""

    def use(*lines):
        def command(num_ranks, work):
            code = f"import json, os, sys, time, pathlib; work = pathlib.Path({str(work)!r})"
            return [sys.executable, "-c", "\n".join([code, *lines])]

        monkeypatch.setattr(node, "_command", command)

    return use


def running(word) -> dict[int, str]:
    """Living processes whose command line has a word, by id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it ended meanwhile
            continue
        if str(word) in command and state != "Z":
            found[int(path.name)] = command
    return found


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_leaves_its_record_last_and_nothing_else(start, assets, tmp_path):
    found, folder = start(epochs=2, dataset_source=ODD, batch_size=22)
    assert files.read_json(folder / "record.json", "record") == found
    assert {path.name for path in folder.iterdir()} == {
        "record.json", "spec.json", "steps.jsonl", "epochs.jsonl", "power.jsonl", "summaries.jsonl", "run.log",
    }  # fmt: skip
    assert json.loads((folder / "spec.json").read_text()) == found["spec"]
    assert (found["status"], found["code_digest"], found["reason"]) == ("ok", "c0de", None)
    steps = lines(folder / "steps.jsonl")
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert lines(folder / "epochs.jsonl") == found["epochs"]
    assert len(found["epochs"]) == 3
    assert found["quality"]["validation_loss"] == found["epochs"][-1]["validation_loss"]
    assert found["started"] <= found["finished"]
    assert found["measurement"]["num_texts"] == 90
    assert found["measurement"]["samples_per_s"] == pytest.approx(90 / found["measurement"]["window_s"])
    assert (folder / "record.json").stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in folder.iterdir())
    assert running(tmp_path) == {}
    # what a process of its own computes is what this process computes
    spec = tiny_run.spec(epochs=2, dataset_source=ODD, batch_size=22)
    here = trained(spec, assets.model_folder, assets.tokens, tmp_path / "here")
    assert [row["train_loss"] for row in steps] == here["losses"]


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(start, assets, monkeypatch, tmp_path):
    """By its own clock the first rank would want a third pass, and wait for ever."""
    monkeypatch.setenv("PYTHONPATH", str(tiny_run.SUPPORT / "faults"))
    monkeypatch.setenv("FAULTS", json.dumps([[{"rank": 0}, "fast_clock"], [{"rank": 1}, "slow_clock"]]))
    changes = {"epochs": 2, "dataset_source": ODD, "batch_size": 22, "keep_model": "last"}
    found, folder = start(**changes, **TWO, min_seconds=0.5)
    assert found["measurement"]["num_passes"] == 2
    one = trained(tiny_run.spec(**changes), assets.model_folder, assets.tokens, tmp_path / "one")
    assert [row["train_loss"] for row in lines(folder / "steps.jsonl")] == pytest.approx(one["losses"], rel=1e-4)
    for name in ("num_texts", "num_tokens", "num_steps"):
        assert found["measurement"][name] == one["measurement"][name]
    for row, expected in zip(found["epochs"], one["epochs"], strict=True):
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-4)
        assert row["num_steps"] == expected["num_steps"]
    assert sorted(row["kind"] for row in found["measurement"]["energy"]) == ["cpu", "dram"]  # the host once
    again = trained(tiny_run.spec(**changes), folder / "model", assets.tokens, tmp_path / "again")
    assert again["epochs"][0]["validation_loss"] == pytest.approx(found["quality"]["validation_loss"], rel=1e-5)


@pytest.fixture
def started(assets, tmp_path):
    """Two endless ranks under `scripts.train`, a process of its own, in the midst of training; ended afterwards."""
    spec = tiny_run.spec(**ENDLESS, strategy="ddp", devices=2)
    folder, grid_file = tmp_path / run_id(spec), tmp_path / "grid.json"
    files.write_json(grid_file, grid.manifest(sweep.Sweep(validate(tiny_run.config())).config))
    paths = {"model-folder": assets.model_folder, "tokens": assets.tokens, "grid": grid_file, "folder": folder}
    paths |= {"log": folder / "run.log", "texts": tmp_path / "texts.jsonl"}
    job = json.dumps({"spec": strip(spec), "code": "c0de"})
    options = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    parent = subprocess.Popen(
        [sys.executable, "-m", "scripts.train", "--job", job, "--gpus", "0", *options],
        cwd=tiny_run.REPOSITORY, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(
            lambda: (paths["log"].exists() and "/10000000" in paths["log"].read_text()) or parent.poll() is not None
        )
        wait_for(lambda: len(ranks(folder)) == 2)
        assert lock_files.held(tmp_path / "locks") == ["node", "running"]  # the config says nothing: node on the CPU
        yield parent, folder
    finally:
        parent.kill()
        parent.communicate()
        for pid in running(folder / ".work"):
            os.kill(pid, signal.SIGKILL)


def ranks(folder) -> list[int]:
    found = running(folder / ".work")
    return sorted(
        pid for pid, command in found.items() if "joulesweep.train.worker" in command and "distributed" not in command
    )


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_its_peers_and_leaves_no_record(started):
    parent, folder = started
    os.kill(ranks(folder)[1], signal.SIGKILL)
    said = parent.communicate(timeout=PATIENCE_S)[1]
    assert parent.returncode == 1
    assert f"{folder.name}: a process of the run ended with exit code 1 and left no result" in said
    assert str(folder / "run.log") in said
    assert not (folder / "record.json").exists()
    assert running(folder) == {}
    wait_for(lambda: lock_files.held(folder.parent / "joulesweep-locks") == [])


@pytest.mark.slow
def test_all_ranks_die_with_the_process_that_launched_them(started):
    parent, folder = started
    parent.kill()
    parent.wait()
    wait_for(lambda: running(folder) == {})
    assert not (folder / "record.json").exists()
    wait_for(lambda: lock_files.held(folder.parent / "joulesweep-locks") == [])


def test_a_run_over_its_time_is_stopped_with_all_its_processes_and_recorded(start, script, tmp_path):
    script(
        "import subprocess",
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', str(work)])",
        "time.sleep(600)",
    )
    found, _ = start(timeout_s=0.5)
    assert (found["status"], found["reason"]) == ("timeout", "stopped after timeout_s = 0.5 s")
    assert found["measurement"] is found["quality"] is None
    assert found["epochs"] == []
    assert running(tmp_path) == {}


@pytest.fixture
def ends_after_its_result(monkeypatch, tmp_path):
    """A run's time is over as soon as its result is there, and not before; soon after, where it came first of all."""

    def now_s():
        found = [path for path in tmp_path.rglob("rank0.json") if path.read_text().endswith("}")]
        return 1e9 + time.monotonic() if found else 0.0

    monkeypatch.setattr(node, "time", SimpleNamespace(monotonic=now_s, sleep=time.sleep))


@pytest.mark.parametrize("end", ["time.sleep(600)", "sys.exit(1)", "os.abort()"])
def test_a_result_counts_however_its_process_ends(start, script, monkeypatch, ends_after_its_result, end):
    left = as_json(rank(energy=[reading("cpu:0", "cpu", None, reason="no meter")]))
    script(f"(work / 'rank0.json').write_text({json.dumps(left)!r})", end)
    found, _ = start(timeout_s=3)
    assert (found["status"], found["quality"]["validation_loss"]) == ("ok", 2.0)


@pytest.mark.parametrize(("counts", "end", "status"), [((5, 6), 9, "oom"), ((5, 5), 9, None), ((5, 6), 11, None)])
def test_a_killed_process_ran_out_of_memory_if_the_kernel_says_so(start, script, monkeypatch, counts, end, status):
    left = iter(counts)
    monkeypatch.setattr(node.processes, "oom_kills", lambda: next(left))
    script(f"os.kill(os.getpid(), {end})")
    if status:
        assert start()[0]["status"] == status
        return
    with pytest.raises(RunFailed, match=f"exit code -{end} and left no result"):
        start()


def test_a_rank_that_stops_with_a_reason_is_a_record(start, script):
    script(
        "outcome = {'status': 'oom', 'reason': 'too big', 'oom_bytes': 1024}",
        "(work / 'rank0.json').write_text(json.dumps(outcome))",
        "sys.exit(3)",
    )
    found, folder = start()
    assert (found["status"], found["reason"], found["oom_bytes"]) == ("oom", "too big", 1024)
    assert files.read_json(folder / "record.json", "record") == found
    assert lines(folder / "steps.jsonl") == []


def test_a_rank_that_stops_speaks_for_its_peers_that_then_fail(start, script):
    script(
        "outcome = {'status': 'diverged', 'reason': 'not finite', 'oom_bytes': None}",
        "(work / 'rank1.json').write_text(json.dumps(outcome))",
        "sys.exit(1)",
    )
    found, _ = start(strategy="ddp", devices=2)
    assert found["status"] == "diverged"


def test_a_reason_counts_more_than_the_time_that_ran_out_after_it(start, script, ends_after_its_result):
    script(
        "outcome = {'status': 'diverged', 'reason': 'not finite', 'oom_bytes': None}",
        "(work / 'rank0.json').write_text(json.dumps(outcome))",
        "time.sleep(600)",
    )
    found, _ = start(timeout_s=3)
    assert (found["status"], found["reason"]) == ("diverged", "not finite")


def test_a_users_mistake_arrives_as_one_and_leaves_no_record(start, script, tmp_path):
    script("(work / 'rank0.json').write_text(json.dumps({'status': 'error', 'reason': 'mend this'}))", "sys.exit(3)")
    with pytest.raises(UserError, match=r"^mend this$"):
        start()
    assert list(tmp_path.rglob("record.json")) == []


@pytest.mark.parametrize(
    ("last_line", "exit_code"), [("sys.exit(7)", 7), ("sys.exit(0)", 0), ("os.kill(os.getpid(), 9)", -9)]
)
def test_a_process_that_leaves_no_result_is_a_failure_without_record(start, script, tmp_path, last_line, exit_code):
    script("print('why it failed', flush=True)", last_line)
    with pytest.raises(RunFailed, match=rf"ended with exit code {exit_code} and left no result"):
        start()
    assert list(tmp_path.rglob("record.json")) == []
    (log,) = tmp_path.rglob("run.log")
    assert log.read_text() == "why it failed\n"


def test_a_rank_that_leaves_no_result_is_a_failure_also_if_the_other_did(start, script):
    script(f"(work / 'rank0.json').write_text({json.dumps(as_json(rank()))!r})")
    with pytest.raises(RunFailed):
        start(strategy="ddp", devices=2)


def test_what_an_earlier_attempt_left_is_no_result(start, script, tmp_path):
    folder = tmp_path / run_id(tiny_run.spec())
    (folder / ".work").mkdir(parents=True)
    (folder / ".work" / "rank0.json").write_text(json.dumps({"status": "oom", "reason": "old", "oom_bytes": None}))
    (folder / "model").mkdir()
    script("pass")
    with pytest.raises(RunFailed):
        start()
    assert not (folder / "model").exists()


def test_a_run_that_is_terminated_takes_its_processes_with_it(start, script, tmp_path):
    script("os.kill(os.getppid(), 15)", "time.sleep(600)")
    with pytest.raises(SystemExit) as stopped:
        start()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert running(tmp_path) == {}
    assert list(tmp_path.rglob("record.json")) == []


def test_a_run_ends_when_the_workflow_above_it_is_gone(start, script, monkeypatch, tmp_path):
    script("time.sleep(600)")
    seen = iter([(10, 9), (10, 9), (10, 9), (1, 0)])
    monkeypatch.setattr(processes, "ancestry", lambda: next(seen))
    with pytest.raises(SystemExit, match="the workflow that started this run is gone"):
        start()
    assert running(tmp_path) == {}


def test_the_ancestry_is_the_parent_and_its_parent():
    code = "from joulesweep.core.processes import ancestry; import os; print(*ancestry(), os.getppid())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=True
    )
    parent, grandparent, expected = map(int, done.stdout.split())
    assert (parent, grandparent) == (expected, os.getppid()) == (os.getpid(), os.getppid())


def test_a_process_that_is_gone_has_no_parent():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert processes._parent_of(child.pid) == 0


def test_one_rank_is_one_process_and_several_are_torchruns():
    work = Path("work")
    assert node._command(1, work) == [sys.executable, "-m", "joulesweep.train.worker", "work/job.json"]
    command = node._command(2, work)
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-3:] == ["-m", "joulesweep.train.worker", "work/job.json"]


def test_the_environment_makes_runs_equal_and_keeps_them_off_the_network(start, script, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "13")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "CUDA_DEVICE_ORDER", "PYTHONPATH")
    script(f"print(json.dumps([os.environ[name] for name in {names}]), flush=True)")
    with pytest.raises(RunFailed):
        start(threads_per_device=3)
    (log,) = tmp_path.rglob("run.log")
    repository = str(tiny_run.REPOSITORY)
    assert json.loads(log.read_text()) == ["3", "3", "1", "PCI_BUS_ID", f"{repository}{os.pathsep}elsewhere"]


def test_the_measuring_parent_imports_no_torch():
    code = "import sys, joulesweep.launch.launcher; print('torch' in sys.modules, 'zeus' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_the_job_that_the_processes_read_is_the_whole_spec_and_its_paths(start, script, assets, tmp_path):
    script("print((work / 'job.json').read_text(), flush=True)")
    with pytest.raises(RunFailed):
        start(epochs=7)
    (log,) = tmp_path.rglob("run.log")
    assert json.loads(log.read_text()) == {
        "spec": full(tiny_run.spec(epochs=7)),
        "model_folder": str(assets.model_folder),
        "tokens": str(assets.tokens),
        "folder": str(log.parent),
        "boards": [],
        "checkpoint": {"folder": str(log.parent / ".checkpoint")},
        "evaluations": [],
    }


def board(index, **changes):
    described = {"name": "Fake", "memory_bytes": 1, "has_counter": True, "mig": False}
    return Board(**{"index": index, "uuid": f"GPU-{index}", **described, **changes})


@pytest.fixture
def boards(monkeypatch):
    """Give the machine boards that nothing can be read of."""

    def give(number):
        made = [board(index) for index in range(number)]
        monkeypatch.setattr(devices, "boards", lambda: made)
        return made

    return give


TWO = {"strategy": "ddp", "devices": 2}


@pytest.mark.parametrize(
    ("number", "changes", "reason"),
    [
        (0, {"accelerator": "cuda"}, "single asks for 1 GPU; this machine has 0"),
        (1, {"accelerator": "cuda", **TWO}, "ddp asks for 2 GPUs; this machine has 1"),
    ],
)
@pytest.mark.parametrize("exclusive", ["gpu", "node", "none"])
def test_what_the_machine_cannot_run_is_a_record_at_once(start, script, boards, number, changes, reason, exclusive):
    script("raise SystemExit('it was started')")
    boards(number)
    found, folder = start(exclusive, **changes)
    assert (found["status"], found["reason"], found["measurement"]) == ("unsupported", reason, None)
    assert files.read_json(folder / "record.json", "record") == found
    assert len(found["environment"]["gpus"]) == number  # what it found, so that its machine is that of other runs
    assert found["epochs"] == []
    assert {path.name for path in folder.iterdir()} == {
        "record.json", "spec.json", "steps.jsonl", "epochs.jsonl", "power.jsonl", "summaries.jsonl",
    }  # fmt: skip
    assert (folder / "power.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("visible", "changes", "exclusive", "said"),
    [
        ("1", {**TWO}, "gpu", "ddp asks for 2 GPUs; this machine has 2, of which CUDA_VISIBLE_DEVICES=1 leaves 1"),
        ("", {}, "none", "single asks for 1 GPU; this machine has 2, of which CUDA_VISIBLE_DEVICES= leaves 0"),
        ("-1", {}, "gpu", "single asks for 1 GPU; this machine has 2, of which CUDA_VISIBLE_DEVICES=-1 leaves 0"),
        (None, {**TWO, "gpus": [1]}, "gpu", "ddp asks for 2 GPUs; this machine has 2, and measure.gpus names 1"),
        (None, {**TWO, "gpus": [1]}, "node", "ddp asks for 2 GPUs; this machine has 2, and measure.gpus names 1"),
        (None, {"gpus": [2]}, "gpu", "measure.gpus: unknown GPU of this machine '2'; allowed: 0, 1, GPU-0, GPU-1"),
        (None, {**TWO, "gpus": [1, "GPU-1"]}, "gpu", "measure.gpus: GPU-1 is gpu:1 once more; name each board once"),
        ("1", {"gpus": [0]}, "gpu", "measure.gpus: 0 is not among the GPUs that CUDA_VISIBLE_DEVICES=1 leaves"),
    ],
)
def test_boards_that_config_or_batch_system_withhold_are_the_users_to_mend(
    start, script, boards, monkeypatch, tmp_path, visible, changes, exclusive, said
):
    """The machine could: so it is no result. Nothing is written, and what an earlier run left stays."""
    script("raise SystemExit('it was started')")
    boards(2)
    if visible is not None:
        monkeypatch.setenv(nvidia.VISIBLE, visible)
    model = tmp_path / run_id(tiny_run.spec(accelerator="cuda", **changes)) / "model"
    model.mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        start(exclusive, accelerator="cuda", **changes)
    assert str(caught.value).startswith(said)
    assert list(tmp_path.rglob("*")) == [model.parent, model]


@pytest.mark.parametrize(
    ("changes", "exclusive", "num_gpus", "needed"),
    [
        ({"accelerator": "cuda", **TWO}, "gpu", 1, 2),
        ({"accelerator": "cuda"}, "gpu", 0, 1),
        ({"gpus": [0, 1, 2]}, "node", 2, 3),  # trains on the CPU and meters them all
        ({"accelerator": "cuda", **TWO}, "gpu", 2, None),
        ({"accelerator": "cuda"}, "gpu", 4, None),
        ({}, "node", 0, None),
    ],
)
def test_snakemakes_silent_cap_is_refused(changes, exclusive, num_gpus, needed):
    spec = tiny_run.spec(**changes)
    if needed is None:
        launcher.check_granted(spec, exclusive, num_gpus)
        return
    said = f"{run_id(spec)} needs {needed} GPUs, Snakemake grants {num_gpus}: use --resources gpu={needed}"
    with pytest.raises(UserError) as caught:
        launcher.check_granted(spec, exclusive, num_gpus)
    assert str(caught.value) == said


@pytest.mark.parametrize("exclusive", ["gpu", "node", "none"])
def test_whom_a_run_keeps_out_comes_from_its_grid(monkeypatch, tmp_path, exclusive, capsys):
    config = sweep.Sweep(validate(tiny_run.config(measure={"exclusive": exclusive}))).config
    files.write_json(tmp_path / "grid.json", grid.manifest(config))
    given = []

    def run_nothing(spec, code, **options):
        given.append((spec, code, options))
        return SimpleNamespace(run=run_id(spec), status="timeout", reason="as told", measurement=None, quality=None)

    monkeypatch.setattr(script_of_a_run, "launch", run_nothing)
    job = json.dumps({"spec": strip(tiny_run.spec()), "code": "c0de"})
    options = {name: str(tmp_path / name) for name in ("model-folder", "tokens", "texts", "folder", "log")}
    options |= {"job": job, "gpus": "0", "grid": str(tmp_path / "grid.json")}
    monkeypatch.setattr(
        sys, "argv", ["train", *(part for key, value in options.items() for part in (f"--{key}", value))]
    )
    script_of_a_run.main()
    ((spec, code, passed),) = given
    assert (spec, code, passed["exclusive"]) == (tiny_run.spec(), "c0de", exclusive)
    assert passed["tokens"] == tmp_path / "tokens"
    assert "timeout: as told" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exclusive", "changes", "locked"),
    [
        ("none", {}, []),
        ("none", {"gpus": [1]}, ["GPU-1"]),
        ("node", {}, ["node"]),
        ("gpu", {"gpus": [1, 0]}, ["GPU-1", "node"]),
        ("node", {"gpus": [1, 0]}, ["GPU-0", "GPU-1", "node"]),
        ("gpu", {"accelerator": "cuda"}, ["GPU-0", "node"]),
        ("gpu", {"accelerator": "cuda", **TWO}, ["GPU-0", "GPU-1", "node"]),
    ],
)
def test_what_a_run_holds_is_let_go_also_when_it_fails(
    start, script, boards, own_places, monkeypatch, exclusive, changes, locked
):
    boards(3)
    script("sys.exit(7)")
    seen, places, command = [], lease.folder(), node._command

    def noted(num_ranks, work):
        seen.append((lock_files.held(places), json.loads((work / "job.json").read_text())["boards"]))
        return command(num_ranks, work)

    monkeypatch.setattr(node, "_command", noted)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(RunFailed):
        start(exclusive, **changes)
    ((during, given),) = seen
    assert during == sorted([*locked, "running"])
    assert lock_files.held(places) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    assert sorted(one["uuid"] for one in given) == [name for name in locked if name != "node"]


@pytest.mark.parametrize(("changes", "visible"), [({}, ""), ({"gpus": [2, 0]}, "2"), ({"gpus": ["GPU-1"]}, "1")])
def test_the_processes_see_what_was_leased_and_no_more(start, script, boards, monkeypatch, tmp_path, changes, visible):
    boards(3)
    script(f"print(json.dumps(os.environ[{nvidia.VISIBLE!r}]), flush=True)")
    with pytest.raises(RunFailed):
        start("gpu", **changes)
    (log,) = tmp_path.rglob("run.log")
    assert json.loads(log.read_text()) == visible


def test_the_processes_keep_the_locks_while_one_of_them_lives(start, script, boards, tmp_path):
    boards(2)
    script(
        "links = [os.readlink(path) for path in pathlib.Path('/proc/self/fd').iterdir() if path.exists()]",
        "print(json.dumps(sorted(pathlib.Path(link).stem for link in links if link.endswith('.lock'))), flush=True)",
    )
    with pytest.raises(RunFailed):
        start("gpu", gpus=[1])
    (log,) = tmp_path.rglob("run.log")
    assert json.loads(log.read_text()) == ["GPU-1", "node"]


@pytest.mark.slow
def test_a_run_whose_boards_are_metered_tells_all_that_was_seen(start, monkeypatch, tmp_path):
    """The CPU trains, the boards are made up: the first draws 300 W, the second 100 W."""
    monkeypatch.undo()
    monkeypatch.setattr(lease, "folder", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = fake_meters.Boards(
        tmp_path, [{"watts": 300, "tick_ms": 20, "throttle": "0x8"}, {"watts": 100, "tick_ms": 20}]
    )
    made.install(monkeypatch)
    monkeypatch.setenv("LD_LIBRARY_PATH", made.environment()["LD_LIBRARY_PATH"])
    nvidia.nvml.cache_clear()
    try:
        found, folder = start("node", gpus=[1, 0], min_seconds=1.5, idle_s=0.5, cooldown_s=0.2)
    finally:
        nvidia.nvml.cache_clear()
    measured = found["measurement"]
    assert found["status"] == "ok"
    assert [gpu["index"] for gpu in found["environment"]["gpus"]] == [1, 0]
    assert measured["total_window_s"] >= 1.5
    for row, watts, uuid in zip(
        measured["energy"], (100, 300), (made.boards[1]["uuid"], made.boards[0]["uuid"]), strict=False
    ):
        assert (row["uuid"], row["status"]) == (uuid, "measured")
        true_j, error_j = watts * measured["total_window_s"], row["error_j"] * measured["num_passes"]
        assert row["total_energy_j"] == pytest.approx(true_j, abs=error_j)
        assert row["energy_j"] == pytest.approx(row["total_energy_j"] / measured["num_passes"])
        assert row["tick_s"] > 0.01  # longer where the machine is too busy to look at it so often
        assert (row["mean_power_w"], row["idle_w"]) == (pytest.approx(watts), pytest.approx(watts, rel=0.1))
        net_j = row["energy_j"] - row["idle_w"] * measured["window_s"]  # it draws the same all the time: about 0
        assert row["net_energy_j"] == (pytest.approx(net_j) if net_j >= 0 else None)
    power = lines(folder / "power.jsonl")
    assert {row["device"] for row in power if row["t_s"] < 0} == {"gpu:0", "gpu:1"}
    inside = [row for row in power if row["device"] == "gpu:0" and 0 <= row["t_s"] <= measured["total_window_s"]]
    assert abs(len(inside) - measured["overhead"]["num_samples"]) <= 1
    assert len(inside) > 1
    assert {row["power_w"] for row in inside} == {300.0}
    assert inside[-1]["energy_j"] == pytest.approx(300 * inside[-1]["t_s"], abs=300 * 0.5)
    assert {flag["flag"] for flag in measured["flags"]} >= {"short_window", "throttled"}
    assert {flag["flag"] for flag in measured["flags"]} <= {"short_window", "throttled", "not_settled", "contended"}
    about = measured["conditions"]
    assert about["exclusive"] == "node" and about["idle_s"] > 0.4
    assert about["window_begin"] < about["window_end"] <= f"{found['finished'][:19]}.999"
    assert [state["throttle_reasons"] for state in about["boards"]] == [[], ["hardware slowdown"]]
    assert measured["overhead"]["meter_s"] > 0
    repeated = measured["num_passes"] > 1  # then weights went back to the start
    assert (measured["overhead"]["weights_s"] > 0) == repeated
    assert measured["overhead"]["weights_s"] < measured["total_window_s"]
    assert lock_files.held(tmp_path) == []


class Asked(Exception):  # noqa: N818 - says what happened
    pass


@pytest.mark.parametrize(
    ("pinned", "changes", "asked"),
    [(False, {}, [0, 1, 2]), (True, {}, [0]), (True, TWO, [0, 1])],
)
def test_pinned_runs_choose_from_the_first_boards_alone(boards, monkeypatch, tmp_path, pinned, changes, asked):
    boards(3)

    def lease(candidates, *given):
        raise Asked([one.index for one in candidates])

    monkeypatch.setattr(node, "Lease", lease)
    paths = {name: tmp_path / name for name in ("model_folder", "tokens", "folder")}
    spec = tiny_run.spec(accelerator="cuda", **changes)
    with pytest.raises(Asked) as caught:
        launcher.launch(spec, "c0de", **paths, log=None, exclusive="gpu", pinned=pinned, with_snakemake=False)
    assert caught.value.args == (asked,)


@pytest.fixture
def manifest(assets):
    """What a fetch would have said of the model, for as long as a test takes."""
    path = assets.model_folder.with_name(f"{assets.model_folder.name}.json")
    yield lambda **row: path.write_text(json.dumps({"tasks": {"mlm": {"reason": None, "new_weights": [], **row}}}))
    path.unlink()


def test_a_model_that_lacks_weights_for_the_runs_task_is_refused_before_anything_begins(start, script, manifest):
    script("(work / 'began').touch()")
    manifest(reason="task mlm: not in the files: cls.predictions.bias")
    with pytest.raises(UserError, match=r"^model bert: task mlm: not in the files: cls\.predictions\.bias$"):
        start()


@pytest.mark.slow
@pytest.mark.parametrize("names", [[], ["a.weight", "a.bias"]])
def test_weights_that_began_at_random_are_flagged(start, manifest, names):
    manifest(new_weights=names)
    flags = {row["flag"]: row["text"] for row in start()[0]["measurement"]["flags"]}
    assert flags.get("new_weights") == ("not in the model's files: a.weight, a.bias" if names else None)
    assert "new_weights" in evidence.FLAGS


@pytest.fixture
def hanging(boards, monkeypatch):
    """One board, whose power is never told; the limit for an answer is short."""
    gate = threading.Event()
    boards(1)
    monkeypatch.setattr(bounded, "LIMIT_S", 0.2)
    monkeypatch.setattr(BoardSensor, "power_w", lambda self: gate.wait() and None)
    yield gate
    gate.set()


def test_a_meter_that_hangs_stops_no_deadline(start, script, hanging, tmp_path):
    script("time.sleep(600)")
    found, _ = start("gpu", gpus=[0], timeout_s=1.0)
    assert (found["status"], found["reason"]) == ("timeout", "stopped after timeout_s = 1 s")
    assert running(tmp_path) == {}


def test_a_meter_that_hangs_stops_no_signal(start, script, hanging, monkeypatch, tmp_path):
    monkeypatch.setattr(bounded, "LIMIT_S", 600.0)
    script("os.kill(os.getppid(), 15)", "time.sleep(600)")
    with pytest.raises(SystemExit):
        start("gpu", gpus=[0])
    assert running(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("cooldown_s", [0.0, 0.1])
def test_a_meter_that_hangs_costs_readings_and_not_the_training(start, hanging, monkeypatch, cooldown_s):
    monkeypatch.setattr(node, "POLL_S", 0.01)
    found, _ = start("gpu", gpus=[0], cooldown_s=cooldown_s)
    assert found["status"] == "ok"
    (told,) = [row["text"] for row in found["measurement"]["flags"] if row["flag"] == "trace_stopped"]
    if cooldown_s:
        assert told == "gpu:0: no answer within 0.2 s before the run: it was not read"
    else:
        assert told.startswith("no answer within 0.2 s; the last reading is of ")
    assert found["measurement"]["conditions"]["boards"][0]["throttle_reasons"] is None


#: Launches an endless run on a board of the fake NVML, whose answers never come once a file says so.
LAUNCHER = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/support")
import tiny_run
from joulesweep.core import bounded
from joulesweep.launch import launcher, node
folder, bounded.LIMIT_S = Path(sys.argv[1]), 0.5
work = "print('works', flush=True); import time; time.sleep(600)"
node._command = lambda num_ranks, place: [sys.executable, "-c", work, str(place)]
spec = tiny_run.spec(gpus=[0], timeout_s=float(sys.argv[2]))
found = launcher.launch(
    spec, "c0de", model_folder=folder / "model", tokens=folder / "tokens.arrow", folder=folder / "run",
    log=folder / "run.log", exclusive="gpu", with_snakemake=False,
)
print(found.status)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["timeout", "sigterm"])
def test_a_driver_that_hangs_for_good_stops_neither_deadline_nor_signal(tmp_path, end):
    made = fake_meters.Boards(tmp_path, [{"watts": 300, "tick_ms": 20}])
    places = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JOULESWEEP_LOCKS": str(tmp_path / "locks")}
    parent = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), "5" if end == "timeout" else "600"],
        cwd=tiny_run.REPOSITORY, env=made.environment(**places, PYTHONPATH=str(tiny_run.REPOSITORY)),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        log = tmp_path / "run.log"
        wait_for(lambda: (log.exists() and "works" in log.read_text()) or parent.poll() is not None)
        made.set(0, delay="*:600")
        if end == "sigterm":
            time.sleep(1)  # a reading hangs, or will
            parent.terminate()
        said = parent.communicate(timeout=PATIENCE_S)[0]
    finally:
        parent.kill()
        parent.wait()
    assert (parent.returncode, said) == ((0, "timeout\n") if end == "timeout" else (128 + signal.SIGTERM, ""))
    assert running(tmp_path) == {}


@pytest.mark.slow
def test_evaluations_reach_the_record_and_their_items_a_file_beside_it(assets, tmp_path):
    spec = tiny_run.spec(
        evaluate=[{"name": "held-out", "dataset": "texts", "texts": 5, "source": tiny_run.spec().dataset_source}]
    )
    folder = tmp_path / run_id(spec)
    paths = {"model_folder": assets.model_folder, "tokens": assets.tokens, "log": folder / "run.log"}
    written = launcher.launch(spec, "c0de", **paths, folder=folder, evaluations=[assets.tokens], with_snakemake=False)
    (score,) = record.read(folder / "record.json").evaluations
    assert written.evaluations == [score]
    assert (score.evaluation, score.metric, score.n) == ("held-out(texts)", "loss", 5) and score.before != score.after
    assert written.inputs.evaluations == [written.inputs.tokens]
    (line,) = (folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    assert [len(part["after"]) for part in json.loads(line)["scores"]] == [5, 5]
