"""What can be read of this machine's power: boards through NVML, CPU packages and DRAM through RAPL.

Readings for the trace, the conditions and the doctor. A run's headline joules are Zeus's (`joulesweep.measure.window`).
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep.core import files
from joulesweep.core.outcome import DeviceEnergy
from joulesweep.measure.devices import Board, ask

#: Where the kernel shows RAPL, and where Zeus's documentation has containers mount it.
RAPL = (Path("/sys/class/powercap/intel-rapl"), Path("/zeus_sys/class/powercap/intel-rapl"))
TICK_LIMIT_S = 10.0
TICK_STEPS = 10
TICK_LATE_S = 0.005  # looks that are further apart, and than half the tick, may have missed a move: not kept
POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT; what nvmlDeviceGetPowerUsage gives is a mean of a second on new boards
MIRROR_S, MIRROR_MOVES = 0.3, 10  # how long, and for how many moves, counters that may be one are watched
MIRROR_J = 50.0  # counters further apart are two

#: NVML's bits for clocks held down by something that another run would not meet (nvml.h, nvmlClocksEventReason*).
THROTTLES = {0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}


class BoardSensor:
    """One board's readings; None where the board does not say."""

    def __init__(self, board: Board) -> None:
        self.board = board
        by_index = board.index is not None
        self.handle = ask("nvmlDeviceGetHandleByIndex", board.index) if by_index else None
        self.instant = self._instant_mw() is not None

    def _ask(self, function: str, *args: Any) -> Any:  # noqa: ANN401 - whatever NVML answers
        return None if self.handle is None else ask(function, self.handle, *args)

    def energy_j(self) -> float | None:
        """The counter; of a board that is split, nothing: it would be the neighbours' joules too."""
        value = None if self.board.mig else self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if value is None else value / 1000

    def power_w(self) -> float | None:
        """Power now where the board says so (`instant`), else as it reports it: on new ones a mean of a second."""
        if self.board.mig:
            return None
        value = self._instant_mw() if self.instant else self._ask("nvmlDeviceGetPowerUsage")
        return None if value is None else value / 1000

    def average_w(self) -> float | None:
        """Power as the board reports it by default: on new ones a mean of a second."""
        value = None if self.board.mig else self._ask("nvmlDeviceGetPowerUsage")
        return None if value is None else value / 1000

    def _instant_mw(self) -> int | None:
        fields = None if self.board.mig else self._ask("nvmlDeviceGetFieldValues", [(POWER_INSTANT, 0)])
        return int(fields[0].value.uiVal) if fields and fields[0].nvmlReturn == 0 else None

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

    def throttles(self) -> list[str] | None:
        """Why the clocks are held down now, normal reasons (idle, power cap) apart; None where it does not say."""
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else [name for bit, name in THROTTLES.items() if bits & bit]

    def process_ids(self) -> list[int] | None:
        """Processes that compute on the board; None where it does not say."""
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return None if processes is None else [process.pid for process in processes]


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
    """The readable counters of CPU packages and their DRAM, each counter once, in however many zones it is shown."""
    found: list[Zone] = []
    for zone in _readable():
        if not any(_mirrors(zone, other) for other in found if other.device[:3] == zone.device[:3]):
            found.append(zone)
    return found


def _mirrors(zone: Zone, other: Zone) -> bool:
    """Whether two zones show one counter: they read alike and go on reading alike while it moves.

    Two counters are at different joules, and would not pass the same microjoules one after the other.
    """
    first, second = zone.energy_j(), other.energy_j()
    if first is None or second is None or abs(first - second) > MIRROR_J:
        return False
    seen: tuple[set[float | None], set[float | None]] = set(), set()
    until_s = time.monotonic() + MIRROR_S
    while min(map(len, seen)) < MIRROR_MOVES and time.monotonic() < until_s:
        seen[0].add(zone.energy_j())
        seen[1].add(other.energy_j())
        time.sleep(0.0002)
    fewest = min(map(len, seen))
    return fewest > 2 and len(seen[0] & seen[1]) >= fewest / 2


def _readable() -> list[Zone]:
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
    """Seconds between two updates of a counter: over up to ten steps, None if fewer than two were seen."""
    return _watch(read, limit_s)[0]


def _watch(read: Callable[[], float | None], limit_s: float) -> tuple[float | None, bool]:
    """A counter's tick, and whether no update can have been missed: on a busy machine some are."""
    began_s = time.monotonic()
    changes: list[float] = []
    last, looked_s, late_s = read(), began_s, 0.0
    while len(changes) <= TICK_STEPS and time.monotonic() - began_s < limit_s:
        value, now_s = read(), time.monotonic()
        if value is None:
            return None, False
        late_s, looked_s = max(late_s, now_s - looked_s), now_s
        if value != last:
            changes.append(now_s)
            last = value
        time.sleep(0.0005)
    if len(changes) < 3:
        return None, False
    tick_s = (changes[-1] - changes[0]) / (len(changes) - 1)
    if late_s <= max(TICK_LATE_S, tick_s / 2):
        return tick_s, True
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(changes)), False


def known_tick(name: str, read: Callable[[], float | None], afresh: bool = False) -> float | None:
    """A counter's update period on this host: measured once, then read from the user's cache folder.

    Args:
        name: of the counter: a board's UUID, or the device of a zone.
        read: its reading.
        afresh: measure it again, whatever was kept.
    """
    kept = _ticks().get(_tick_key(name))
    if isinstance(kept, dict) and isinstance(kept.get("tick_s"), float) and not afresh:
        return float(kept["tick_s"])
    tick_s, sure = _watch(read, TICK_LIMIT_S)
    if tick_s is not None and sure:
        keep_tick(name, tick_s)
    return tick_s


def keep_tick(name: str, tick_s: float) -> None:
    """Keep a counter's update period for the runs to come."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # no place to keep it: measured again next time
        files.write_json(
            cache_folder() / "ticks.json", {**_ticks(), _tick_key(name): {"tick_s": tick_s, "measured": now}}
        )


def keep_ticks(rows: Sequence[DeviceEnergy], known: Mapping[str, float | None]) -> None:
    """Keep what a run's own trace found of its counters' update periods, where it is other than what was known.

    Args:
        rows: the run's final joules.
        known: the update periods before the run, by device.
    """
    for row in rows:
        if row.tick_s is not None and row.status != "unavailable" and row.tick_s != known.get(row.device):
            keep_tick(row.uuid or row.device, row.tick_s)


def _tick_key(name: str) -> str:
    return f"{socket.gethostname()} {name} {ask('nvmlSystemGetDriverVersion')}"


def _ticks() -> dict[str, object]:
    try:
        return dict(json.loads((cache_folder() / "ticks.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def cache_folder() -> Path:
    """Where what was found out about this host is kept for the runs to come."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without home
        home = Path(tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache", "joulesweep")
