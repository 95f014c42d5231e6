"""The pieces of the GPU day that start other programs: the certificate, runs as in a sweep, and the contest.

No torch here: what these measure is in other processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu_common import CERTIFICATE, OK, Job, NotTried, measured_spec
from benchmarks.gpu_contest import COMPILED, WAYS
from joulesweep.core import places, processes
from joulesweep.core.outcome import as_json
from joulesweep.core.spec import RunSpec, from_mapping, full
from joulesweep.launch import launcher
from joulesweep.measure import certificate, meters
from joulesweep.measure.devices import Board
from joulesweep.plan import staleness

Piece = dict[str, Any]
GRAPH = {"batching": "packed", "head": "masked", "engine": "graph"}
POLL_S = 0.02
LEAVE_S = 2.0  # of an item's time, for keeping what there is
SPARE_S = 0.5  # for answering
GONE_S = 20.0  # longest wait for killed processes to end and free their board
TURN = 1.5  # length of a turn, in windows
SURE = 1.1  # as long as the longest block of turns may take the next one, and some more
KEPT = ("flags", "conditions", "overhead", "energy", "window_s", "total_window_s", "num_passes", "startup_s")
KEPT += ("samples_per_s", "peak_memory", "num_texts", "num_steps", "phases")
MODULE = "benchmarks.gpu_contest"


def certify(job: Job, piece: Piece) -> dict[str, Any]:
    """Certify the machine with the product's own command, and collect the certificate's files."""
    seconds = min(job.scale.certify_s, max(1.0, job.left_s - 3 * LEAVE_S))
    folder = job.scratch / certificate.FOLDER  # where the runs of this day look for it
    command = [
        sys.executable,
        "-m",
        "joulesweep.cli.main",
        "certify",
        "--budget-s",
        f"{seconds:.0f}",
        "--out",
        str(folder),
    ]
    command += ["--device", *(board["device"] for board in job.boards)] if job.boards else []
    most_s = max(1.0, job.left_s - LEAVE_S)
    try:
        done = subprocess.run(command, cwd=places.ROOT, capture_output=True, text=True, check=False, timeout=most_s)
    except subprocess.TimeoutExpired:
        kept = ", ".join(collected(folder, job.out)) or "nothing"
        raise RuntimeError(f"joulesweep certify was not done within {most_s:.0f} s; kept: {kept}") from None
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if re.search(r"invalid choice: '?certify", done.stderr):
        raise NotTried("this version of joulesweep has no command certify")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"joulesweep certify ended with exit code {done.returncode}: {last}")
    return {"budget_s": seconds, "files": collected(folder, job.out)}


def collected(folder: Path, out: Path) -> dict[str, str]:
    """Copy the newest certificate of a folder, its page and its raw readings. Returns new names by the old ones."""
    new_names = {}
    for ending, name in CERTIFICATE.items():
        paths = sorted(folder.rglob(f"*{ending}"), key=lambda path: path.stat().st_mtime_ns)
        if paths:
            shutil.copyfile(paths[-1], out / name)
            new_names[paths[-1].name] = name
    return new_names


def run(job: Job, piece: Piece) -> dict[str, Any]:
    """Carry out a run through its launching parent, as in a sweep; return its joules, conditions and cost."""
    with contextlib.chdir(job.scratch):  # certificates are looked for under the folder where a run is started
        record = launch_one(job, _run_spec(job, job.scale.run_s), job.scratch / "run")
    if record["status"] != "ok":
        raise RuntimeError(f"{record['status']}: {record['reason']}")
    kept = {name: record["measurement"][name] for name in KEPT}
    cited = record["environment"]["certificates"]
    return {"measurement": kept, "quality": record["quality"], "certificates": cited}


def launch_one(job: Job, spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Carry out a run in this process and its children. Returns its record."""
    exclusive = "gpu" if job.accelerator == "cuda" else "none"
    paths = {"model_folder": job.pack.model(spec.model), "tokens": job.pack.tokens(spec.dataset)}
    log = folder / "run.log"
    record = launcher.launch(
        spec, staleness.run_digest(spec), **paths, folder=folder, log=log, exclusive=exclusive, with_snakemake=False
    )
    row: dict[str, Any] = as_json(record)
    return row


