"""What tools that track energy say of one and the same burn: `make trackers`, or `python -m benchmarks.trackers`.

A burn is matrix products, one after the other, on the first GPU where PyTorch sees one, else on one CPU thread. It is
done once bare and once under each tracker with its defaults, each time in a process of its own:

    plain          counters read twice, and powers integrated every 0.1 s: NVML and RAPL, by hand
    Zeus           the counters that Joulesweep reads, through `ZeusMonitor`
    codecarbon     `OfflineEmissionsTracker`
    carbontracker  `CarbonTracker`, one epoch

A row says the joules of GPUs, CPU and memory that a tracker reports, its total, what these numbers are, what it says of
itself, and what it takes: CPU-seconds beyond those of the bare run, and seconds before and after the burn. A tracker
that is missing, fails or does not end has a row that says so, and the exit status is 1. With `--fake` the machine has
two boards and a processor whose watts are known (the tests' fake NVML, and files like RAPL's); the truth is a row then.
Zeus and plain integration are in our environment; the others are installed beside it, never in it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from joulesweep.measure.machine import cpu_model

TESTS = Path(__file__).parent.parent / "tests" / "support"
RAPL = Path("/sys/class/powercap")
FAKE_BOARDS_W, FAKE_CPU_W, FAKE_DRAM_W = (310.0, 170.0), 60.0, 8.0
#: Links that Linux has beside the counters, and codecarbon and carbontracker look for.
LINKS = {
    "intel-rapl/subsystem": "..",
    "intel-rapl:0": "intel-rapl/intel-rapl:0",
    "intel-rapl:0:0": "intel-rapl/intel-rapl:0/intel-rapl:0:0",
}
KWH_J = 3.6e6
EVERY_S = 0.1  # between two readings of power, of the plain tracker
MEASURED, ESTIMATED, NOTHING = "measured", "estimated", "nothing"
SIZE = 768  # of the matrices on the CPU
PATIENCE_S = 100.0  # that a tracker may take beside the burn


@dataclass
class Told:
    """What a tracker says of a burn.

    Attributes:
        joules: by part: gpu, cpu, ram; None where it says nothing.
        kinds: by part, what the number is.
        total_j: the total that it reports; None if it reports none.
        says: of itself, in its own words or by its own numbers.
        window_s: seconds of the burn.
        before_s: seconds that it took to start.
        after_s: seconds that it took to end.
        beside_cpu_s: CPU-seconds of its process and all its children, up to the end, that the burn did not take.
    """

    joules: dict[str, float | None] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    total_j: float | None = None
    says: str = ""
    window_s: float = 0.0
    before_s: float = 0.0
    after_s: float = 0.0
    beside_cpu_s: float = 0.0


def burn(seconds: float) -> None:
    """Multiply matrices for so long."""
    import torch

    torch.set_num_threads(1)
    on_gpu = torch.cuda.is_available()
    size, place, dtype = (8192, "cuda", torch.bfloat16) if on_gpu else (SIZE, "cpu", torch.float32)
    a = torch.randn(size, size, device=place, dtype=dtype)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(10):
            torch.mm(a, a)
        if on_gpu:
            torch.cuda.synchronize()


@contextlib.contextmanager
def bare(told: Told) -> Iterator[None]:
    """No tracker."""
    told.says = "–"
    yield


@contextlib.contextmanager
def plain(told: Told) -> Iterator[None]:
    """Counters at both ends, and power in between, by hand."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
    boards = _boards()
    zones = {path: part for path, part in _zones() if os.access(path, os.R_OK)}
    before = [pynvml.nvmlDeviceGetTotalEnergyConsumption(board) for board in boards]
    began = {path: int(path.read_text()) for path in zones}
    stop, samples = threading.Event(), [(time.monotonic(), _watts(boards))]

    def watch() -> None:
        while not stop.wait(EVERY_S):
            samples.append((time.monotonic(), _watts(boards)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    after = [pynvml.nvmlDeviceGetTotalEnergyConsumption(board) for board in boards]
    ended = {path: int(path.read_text()) for path in zones}
    stop.set()
    thread.join()
    integral_j = sum(
        (later - at) * (watts + next_watts) / 2 for (at, watts), (later, next_watts) in itertools.pairwise(samples)
    )
    for part in ("gpu", "cpu", "ram"):
        told.joules[part], told.kinds[part] = None, NOTHING
    if boards:
        told.joules["gpu"] = sum(after) / 1000 - sum(before) / 1000
    for path, part in zones.items():
        wrap = int((path.parent / "max_energy_range_uj").read_text())
        told.joules[part] = (told.joules[part] or 0.0) + (ended[path] - began[path]) % wrap / 1e6
    told.kinds |= {part: MEASURED for part, joules in told.joules.items() if joules is not None}
    known = [joules for joules in told.joules.values() if joules is not None]
    told.total_j = sum(known) if known else None
    told.says = f"integral of NVML's power: {integral_j:.0f} J" if boards else "no NVML, no RAPL" if not known else ""


def _boards() -> list[object]:
    import pynvml

    try:
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _watts(boards: Sequence[object]) -> float:
    import pynvml

    return float(sum(pynvml.nvmlDeviceGetPowerUsage(board) for board in boards)) / 1000


def _zones() -> Iterator[tuple[Path, str]]:
    """Counters of processor packages and of their memory."""
    for path in sorted(RAPL.glob("intel-rapl/intel-rapl:*/energy_uj")):
        yield path, "cpu"
    for path in sorted(RAPL.glob("intel-rapl/intel-rapl:*/intel-rapl:*/energy_uj")):
        if (path.parent / "name").read_text().strip() == "dram":
            yield path, "ram"


@contextlib.contextmanager
def zeus(told: Told) -> Iterator[None]:
    """`ZeusMonitor` over one window."""
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor(approx_instant_energy=False)
    monitor.begin_window("burn", sync_execution=False)
    yield
    measured = monitor.end_window("burn", sync_execution=False)
    told.joules = {
        "gpu": sum(measured.gpu_energy.values()) if measured.gpu_energy else None,
        "cpu": sum(measured.cpu_energy.values()) if measured.cpu_energy else None,
        "ram": sum(measured.dram_energy.values()) if measured.dram_energy else None,
    }
    told.kinds = {part: NOTHING if joules is None else MEASURED for part, joules in told.joules.items()}
    if any(joules is not None for joules in told.joules.values()):
        told.total_j = float(measured.total_energy)
    told.says = f"total_energy {measured.total_energy:.0f} J is that of the GPUs alone"


@contextlib.contextmanager
def codecarbon(told: Told) -> Iterator[None]:
    """`OfflineEmissionsTracker` with its defaults; any country, which changes no joule."""
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(country_iso_code="DEU", save_to_file=False, allow_multiple_runs=True)
    tracker.start()
    yield
    tracker.stop()
    data = tracker.final_emissions_data
    methods = {type(one).__name__.lower(): getattr(one, "_mode", "") for one in tracker._hardware}
    told.joules = {
        "gpu": data.gpu_energy * KWH_J if data.gpu_count else None,
        "cpu": data.cpu_energy * KWH_J,
        "ram": data.ram_energy * KWH_J,
    }
    counted = {"gpu": bool(data.gpu_count), "cpu": "rapl" in str(methods.get("cpu")), "ram": False}
    told.kinds = {part: MEASURED if counted[part] else ESTIMATED for part in counted}
    told.kinds |= {part: NOTHING for part, joules in told.joules.items() if joules is None}
    told.total_j = data.energy_consumed * KWH_J
    told.says = "; ".join(f"{part}: {mode}" if mode else part for part, mode in methods.items())


@contextlib.contextmanager
def carbontracker(told: Told) -> Iterator[None]:
    """`CarbonTracker` over the first of two epochs: after the last one it forgets its numbers."""
    from carbontracker import constants
    from carbontracker.tracker import CarbonTracker

    tracker = CarbonTracker(epochs=2, epochs_before_pred=0, verbose=0, log_dir=None)
    tracker.epoch_start()
    yield
    tracker.epoch_end()
    told.joules, names = dict.fromkeys(("gpu", "cpu", "ram")), []
    told.kinds = dict.fromkeys(("gpu", "cpu", "ram"), NOTHING)
    for component in tracker.tracker.components:
        handler = type(component.handler).__name__
        told.joules[component.name] = float(sum(component.energy_usage(tracker.tracker.epoch_times))) * KWH_J
        told.kinds[component.name] = ESTIMATED if handler == "GenericCPU" else MEASURED
        names.append(f"{component.name}: {handler} ({', '.join(map(str, component.devices()))})")
    told.total_j = float(tracker.tracker.total_energy_per_epoch().sum()) * KWH_J
    told.says = "; ".join([*names, f"total × {constants.PUE_2023} for the building"])
    tracker.stop()


#: Trackers by name: what measures, and the package whose version counts.
TRACKERS: dict[str, tuple[Callable[[Told], AbstractContextManager[None]], str | None]] = {
    "bare": (bare, None),
    "plain": (plain, "nvidia-ml-py"),
    "Zeus": (zeus, "zeus"),
    "codecarbon": (codecarbon, "codecarbon"),
    "carbontracker": (carbontracker, "carbontracker"),
}


def child(name: str, seconds: float, output: Path) -> None:
    """Burn under one tracker, and write what it says."""
    told, (tracker, _) = Told(), TRACKERS[name]
    burn(0.2)  # imports and first products
    started = time.monotonic()
    with tracker(told):
        began, cpu_s = time.monotonic(), time.thread_time()
        burn(seconds)
        ended = time.monotonic()
        burn_s = time.thread_time() - cpu_s
    told.before_s, told.window_s, told.after_s = began - started, ended - began, time.monotonic() - ended
    told.beside_cpu_s = _cpu_s() - burn_s
    output.write_text(json.dumps(asdict(told)), encoding="utf-8")
    os._exit(0)  # threads of trackers may go on


def _cpu_s() -> float:
    """CPU-seconds of this process and its children, those that have ended and those that have not."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(one.user + one.system for one in alive)


def main() -> None:
    """Burn under each tracker in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--trackers", nargs="*", choices=TRACKERS, default=list(TRACKERS))
    parser.add_argument("--fake", action="store_true", help="on boards and counters whose watts are known")
    parser.add_argument("--child", choices=TRACKERS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.seconds, args.output)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        command, environ = _machine(Path(folder), args.fake, stack)
        rows: list[tuple[str, Told | str]] = []
        for name in args.trackers:
            rows.append((name, _under(name, args.seconds, Path(folder), command, environ)))
            print(f"{name}: {'failed' if isinstance(rows[-1][1], str) else 'done'}", file=sys.stderr)
    print("\n".join(table(rows, args.fake)))
    sys.exit(any(isinstance(told, str) for _, told in rows))


def _machine(
    folder: Path, fake: bool, stack: contextlib.ExitStack
) -> tuple[Callable[[list[str]], list[str]], dict[str, str]]:
    """How commands are started: as they are, or where boards and counters are fake."""
    if not fake:
        return lambda argv: argv, dict(os.environ)
    sys.path.insert(0, str(TESTS))
    import fake_meters

    boards = fake_meters.Boards(folder, [{"watts": watts} for watts in FAKE_BOARDS_W])
    zone = {"name": "package-0", "watts": FAKE_CPU_W, "dram_watts": FAKE_DRAM_W}
    counters = stack.enter_context(fake_meters.rapl_tree(folder / "powercap", [zone]))
    for name, target in LINKS.items():
        (folder / "powercap" / name).symlink_to(target)
    (folder / "nvidia-smi").symlink_to("/bin/true")  # codecarbon looks for it
    return lambda argv: counters.command(argv), boards.environment(PATH=f"{folder}:{os.environ['PATH']}")


def _under(
    name: str, seconds: float, folder: Path, command: Callable[[list[str]], list[str]], environ: dict[str, str]
) -> Told | str:
    """What a tracker says, or in a line why it says nothing; what it left running is ended."""
    output, log = folder / f"{name}.json", folder / f"{name}.log"
    argv = [sys.executable, "-m", "benchmarks.trackers", "--child", name, "--seconds", str(seconds)]
    argv += ["--output", str(output)]
    with log.open("wb") as said:
        burning = subprocess.Popen(command(argv), env=environ, stdout=said, stderr=said, start_new_session=True)
        try:
            burning.wait(timeout=seconds + PATIENCE_S)
        except subprocess.TimeoutExpired:
            return f"failed: it had not ended {PATIENCE_S:.0f} s after the burn"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(burning.pid, signal.SIGKILL)
            burning.wait()
    if not output.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"failed: {lines[-1] if lines else f'it ended with {burning.returncode}'}"
    return Told(**json.loads(output.read_text(encoding="utf-8")))


def table(rows: Sequence[tuple[str, Told | str]], fake: bool) -> list[str]:
    """The table of what was said, in Markdown.

    Args:
        rows: by tracker what it says, or why it says nothing.
        fake: whether the watts are known.
    """
    bare_s = next((told.beside_cpu_s for name, told in rows if name == "bare" and isinstance(told, Told)), None)
    threads = len(os.sched_getaffinity(0))
    lines = [
        f"{datetime.date.today()}, {cpu_model()}, {threads} threads"
        + (f"; fake: boards of {FAKE_BOARDS_W} W, CPU {FAKE_CPU_W} W, memory {FAKE_DRAM_W} W" if fake else ""),
        "",
        "| tracker | seconds | GPU (J) | CPU (J) | memory (J) | its total (J) | of itself | CPU-s | start, end (s) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, told in rows:
        if isinstance(told, str):
            lines.append(f"| {_versioned(name)} | – | – | – | – | – | {told.replace('|', '/')} | – | – |")
            continue
        if name == "bare":
            continue
        parts = " | ".join(_part(told, part) for part in ("gpu", "cpu", "ram"))
        total = "–" if told.total_j is None else f"{told.total_j:.0f}"
        beside = "–" if bare_s is None else f"{told.beside_cpu_s - bare_s:.1f}"
        lines.append(
            f"| {_versioned(name)} | {told.window_s:.1f} | {parts} | {total} | {told.says} "
            f"| {beside} | {told.before_s:.1f}, {told.after_s:.1f} |"
        )
        if fake:
            gpu_j, cpu_j, ram_j = (told.window_s * watts for watts in (sum(FAKE_BOARDS_W), FAKE_CPU_W, FAKE_DRAM_W))
            whole = gpu_j + cpu_j + ram_j
            lines.append(f"| … the truth | | {gpu_j:.0f} | {cpu_j:.0f} | {ram_j:.0f} | {whole:.0f} | | | |")
    return lines


def _versioned(name: str) -> str:
    package = TRACKERS[name][1]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{name} {importlib.metadata.version(package)}" if package else name
    return name


def _part(told: Told, part: str) -> str:
    joules = told.joules.get(part)
    return f"{told.kinds.get(part, NOTHING)}" if joules is None else f"{joules:.0f} {told.kinds[part]}"


if __name__ == "__main__":
    main()
