"""What reads joules and watts: one file per meter, found by its name.

A meter is a module `joulesweep/measure/meters/<name>.py` with

* a docstring, whose first line says what it reads;
* `KINDS`: the kinds of device that it reads, rows of `BASE` or of its own;
* `devices(settings)`: its devices on this machine, none where it cannot read any. Each is a `Sensor`, or, of a meter of
  boards that runs compute on, a `devices.Board`, which `sensor(board)` opens;
* `problem(settings)`: why it has no devices, in one line with the remedy, or None.

`settings` is what the config's `hardware.<name>` says, None without it. A meter of boards has more: see `BoardMeter`.
The joules of boards, CPU packages and their memory are Zeus's, counted in the run's own processes; those of any other
device are the trace's, whose method its traits name.

A file that only later runs use says `# changes no number: <reason>` below its docstring: else adding it makes finished
runs stale. No meter file imports its library at module level, and a meter that fails costs its own joules alone.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from joulesweep.core import bounded
from joulesweep.core.errors import UserError, one_of

if TYPE_CHECKING:
    from joulesweep.measure.devices import Board

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of device that has joules of its own.

    Attributes:
        name: the part of a device's name before the colon: `gpu:0`.
        about: what it is.
        accelerator: of the runs that compute on it, "cuda" or "cpu": their joules need it. None: no run does.
        of_host: whether all runs of a machine share it: it counts for a run that is alone there.
        contains: kinds whose joules it counts as well: it is never added to them, and shown beside their sum.
        headline_s: shortest window for a number that is to be relied on, beside what its counter needs.
        most_w: more power than any such device draws: a counter that rises faster was set anew. None: not known.
    """

    name: str
    about: str
    accelerator: str | None = None
    of_host: bool = True
    contains: tuple[str, ...] = ()
    headline_s: float = 0.0
    most_w: float | None = None


GPU = Kind(name="gpu", about="a GPU", accelerator="cuda", of_host=False, headline_s=30.0)
CPU = Kind(name="cpu", about="a processor package", accelerator="cpu", most_w=2000.0)
DRAM = Kind(name="dram", about="the memory of a processor package", most_w=2000.0)
WALL = Kind(name="wall", about="the whole machine, at its plug", contains=("gpu", "cpu", "dram"))
#: In the order of a scope's name: "gpu+cpu+dram".
BASE = (GPU, CPU, DRAM, WALL)


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What is known of a device's readings before they are read.

    Attributes:
        kind: of the device.
        source: of the readings: "NVML".
        power: what its power readings are: "instant", or over what they are averaged; None: it has none.
        range_j: where its counter starts again at 0; None: it does not.
        method: how the trace's readings become its joules; None: Zeus counts them in the run's own processes.
        late_s: so old a reading may be when it is read.
    """

    kind: Kind
    source: str
    power: str | None = None
    range_j: float | None = None
    method: str | None = None
    late_s: float = 0.0

    @property
    def instant(self) -> bool:
        """Whether it reports power as it is now, not as a mean."""
        return self.power == "instant"


class Sensor(Protocol):
    """The readings of one device; each is None where the device does not answer."""

    @property
    def device(self) -> str:
        """The name in tables: `cpu:0`, stable over reboots."""

    @property
    def traits(self) -> Traits:
        """What is known of the readings."""

    @property
    def failure(self) -> str | None:
        """Why the last reading failed, where the device says so."""

    def energy_j(self) -> float | None:
        """The counter in joules, from any beginning."""

    def power_w(self) -> float | None:
        """Power in watts."""


class BoardSensor(Sensor, Protocol):
    """The readings of a board, with the state that it computes in."""

    @property
    def board(self) -> Board:
        """Which."""

    def average_w(self) -> float | None:
        """Power as the board reports it by default."""

    def temperature_c(self) -> float | None:
        """Of the GPU core."""

    def sm_clock_mhz(self) -> float | None:
        """Of what computes."""

    def power_limit_w(self) -> float | None:
        """The limit in force."""

    def throttles(self) -> list[str] | None:
        """Why the clocks are held down now, normal reasons apart; None where it does not say."""

    def process_ids(self) -> list[int] | None:
        """Processes that compute on the board; None where it does not say."""


class Meter(Protocol):
    """What a file of this folder is."""

    __doc__: str
    KINDS: tuple[Kind, ...]

    def devices(self, settings: Settings | None) -> Sequence[Board | Sensor]:
        """The devices on this machine; none where they cannot be read."""

    def problem(self, settings: Settings | None) -> str | None:
        """Why there are no devices, in one line; None where there are."""


class BoardMeter(Meter, Protocol):
    """A meter of boards that runs compute on.

    Attributes:
        BUILD: what PyTorch must be built with to compute on them: "cuda" or "hip", as in its `torch/version.py`.
        COUNTER: how Zeus reads their joules.
        UUIDS: how names of boards begin that are no index.
    """

    BUILD: str
    COUNTER: str
    UUIDS: tuple[str, ...]

    def devices(self, settings: Settings | None) -> Sequence[Board]:
        """The boards on this machine; none where they cannot be read."""

    def sensor(self, board: Board) -> BoardSensor:
        """Open a board."""

    def start_problem(self) -> tuple[str, bool] | None:
        """Why the driver does not start, and whether that is for want of one: else there may be boards."""

    def left(self, every: Sequence[Board], environment: Mapping[str, str]) -> tuple[list[Board], str | None]:
        """The boards that the environment does not hide, in its order, and the variable that hides some, with value."""

    def named(self, every: Sequence[Board], name: str) -> Board | None:
        """The board of an index or of the beginning of a UUID."""

    def exposing(self, boards: Sequence[Board]) -> dict[str, str | None]:
        """Environment in which processes see these boards alone, in this order; None: the variable is not set."""

    def driver(self) -> str | None:
        """The driver's version."""


