"""Meters whose true readings are known: a fake NVML (fake_nvml.c), fake GPUs inside Zeus, and fake RAPL.

All count from one moment of the wall clock, so every process that looks sees the same counters. `WallClock` steps the
wall clock of processes (fake_clock.c), and moves none of the boards' counters.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pynvml
import pytest
import zeus.device.cpu
import zeus.device.cpu.rapl
import zeus.device.gpu
from tiny_run import REPOSITORY, SUPPORT
from zeus.device.gpu.common import GPU, GPUs, ZeusGPUNotSupportedError

EPOCH_S = 1_700_000_000  # Unix time at which every counter was 0, as in fake_nvml.c

#: What a board may be given, and what it is otherwise. None: the key is left out.
BOARD: dict[str, Any] = {
    "uuid": None,  # made up, unique
    "name": "Fake GPU",
    "watts": 300,  # true draw; or a wave: "FIRST:SECOND:PERIOD_S" (square), "saw:FIRST:…", "sine:MEAN:SWING:PERIOD_S"
    "power_error": 1,  # factor of the reported power only
    "average_s": 0,  # power is reported as the mean of so many seconds, but for the instant one (field 186)
    "instant": 1,  # 0: a board without instant power
    "tick_ms": 100,  # the counter moves at multiples of this
    "lag_ms": 0,  # … and shows what was drawn until so long before
    "temp_c": 40,  # or "FROM:TO:SECONDS": falls from the last change of any board on
    "sm_mhz": 1410,
    "mem_mhz": 1215,
    "limit_w": 400,
    "throttle": "0x0",  # NVML's bits
    "memory_mib": 81920,
    "utilization": 100,  # per cent
    "arch": pynvml.NVML_DEVICE_ARCH_AMPERE,  # before Volta (5): no counter; before Ampere (7): no averaged power
    "counter": 1,  # 0: a board with no counter, however new
    "mig": None,  # 0 or 1; None: the product cannot be split
    "pids": None,  # compute processes, "12,34"; 0 stands for the process that asks
    "lost": 0,  # 1: every reading, and a new handle, answers that the GPU is lost
    "offset_mj": 0,  # added to the counter
    "delay": None,  # "FUNCTION:SECONDS,…", without nvmlDevice: those answer late: "GetPowerUsage:600"; "*": all
    "fail": None,  # "FUNCTION:ERROR,…": those that answer an error of NVML instead: "GetTotalEnergyConsumption:999"
}


def watts_at(draw: float | str, t_s: float) -> float:
    """True watts of a draw, as in BOARD, after so many seconds."""
    shape, first_w, second_w, period_s = _wave(draw)
    share = t_s % period_s / period_s
    if shape == "saw":
        return first_w + (second_w - first_w) * share
    if shape == "sine":
        return first_w + second_w * math.sin(2 * math.pi * share)
    return first_w if share < 0.5 else second_w


def joules_until(draw: float | str, t_s: float) -> float:
    """True joules of a draw, as in BOARD, from second 0 to a second."""
    shape, first_w, second_w, period_s = _wave(draw)
    periods, rest_s = divmod(t_s, period_s)
    share = rest_s / period_s
    if shape == "saw":
        return period_s * (periods * (first_w + second_w) / 2 + share * (first_w + (second_w - first_w) * share / 2))
    if shape == "sine":
        return first_w * t_s + second_w * period_s / (2 * math.pi) * (1 - math.cos(2 * math.pi * share))
    first_s = periods * period_s / 2 + min(rest_s, period_s / 2)
    return first_w * first_s + second_w * (t_s - first_s)


def _ticked(t_s: float, tick_s: float) -> float:
    """The last multiple of a tick up to a second, in whole nanoseconds: 0.3 // 0.1 is 2."""
    tick_ns = round(tick_s * 1e9)
    return round(t_s * 1e9) // tick_ns * tick_ns / 1e9 if tick_ns else t_s


def _wave(draw: float | str) -> tuple[str, float, float, float]:
    shape, _, rest = str(draw).partition(":") if str(draw)[0] == "s" else ("square", "", str(draw))
    parts = [float(part) for part in rest.split(":")]
    return (shape, parts[0], parts[0], 1.0) if len(parts) == 1 else (shape, parts[0], parts[1], parts[2])


