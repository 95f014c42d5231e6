"""Run the plan for the first minutes on a GPU: nine at most, in the folder that `make gpu-pack` builds.

    timeout 40 python3 -c "import torch, transformers; torch.zeros(1, device='cuda')"
    python3 -m benchmarks.gpu_day --accelerator cuda --out FOLDER

The first line reads the libraries from a cold disk, which may take longer than the first item has. Items, by letter:

    a  what the machine is; a step in each precision
    b  small BERT, LLaMA and T5 by every engine, precision and batching: the losses that the CPU had; dropout of
       replayed steps; ddp and fsdp with one rank
    c  the certificate of the machine: `joulesweep certify`
    d  BERT-base by batch size, engine and precision: texts per second, joules per text, distance to the floor
    e  transformers.Trainer, at its best, compiled, and plain, by turns with ours; Lightning where there is time
    f  the first paper's comparison: each precision against fp32, plain training, by batch size
    g  GreenTrainer: predicted against measured seconds and joules of a step
    h  the profiler: kernels, waits, and how long the device had nothing to do
    i  two runs by the launching parent, one of which is killed

They come in the order of their worth, which is that of `gpu_plan.PLAN`. Each has its time, counted from the first one's
begin: what one leaves, the next may use; when it is over, the item's processes are killed and the next begins. An item
is a list of pieces, carried out in child processes; one that crashes, or does not answer, loses itself alone, and the
rest goes on in a fresh process. Each piece is appended to `results.jsonl` when it ends: {item, piece, status: ok, not
tried or failed, reason, …}. Readings of the meters go to `power.jsonl`, the processes' output to `log.txt`, the
certificate beside them.

What was not decided gets a second chance in a call of its own, where there are minutes left:

    python3 -m benchmarks.gpu_day --accelerator cuda --items e --budget 150 --out FOLDER2

`--accelerator cpu --budget 60` carries every item out in miniature: what needs a GPU is not tried. `--read FOLDER
FOLDER2` turns results into tables and a page, and says which goals hold; a certificate that was cut off is made of its
readings then.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import ZipFile

from benchmarks.gpu_common import (
    AFTER_FAILURE,
    CERTIFICATE,
    FAILED,
    LOG,
    MANIFEST,
    NO_TIME,
    NOT_TRIED,
    OK,
    RESULTS,
    Job,
    Pack,
    append,
    default_pack,
    rows,
    whole,
)
from benchmarks.gpu_plan import BUDGET_S, PLAN, Item, Piece
from joulesweep.core import processes
from joulesweep.core.errors import UserError
from joulesweep.launch import node
from joulesweep.measure import devices, machine

POLL_S = 0.05
READER_END_S = 2.0
WORTH_S = 2.0  # with less time left no process is started any more


@dataclass(frozen=True, kw_only=True)
class Day:
    """Folder, accelerator and budget of the plan.

    Attributes:
        pack: the packed folder.
        out: where results go.
        scratch: where anything else goes.
        accelerator: "cpu" or "cuda".
        boards: the first one, on a GPU.
        environ: of the child processes.
        num_lanes: processes at the same time.
    """

    pack: Pack
    out: Path
    scratch: Path
    accelerator: str
    boards: Sequence[devices.Board]
    environ: dict[str, str]
    num_lanes: int

    def job(self, item: Item, pieces: list[Piece], until_s: float) -> Job:
        """The job of a child."""
        return Job(
            item=item.letter,
            pieces=pieces,
            pack=self.pack,
            out=self.out,
            scratch=self.scratch,
            accelerator=self.accelerator,
            until_s=until_s,
            boards=[board.described() for board in self.boards],
        )


@dataclass(kw_only=True)
class Lane:
    """Pieces that one child at a time carries out in sequence.

    Attributes:
        left: those that have not been answered.
        child: the process that carries them out, if any.
        heard_s: when that began, or last answered.
    """

    left: list[Piece]
    child: subprocess.Popen[bytes] | None = None
    heard_s: float = 0.0

    def close(self) -> None:
        """End the lane's process, and all processes that it started."""
        if self.child is not None:
            processes.kill_group(self.child)
        self.child = None


def carry_out(plan: Sequence[Item], day: Day, budget_s: float) -> None:
    """Carry out the items within a budget; every piece of every item gets an answer."""
    small = day.accelerator == "cpu"
    shares = [item.small_s if small else item.seconds for item in plan]
    stretch = max(1.0, budget_s / sum(shares))  # who gives more time has a slower machine
    begin_s = time.monotonic()
    boards = [board.described() for board in day.boards]
    began = {"date": datetime.date.today().isoformat(), "accelerator": day.accelerator, "boards": boards}
    append(day.out / RESULTS, {"item": "", "piece": None, "status": OK, **began, "budget_s": budget_s})
    others = processes.children()
    processes.adopt(orphans=True)
    try:
        for item, share in zip(plan, itertools.accumulate(shares), strict=True):
            patient = replace(item, piece_s=stretch * item.piece_s)
            carry_out_item(patient, day, begin_s + budget_s * share / sum(shares))
            processes.kill_children(but=others)
    finally:
        processes.adopt(orphans=False)


