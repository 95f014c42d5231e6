"""A storm of faults over a sweep: `make storm`, or `python -m benchmarks.storm --runs 60 --faults 30 --seed 1`.

A sweep of tiny runs, real Snakemake and real training, is hit again and again at random moments: processes get SIGKILL,
SIGTERM or SIGINT, files are damaged, the disk is full, permissions are dropped, locks are deleted. After each fault the
same command is given again; nothing is repaired by hand. At the end every run must be recorded once, no finished run
repeated without cause, no lock and no process left, and the tables those of an undisturbed sweep in all that time does
not change. Which faults happen, and in which order, depends on the seed alone; at which moment exactly, on the machine.

Where this is root and may mount, the sweep runs as another user, so that permissions count, on a small disk of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from checkout import Checkout  # noqa: E402
from fake_meters import as_user, can_be_another  # noqa: E402
from lock_files import held  # noqa: E402

UID = 65534  # nobody
DISK = "size=64m,mode=755"
POLL_S = 0.05
PATIENCE_S = 300.0  # longest wait for anything; only a failure waits so long
GONE_S = 20.0  # a process that is left so long after its workflow is an orphan
MOST_STARTS = 6  # without progress
#: A word of the command line of each kind of process.
PROCESSES = {
    "parent": "scripts.train",
    "rank": "joulesweep.train.worker",
    "analysis": "scripts.aggregate scripts.charts scripts.report scripts.exports",
}
READ = ("record.json", "power.jsonl", "summaries.jsonl")  # what the analysis reads of a run
#: Columns that are the same in two sweeps of the same runs.
STEADY = re.compile(
    r"run|cell|label|status(es)?|reason|epoch|repeat|strategy|lr|code_digest|(useful|executed)_flops"
    r"|num_(?!flagged|attempts)\w+|(train|validation)_loss(_mean)?|perplexity|masked_accuracy|energy_status"
)
UNREAD = ("spec.json", "steps.jsonl", "epochs.jsonl", "run.log")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: of its kind.
        strike: does it; returns whether it hit something.
        needs: kind of process that lives when it happens.
        within_s: it happens at most so long after such a process was seen.
        target: arguments of the workflow that it hits.
        ends: whether the workflow ends of it.
    """

    name: str
    strike: Callable[[Storm], bool]
    needs: str = "parent"
    within_s: float = 4.0
    target: tuple[str, ...] = ()
    ends: bool = False


@dataclass
class Log:
    """What happened.

    Attributes:
        faults: number by kind.
        missed: kinds that found nothing to hit.
        starts: of the workflow.
        damaged: number of times that a file of a run was damaged, by run.
        broken: promises that were not kept.
    """

    faults: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    damaged: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