@functools.cache
def _compiled(source: str, name: str) -> Path:
    """A library of C, compiled once per test process in a folder that goes with it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(f"no C compiler (cc), which makes {source}")
    folder = Path(tempfile.mkdtemp(prefix="joulesweep-fake-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options = ["-std=c99", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
    subprocess.run([compiler, *options, "-o", folder / name, SUPPORT / source, "-lm"], check=True)
    return folder / name


def library() -> Path:
    """The compiled fake NVML."""
    return _compiled("fake_nvml.c", "libnvidia-ml.so.1")


def _clock_ns() -> int:
    """The Unix time at which the monotonic clock began: the least of some looks, which nothing came between."""
    return min(time.time_ns() - time.monotonic_ns() for _ in range(20))


class WallClock:
    """A wall clock that can be stepped for the processes that get its environment."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "wall_clock.txt"

    def environment(self) -> dict[str, str]:
        """What makes a process go by it."""
        return {"LD_PRELOAD": str(_compiled("fake_clock.c", "libfakeclock.so")), "FAKE_CLOCK": str(self.path)}

    def step(self, seconds: float) -> None:
        """Put it so far ahead of the true one, from now on."""
        _replace(self.path, f"{seconds}\n")


class Boards:
    """GPUs that the real pynvml and the real Zeus see.

    Attributes:
        boards: their keys and values, as in BOARD.
    """

    def __init__(self, folder: Path, boards: Sequence[Mapping[str, Any]]) -> None:
        self.path = folder / "fake_nvml.txt"
        self.boards: list[dict[str, Any]] = []
        for given in boards:
            self.boards.append(BOARD | {"uuid": f"GPU-{uuid.uuid4()}"} | _known(given))
        self._watts = [board["watts"] for board in self.boards]  # at first
        self._write()

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment, in which the boards are there; CUDA_VISIBLE_DEVICES only if given."""
        kept = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES" and not k.startswith("ZEUSD_")}
        folders = [str(library().parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        fake = {"FAKE_NVML": str(self.path), "FAKE_NVML_CLOCK": str(_clock_ns())}
        return kept | {"LD_LIBRARY_PATH": ":".join(folders)} | fake | more

    def set(self, index: int, **changes: Any) -> None:
        """Change a board now, under running processes."""
        if "watts" in changes:
            self.happen(index, time.time(), changes.pop("watts"))
        self.boards[index].update(_known(changes))
        self._write()

    def happen(self, index: int, at_s: float, what: float | str) -> None:
        """Let a board draw something else from a Unix time on, or "reset" its counter then; in order of time."""
        with self.events(index).open("a", encoding="ascii") as file:
            file.write(f"{at_s:.9f} {what}\n")

    def events(self, index: int) -> Path:
        """The file of what happens to a board, lines of Unix time and draw; other processes may append to it."""
        return self.path.with_name(f"{self.path.name}.{index}")

    def _draws(self, index: int) -> list[tuple[float, float | str]]:
        """Since when, in seconds from the epoch, and what."""
        path = self.events(index)
        lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
        found = [line.split() for line in lines]
        changes = [(float(at_s) - EPOCH_S, draw) for at_s, draw in found if draw != "reset"]
        return [(0.0, self._watts[index]), *changes]

    def joules(self, index: int, window_s: float, begin_s: float | None = None) -> float:
        """True joules of a window.

        Args:
            index: of the board.
            window_s: seconds.
            begin_s: Unix time; needed only for a board whose draw changes.
        """
        draws = self._draws(index)
        if begin_s is None:
            if len(draws) > 1 or ":" in str(draws[0][1]):
                raise ValueError("the draw changes: say when the window begins")
            return float(draws[0][1]) * window_s
        begin_s -= EPOCH_S
        total_j = 0.0
        for (since_s, draw), (until_s, _) in zip(draws, [*draws[1:], (float("inf"), 0)], strict=True):
            low_s, high_s = max(begin_s, since_s), min(begin_s + window_s, until_s)
            total_j += joules_until(draw, high_s) - joules_until(draw, low_s) if high_s > low_s else 0.0
        return total_j

    def counter_mj(self, index: int, at_s: float) -> int:
        """What the counter says at a Unix time, to a millijoule, where nothing happened to the board."""
        board = self.boards[index]
        return int(1000 * joules_until(board["watts"], self._tick_s(index, at_s)) + board["offset_mj"])

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let pynvml and Zeus see the boards in this very process, for one test."""
        monkeypatch.setenv("FAKE_NVML", str(self.path))
        monkeypatch.delenv("FAKE_NVML_CLOCK", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library())))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        forget_devices(monkeypatch)

    def _tick_s(self, index: int, at_s: float) -> float:
        """The counter's last move, in seconds from the epoch."""
        return _ticked(at_s - self.boards[index]["lag_ms"] / 1000 - EPOCH_S, self.boards[index]["tick_ms"] / 1000)

    def _write(self) -> None:
        lines = (
            " ".join(f"{k}={str(v).replace(' ', '_')}" for k, v in board.items() if v is not None)
            for board in self.boards
        )
        _replace(self.path, "".join(f"{line}\n" for line in lines))


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := given.keys() - BOARD.keys():
        raise KeyError(f"a fake board has no {', '.join(sorted(unknown))}")
    return dict(given)