def carry_out_item(item: Item, day: Day, until_s: float) -> None:
    """Carry out an item until its time is over, and report the outcome."""
    began_s = time.monotonic()
    pieces = item.pieces(day.accelerator)
    reader = _start(day, day.job(item, [], until_s), "benchmarks.gpu_trace", "trace") if item.traced else None
    lanes = [Lane(left=list(of_lane)) for of_lane in _lanes(item, day, pieces)]
    answers = Answers(day.out / RESULTS, item.letter)
    try:
        while (waiting := [lane for lane in lanes if lane.left]) and time.monotonic() < until_s:
            for lane in waiting[: day.num_lanes]:
                tend(lane, item, day, until_s, answers)
            if until_s - time.monotonic() < WORTH_S and not any(lane.child for lane in lanes):
                break
            time.sleep(POLL_S)
    finally:
        running = [lane.child is not None for lane in lanes]
        for lane in lanes:
            lane.close()
        if reader is not None:
            _end(reader)
    answers.take(lanes)
    for lane, began in zip(lanes, running, strict=True):
        for piece in lane.left:
            reason = f"cut off after {time.monotonic() - lane.heard_s:.1f} s, when the item's time was over"
            _answer(day, item, piece, NOT_TRIED, reason if began and piece is lane.left[0] else NO_TIME)
    counts = answers.counted()
    ended = {"seconds": time.monotonic() - began_s, "guard_s": until_s - began_s, "num": counts}
    append(day.out / RESULTS, {"item": item.letter, "piece": None, "status": OK, "about": item.about, **ended})
    print(f"{item.letter} {item.about}: {ended['seconds']:.1f} s, {counts}", flush=True)


def _lanes(item: Item, day: Day, pieces: Iterable[Piece]) -> list[list[Piece]]:
    """The pieces by lane; with room for one process only, a single lane, because starting costs more than the work."""
    lanes: dict[str, list[Piece]] = {}
    for piece in pieces:
        lanes.setdefault(item.lane(piece) if day.num_lanes > 1 else "", []).append(piece)
    return list(lanes.values())


def tend(lane: Lane, item: Item, day: Day, until_s: float, answers: Answers) -> None:
    """Manage a lane: take answers, end a process that hangs, start one if there is none."""
    if answers.take([lane]):
        lane.heard_s = time.monotonic()
    if not lane.left:
        lane.close()
        return
    if lane.child is None:
        if until_s - time.monotonic() > WORTH_S:
            lane.heard_s = time.monotonic()
            threads = {"TORCHINDUCTOR_COMPILE_THREADS": str(item.compile_threads(lane.left[0]))}
            lane_day = replace(day, environ=day.environ | threads)
            lane.child = _start(lane_day, day.job(item, lane.left, until_s), item.module, item.letter)
        return
    code = lane.child.poll()
    silent_s = time.monotonic() - lane.heard_s
    if code is None and silent_s < item.piece_s:
        return
    lane.close()
    if answers.take([lane]) or code == AFTER_FAILURE:  # its last words: the piece after them was not begun
        return
    reason = f"no answer within {item.piece_s:g} s" if code is None else f"its process ended with exit code {code}"
    _answer(day, item, lane.left[0], FAILED, reason)
    answers.take([lane])


def _answer(day: Day, item: Item, piece: Piece, status: str, reason: str) -> None:
    append(day.out / RESULTS, {"item": item.letter, "piece": piece["piece"], "status": status, "reason": reason})


class Answers:
    """The results' file, as far as it has been read.

    Args:
        path: of the file.
        letter: of the item whose answers are of interest.
    """

    def __init__(self, path: Path, letter: str) -> None:
        self.path, self.letter = path, letter
        self.read = path.stat().st_size if path.exists() else 0
        self.statuses: dict[str, str] = {}

    def take(self, lanes: Iterable[Lane]) -> bool:
        """Read new answers and remove their pieces from the lanes. Returns whether there were any for these lanes."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.read)
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            self.read += len(new)
            for row in whole(new):
                if row["item"] == self.letter and row["piece"]:
                    self.statuses[row["piece"]] = row["status"]
        any_new = False
        for lane in lanes:
            left = [piece for piece in lane.left if piece["piece"] not in self.statuses]
            any_new |= len(left) < len(lane.left)
            lane.left = left
        return any_new

    def counted(self) -> dict[str, int]:
        """Number of answers by status."""
        self.take([])
        return {status: list(self.statuses.values()).count(status) for status in (OK, NOT_TRIED, FAILED)}


def _end(reader: subprocess.Popen[bytes]) -> None:
    """Let the meters' reader write its readings."""
    reader.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        reader.wait(READER_END_S)
    processes.kill_group(reader)


