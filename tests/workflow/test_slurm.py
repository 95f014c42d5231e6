"""A sweep on a real Slurm with fake boards: one job per run, several runs per job, and what happens to jobs there."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_meters
import pytest
import slurm as slurm_module
import yaml
from checkout import Checkout, prepared
from patience import PATIENCE_S, wait_for
from slurm import Slurm
from tiny_run import REPOSITORY

from joulesweep.launch import state
from joulesweep.plan.config import validate
from joulesweep.plan.grid import expand
from joulesweep.runs import attempted

PYTHON = REPOSITORY / ".cache" / "slurm" / "bin" / "python"
NODE = socket.gethostname().partition(".")[0]
NO_EXECUTORS = "no executors for clusters: make .cache/slurm/.ready"
LONG_STEPS = 2000  # some seconds
WATTS, TICK_S = (310, 170, 240, 90), 0.005
#: Snakemake imports all of its plugins, and Slurm's imports pandas for a report that nobody asks for: only when used.
LAZY = """
if "snakemake" in sys.orig_argv:
    import importlib.util
    lazy = importlib.util.find_spec("pandas")
    lazy.loader = importlib.util.LazyLoader(lazy.loader)
    sys.modules["pandas"] = importlib.util.module_from_spec(lazy)
    lazy.loader.exec_module(sys.modules["pandas"])
"""
MEMORY_MB = 1500
#: A process that trains wants more than its first job may have, and less than the second one may.
HUNGRY = f"""
if "joulesweep.train.worker" in sys.orig_argv and os.path.exists("hungry"):
    bytearray({MEMORY_MB + 100} << 20)
"""
pytestmark = pytest.mark.slow


class Cluster:
    """A checkout on the login node of a Slurm whose node has four boards."""

    def __init__(self, slurm: Slurm, checkout: Checkout, boards: fake_meters.Boards) -> None:
        self.slurm, self.checkout = slurm, checkout
        self.watts = {board["uuid"]: watts for board, watts in zip(boards.boards, WATTS, strict=True)}
        checkout.environ |= {**slurm.environ, "SBATCH_ACCOUNT": "green"}
        checkout.wrapped = lambda command: [str(PYTHON), *command[1:]]

    def record(self, run: str) -> dict[str, Any]:
        row: dict[str, Any] = json.loads((self.checkout.runs / run / "record.json").read_text(encoding="utf-8"))
        return row

    def boards(self, run: str) -> list[dict[str, Any]]:
        """What a record says of the boards."""
        return [row for row in self.record(run)["measurement"]["energy"] if row["kind"] == "gpu"]

    def job_of(self, run: str, status: str = "RUNNING") -> str | None:
        """The id of a run's job if it is in a state."""
        return next((job for job, comment in self.slurm.jobs(status).items() if comment.endswith(run)), None)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, complete: Path) -> Iterator[Cluster]:
    reason = slurm_module.lacking() or (None if PYTHON.exists() else NO_EXECUTORS)
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    boards = fake_meters.Boards(folder, [{"watts": watts, "tick_ms": 1000 * TICK_S} for watts in WATTS])
    environ = boards.environment()
    of_jobs = {name: environ[name] for name in ("LD_LIBRARY_PATH", "FAKE_NVML", "FAKE_NVML_CLOCK")}
    checkout = prepared(folder / "checkout", complete)
    checkout.config["grid"] |= {"strategy": ["single", "ddp"], "batch_size": [8, 16, 96]}
    checkout.config["exclude"] = [{"when": {"strategy": "ddp", "batch_size": [16, 96]}, "reason": "two are enough"}]
    checkout.config["measure"] = {"exclusive": "gpu", "gpus": [0, 1, 2, 3], "min_seconds": 0.4, "cooldown_s": 0}
    checkout.config["measure"]["idle_s"] = 0.2
    checkout.config["hardware"]["memory_mb"] = MEMORY_MB
    checkout.write_config()
    (gate,) = folder.glob("checkout-gate/sitecustomize.py")
    gate.write_text(gate.read_text(encoding="utf-8") + LAZY + HUNGRY, encoding="utf-8")
    with slurm_module.running(folder / "slurm", {NODE: of_jobs}, gpus=len(WATTS), holds=True) as slurm:
        yield Cluster(slurm, checkout, boards)
        checkout.end()


def test_the_generic_profile_works_where_no_batch_system_is(tmp_path: Path, complete: Path) -> None:
    """A job in the background of this machine: tokenising, after the tokens were lost."""
    if not PYTHON.exists():
        pytest.skip(NO_EXECUTORS)
    checkout = prepared(tmp_path / "checkout", complete, {"JOULESWEEP_BATCH": "local"})
    checkout.wrapped = lambda command: [str(PYTHON), *command[1:]]
    shutil.rmtree(checkout.folder / "resources" / "tokens")
    options = ("--workflow-profile", "profiles/cluster-generic", "--seconds-between-status-checks", "1")
    output = checkout.run(*options, "--latency-wait", "5", "--until", "tokenise")
    assert output.count("with external jobid") == 1
    assert len(list(checkout.folder.glob("resources/tokens/*/*.safetensors"))) == 1