def _replace(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that nobody reads half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="ascii")
    partial.chmod(mode)
    partial.replace(path)


def forget_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Zeus look for devices anew, as a new process would, and after the test have what it had before."""
    available = zeus.device.gpu.nvml_is_available, zeus.device.cpu.rapl_is_available
    nvml, rapl = (getattr(function, "__wrapped__", function) for function in available)
    monkeypatch.setattr(zeus.device.gpu, "_gpus", None)
    monkeypatch.setattr(zeus.device.cpu, "_cpus", None)
    monkeypatch.setattr(zeus.device.gpu, "nvml_is_available", nvml)
    monkeypatch.setattr(zeus.device.cpu, "rapl_is_available", rapl)
    monkeypatch.setattr(zeus.device.cpu.rapl, "rapl_is_available", rapl)


def _unsupported(self: GPU, *_args: object, **_options: object) -> None:
    raise ZeusGPUNotSupportedError("the fake GPU has no such thing")


#: Everything that Zeus asks of a GPU, refused; the subclass says what it can.
_Silent: Any = type(GPU)("_Silent", (GPU,), dict.fromkeys(GPU.__abstractmethods__, _unsupported))


class FakeGPU(_Silent):
    """A board inside Zeus, without NVML.

    Attributes:
        draw: true watts, as in BOARD.
    """

    supports_nonblocking_setters = False

    def __init__(self, index: int, draw: float | str, tick_s: float, clock: Callable[[], float], counter: bool) -> None:
        super().__init__(index)
        self.draw, self._tick_s, self._clock, self._counter = draw, tick_s, clock, counter

    def get_name(self) -> str:
        """The product."""
        return "Fake GPU"

    def supports_get_total_energy_consumption(self) -> bool:
        """Whether it counts joules."""
        return self._counter

    def get_total_energy_consumption(self) -> int:
        """Millijoules up to the last tick."""
        if not self._counter:
            _unsupported(self)
        return round(1000 * joules_until(self.draw, _ticked(self._clock(), self._tick_s)))

    def get_instant_power_usage(self) -> int:
        """Milliwatts."""
        return round(1000 * watts_at(self.draw, self._clock()))

    get_average_power_usage = get_instant_power_usage

    def get_gpu_temperature(self) -> int:
        """Degrees Celsius."""
        return 40


class FakeGPUs(GPUs):
    """The GPUs of a machine inside Zeus, without NVML."""

    def __init__(self, gpus: Sequence[FakeGPU]) -> None:
        self._gpus = gpus

    def __del__(self) -> None:
        """There is nothing to shut down."""

    @property
    def gpus(self) -> Sequence[FakeGPU]:
        """In Zeus's order."""
        return self._gpus