def _start(day: Day, job: Job, module: str, name: str) -> subprocess.Popen[bytes]:
    """Start a program on a job, with its output in the log."""
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=day.scratch), "job.json")
    job.write(path)
    with (day.out / LOG).open("ab") as log:
        return processes.start([sys.executable, "-m", module, str(path)], day.environ, log.fileno())


def unpack(wheels: Path, site: Path) -> list[str]:
    """Unpack wheels that this Python lacks or has in older versions into a folder. Returns their names."""
    from packaging.utils import parse_wheel_filename
    from packaging.version import Version

    unpacked = []
    for path in sorted(wheels.glob("*.whl")):
        name, version, *_ = parse_wheel_filename(path.name)
        installed = machine.version(name)
        if installed is None or Version(installed) < version:
            with ZipFile(path) as wheel:
                wheel.extractall(site)
            unpacked.append(name)
    return unpacked


def prepared(args: argparse.Namespace, scratch: Path) -> Day:
    """Everything needed to carry out the plan.

    Raises:
        UserError: there is no pack, or no GPU where one was asked for.
    """
    pack = Pack((args.pack or default_pack()).absolute())
    if not (pack.root / MANIFEST).exists():
        raise UserError(f"{pack.root}: no pack; make one by: make gpu-pack")
    site = scratch / "site"
    unpack(pack.root / "wheels", site)
    if site.is_dir():
        sys.path.insert(0, str(site))
        importlib.invalidate_caches()
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    accelerator = machine.resolve_accelerator(args.accelerator)
    boards = devices.pool("auto")[:1] if accelerator == "cuda" else []
    if accelerator == "cuda" and not boards:
        raise UserError("--accelerator cuda: NVML names no GPU here")
    num_cores = len(os.sched_getaffinity(0))
    environ = node.child_environment(1, boards) | {
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "JOULESWEEP_LOCKS": os.environ.get("JOULESWEEP_LOCKS", str(scratch / "locks")),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    return Day(
        pack=pack,
        out=args.out.absolute(),
        scratch=scratch,
        accelerator=accelerator,
        boards=boards,
        environ=environ,
        num_lanes=max(1, num_cores - 2) if accelerator == "cuda" else 1,
    )


def main() -> int:
    """Carry the plan out, or read results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="where results go; default: $OUT")
    parser.add_argument("--accelerator", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds, all in all")
    parser.add_argument("--items", default="".join(item.letter for item in PLAN), help="some letters: only these")
    parser.add_argument(
        "--pack", type=Path, help="the packed folder; default: the one that contains this program, or .cache/gpu-pack"
    )
    parser.add_argument("--read", type=Path, nargs="+", metavar="FOLDER", help="turn results into a page instead")
    parser.add_argument("--to", type=Path, default=Path("benchmarks", "results"), help="where the page goes")
    args = parser.parse_args()
    try:
        return _read(args) if args.read else _carry_out(args)
    except UserError as error:
        parser.error(str(error))


def _read(args: argparse.Namespace) -> int:
    from benchmarks import gpu_page, gpu_results

    results = gpu_results.Results(*args.read)
    if not gpu_results.promises(results):
        _certificate_of_readings(args.read)
    page = gpu_page.write(results, args.to)
    for goal in gpu_results.goals(results):
        print(f"{goal.verdict}: {goal.name}: {goal.found}")
    print(page)
    return 0


def _certificate_of_readings(folders: Iterable[Path]) -> None:
    """Make the certificate from the readings if the measurement was cut off."""
    from joulesweep.certify import campaign

    for path in (folder / CERTIFICATE[".gz"] for folder in folders):
        if path.exists():
            try:
                campaign.repeat(path)
            except UserError as error:
                print(error)


def _carry_out(args: argparse.Namespace) -> int:
    began_s = time.monotonic()
    letters = [item.letter for item in PLAN]
    unknown = [letter for letter in args.items if letter not in letters]
    if unknown:
        raise UserError(f"--items: there is no item {unknown[0]}; there are {', '.join(sorted(letters))}")
    if args.out is None:
        raise UserError("--out: say where results go, or set OUT")
    if args.budget <= 0:
        raise UserError(f"--budget: must be above 0, got {args.budget:g}")
    args.out = Path(args.out)
    if any(True for _ in rows(args.out / RESULTS)):
        raise UserError(f"--out: {args.out} holds results already; choose another folder")
    with tempfile.TemporaryDirectory(prefix="joulesweep-gpu-day-", ignore_cleanup_errors=True) as scratch:
        day = prepared(args, Path(scratch))
        plan = [item for item in PLAN if item.letter in args.items]
        carry_out(plan, day, args.budget - (time.monotonic() - began_s))
    return 0


if __name__ == "__main__":
    sys.exit(main())