def _run_spec(job: Job, min_seconds: float, rests: bool = True) -> RunSpec:
    way = GRAPH if job.accelerator == "cuda" else {**GRAPH, "engine": "eager"}
    idle = {"idle_s": 3.0, "cooldown_s": 5.0} if job.accelerator == "cuda" and rests else {}
    size = {"batch_size": job.scale.batches[-1 if len(job.scale.batches) < 3 else 1]}
    return measured_spec(
        job.scale.encoder, job.accelerator, precision="bf16-mixed", min_seconds=min_seconds, **way, **idle, **size
    )


def killed(job: Job, piece: Piece) -> dict[str, Any]:
    """Kill a run's launching parent in the middle; measure when its processes and its board are free again."""
    folder = job.scratch / "killed"
    path = job.scratch / "killed.json"
    path.write_text(
        json.dumps({"job": str(job.scratch / "killed-job.json"), "spec": full(_run_spec(job, 600.0, rests=False))})
    )
    job.write(job.scratch / "killed-job.json")
    parent = processes.start([sys.executable, "-m", "benchmarks.gpu_runs", str(path)], dict(os.environ), None)
    try:
        _wait(lambda: _trains(folder / "run.log"), parent, job.left_s - LEAVE_S, "the run did not begin to train")
        family = [pid for pid in processes._pids() if processes.is_below(pid, parent.pid)]
        os.kill(parent.pid, signal.SIGKILL)
        began_s = time.monotonic()
        parent.wait()
        gone_s = _seconds_until(lambda: not any(_alive(pid) for pid in family), began_s)
        free_s = _seconds_until(lambda: _board_is_free(job, family), began_s) if job.boards else None
    finally:
        processes.kill_group(parent)
    return {
        "num_processes": len(family),
        "processes_gone_s": gone_s,
        "has_board": bool(job.boards),
        "board_free_s": free_s,
        "record_left": (folder / "record.json").exists(),
    }


def _trains(log: Path) -> bool:
    """Whether a run's log shows its progress bar."""
    return log.exists() and "step/s" in log.read_text(encoding="utf-8", errors="replace")


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def _board_is_free(job: Job, family: Sequence[int]) -> bool:
    """Whether the driver lists none of the processes; if it never lists any, whether they have ended."""
    named = meters.sensor(
        Board(**{key: value for key, value in job.boards[0].items() if key != "device"})
    ).process_ids()
    return not set(named or ()) & set(family)


def _wait(ready: Callable[[], bool], child: subprocess.Popen[Any], seconds: float, otherwise: str) -> None:
    """Wait until a condition holds.

    Raises:
        NotTried: it was not in time.
        RuntimeError: the process that would bring it about has ended.
    """
    until_s = time.monotonic() + seconds
    while not ready():
        if child.poll() is not None:
            raise RuntimeError(f"{otherwise}: exit code {child.returncode}")
        if time.monotonic() > until_s:
            raise NotTried(f"{otherwise} within {seconds:.1f} s, and no more were left")
        time.sleep(POLL_S)


def _seconds_until(ready: Callable[[], bool], began_s: float) -> float | None:
    """Seconds since a moment until a condition holds; None if it does not within `GONE_S`."""
    while not ready():
        if time.monotonic() - began_s > GONE_S:
            return None
        time.sleep(POLL_S)
    return time.monotonic() - began_s


class Contestant:
    """A process that has built its model and trains on request.

    Args:
        job: of the item.
        name: of the contestant.
        path: of its job file.
    """

    def __init__(self, job: Job, name: str, path: Path) -> None:
        self.name = name
        self.child = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(path)],
            cwd=places.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=processes.die_with_parent,
        )

    def told(self, seconds: float) -> dict[str, Any]:
        """The next line of its output.

        Raises:
            RuntimeError: it ended, or said nothing in time.
        """
        assert self.child.stdout is not None
        if not select.select([self.child.stdout], [], [], max(0.0, seconds))[0]:
            raise RuntimeError(f"{self.name} said nothing within {seconds:.0f} s")
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self.child.wait()}")
        return dict(json.loads(line))

    def go(self, size: int) -> None:
        """Start a training with a batch size."""
        pipe: IO[str] | None = self.child.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: `told` says so
            pipe.write(f"{size}\n")
            pipe.flush()

    def end(self) -> None:
        """End the process, and those that compile or collate for it."""
        assert self.child.stdout is not None
        if self.child.stdout.closed:
            return
        processes.kill_group(self.child)
        with contextlib.suppress(BrokenPipeError), self.child:  # closes its pipes
            pass