def gpus(
    monkeypatch: pytest.MonkeyPatch,
    draws: Sequence[float | str],
    *,
    tick_s: float = 0.1,
    clock: Callable[[], float] = lambda: time.time() - EPOCH_S,
    without_counter: Sequence[int] = (),
) -> FakeGPUs:
    """Put fake GPUs into Zeus for one test.

    Args:
        monkeypatch: takes them out again.
        draws: true watts of each, as in BOARD.
        tick_s: the counters move at multiples of this; 0: always.
        clock: gives the seconds that the counters go by.
        without_counter: indices of those that count no joules.
    """
    forget_devices(monkeypatch)
    made = FakeGPUs([FakeGPU(i, draw, tick_s, clock, i not in without_counter) for i, draw in enumerate(draws)])
    monkeypatch.setattr(zeus.device.gpu, "_gpus", made)
    return made


class Rapl:
    """The kernel's energy counters of CPU packages and their DRAM, as a folder of files.

    Attributes:
        folder: to be seen as /sys/class/powercap.
        max_range_uj: where the counters begin again at 0.
        lag_s: the longest that a counter has been behind the truth so far.
        stepped_j: by device, what was added to its counter: a negative number is a reset.
    """

    def __init__(self, folder: Path, zones: Sequence[Mapping[str, Any]], max_range_uj: int) -> None:
        self.folder, self.max_range_uj, self.lag_s = folder.resolve(), max_range_uj, 0.0
        self._zones: dict[str, tuple[Path, float]] = {}
        self.stepped_j: dict[str, float] = {}
        self._written_s = time.time()
        self._lock = threading.Lock()
        for i, zone in enumerate(zones):
            path = self.folder / "intel-rapl" / f"intel-rapl:{i}"
            self._add(f"cpu:{i}", path, zone["name"], zone["watts"])
            self.stepped_j[f"cpu:{i}"] = zone.get("offset_j", 0.0)
            if "dram_watts" in zone:
                self.stepped_j[f"dram:{i}"] = zone.get("offset_j", 0.0)
                self._add(f"dram:{i}", path / f"{path.name}:0", "dram", zone["dram_watts"])
        self._update()

    def _add(self, device: str, path: Path, name: str, watts: float) -> None:
        path.mkdir(parents=True)
        for folder in (self.folder, path.parent, path):
            folder.chmod(0o755)
        (path / "name").write_text(f"{name}\n", encoding="ascii")
        (path / "max_energy_range_uj").write_text(f"{self.max_range_uj}\n", encoding="ascii")
        self._zones[device] = path, watts

    def joules(self, device: str, window_s: float) -> float:
        """True joules of `cpu:0` or `dram:0` in a window of so many seconds."""
        return self._zones[device][1] * window_s

    def wrap_s(self, device: str) -> float:
        """Seconds from one wrap of a counter to the next; they fall on multiples of it since EPOCH_S."""
        return self.max_range_uj / 1e6 / self._zones[device][1]

    def reset(self, device: str) -> None:
        """Let a counter begin at 0 now."""
        watts = self._zones[device][1]
        self.stepped_j[device] = -watts * (time.time() - EPOCH_S)

    def draw(self, device: str, watts: float) -> None:
        """Let a device draw other watts from now on."""
        with self._lock:
            path, before = self._zones[device]
            self.stepped_j[device] += (before - watts) * (time.time() - EPOCH_S)
            self._zones[device] = path, watts

    def keep_up(self, stop: threading.Event) -> None:
        """Move the counters every 2 ms until told to stop."""
        while not stop.wait(0.002):
            with self._lock:
                self._update()

    def _update(self) -> None:
        now_ns = time.time_ns() - EPOCH_S * 10**9
        for device, (path, watts) in self._zones.items():
            energy_uj = round(watts * now_ns / 1000 + 1e6 * self.stepped_j[device]) % self.max_range_uj
            _replace(path / "energy_uj", f"{energy_uj}\n", mode=0o400)  # as kernels since 5.10 have it
        self.lag_s = max(self.lag_s, time.time() - self._written_s)
        self._written_s = now_ns / 1e9 + EPOCH_S

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let Zeus see the counters in this very process, for one test."""
        monkeypatch.setattr(zeus.device.cpu.rapl, "RAPL_DIR", str(self.folder / "intel-rapl"))
        forget_devices(monkeypatch)

    def command(
        self, argv: Sequence[str | Path], *, location: str = "/sys/class/powercap", uid: int | None = None
    ) -> list[str]:
        """A command in front of which the counters are where Linux has them, for it and its children alone.

        Args:
            argv: what to run.
            location: where the counters are: the kernel's place or /zeus_sys/class/powercap.
            uid: the user to run as; this process's unless given.
        """
        _need_namespaces(uid)
        root = "" if location.startswith("/sys/") else "/sys/class/root"
        steps = ["umask 022", "mount -t tmpfs -o mode=755 none /sys/class"]  # hides the machine's own counters, too
        steps += _opened() if uid else []
        steps += [_NEW_ROOT] if root else []
        steps += [f"mkdir -p {root}{location}", f"mount --bind {shlex.quote(str(self.folder))} {root}{location}"]
        run = ["chroot", root, "env", "-C", str(Path.cwd())] if root else []
        run += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
        steps.append("exec " + shlex.join([*run, *map(str, argv)]))
        return [*_unshare(), "sh", "-ec", "\n".join(steps)]


#: Makes a root folder that can be added to, which the real one cannot without leaving a trace.
_NEW_ROOT = """
root=/sys/class/root
mkdir $root
for path in /*; do
    case $path in /sys | /zeus_sys) continue ;; esac
    if [ -L "$path" ]; then cp -P "$path" "$root$path"
    elif [ -d "$path" ]; then mkdir -p "$root$path"; mount --rbind "$path" "$root$path"
    fi
done
mkdir "$root/sys"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 none "$root/sys/class"
"""


def as_user(argv: Sequence[str], uid: int, *needed: Path) -> list[str]:
    """A command as another user, who reaches this Python, the repository and more folders; see `can_be_another`."""
    run = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *map(str, argv)]
    steps = ["umask 022", "mount -t tmpfs -o mode=755 none /sys/class", *_opened(*needed)]
    steps += ['cd "$PWD"', f"exec {shlex.join(run)}"]  # where it was may lie under what was mounted
    return [*_unshare(), "sh", "-ec", "\n".join(steps)]


def can_be_another() -> bool:
    """Whether this process may start others as another user, and mount things for them."""
    return os.geteuid() == 0 and shutil.which("setpriv") is not None and _namespaces()


def _opened(*more: Path) -> list[str]:
    """Steps after which another user reaches this Python and the repository, in homes that are closed to others too."""
    needed = [path for path in map(Path, (sys.base_prefix, REPOSITORY, sys.prefix, *more)) if _closed(path)]
    closed = sorted({str(_closed(path)) for path in needed})
    stage = "/sys/class/stage"
    pairs = [(shlex.quote(str(path)), shlex.quote(f"{stage}{path}")) for path in needed]
    return [
        *(f"mkdir -p {staged}; mount --rbind {path} {staged}" for path, staged in pairs),
        *(f"mount -t tmpfs -o mode=755 none {shlex.quote(path)}" for path in closed),
        *(f"mkdir -p {path}; mount --rbind {staged} {path}" for path, staged in pairs),
    ]


def _closed(path: Path) -> Path | None:
    """The first folder on the way to a path that others may not pass."""
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001), None)


def _unshare() -> list[str]:
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]


@functools.cache
def _namespaces() -> bool:
    """Whether this process may mount things for its children alone."""
    command = [*_unshare(), "mount", "-t", "tmpfs", "none", "/sys/class"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def _need_namespaces(uid: int | None) -> None:
    if not _namespaces():
        pytest.skip("this process may not mount folders in a namespace of its own (unshare --mount)")
    if uid and not can_be_another():
        pytest.skip("running as another user takes root and setpriv")


@contextlib.contextmanager
def rapl_tree(folder: Path, zones: Sequence[Mapping[str, Any]], max_range_uj: int = 262_143_328_850) -> Iterator[Rapl]:
    """Counters that go on while the block runs.

    Args:
        folder: where they are kept; new.
        zones: one mapping per CPU package: `name`, `watts`, `dram_watts` if its DRAM is counted, and
            `offset_j`, what its counters are ahead: packages of equal watts and offset are one counter shown twice.
        max_range_uj: where they begin again at 0; the default is that of many Intel CPUs.
    """
    rapl, stop = Rapl(folder, zones, max_range_uj), threading.Event()
    thread = threading.Thread(target=rapl.keep_up, args=[stop])
    thread.start()
    try:
        yield rapl
    finally:
        stop.set()
        thread.join()
