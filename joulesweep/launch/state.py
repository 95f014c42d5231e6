"""The state of a sweep, read from its files: takes no lock, writes nothing, needs no workflow to run.

What is finished stands in records, what a run on its way does in its `.stage.json` (see `stage`), how far its training
is in the last line of its log, and who holds the machine in the files of the leases.
"""

# changes no number: what is told about a sweep
from __future__ import annotations

import collections
import datetime
import functools
import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from joulesweep.core import processes
from joulesweep.core.errors import UserError
from joulesweep.core.files import read_json
from joulesweep.launch import checkpoints, eta, lease, stage
from joulesweep.launch.eta import Eta, Took
from joulesweep.launch.lease import Holder
from joulesweep.plan import snakemake_lock
from joulesweep.reference.cpu_estimate import asked
from joulesweep.runs import attempted, record
from joulesweep.runs.headline import estimated, headline
from joulesweep.runs.record import brief

UNFINISHED = ("running", "waiting", "preempted", "failed", "missing")  # states of a run without a record
#: Folders of `.snakemake` with the output of batch jobs: of the executor slurm, and of profiles/cluster-generic.
BATCH_LOGS = ("slurm_logs", "batch_logs")
ENDINGS = (".log", ".OU")  # of PBS the second
TAIL_BYTES = 65536  # of a log
#: A line of tqdm's: steps taken, all steps, seconds so far, seconds left.
BAR = re.compile(r"\| *(\d+)/(\d+) \[([\d:]+)<([\d:?]+)")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A record, in short.

    Attributes:
        status: of the run, or "corrupt".
        reason: why it is not ok.
        joules: of the whole window, by how they are known: "measured", "integrated", "estimated"; else "unknown".
        energy_j: the joules; None where they are unknown.
        is_doubtful: whether other readings contradict the joules.
        took: when the run began and ended; None if that is not known.
    """

    status: str
    reason: str | None = None
    joules: str = "unknown"
    energy_j: float | None = None
    is_doubtful: bool = False
    took: Took | None = None


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How far a training is, by its log.

    Attributes:
        step: steps taken in this pass.
        num_steps: steps of a pass.
        num_passes: passes that have begun; more than one where a short training is repeated.
        elapsed_s: seconds of this pass.
        left_s: seconds until its end; None if it is not known yet.
    """

    step: int
    num_steps: int
    num_passes: int
    elapsed_s: float
    left_s: float | None


