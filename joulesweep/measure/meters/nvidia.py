"""NVIDIA's GPUs, through NVML.

NVML numbers boards in the order of the PCI bus; CUDA does so only under CUDA_DEVICE_ORDER=PCI_BUS_ID, which every run's
processes get. Indices in the config and in CUDA_VISIBLE_DEVICES are read in that order.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from joulesweep.core import bounded
from joulesweep.core.errors import UserError
from joulesweep.measure.devices import Board, named_among, visible
from joulesweep.measure.meters import GPU, Settings, Traits

# changes no number: a word, or a name
KINDS, BUILD, COUNTER, UUIDS = (GPU,), "cuda", "Zeus: NVML energy counter", ("GPU-", "MIG-")
VISIBLE = "CUDA_VISIBLE_DEVICES"  # changes no number: which boards there are
START_S = 30.0  # changes no number: a driver that sleeps between its users wakes all boards first
POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT; what nvmlDeviceGetPowerUsage gives is a mean of a second on new boards
#: NVML's bits for clocks held down by something that another run would not meet (nvml.h, nvmlClocksEventReason*).
THROTTLES = {0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}


class BoardSensor:
    """One board's readings; None where the board does not say."""

    failure = None

    def __init__(self, board: Board) -> None:
        self.board, self.device = board, board.device
        by_index = board.index is not None
        self.handle = nvml_call("nvmlDeviceGetHandleByIndex", board.index) if by_index else None
        self.instant = self._instant_mw() is not None
        power = "instant" if self.instant else "as the driver averages it"
        self.traits = Traits(kind=GPU, source="NVML", power=power)

    def _ask(self, function: str, *args: Any) -> Any:  # noqa: ANN401 - whatever NVML answers
        return None if self.handle is None else nvml_call(function, self.handle, *args)

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


def sensor(board: Board) -> BoardSensor:
    """Open a board."""
    return BoardSensor(board)


# changes no number: how the driver is reached
@functools.cache
def nvml() -> Any:  # noqa: ANN401 - the module pynvml
    """The module pynvml, initialised once per process; None where NVML does not start."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


# changes no number: how the driver is reached
def nvml_call(function: str, *args: Any) -> Any:  # noqa: ANN401 - whatever NVML answers
    """The answer of an NVML function, by its name in pynvml; None where it has none."""
    module = nvml()
    if module is None:
        return None
    try:
        return getattr(module, function)(*args)
    except (module.NVMLError, module.NVMLLibraryMismatchError, AttributeError):  # or an older driver, an older pynvml
        return None


# changes no number: why there is no driver
def start_problem() -> tuple[str, bool] | None:
    """Why NVML does not start, and whether that is for want of a driver; None if it does.

    A machine with no driver has no boards to measure. One whose driver does not answer (another version than the
    library's, no permission) may have some.
    """
    problem, silent = bounded.within(START_S, _start_problem)
    return problem if silent is None else (f"NVML does not start: {silent}", False)


# changes no number: why there is no driver
def _start_problem() -> tuple[str, bool] | None:
    import pynvml

    if nvml() is not None:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        failure = error
    else:
        return None
    absent = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver: its library NVML is not installed",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "NVML is installed, but no NVIDIA driver is loaded",
    }
    reason = absent.get(failure.value)
    return (reason, True) if reason else (f"NVML does not start: {failure}", False)


# changes no number: why there are no boards
def problem(settings: Settings | None = None) -> str | None:
    """Why no board answers; None where one does."""
    reason = start_problem()
    if reason is not None:
        return reason[0]
    return None if devices() else "the NVIDIA driver reports no board"


# changes no number: which boards there are
def devices(settings: Settings | None = None) -> list[Board]:
    """Every board that NVML reports, in its order; an empty list without driver.

    A board that does not answer is left out, and said so.

    Raises:
        UserError: the driver itself does not answer.
    """
    count, silent = bounded.within(START_S, nvml_call, "nvmlDeviceGetCount")
    if silent is not None:
        raise UserError(f"the NVIDIA driver does not tell its boards: {silent}")
    return [board for i in range(count or 0) if (board := _answering(i)) is not None]


# changes no number: which boards there are
def _answering(index: int) -> Board | None:
    board, silent = bounded.within(bounded.LIMIT_S, _numbered, index)
    if silent is not None:
        print(f"gpu:{index} is left out: {silent}", file=sys.stderr, flush=True)
    return board


# changes no number: which boards there are
def _numbered(index: int) -> Board | None:
    handle = nvml_call("nvmlDeviceGetHandleByIndex", index)
    return None if handle is None else _board(index, handle)


# changes no number: which boards there are
def _board(index: int | None, handle: object) -> Board:
    memory = nvml_call("nvmlDeviceGetMemoryInfo", handle)
    mode = nvml_call("nvmlDeviceGetMigMode", handle)
    return Board(
        index=index,
        uuid=nvml_call("nvmlDeviceGetUUID", handle) or f"GPU-unknown-{index}",
        name=nvml_call("nvmlDeviceGetName", handle) or "unknown",
        memory_bytes=int(memory.total) if memory else None,
        has_counter=nvml_call("nvmlDeviceGetTotalEnergyConsumption", handle) is not None,
        mig=bool(mode and mode[0]),
    )


# changes no number: which boards there are
def _slice(uuid: str) -> Board:
    """A slice named in CUDA_VISIBLE_DEVICES."""
    handle = nvml_call("nvmlDeviceGetHandleByUUID", uuid)
    memory = nvml_call("nvmlDeviceGetMemoryInfo", handle) if handle is not None else None
    name = nvml_call("nvmlDeviceGetName", handle) if handle is not None else None
    return Board(
        index=None,
        uuid=uuid,
        name=name or "MIG slice",
        memory_bytes=int(memory.total) if memory else None,
        has_counter=False,
        mig=True,
    )


# changes no number: which boards there are
def named(every: Sequence[Board], name: str) -> Board | None:
    """The board of an index or of the beginning of a UUID, or a slice."""
    return _slice(name) if name.startswith("MIG-") else named_among(every, name)


# changes no number: which boards a run gets
def left(every: Sequence[Board], environment: Mapping[str, str]) -> tuple[list[Board], str | None]:
    """The boards that CUDA_VISIBLE_DEVICES leaves, as CUDA reads it, and the variable with its value if it is set."""
    setting = environment.get(VISIBLE)
    return visible(every, setting, named), None if setting is None else f"{VISIBLE}={setting}"


# changes no number: which boards a run gets
def exposing(boards: Sequence[Board]) -> dict[str, str | None]:
    """Indices, since Zeus fails on UUIDs; a slice has its UUID alone. Nothing for a run that meters no GPU.

    Zeus looks at all boards that are left.
    """
    indices = ",".join(board.uuid if board.index is None else str(board.index) for board in boards)
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", VISIBLE: indices}


# changes no number: told beside the numbers
def driver() -> str | None:
    """The driver's version."""
    version: str | None = nvml_call("nvmlSystemGetDriverVersion")
    return version