class Storm:
    """A sweep and the faults that hit it.

    Args:
        hit: its checkout, without results.
        seed: of the faults.
    """

    def __init__(self, hit: Checkout, seed: int) -> None:
        self.random, self.log, self.hit = random.Random(seed), Log(), hit
        self.results, self.said = hit.folder / "results", hit.folder.with_name("said.txt")
        self.results.mkdir()
        self.is_other_user = can_be_another()
        if self.is_other_user:
            subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "none", self.results], check=True)
            places = hit.folder.parent.glob(f"{hit.folder.name}*")
            os.chown(hit.folder.parent, UID, UID)
            subprocess.run(["chown", "--recursive", f"{UID}:{UID}", *places], check=True)
            hit.wrapped = lambda command: as_user(command, UID, hit.folder.parent)
        self.workflow: subprocess.Popen[bytes] | None = None
        self.target: tuple[str, ...] = ()

    def close(self) -> None:
        """Leave no process and no mount behind."""
        self.hit.end()
        if self.is_other_user:
            subprocess.run(["umount", "--lazy", self.results], check=True)

    def start(self, *arguments: str) -> None:
        """Start the workflow, in a session of its own."""
        self.log.starts += 1
        self.target = arguments
        with self.said.open("ab") as output:
            output.write(f"\n===== start {self.log.starts} {' '.join(arguments)}\n".encode())
            output.flush()
            self.workflow = subprocess.Popen(
                self.hit.command(*arguments),
                cwd=self.hit.folder,
                env=self.hit.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
            )

    def is_working(self) -> bool:
        """Whether the workflow lives."""
        return self.workflow is not None and self.workflow.poll() is None

    def ended(self) -> int:
        """Wait until the workflow and all that it started have ended. Returns its exit code."""
        assert self.workflow is not None
        code = self.workflow.wait(PATIENCE_S)
        if not _until(lambda: not self.living(), GONE_S):
            self.log.broken.append(f"orphans after start {self.log.starts}: {self.living()}")
            self.hit.end()
        self.workflow = None
        return code

    def living(self, kind: str = "") -> list[tuple[int, str]]:
        """Processes of the sweep, of a kind or all, with their command lines."""
        words = [f" -m {word}" for word in PROCESSES.get(kind, "").split()]
        rows = [(pid, line.replace("\0", " ")) for pid, line in self.hit.processes()]
        return [
            (pid, line)
            for pid, line in rows
            if not words or ("bash -c" not in line and any(word in line for word in words))
        ]

    def recorded(self) -> list[str]:
        """Runs with a record."""
        return sorted(path.parent.name for path in self.hit.runs.glob("*/record.json"))

    def blow(self, faults: Sequence[Fault], num_runs: int) -> None:
        """Let the faults happen one after another, spread over the sweep's runs; then let it come to its end."""
        for i, fault in enumerate(faults):
            self._reach(i * num_runs // len(faults))
            hit = self._happens(fault)
            (self.log.faults if hit else self.log.missed)[fault.name] += 1
            _tell(
                f"{len(self.recorded()):3} runs recorded, start {self.log.starts:2}: {'' if hit else 'no '}{fault.name}"
            )
        self._reach(num_runs)
        self._complete()

    def _working(self, *target: str) -> None:
        """See to it that a workflow for a target works."""
        if self.is_working() and target != self.target:
            os.kill(self.workflow.pid, signal.SIGTERM)
        if self.workflow is not None and (target != self.target or not self.is_working()):
            self.ended()
        if self.workflow is None:
            self.start(*target)

    def _reach(self, num_records: int) -> None:
        """Let the sweep go on until so many runs are recorded, however many starts that takes."""
        num_vain = 0
        while (before := len(self.recorded())) < num_records and num_vain < MOST_STARTS:
            self._working()
            _until(lambda: len(self.recorded()) >= num_records or not self.is_working(), PATIENCE_S)
            num_vain = 0 if len(self.recorded()) > before else num_vain + 1
        if num_vain == MOST_STARTS:
            self.log.broken.append(f"{MOST_STARTS} starts recorded no run more than {before}")

    def _happens(self, fault: Fault) -> bool:
        """Let a fault happen at a random moment. Returns whether it hit something."""
        for _ in range(3):
            self._working(*fault.target)
            _until(lambda: not self.is_working() or bool(self.living(fault.needs)), PATIENCE_S)
            time.sleep(self.random.uniform(0, fault.within_s))
            if self.is_working() and fault.strike(self):
                if fault.ends:
                    self.ended()
                return True
        return False

    def _complete(self) -> None:
        """Start the workflow until it ends well and has nothing left to do: a damaged file is found by the analysis."""
        for _ in range(MOST_STARTS):
            self._working()
            if self.ended() == 0 and self._has_nothing_to_do():
                return
        self.log.broken.append(f"{MOST_STARTS} starts did not complete the sweep")

    def _has_nothing_to_do(self) -> bool:
        self.start("--dry-run")
        self.log.starts -= 1
        self.ended()
        return "Nothing to be done" in self.said.read_text(encoding="utf-8").rpartition("=====")[2]


def _sweep(folder: Path, num_runs: int) -> Checkout:
    """A checkout with a sweep of tiny runs that need not wait for each other; one in ten is on two ranks."""
    checkout = Checkout(folder)
    num_pairs = num_runs // 10
    checkout.config["grid"] |= {
        "strategy": ["single", "ddp"] if num_pairs else ["single"],
        "lr": [round(0.001 * (1 + i), 3) for i in range(num_runs - num_pairs)],
        "repeats": 1,
    }
    rest = checkout.config["grid"]["lr"][num_pairs:]
    checkout.config["exclude"] = [{"when": {"strategy": "ddp", "lr": rest}, "reason": "few"}] if num_pairs else []
    checkout.config["train"] = {"max_steps": 4}
    checkout.config["measure"] = {"exclusive": "none"}
    checkout.write_config()
    return checkout


def _until(holds: Callable[[], bool], patience_s: float) -> bool:
    """Wait until something holds. Returns whether it does."""
    end_s = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > end_s:
            return False
        time.sleep(POLL_S)
    return True


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _signal(name: str, kind: str) -> Callable[[Storm], bool]:
    """Send a signal to the workflow, to its whole group as a terminal does, or to a process of a kind."""

    def strike(storm: Storm) -> bool:
        assert storm.workflow is not None
        pids = [pid for pid, _ in storm.living(kind)] if kind in PROCESSES else [storm.workflow.pid]
        if pids:
            with contextlib.suppress(ProcessLookupError):
                send = os.killpg if kind == "group" else os.kill
                send(storm.random.choice(pids), getattr(signal, name))
        return bool(pids)

    return strike


def _damage(how: str, *patterns: str) -> Callable[[Storm], bool]:
    """Truncate a file of the checkout, overwrite a part of it with noise, or delete it."""

    def strike(storm: Storm) -> bool:
        files = sorted(path for pattern in patterns for path in storm.hit.folder.glob(pattern) if path.is_file())
        if not files:
            return False
        path = storm.random.choice(files)
        content = path.read_bytes()
        cut = storm.random.randrange(max(len(content) - 64, 1))
        noise = storm.random.randbytes(64) + content[cut + 64 :]
        if how == "deleted":
            path.unlink()
        else:
            path.write_bytes(content[:cut] + noise * (how == "garbled"))
        if path.parent.parent == storm.hit.runs and (path.name in READ or how == "deleted"):
            storm.log.damaged[path.parent.name] += 1
        return True

    return strike


def _of_runs(*names: str) -> list[str]:
    return [f"results/tiny/runs/*/{name}" for name in names]


def _fill_disk(storm: Storm) -> bool:
    """Leave no space on the disk of the results for some seconds."""
    filler = storm.results / ".filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for num_bytes in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(num_bytes))
    time.sleep(storm.random.uniform(2, 5))
    filler.unlink()
    return True


def _drop_permissions(storm: Storm) -> bool:
    """Forbid for some seconds to write to a folder."""
    folders = [storm.hit.runs, storm.hit.folder / ".snakemake", *storm.hit.runs.glob("*/")]
    place = storm.random.choice([path for path in folders if path.is_dir()])
    place.chmod(0o555)
    time.sleep(storm.random.uniform(2, 5))
    with contextlib.suppress(FileNotFoundError):
        place.chmod(0o755)
    return True


def _delete_locks(storm: Storm) -> bool:
    """Delete the lock files of leases and of the workflow."""
    own = storm.hit.folder / ".snakemake"
    files = [*Path(storm.hit.environ["JOULESWEEP_LOCKS"]).iterdir(), *own.glob("*.lock"), *own.glob("locks/*")]
    for path in files:
        path.unlink(missing_ok=True)
    return bool(files)


#: Those that a process of one's own user can do.
FAULTS = (
    *(
        Fault(
            f"{name} to the {kind}",
            _signal(name, kind),
            needs=kind if kind in PROCESSES else "parent",
            ends=kind not in PROCESSES,
        )
        for kind in ("workflow", "group", "parent", "rank")
        for name in ("SIGKILL", "SIGTERM", "SIGINT")
    ),
    Fault("SIGKILL to the analysis", _signal("SIGKILL", "analysis"), "analysis", 1.0, ("partial",)),
    Fault("SIGINT to the group in the analysis", _signal("SIGINT", "group"), "analysis", 1.0, ("partial",), True),
    *(Fault(f"a record {how}", _damage(how, *_of_runs("record.json"))) for how in ("truncated", "garbled", "deleted")),
    *(Fault(f"a side file {how}", _damage(how, *_of_runs(*READ[1:]))) for how in ("truncated", "garbled", "deleted")),
    Fault("an unread file garbled", _damage("garbled", *_of_runs(*UNREAD))),
    Fault("an unread file truncated", _damage("truncated", *_of_runs(*UNREAD))),
    Fault("an unread file deleted", _damage("deleted", *_of_runs(*UNREAD))),
    Fault("stages garbled", _damage("garbled", *_of_runs(".stage.json"))),
    Fault("the grid truncated", _damage("truncated", "results/tiny/grid.json")),
    Fault("a manifest garbled", _damage("garbled", "resources/models/*.json", "resources/tokens/*/*.json")),
    Fault("the tokens truncated", _damage("truncated", "resources/tokens/*/*.safetensors")),
    Fault("the model truncated", _damage("truncated", "resources/models/*/*.safetensors")),
    Fault("a table truncated", _damage("truncated", "results/tiny/*/tables/*.parquet")),
    Fault("Snakemake's notes garbled", _damage("garbled", ".snakemake/metadata/**/*")),
    Fault("lock files deleted", _delete_locks),
)
AS_OTHER_USER = (Fault("a full disk", _fill_disk), Fault("permissions dropped", _drop_permissions))


def verify(storm: Storm, calm: Path) -> None:
    """Note which promises were not kept.

    Args:
        storm: what happened.
        calm: folder of the tables of a sweep of the same runs that nothing hit.
    """
    broken = storm.log.broken
    if (storm.results / "tiny" / "partial").exists():
        storm.hit.run("partial")  # an analysis that was hit is started again by its own command
    for name in ("runs", "cells", "epochs"):
        tables = [pl.read_parquet(folder / f"{name}.parquet") for folder in (calm, storm.results / "tiny" / "tables")]
        broken += _differences(name, *tables)
    broken += [
        f"{run}: recorded {number} times, its files damaged {storm.log.damaged[run]} times"
        for run, number in num_recorded(storm.hit).items()
        if number > 1 + storm.log.damaged[run]
    ]
    broken += [f"held lock: {name}" for name in held(Path(storm.hit.environ["JOULESWEEP_LOCKS"]))]
    own = storm.hit.folder / ".snakemake"
    left = [*own.glob("locks/*"), *own.glob("incomplete/*"), *storm.results.rglob(".*")]
    broken += [f"left over: {path.relative_to(storm.hit.folder)}" for path in left]


def num_recorded(checkout: Checkout) -> Counter[str]:
    """How often each run was recorded, by the notes of its attempts."""
    numbers: Counter[str] = Counter()
    for path in checkout.runs.glob("*/attempts.jsonl"):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        numbers[path.parent.name] = sum(row.get("status") == "ok" for row in rows)
    return numbers


def _differences(name: str, calm: pl.DataFrame, hit: pl.DataFrame) -> list[str]:
    """How two tables differ in what time does not change."""
    columns = [column for column in calm.columns if STEADY.fullmatch(column)]
    rows = [set(table.select(columns).rows()) for table in (calm, hit)]
    if len(hit) == len(calm) and rows[0] == rows[1]:
        return []
    return [f"{name}: {len(hit)} rows, {len(calm)} expected; unlike: {sorted(rows[1] - rows[0], key=str)[:3]}"]


def summary(storm: Storm, num_runs: int, wall_s: float) -> str:
    """What happened, on one page."""
    log = storm.log
    repeated = {run: number - 1 for run, number in num_recorded(storm.hit).items() if number > 1}
    user = "as another user, on a disk of its own" if storm.is_other_user else "as this user, without a full disk"
    lines = [
        f"{num_runs} runs, {log.faults.total()} faults of {len(log.faults)} kinds, {log.starts} starts, {wall_s:.0f} s",
        user,
        *(f"  {number:3} {name}" for name, number in sorted(log.faults.items())),
        *(f"      {name}: found nothing to hit" for name in sorted(log.missed)),
        f"finished runs repeated: {sum(repeated.values())}; files of runs damaged: {log.damaged.total()}",
        *(f"BROKEN: {line}" for line in log.broken),
        "every promise was kept" if not log.broken else f"{len(log.broken)} promises were not kept",
    ]
    return "\n".join(lines)


def chosen(seed: int, number: int, faults: Sequence[Fault]) -> list[Fault]:
    """So many faults in random order: every kind before one comes again."""
    shuffled: list[Fault] = []
    while len(shuffled) < number:
        shuffled += random.Random(seed + len(shuffled)).sample(faults, len(faults))
    return shuffled[:number]


def main() -> int:
    """Run both sweeps, and print the summary. Returns 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="kinds of faults whose names contain this")
    parser.add_argument("--keep", type=Path, help="a new folder to leave everything in")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="joulesweep-storm-"))
    folder.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    storm = Storm(_sweep(folder / "hit", args.runs), args.seed)
    kinds = [*FAULTS, *(AS_OTHER_USER if storm.is_other_user else ())]
    kinds = [fault for fault in kinds if (args.only or "") in fault.name]
    try:
        storm.blow(chosen(args.seed, args.faults, kinds), args.runs)
        _tell("the same sweep, undisturbed")
        calm = _sweep(folder / "calm", args.runs)
        calm.run()
        if (storm.hit.runs.parent / "tables" / "epochs.parquet").exists():
            verify(storm, calm.runs.parent / "tables")
        print(summary(storm, args.runs, time.monotonic() - began_s))
    finally:
        if args.keep:
            shutil.copytree(storm.results, folder / "results", dirs_exist_ok=True)
        storm.close()
        if not args.keep:
            shutil.rmtree(folder)
    return 1 if storm.log.broken else 0


if __name__ == "__main__":
    sys.exit(main())
