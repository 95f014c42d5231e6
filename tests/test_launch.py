"""A run leaves a whole record or none, and never a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run

from joulesweep import grid, launch, process, record, train
from joulesweep.config import validate
from joulesweep.errors import UserError
from joulesweep.launch import RunFailed
from joulesweep.spec import full, run_id, strip

PATIENCE_S = 60.0  # before a test gives up; none waits that long when all is well
ENDLESS = {"max_steps": 10**7}
#: Texts that leave one for the last batch of 22, and so none for the second of two ranks.
ODD = {"source": {"local": "texts.txt"}, "format": "text", "validation_fraction": 0.25}


@pytest.fixture(autouse=True)
def sigterm_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return tiny_run.assets(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def start(assets, tmp_path):
    """Launch a run in this process, in a folder of its name."""

    def start(**changes):
        spec = tiny_run.spec(**changes)
        folder = tmp_path / run_id(spec)
        found = launch.launch(
            spec, "c0de", model_folder=assets.model_folder, tokens=assets.tokens, folder=folder, log=folder / "run.log"
        )
        return found, folder

    return start


@pytest.fixture
def script(monkeypatch):
    """Let a few lines of Python stand for the training process; `work` is its folder."""

    def use(*lines):
        def command(num_ranks, work):
            code = f"import json, os, sys, time, pathlib; work = pathlib.Path({str(work)!r})"
            return [sys.executable, "-c", "\n".join([code, *lines])]

        monkeypatch.setattr(launch, "_command", command)

    return use


def processes(word) -> dict[int, str]:
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


def wait_for(condition):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_leaves_its_record_last_and_nothing_else(start, assets, tmp_path):
    found, folder = start(epochs=2, dataset_source=ODD, batch_size=22)
    assert record.read(folder / "record.json") == found
    assert {path.name for path in folder.iterdir()} == {
        "record.json", "spec.json", "steps.jsonl", "epochs.jsonl", "run.log",
    }  # fmt: skip
    assert json.loads((folder / "spec.json").read_text()) == found["spec"]
    assert (found["status"], found["code_digest"], found["reason"]) == ("ok", "c0de", None)
    steps = lines(folder / "steps.jsonl")
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert lines(folder / "epochs.jsonl") == found["epochs"]
    assert [tuple(row) for row in found["epochs"]] == [launch.EPOCH] * 3
    assert found["quality"] == {name: found["quality"][name] for name in launch.QUALITY}
    assert found["quality"]["validation_loss"] == found["epochs"][-1]["validation_loss"]
    assert found["started"] <= found["finished"]
    assert found["measurement"]["num_texts"] == 90
    assert found["measurement"]["samples_per_s"] == pytest.approx(90 / found["measurement"]["window_s"])
    assert (folder / "record.json").stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in folder.iterdir())
    assert processes(tmp_path) == {}
    # what a process of its own computes is what this process computes
    spec = tiny_run.spec(epochs=2, dataset_source=ODD, batch_size=22)
    here = train.train(spec, assets.model_folder, assets.tokens, tmp_path / "here")
    assert [row["train_loss"] for row in steps] == here["losses"]


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(start, assets, tmp_path):
    changes = {"epochs": 2, "dataset_source": ODD, "batch_size": 22, "keep_model": "last"}
    found, folder = start(**changes, strategy="ddp", devices=2)
    one = train.train(tiny_run.spec(**changes), assets.model_folder, assets.tokens, tmp_path / "one")
    assert [row["train_loss"] for row in lines(folder / "steps.jsonl")] == pytest.approx(one["losses"], rel=1e-4)
    for name in ("num_texts", "num_tokens", "num_steps"):
        assert found["measurement"][name] == one["measurement"][name]
    for row, expected in zip(found["epochs"], one["epochs"], strict=True):
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-4)
        assert row["num_steps"] == expected["num_steps"]
    assert sorted(row["kind"] for row in found["measurement"]["energy"]) == ["cpu", "dram"]  # the host once
    again = train.train(tiny_run.spec(**changes), folder / "model", assets.tokens, tmp_path / "again")
    assert again["epochs"][0]["validation_loss"] == pytest.approx(found["quality"]["validation_loss"], rel=1e-5)


@pytest.fixture
def started(assets, tmp_path):
    """Two endless ranks under `scripts.train`, a process of its own, in the midst of training; ended afterwards."""
    spec = tiny_run.spec(**ENDLESS, strategy="ddp", devices=2)
    folder, grid_file = tmp_path / run_id(spec), tmp_path / "grid.json"
    record.write_json(grid_file, grid.manifest(validate(tiny_run.config())))
    paths = {"model-folder": assets.model_folder, "tokens": assets.tokens, "grid": grid_file, "folder": folder}
    paths["log"] = folder / "run.log"
    job = json.dumps({"spec": strip(spec), "code": "c0de"})
    options = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    parent = subprocess.Popen(
        [sys.executable, "-m", "scripts.train", "--job", job, *options],
        cwd=tiny_run.REPOSITORY, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(
            lambda: (paths["log"].exists() and "/10000000" in paths["log"].read_text()) or parent.poll() is not None
        )
        wait_for(lambda: len(ranks(folder)) == 2)
        yield parent, folder
    finally:
        parent.kill()
        parent.communicate()
        for pid in processes(folder / ".work"):
            os.kill(pid, signal.SIGKILL)


def ranks(folder) -> list[int]:
    found = processes(folder / ".work")
    return sorted(
        pid for pid, command in found.items() if "joulesweep.worker" in command and "distributed" not in command
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
    assert processes(folder) == {}


@pytest.mark.slow
def test_all_ranks_die_with_the_process_that_launched_them(started):
    parent, folder = started
    parent.kill()
    parent.wait()
    wait_for(lambda: processes(folder) == {})
    assert not (folder / "record.json").exists()


def test_a_run_over_its_time_is_stopped_with_all_its_processes_and_recorded(start, script, tmp_path):
    script(
        "import subprocess",
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', str(work)])",
        "time.sleep(600)",
    )
    found, folder = start(timeout_s=0.5)
    assert (found["status"], found["reason"]) == ("timeout", "stopped after timeout_s = 0.5 s")
    assert found["measurement"] is found["quality"] is None
    assert record.read(folder / "record.json")["epochs"] == []
    assert processes(tmp_path) == {}


def test_a_rank_that_stops_with_a_reason_is_a_record(start, script):
    script(
        "outcome = {'status': 'oom', 'reason': 'too big', 'oom_bytes': 1024}",
        "(work / 'rank0.json').write_text(json.dumps(outcome))",
        "sys.exit(3)",
    )
    found, folder = start()
    assert (found["status"], found["reason"], found["oom_bytes"]) == ("oom", "too big", 1024)
    assert record.read(folder / "record.json") == found
    assert lines(folder / "steps.jsonl") == []


def test_a_rank_that_stops_speaks_for_its_peers_that_then_fail(start, script):
    script(
        "outcome = {'status': 'diverged', 'reason': 'not finite', 'oom_bytes': None}",
        "(work / 'rank1.json').write_text(json.dumps(outcome))",
        "sys.exit(1)",
    )
    found, _ = start(strategy="ddp", devices=2)
    assert found["status"] == "diverged"


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
    script("(work / 'rank0.json').write_text(json.dumps({'status': 'ok'}))")
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
    assert processes(tmp_path) == {}
    assert list(tmp_path.rglob("record.json")) == []


def test_a_run_ends_when_the_workflow_above_it_is_gone(start, script, monkeypatch, tmp_path):
    script("time.sleep(600)")
    seen = iter([(10, 9), (10, 9), (10, 9), (1, 0)])
    monkeypatch.setattr(process, "ancestry", lambda: next(seen))
    with pytest.raises(SystemExit, match="the workflow that started this run is gone"):
        start()
    assert processes(tmp_path) == {}


def test_the_ancestry_is_the_parent_and_its_parent():
    code = "from joulesweep.process import ancestry; import os; print(*ancestry(), os.getppid())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=True
    )
    parent, grandparent, expected = map(int, done.stdout.split())
    assert (parent, grandparent) == (expected, os.getppid()) == (os.getpid(), os.getppid())


def test_a_process_that_is_gone_has_no_parent():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert process._parent_of(child.pid) == 0


def test_one_rank_is_one_process_and_several_are_torchruns():
    work = Path("work")
    assert launch._command(1, work) == [sys.executable, "-m", "joulesweep.worker", "work/job.json"]
    command = launch._command(2, work)
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-3:] == ["-m", "joulesweep.worker", "work/job.json"]


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
    code = "import sys, joulesweep.launch; print('torch' in sys.modules, 'zeus' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def rank(**changes):
    """What a rank leaves."""
    row = {
        "validation_loss": 2.0,
        "perplexity": 7.4,
        "masked_accuracy": 0.1,
        "num_validation_texts": 5,
        "num_masked": 9,
    }
    clock = [(0, 0.0, 0.0, 0), (1, 3.0, 2.5, 4)]
    epochs = [
        {"epoch": e, "elapsed_s": s, "cpu_s": c, "num_steps": n, "train_loss": None, **row} for e, s, c, n in clock
    ]
    measurement = {
        "window_s": 4.0,
        "energy": [{"device": "gpu:0"}],
        "cpu_s": 3.0,
        "startup_s": 1.0,
        "num_texts": 40,
        "num_tokens": 400,
        "num_padded_tokens": 600,
        "peak_memory": {"host_rss_bytes": 100, "gpu_allocated_bytes": 7, "gpu_reserved_bytes": 8},
        "num_steps": 4,
        "num_skipped_steps": 0,
        **changes,
    }
    return {"status": "ok", "measurement": measurement, "epochs": epochs, "losses": [3.0] * 4, "num_train_texts": 80}


def test_ranks_are_combined_without_losing_or_doubling_anything():
    slow = {"host_rss_bytes": 50, "gpu_allocated_bytes": 9, "gpu_reserved_bytes": 10}
    other = rank(window_s=5.0, cpu_s=2.0, startup_s=2.0, energy=[{"device": "gpu:1"}], peak_memory=slow)
    for row in other["epochs"]:
        row["elapsed_s"] *= 2
        for name in launch.QUALITY:  # rank 0 alone scores
            del row[name]
    found = launch.combine([rank(), other])
    assert found["measurement"] == {
        "window_s": 5.0,
        "startup_s": 2.0,
        "cpu_s": 5.0,
        "energy": [{"device": "gpu:0"}, {"device": "gpu:1"}],
        "peak_memory": {"host_rss_bytes": 150, "gpu_allocated_bytes": 9, "gpu_reserved_bytes": 10},
        "num_steps": 4,
        "num_skipped_steps": 0,
        "num_texts": 80,
        "num_tokens": 800,
        "num_padded_tokens": 1200,
        "samples_per_s": 16.0,
        "tokens_per_s": 160.0,
        "padded_tokens_per_s": 240.0,
        "epochs_per_minute": 12.0,
    }
    assert [(row["elapsed_s"], row["cpu_s"]) for row in found["epochs"]] == [(0.0, 0.0), (6.0, 5.0)]
    assert found["quality"]["validation_loss"] == 2.0
    assert found["losses"] == [3.0] * 4


def test_memory_that_no_rank_has_is_null():
    without = {"host_rss_bytes": 100, "gpu_allocated_bytes": None, "gpu_reserved_bytes": None}
    found = launch.combine([rank(peak_memory=without), rank(peak_memory=without)])["measurement"]["peak_memory"]
    assert found == {"host_rss_bytes": 200, "gpu_allocated_bytes": None, "gpu_reserved_bytes": None}


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
    }
