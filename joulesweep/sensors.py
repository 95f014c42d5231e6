"""What can be read of this machine's power: boards through NVML, CPU packages and DRAM through RAPL.

Readings for the trace, the conditions and the doctor. A run's headline joules are Zeus's (`joulesweep.meter`).
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep import record
from joulesweep.devices import Board, ask

#: Where the kernel shows RAPL, and where Zeus's documentation has containers mount it.
RAPL = (Path("/sys/class/powercap/intel-rapl"), Path("/zeus_sys/class/powercap/intel-rapl"))
TICK_LIMIT_S = 3.0
TICK_STEPS = 10

#: NVML's bits for clocks held down by something that another run would not meet (nvml.h, nvmlClocksEventReason*).
THROTTLES = {0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}


class BoardSensor:
    """One board's readings; None where the board does not say."""

    def __init__(self, board: Board) -> None:
        self.board = board
        by_index = board.index is not None
        self.handle = ask("nvmlDeviceGetHandleByIndex", board.index) if by_index else None

    def _ask(self, function: str, *args: Any) -> Any:  # noqa: ANN401 - whatever NVML answers
        return None if self.handle is None else ask(function, self.handle, *args)

    def energy_j(self) -> float | None:
        """The counter; of a board that is split, nothing: it would be the neighbours' joules too."""
        value = None if self.board.mig else self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if value is None else value / 1000

    def power_w(self) -> float | None:
        """Power now, as the board averages it."""
        value = None if self.board.mig else self._ask("nvmlDeviceGetPowerUsage")
        return None if value is None else value / 1000

    def temperature_c(self) -> float | None:
        """Of the GPU core."""
        value = self._ask("nvmlDeviceGetTemperature", 0)
        return None if value is None else float(value)

    def sm_clock_mhz(self) -> float | None:
        """Of the streaming multiprocessors."""
        value = self._ask("nvmlDeviceGetClockInfo", 1)
        return None if value is None else float(value)

    def power_limit_w(self) -> float | None:
        """The limit in force."""
        value = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        return None if value is None else value / 1000

    def throttles(self) -> list[str]:
        """Why the clocks are held down now, normal reasons (idle, power cap) apart."""
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        return [name for bit, name in THROTTLES.items() if bits & bit]

    def process_ids(self) -> list[int]:
        """Processes that compute on the board."""
        return [process.pid for process in self._ask("nvmlDeviceGetComputeRunningProcesses") or ()]


@dataclass(frozen=True, kw_only=True)
class Zone:
    """One RAPL counter.

    Attributes:
        device: `cpu:0` or `dram:0`.
        path: its folder.
        range_j: where the counter starts again at 0.
    """

    device: str
    path: Path
    range_j: float

    def energy_j(self) -> float | None:
        """The counter."""
        try:
            return int((self.path / "energy_uj").read_text(encoding="ascii")) / 1e6
        except (OSError, ValueError):
            return None


def rapl_folder() -> Path | None:
    """Where RAPL shows, the kernel's place first."""
    return next((folder for folder in RAPL if folder.is_dir()), None)


def packages() -> list[int]:
    """Numbers of the zones that are CPU packages; others, as a laptop's whole platform (psys), hold these again."""
    root = rapl_folder()
    folders = sorted(root.glob("intel-rapl:*")) if root else []
    return [int(path.name.partition(":")[2]) for path in folders if _name(path).startswith("package")]


def zones() -> list[Zone]:
    """The readable counters of CPU packages and their DRAM."""
    root, found = rapl_folder() or RAPL[0], []
    for number in packages():
        package = root / f"intel-rapl:{number}"
        folders = [(f"cpu:{number}", package)]
        folders += [(f"dram:{number}", sub) for sub in sorted(package.glob("intel-rapl:*")) if _name(sub) == "dram"]
        for device, path in folders:
            range_uj = _number(path / "max_energy_range_uj")
            if _number(path / "energy_uj") is not None and range_uj is not None:
                found.append(Zone(device=device, path=path, range_j=range_uj / 1e6))
    return found


def rapl_problem() -> str | None:
    """Why CPU joules cannot be read, with what to do about it; None if they can."""
    root = rapl_folder()
    if root is None:
        where = f"; in a container, mount /sys/class/powercap at {RAPL[1].parent}" if in_container() else ""
        return f"no CPU energy counter (RAPL) on this machine: virtual machines and many ARM CPUs have none{where}"
    if not packages():
        return f"{root} names no CPU package"
    paths = [*sorted(root.glob("intel-rapl:*/energy_uj")), *sorted(root.glob("intel-rapl:*/*/energy_uj"))]
    closed = next((path for path in paths if not os.access(path, os.R_OK)), None)  # Zeus reads all or nothing
    if closed is not None:
        advice = f"run as root, or as root once: chmod a+r {root}/*/energy_uj {root}/*/*/energy_uj"
        return f"no permission to read {closed}: {advice}"
    return None if zones() else f"{root}: the counters could not be read"


def _name(path: Path) -> str:
    try:
        return (path / "name").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def in_container() -> bool:
    """Whether this process lives in a container: what it reads of a board includes its co-tenants."""
    if any(Path(path).exists() for path in ("/.dockerenv", "/run/.containerenv")):
        return True
    return "container" in os.environ


def measure_tick(read: Callable[[], float | None], limit_s: float = TICK_LIMIT_S) -> float | None:
    """Seconds between two updates of a counter: the median of up to ten steps, None if fewer than two were seen."""
    began_s = time.monotonic()
    changes: list[float] = []
    last = read()
    while len(changes) <= TICK_STEPS and time.monotonic() - began_s < limit_s:
        value, now_s = read(), time.monotonic()
        if value is None:
            return None
        if value != last:
            changes.append(now_s)
            last = value
        time.sleep(0.0005)
    steps = [later - earlier for earlier, later in itertools.pairwise(changes)]
    return statistics.median(steps) if len(steps) > 1 else None


def known_tick(name: str, read: Callable[[], float | None], afresh: bool = False) -> float | None:
    """A counter's update period on this host: measured once, then read from the user's cache folder.

    Args:
        name: of the counter: a board's UUID, or the device of a zone.
        read: its reading.
        afresh: measure it again, whatever was kept.
    """
    path = cache_folder() / "ticks.json"
    key = f"{socket.gethostname()} {name} {ask('nvmlSystemGetDriverVersion')}"
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    kept = known.get(key)
    if isinstance(kept, dict) and isinstance(kept.get("tick_s"), float) and not afresh:
        return float(kept["tick_s"])
    tick_s = measure_tick(read)
    if tick_s is not None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # no place to keep it: measured again next time
            record.write_json(path, {**known, key: {"tick_s": tick_s, "measured": now}})
    return tick_s


def cache_folder() -> Path:
    """Where what was found out about this host is kept for the runs to come."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without home
        home = Path(tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache", "joulesweep")
