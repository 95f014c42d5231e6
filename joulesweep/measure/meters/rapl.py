"""CPU packages and their memory, through the kernel's RAPL counters."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from joulesweep.core import processes
from joulesweep.measure.meters import CPU, DRAM, Settings, Traits

KINDS = (CPU, DRAM)
#: Where the kernel shows RAPL, and where Zeus's documentation has containers mount it.
RAPL = (Path("/sys/class/powercap/intel-rapl"), Path("/zeus_sys/class/powercap/intel-rapl"))
MIRROR_S, MIRROR_MOVES = 0.3, 10  # how long, and for how many moves, counters that may be one are watched
MIRROR_J = 50.0  # counters further apart are two


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
    failure: None = None

    @property
    def traits(self) -> Traits:
        """A counter and no power."""
        kind = next(kind for kind in KINDS if self.device.startswith(kind.name))
        return Traits(kind=kind, source="RAPL", range_j=self.range_j)

    def power_w(self) -> None:
        """RAPL reports none."""

    def energy_j(self) -> float | None:
        """The counter."""
        try:
            return int((self.path / "energy_uj").read_text(encoding="ascii")) / 1e6
        except (OSError, ValueError):
            return None


def folder() -> Path | None:
    """Where RAPL shows, the kernel's place first."""
    return next((place for place in RAPL if place.is_dir()), None)


def packages() -> list[int]:
    """Numbers of the zones that are CPU packages; others, as a laptop's whole platform (psys), hold these again."""
    root = folder()
    folders = sorted(root.glob("intel-rapl:*")) if root else []
    return [int(path.name.partition(":")[2]) for path in folders if _name(path).startswith("package")]


def devices(settings: Settings | None = None) -> list[Zone]:
    """The readable counters of CPU packages and their DRAM, each counter once, in however many zones it is shown."""
    zones: list[Zone] = []
    for zone in _readable():
        if not any(_mirrors(zone, other) for other in zones if other.device[:3] == zone.device[:3]):
            zones.append(zone)
    return zones


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
    root, zones = folder() or RAPL[0], []
    for number in packages():
        package = root / f"intel-rapl:{number}"
        folders = [(f"cpu:{number}", package)]
        folders += [(f"dram:{number}", sub) for sub in sorted(package.glob("intel-rapl:*")) if _name(sub) == "dram"]
        for device, path in folders:
            range_uj = _number(path / "max_energy_range_uj")
            if _number(path / "energy_uj") is not None and range_uj is not None:
                zones.append(Zone(device=device, path=path, range_j=range_uj / 1e6))
    return zones


def problem(settings: Settings | None = None) -> str | None:
    """Why CPU joules cannot be read, with what to do about it; None if they can."""
    root = folder()
    if root is None:
        where = f"; in a container, mount /sys/class/powercap at {RAPL[1].parent}" if processes.in_container() else ""
        return f"no CPU energy counter (RAPL) on this machine: virtual machines and many ARM CPUs have none{where}"
    if not packages():
        return f"{root} names no CPU package"
    paths = [*sorted(root.glob("intel-rapl:*/energy_uj")), *sorted(root.glob("intel-rapl:*/*/energy_uj"))]
    closed = next((path for path in paths if not os.access(path, os.R_OK)), None)  # Zeus reads all or nothing
    if closed is not None:
        advice = f"run as root, or as root once: chmod a+r {root}/*/energy_uj {root}/*/*/energy_uj"
        return f"no permission to read {closed}: {advice}"
    return None if devices() else f"{root}: the counters could not be read"


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