def contest(job: Job, piece: Piece) -> dict[str, Any]:
    """Let ours and the peers, each in its own process, train in turn; each turn is answered as it ends.

    Every round has all batch sizes, so that time which ends early leaves each size its share. Who cannot take part is
    left out with the reason, and the others go on; who is still compiling when their rounds need the time, too.
    """
    sizes, names = piece["sizes"], piece["contestants"]
    contestants = [_contestant(job, name, piece) for name in names]
    num_turns, left_out = dict.fromkeys(names, 0), {}
    try:
        ready: list[Contestant] = []
        for contestant in sorted(contestants, key=lambda contestant: contestant.name == COMPILED):
            limit_s = job.left_s - SPARE_S
            if contestant.name == COMPILED:
                limit_s -= job.scale.rounds * len(sizes) * len(ready) * TURN * job.scale.contest_s
            _if_it_can(
                contestant, ready, left_out, lambda contestant=contestant, limit_s=limit_s: contestant.told(limit_s)
            )
        longest_s = 0.0
        for turn, size in itertools.product(range(job.scale.rounds), sizes):
            if job.left_s - SPARE_S < SURE * longest_s:
                break
            began_s = time.monotonic()
            first = turn % max(1, len(ready))
            for contestant in [*ready[first:], *ready[:first]]:
                contestant.go(size)
                answers: list[dict[str, Any]] = []
                _if_it_can(
                    contestant,
                    answers,
                    left_out,
                    lambda contestant=contestant: contestant.told(job.left_s - SPARE_S),
                    keep=True,
                )
                if not answers:
                    ready.remove(contestant)
                    continue
                num_turns[contestant.name] += 1
                about = {"contest": piece["piece"], "contestant": contestant.name, "turn": turn + 1, "batch_size": size}
                name = f"{piece['piece']} batch {size} {contestant.name} {turn + 1}"
                job.answer(name, OK, **about, precision=piece["precision"], **answers[0])
            longest_s = max(longest_s, time.monotonic() - began_s)
    finally:
        for contestant in contestants:
            contestant.end()
    if not any(num_turns.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise NotTried(reasons or f"{job.left_s:.0f} s were left when the contestants were ready")
    return {"num_turns": num_turns, "left_out": left_out}


def _contestant(job: Job, name: str, piece: Piece) -> Contestant:
    """Start a contestant."""
    same = {"schedule": "constant", "precision": piece["precision"], "min_seconds": job.scale.contest_s, **WAYS[name]}
    specs = {
        size: measured_spec(job.scale.encoder, job.accelerator, batch_size=size, **same) for size in piece["sizes"]
    }
    spec = specs[piece["sizes"][0]]
    folder = job.scratch / f"contest-{name}"
    folder.mkdir(exist_ok=True)
    fields = {
        "name": name,
        "specs": {size: full(spec) for size, spec in specs.items()},
        "model_folder": str(job.pack.model(spec.model)),
        "tokens": str(job.pack.tokens(spec.dataset)),
        "boards": job.boards,
        "seconds": job.scale.contest_s,
        "folder": str(folder),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return Contestant(job, name, path)


def warm_peer(job: Job, piece: Piece) -> dict[str, Any]:
    """Let a contestant compile, so that it finds its kernels when the contest begins."""
    began_s = time.monotonic()
    contestant = _contestant(job, piece["contestant"], piece)
    try:
        answer = contestant.told(job.left_s)
    finally:
        contestant.end()
    if "left_out" in answer:
        raise NotTried(answer["left_out"])
    return {"compile_s": time.monotonic() - began_s}


def _if_it_can(
    contestant: Contestant,
    kept: list[Any],
    left_out: dict[str, str],
    ask: Callable[[], dict[str, Any]],
    keep: bool = False,
) -> None:
    """Keep a contestant (or its answer) that responds; note why one does not, and end it."""
    try:
        answer = ask()
    except (RuntimeError, ValueError) as error:
        left_out[contestant.name] = str(error)
        contestant.end()  # what it still does would slow the others down
        return
    if answer.get("left_out"):
        left_out[contestant.name] = answer["left_out"]
        return
    kept.append(answer if keep else contestant)


PIECES: dict[str, Callable[[Job, Piece], dict[str, Any]]] = {
    "certify": certify,
    "run": run,
    "killed": killed,
    "contest": contest,
    "warm_peer": warm_peer,
}


def main() -> int:
    """Be the launching parent of the run that is killed."""
    processes.die_with_parent()
    fields = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    job = Job.read(Path(fields["job"]))
    launch_one(job, from_mapping(fields["spec"]), job.scratch / "killed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