def runs_of(cluster: Cluster, strategy: str, batch_size: int) -> list[str]:
    specs = expand(validate(cluster.checkout.config)).runs
    return [run for run, spec in specs.items() if (spec.strategy, spec.batch_size) == (strategy, batch_size)]


def targets(runs: list[str]) -> list[str]:
    return [f"results/tiny/runs/{run}/record.json" for run in runs]


ONE_BY_ONE = ("--workflow-profile", "profiles/slurm", "--slurm-status-command", "squeue", "--slurm-no-account")
QUICKLY = ("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5")


def test_a_sweep_on_slurm_loses_what_is_cancelled_alone_and_counts_right(cluster: Cluster) -> None:
    """One story, since a job takes seconds to start."""
    a_cancelled_job_costs_its_run_alone_and_the_others_come_to_an_end(cluster)
    several_runs_of_a_job_have_a_record_each_and_one_that_fails_costs_no_other(cluster)
    every_run_measured_its_own_boards_and_counted_right(cluster)
    a_run_gets_twice_the_memory_that_it_lacked_and_goes_on_where_it_was_requeued(cluster)


def a_run_gets_twice_the_memory_that_it_lacked_and_goes_on_where_it_was_requeued(cluster: Cluster) -> None:
    """A longer run, in a sweep of its own: the kernel kills it in its first job; the second one is requeued."""
    slurm, checkout = cluster.slurm, cluster.checkout
    long = {**checkout.config, "sweep": "long", "exclude": [], "train": {"max_steps": LONG_STEPS}}
    long["grid"] = {**checkout.config["grid"], "strategy": ["single"], "batch_size": [8], "repeats": 1}
    (checkout.folder / "config" / "long.yaml").write_text(yaml.safe_dump(long), encoding="utf-8")
    (run,) = expand(validate(long)).runs
    folder = checkout.folder / "results" / "long" / "runs" / run
    record = f"results/long/runs/{run}/record.json"
    if slurm_module.holds_to_memory():
        (checkout.folder / "hungry").touch()
    child = checkout.start(*ONE_BY_ONE, *QUICKLY, "--configfile", "config/long.yaml", "--", record)
    wait_for(lambda: (folder / ".work" / "listens0").exists() or child.poll() is not None, "the training", every_s=0.05)
    wait_for(lambda: num_steps(folder) >= LONG_STEPS // 10 or child.poll() is not None, "some steps", every_s=0.05)
    job = str(cluster.job_of(run))
    if slurm_module.holds_to_memory():
        (lacked, _) = attempted.notes(folder / attempted.FILE)
        assert attempted.HOST_OOM in lacked["reason"]
        assert slurm.call("squeue", "--noheader", f"--jobs={job}", "--format=%m").strip() == f"{2 * MEMORY_MB}M"
    slurm.call("scontrol", "requeue", job)
    wait_for(lambda: slurm.state(job) == "PENDING", "the requeued job", every_s=0.2)
    assert (folder / ".checkpoint" / "manifest.json").exists(), (folder / "run.log").read_text(encoding="utf-8")
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")  # else in two minutes
    output, _ = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, output
    measured = json.loads((checkout.folder / record).read_text(encoding="utf-8"))["measurement"]
    assert "resumed" in [flag["flag"] for flag in measured["flags"]]
    before, after = measured["segments"]
    assert 1 == before["first_step"] < before["last_step"] == after["first_step"] - 1
    assert after["last_step"] == LONG_STEPS


def num_steps(folder: Path) -> int:
    """Steps that a run has told of so far: a few are too short to be measured, and nothing is kept of them."""
    return max(map(int, re.findall(r"(\d+)/\d+ \[", (folder / "run.log").read_text(encoding="utf-8"))), default=0)


def a_cancelled_job_costs_its_run_alone_and_the_others_come_to_an_end(cluster: Cluster) -> None:
    """Four runs want five boards of four; the node is drained while three are on it, and one of these requeued."""
    slurm, checkout = cluster.slurm, cluster.checkout
    runs = [runs_of(cluster, "ddp", 8)[0], *runs_of(cluster, "single", 8), runs_of(cluster, "single", 16)[0]]
    with checkout.held():
        child = checkout.start(*ONE_BY_ONE, *QUICKLY, *targets(runs), "--set-resources", "train:gpu_model=fake")
        wait_for(lambda: len(checkout.workers()) == 3 or child.poll() is not None, "three runs that train", every_s=0.2)
        assert child.poll() is None, child.communicate()[0]
        undisturbed, cancelled, requeued = [run for run in runs if cluster.job_of(run)]
        (late,) = [run for run in runs if run not in (undisturbed, cancelled, requeued)]
        slurm.call("scontrol", "update", f"NodeName={slurm.nodes[0]}", "State=DRAIN", "Reason=test")
        again = str(cluster.job_of(requeued))
        slurm.call("scontrol", "requeue", again)
        slurm.call("scancel", str(cluster.job_of(cancelled)))
        wait_for(lambda: len(checkout.workers()) == 1, "the end of two", every_s=0.2)
    wait_for(lambda: cluster.job_of(undisturbed, "COMPLETED"), "the end of the third", every_s=0.2)
    assert {run for run in runs if cluster.job_of(run, "PENDING")} >= {requeued, late}
    slurm.call("scontrol", "update", f"NodeName={slurm.nodes[0]}", "State=RESUME")
    slurm.call("scontrol", "update", f"JobId={again}", "StartTime=now")  # else in two minutes
    output, _ = child.communicate(timeout=PATIENCE_S)
    assert child.returncode != 0, output
    assert set(checkout.records()) == {undisturbed, requeued, late}, output
    assert cluster.record(requeued)["environment"]["batch"] == {
        "system": "slurm",
        "job": again,
        "node": slurm.nodes[0],
        "account": "green",
        "partition": "main",
    }
    assert re.search(r"^train +5$", checkout.run("-n", *ONE_BY_ONE), re.MULTILINE)
    now = state.read(checkout.folder / "results" / "tiny")
    (failure,) = now.failures
    assert failure.run == cancelled
    log = Path(str(failure.batch_log))
    assert "CANCELLED" in log.read_text(encoding="utf-8")
    assert any("not tried again" in path.read_text(encoding="utf-8") for path in log.parent.iterdir())


def job(note: dict[str, Any]) -> str:
    return str(note["batch"]["job"])


def begin(note: dict[str, Any]) -> str:
    return str(note["began"])


def several_runs_of_a_job_have_a_record_each_and_one_that_fails_costs_no_other(cluster: Cluster) -> None:
    """The other five, in two jobs, which ask for the boards of one run and not for those of all."""
    checkout, before = cluster.checkout, cluster.checkout.records()
    left = [run for run in expand(validate(checkout.config)).runs if run not in before]
    broken = runs_of(cluster, "single", 96)[0]
    (checkout.runs / broken).mkdir(parents=True)
    (checkout.runs / broken / ".work").touch()  # where a folder has to be
    many = ("--workflow-profile", "profiles/cluster-generic", "--group-components", "runs=3", *QUICKLY[-2:])
    done = checkout.snakemake(*many, "--seconds-between-status-checks", "1", *targets(left))
    assert done.returncode != 0
    after = checkout.records()
    assert {run: after[run] for run in before} == before, "what is done stays done"
    assert set(after) - set(before) == set(left) - {broken}, done.stdout + done.stderr
    took = [attempted.notes(checkout.runs / run / attempted.FILE)[-1] for run in set(after) - set(before)]
    jobs = [sorted(group, key=begin) for _, group in itertools.groupby(sorted(took, key=job), key=job)]
    assert len(jobs) == 2
    for one, following in itertools.chain.from_iterable(map(itertools.pairwise, jobs)):
        assert one["ended"] <= following["began"], "the runs of a job take turns"
    (broken_log,) = [
        row.batch_log for row in state.read(checkout.folder / "results" / "tiny").failures if row.run == broken
    ]
    assert "FileExistsError" in Path(str(broken_log)).read_text(encoding="utf-8")
    (checkout.runs / broken / ".work").unlink()
    assert re.search(r"^train +1$", checkout.run("-n", *many, *targets(left)), re.MULTILINE)


def every_run_measured_its_own_boards_and_counted_right(cluster: Cluster) -> None:
    windows = []
    for run in cluster.checkout.records():
        measured, boards = cluster.record(run)["measurement"], cluster.boards(run)
        assert len(boards) == (2 if "ddp2" in run else 1)
        for row in boards:
            truth_j = cluster.watts[row["uuid"]] * measured["total_window_s"]
            allowed = 2 * TICK_S / measured["total_window_s"] + 0.002
            assert row["total_energy_j"] == pytest.approx(truth_j, rel=allowed), run
            conditions = measured["conditions"]
            windows.append((row["uuid"], conditions["window_begin"], conditions["window_end"]))
    for (uuid, begin, end), (other, other_begin, other_end) in itertools.combinations(windows, 2):
        assert uuid != other or end <= other_begin or other_end <= begin
    assert len(cluster.checkout.records()) >= 7