@dataclass(frozen=True, kw_only=True)
class Living:
    """A run on its way.

    Attributes:
        run: its id, or the folder of one outside the grid.
        label: its name for people.
        stage: one of `stage.STAGES`.
        since: when this stage began, UTC, ISO 8601.
        stage_s: how long ago that was.
        host: the machine.
        pid: of its parent process.
        here: whether the process is seen to be alive; None: it is elsewhere, and believed.
        waits_for: what it waits for.
        whom: who holds that.
        steps: how far the training is.
        epoch: the one that it is in, from 1; None where the config sets steps.
        num_epochs: of the config.
    """

    run: str
    label: str
    stage: str
    since: str
    stage_s: float
    host: str
    pid: int
    here: bool | None
    waits_for: str | None = None
    whom: str | None = None
    steps: Steps | None = None
    epoch: int | None = None
    num_epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that began and left no record: its log, the last line of it, and the output of its batch job, if any."""

    run: str
    label: str
    log: str
    last_line: str
    batch_log: str | None = None


@dataclass(frozen=True, kw_only=True)
class Preempted:
    """A run that goes on from a checkpoint: after which step, of how many."""

    run: str
    label: str
    step: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A run whose record says why it did not finish, or cannot be read."""

    run: str
    label: str
    status: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Joules:
    """Joules that were known in one way, their number of runs, and how many of these are doubtful."""

    energy_j: float | None
    num_runs: int
    num_doubtful: int = 0


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a sweep.

    Attributes:
        sweep: its name.
        folder: `results/<sweep>`.
        at: the time, UTC, ISO 8601.
        num_runs: runs of the grid.
        states: the state of every run, by id: a status of a record, "corrupt", or one of `UNFINISHED`.
        counts: number of runs in each state.
        living: runs on their way, those outside the grid among them: anchors, and runs by hand.
        joules: of all runs with a record, anchors among them: "measured", "integrated", "estimated", "unknown".
        eta: when the rest will be done; None where no run has finished, or none is left.
        failures: runs that began and left no record.
        preempted: runs that go on from a checkpoint.
        stopped: runs whose record says why they did not finish.
        machine: who holds this machine, or boards of it.
        is_worked_on: whether a workflow works in this checkout on this machine; None where that cannot be told.
        page: path of the report that is there, or None.
    """

    sweep: str
    folder: str
    at: str
    num_runs: int
    states: dict[str, str]
    counts: dict[str, int]
    living: list[Living]
    joules: dict[str, Joules]
    eta: Eta | None
    failures: list[Failure]
    preempted: list[Preempted]
    stopped: list[Stopped]
    machine: list[Holder]
    is_worked_on: bool | None
    page: str | None = None

    @property
    def num_finished(self) -> int:
        """Runs of the grid with a record."""
        return sum(number for state, number in self.counts.items() if state not in UNFINISHED)


def read(folder: Path) -> State:
    """Read the state of a sweep.

    Args:
        folder: `results/<sweep>`.

    Raises:
        UserError: there is no manifest, or it cannot be read.
    """
    manifest = read_json(folder / "grid.json", "grid")
    grid: Mapping[str, Mapping[str, Any]] = manifest["runs"]
    labels = {run: f"{entry['label']} r{entry['repeat']}" for run, entry in grid.items()}
    runs = folder / "runs"
    records = {run: row for run in grid if (row := _finished(runs / run, manifest["config"]["energy"])) is not None}
    anchors = [_finished(path.parent, manifest["config"]["energy"]) for path in folder.glob("anchors/*/*/record.json")]
    living = {run: way for run in grid if (way := _living(runs / run, labels[run], manifest)) is not None}
    others = [
        path.parent for pattern in ("anchors/*/*", "by-hand/*") for path in folder.glob(f"{pattern}/{stage.FILE}")
    ]
    outside = [way for path in others if (way := _living(path, str(path.relative_to(folder)), manifest)) is not None]
    batch = BatchLogs(folder.absolute().parent.parent / ".snakemake")
    states = {run: _state(records.get(run), living.get(run), runs / run, batch) for run in grid}
    done = sorted((row.took for row in records.values() if row.took is not None), key=lambda took: took.end_s)
    left = [run for run, state in states.items() if state in UNFINISHED]
    elapsed_s = {run: row.stage_s for run, row in living.items() if row.stage == "trains"}
    pages = [folder / "report.html", folder / "partial" / "report.html"]
    return State(
        sweep=str(manifest["sweep"]),
        folder=str(folder),
        at=stage.now(),
        num_runs=len(grid),
        states=states,
        counts=dict(collections.Counter(states.values())),
        living=[*living.values(), *outside],
        joules=_joules([*records.values(), *filter(None, anchors)]),
        eta=eta.remaining(grid, done, left, elapsed_s) if left else None,
        failures=[_failure(runs / run, labels[run], batch) for run in left if states[run] == "failed"],
        preempted=[
            Preempted(run=run, label=labels[run], step=steps[0], num_steps=steps[1])
            for run in left
            if states[run] == "preempted" and (steps := checkpoints.brief(runs / run)) is not None
        ],
        stopped=[
            Stopped(run=run, label=labels[run], status=row.status, reason=brief(row.reason or ""))
            for run, row in records.items()
            if row.status != "ok"
        ],
        machine=lease.holders(),
        is_worked_on=snakemake_lock.is_alive(folder.absolute().parent.parent / ".snakemake"),
        page=next((str(path) for path in pages if path.exists()), None),
    )


class BatchLogs:
    """The output of batch jobs that did not succeed: executors delete the others.

    Args:
        folder: `.snakemake` of the checkout.
    """

    def __init__(self, folder: Path) -> None:
        paths = [path for name in BATCH_LOGS for end in ENDINGS for path in (folder / name).rglob(f"*{end}")]
        self._of_job = {path.stem: path for path in paths}
        # profiles/slurm has a folder for each run, with a file for each job
        self._of_run = {path.parent.name: path for path in sorted(paths, key=lambda path: (len(path.stem), path.stem))}

    def of(self, folder: Path) -> Path | None:
        """The output of the last job that worked on a run; None where none is known.

        Args:
            folder: of the run.
        """
        if not self._of_job:
            return None
        notes = attempted.notes(folder / attempted.FILE)
        job = (notes[-1].get("batch") or {}).get("job") if notes else None
        return self._of_job.get(str(job)) or self._of_run.get(folder.name)

    def told_an_error(self, folder: Path) -> bool:
        """Whether a job of a run failed, perhaps before the run began."""
        log = self.of(folder)
        return log is not None and re.search("error|cancelled", tail(log), re.IGNORECASE) is not None


def _state(row: Finished | None, living: Living | None, folder: Path, batch: BatchLogs) -> str:
    if row is not None:
        return row.status
    if living is not None:
        return "waiting" if living.stage == "waits" else "running"
    if checkpoints.brief(folder) is not None:
        return "preempted"
    return "failed" if (folder / "run.log").exists() or batch.told_an_error(folder) else "missing"


def _finished(folder: Path, energy: Mapping[str, Any]) -> Finished | None:
    path = folder / "record.json"
    try:
        changed_ns = path.stat().st_mtime_ns
    except OSError:
        return None
    return _of_record(path, changed_ns, json.dumps(energy))


@functools.lru_cache(maxsize=50_000)
def _of_record(path: Path, changed_ns: int, energy: str) -> Finished:
    """What counts of a record; read once per version of its file."""
    try:
        row = record.read(path)
    except UserError as error:
        return Finished(status="corrupt", reason=str(error))
    begin_s, end_s = _seconds(row.started), _seconds(row.finished)
    took = None if begin_s is None or end_s is None else Took(run=row.run, begin_s=begin_s, end_s=max(begin_s, end_s))
    short = Finished(status=row.status, reason=row.reason, took=took)
    measured = row.measurement
    if measured is None:
        return short
    read = headline(measured.energy, row.spec.accelerator, measured.conditions.exclusive)
    if read.total_energy_j is not None:
        is_doubtful = read.energy_doubt is not None
        return replace(short, joules=read.energy_status, energy_j=read.total_energy_j, is_doubtful=is_doubtful)
    cpu_s = measured.cpu_s * measured.num_passes
    guess = estimated(row, asked(json.loads(energy)), cpu_s, measured.total_window_s)
    return replace(short, joules="estimated", energy_j=guess.mid_j) if guess else short


def _joules(rows: Sequence[Finished]) -> dict[str, Joules]:
    """Joules by how they are known; numbers of two kinds are never added."""
    kinds = dict.fromkeys(row.joules for row in rows)
    return {
        kind: Joules(
            energy_j=None if kind == "unknown" else sum(row.energy_j or 0.0 for row in rows if row.joules == kind),
            num_runs=sum(row.joules == kind for row in rows),
            num_doubtful=sum(row.joules == kind and row.is_doubtful for row in rows),
        )
        for kind in sorted(kinds, key=("measured", "integrated", "estimated", "unknown").index)
    }


def _living(folder: Path, label: str, manifest: Mapping[str, Any]) -> Living | None:
    """What a run on its way does; None if its process is gone."""
    told = stage.read(folder / stage.FILE)
    if told is None or told.get("stage") not in stage.STAGES:
        return None
    here = processes.is_alive(told)
    if here is False:
        return None
    began_s = _seconds(told["since"]) or time.time()
    steps = steps_in(folder / "run.log", began_s) if told["stage"] == "trains" else None
    num_epochs = manifest["config"]["train"].get("epochs")
    epoch = 1 + min(steps.step * num_epochs // steps.num_steps, num_epochs - 1) if steps and num_epochs else None
    return Living(
        run=folder.name,
        label=label,
        stage=told["stage"],
        since=told["since"],
        stage_s=max(time.time() - began_s, 0.0),
        host=told["host"],
        pid=told["pid"],
        here=here,
        waits_for=told.get("waits_for"),
        whom=told.get("whom"),
        steps=steps,
        epoch=epoch,
        num_epochs=num_epochs,
    )


def _seconds(when: str) -> float | None:
    """Seconds since 1970 of an ISO time; None if it is none."""
    try:
        return datetime.datetime.fromisoformat(when).timestamp()
    except ValueError:
        return None


def steps_in(log: Path, began_s: float) -> Steps | None:
    """How far a training is, by its progress bar at the end of its log.

    Args:
        log: of the run.
        began_s: when the training began, in seconds since 1970; an older log is another run's.
    """
    bars = BAR.findall(tail(log))
    if not bars or log.stat().st_mtime < began_s - 1:
        return None
    step, num_steps, elapsed, left = bars[-1]
    num_begun = 1 + sum(int(later[0]) < int(bar[0]) for bar, later in itertools.pairwise(bars))
    return Steps(
        step=int(step),
        num_steps=int(num_steps),
        num_passes=num_begun,
        elapsed_s=_clock_s(elapsed),
        left_s=None if "?" in left else _clock_s(left),
    )


def _clock_s(text: str) -> float:
    """`1:02:03` as seconds."""
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)


def tail(path: Path) -> str:
    """The end of a text file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            return file.read(TAIL_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _failure(folder: Path, label: str, batch: BatchLogs) -> Failure:
    log, of_job = folder / "run.log", batch.of(folder)
    lines = [line.strip() for line in re.split(r"[\r\n]+", tail(log)) if line.strip() and not BAR.search(line)]
    last = "".join(char if char.isprintable() else "?" for char in lines[-1]) if lines else "it says nothing"
    return Failure(
        run=folder.name, label=label, log=str(log), last_line=last, batch_log=None if of_job is None else str(of_job)
    )