# changes no number: how a meter is found; its own file counts
def names() -> list[str]:
    """Every meter there is, sorted."""
    return sorted(path.stem for path in paths())


# changes no number: how a meter is found; its own file counts
def paths() -> list[Path]:
    """The files of all meters, sorted."""
    return sorted(Path(__file__).parent.glob("[a-z]*.py"))


# changes no number: how a meter is found; its own file counts
def load(name: str) -> Meter:
    """Import one meter's module.

    Raises:
        UserError: no such meter.
    """
    if name not in names():
        raise UserError(one_of("meter", name, names()))
    return cast(Meter, importlib.import_module(f"{__name__}.{name}"))


# changes no number: how a meter is found; its own file counts
def of_boards() -> dict[str, BoardMeter]:
    """The meters of boards that runs compute on, NVIDIA's first: Zeus looks for them in this order."""
    loaded = {name: load(name) for name in sorted(names(), key=lambda name: (name != "nvidia", name))}
    return {name: cast(BoardMeter, meter) for name, meter in loaded.items() if hasattr(meter, "BUILD")}


# changes no number: how a meter is found; its own file counts
def of_board(board: Board) -> BoardMeter:
    """The meter of a board."""
    return of_boards()[board.meter]


# changes no number: how a meter is found; its own file counts
def sensor(board: Board) -> BoardSensor:
    """Open a board."""
    return of_board(board).sensor(board)


# changes no number: how a meter is found; its own file counts
def settings_in(hardware: Mapping[str, Any]) -> dict[str, Settings | None]:
    """What a config's section `hardware` says to each meter, by its name."""
    return {name: hardware.get(name) for name in names()}


# changes no number: how a meter is found; its own file counts
def of_host(settings: Mapping[str, Settings | None]) -> tuple[list[Sensor], dict[str, str]]:
    """The devices that runs share or that contain theirs, and why meters do not answer, by name.

    Args:
        settings: the config's, by meter.
    """
    sensors: list[Sensor] = []
    silent: dict[str, str] = {}
    for name in names():
        if name not in of_boards():
            devices, reason = bounded.within(bounded.LIMIT_S, load(name).devices, settings.get(name))
            sensors += cast(list[Sensor], devices or [])
            silent |= {} if reason is None else {name: reason}
    return sensors, silent


# changes no number: how a meter is found; its own file counts
@functools.cache
def kinds() -> dict[str, Kind]:
    """Every kind of device, by its name: those of `BASE` first."""
    own = [kind for name in names() for kind in load(name).KINDS]
    return {kind.name: kind for kind in (*BASE, *own)}


# changes no number: how a meter is found; its own file counts
def kind(name: str) -> Kind:
    """A kind of device by its name; of one that no meter has any more, nothing is known."""
    return kinds().get(name, Kind(name=name, about="read by a meter that is not installed"))


# changes no number: how a meter is found; its own file counts
def host_kinds() -> set[str]:
    """Kinds whose joules are those of all runs of a machine."""
    return {kind.name for kind in kinds().values() if kind.of_host}
