"""AMD's GPUs, through Zeus and AMD SMI.

Tested with a fake AMD SMI; it has not been run on such a board. Boards are numbered as HIP and PyTorch number them.
Zeus leaves out those that HIP_VISIBLE_DEVICES, or without it CUDA_VISIBLE_DEVICES, hides.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from joulesweep.core import bounded
from joulesweep.core.errors import UserError
from joulesweep.measure.devices import Board, named_among, visible
from joulesweep.measure.meters import GPU, Settings, Traits

# changes no number: a word, or a name
KINDS, BUILD, COUNTER, UUIDS = (GPU,), "hip", "Zeus: AMD SMI energy counter", ("GPU-",)
ROCR = "ROCR_VISIBLE_DEVICES"  # changes no number: which boards there are
VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")  # changes no number: the first one that is set is HIP's
START_S = 30.0  # changes no number: how long is waited for the boards
#: One of these is there where an AMD driver may be; nothing is imported elsewhere.
PLACES = (Path("/sys/module/amdgpu"), Path("/opt/rocm"))  # changes no number: which boards there are


class BoardSensor:
    """One board's readings; None where the board, or Zeus, does not say."""

    failure = None

    def __init__(self, board: Board) -> None:
        self.board, self.device = board, board.device
        self._gpu = next((gpu for gpu in _gpus() if gpu.gpu_index == board.index), None)
        power = "instant" if self._milli("get_instant_power_usage") is not None else "as the driver averages it"
        self.traits = Traits(kind=GPU, source="AMD SMI", power=power)

    def _milli(self, function: str) -> float | None:
        """What a function of Zeus's board answers, from thousandths."""
        answer = None if self._gpu is None else _told(getattr(self._gpu, function))
        return None if answer is None else answer / 1000

    def energy_j(self) -> float | None:
        """The counter; None where Zeus found that it does not agree with the power."""
        return self._milli("get_total_energy_consumption") if self.board.has_counter else None

    def power_w(self) -> float | None:
        """Power now where the board says so, else as it averages it."""
        return self._milli("get_instant_power_usage") if self.traits.instant else self.average_w()

    def average_w(self) -> float | None:
        """Power as the board averages it."""
        return self._milli("get_average_power_usage")

    def temperature_c(self) -> float | None:
        """Of the hottest spot."""
        answer = None if self._gpu is None else _told(self._gpu.get_gpu_temperature)
        return None if answer is None else float(answer)

    def sm_clock_mhz(self) -> None:
        """Zeus does not tell it."""

    def power_limit_w(self) -> float | None:
        """The limit in force."""
        return self._milli("get_power_management_limit")

    def throttles(self) -> None:
        """Zeus does not tell them."""

    def process_ids(self) -> None:
        """Zeus does not tell them."""


def sensor(board: Board) -> BoardSensor:
    """Open a board."""
    return BoardSensor(board)


# changes no number: how the driver is reached
def _told(call: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 - whatever it answers
    """What a call answers, None where it fails."""
    try:
        return call(*args)
    except Exception:  # Zeus's own classes, AMD SMI's, and those of a library of another version
        return None


# changes no number: how the driver is reached
@functools.cache
def _started() -> tuple[Any, str | None]:
    """Zeus's view of AMD SMI, and why there is none; asked once per process: Zeus takes 0.5 s to try the counters.

    Kept for as long as the process lives: Zeus shuts AMD SMI down with it, and its boards answer no more.
    """
    try:
        from zeus.device.gpu import amd

        if not amd.amdsmi_is_available():
            return None, "AMD SMI does not start: amdsmi must be of the version of the installed ROCm"
        return amd.AMDGPUs(), None
    except Exception as error:  # as above
        return None, f"AMD SMI does not tell its boards: {bounded.said(error)}"


# changes no number: how the driver is reached
def _gpus() -> Sequence[Any]:
    """Zeus's boards; none where AMD SMI does not start."""
    view, _ = _started()
    return view.gpus if view is not None else []


# changes no number: why there is no driver
def start_problem() -> tuple[str, bool] | None:
    """Why AMD SMI does not start, and whether that is for want of a driver; None if it does."""
    if not any(place.exists() for place in PLACES):
        return f"no AMD driver: {' and '.join(map(str, PLACES))} are not there", True
    if importlib.util.find_spec("amdsmi") is None:
        return "AMD SMI is not installed: pip install amdsmi, of the version of the installed ROCm", False
    answer, silent = bounded.within(START_S, _started)
    reason = silent or (answer[1] if answer else None)
    return (reason, False) if reason else None


# changes no number: why there are no boards
def problem(settings: Settings | None = None) -> str | None:
    """Why no board answers; None where one does."""
    reason = start_problem()
    if reason is not None:
        return reason[0]
    return None if devices() else "the AMD driver reports no board"


# changes no number: which boards there are
def devices(settings: Settings | None = None) -> list[Board]:
    """Every board that HIP sees; an empty list without driver.

    Raises:
        UserError: the driver does not answer.
    """
    if not any(place.exists() for place in PLACES):
        return []
    boards, silent = bounded.within(START_S, lambda: [_board(gpu) for gpu in _gpus()])
    if silent is not None:
        raise UserError(f"the AMD driver does not tell its boards: {silent}")
    return boards or []


# changes no number: which boards there are
def _board(gpu: Any) -> Board:  # noqa: ANN401 - Zeus's
    from zeus.device.gpu.amd import amdsmi

    counts = bool(_told(gpu.supports_get_total_energy_consumption))
    memory = _told(lambda: amdsmi.amdsmi_get_gpu_memory_total(gpu.handle, amdsmi.AmdSmiMemoryType.VRAM))
    return Board(
        index=gpu.gpu_index,
        uuid=_uuid(gpu, amdsmi),
        name=_told(gpu.get_name) or "unknown",
        memory_bytes=None if memory is None else int(memory),
        has_counter=counts,
        mig=False,
        meter="amd",
        no_counter=None if counts else _no_counter(gpu),
    )


# changes no number: which boards there are
def _uuid(gpu: Any, amdsmi: Any) -> str:  # noqa: ANN401 - Zeus's, and the module
    """HIP's UUID, as PyTorch has it; of a board without one, which HIP calls GPU-XX, that of AMD SMI."""
    hip_uuid = _told(lambda: amdsmi.amdsmi_get_gpu_enumeration_info(gpu.handle)["hip_uuid"])
    if isinstance(hip_uuid, str) and hip_uuid.startswith("GPU-") and hip_uuid != "GPU-XX":
        return hip_uuid
    amdsmi_uuid = _told(amdsmi.amdsmi_get_gpu_device_uuid, gpu.handle)
    return f"GPU-{amdsmi_uuid}" if amdsmi_uuid else f"GPU-unknown-{gpu.gpu_index}"


# changes no number: why a board is not counted
def _no_counter(gpu: Any) -> str:  # noqa: ANN401 - Zeus's
    if getattr(gpu, "_is_dual_die_odd_chiplet", False):
        return f"it is one of two dies of a board: gpu:{gpu.gpu_index - 1} counts the joules of both"
    return "its energy counter does not agree with its power, or there is no power to compare it with"


# changes no number: which boards a run gets
def named(every: Sequence[Board], name: str) -> Board | None:
    """The board of an index or of the beginning of a UUID."""
    return named_among(every, name)


# changes no number: which boards a run gets
def left(every: Sequence[Board], environment: Mapping[str, str]) -> tuple[list[Board], str | None]:
    """The boards that the environment leaves, and the variable with its value if one is set.

    Raises:
        UserError: indices of HIP's variable would count within those of ROCm's.
    """
    is_set = [name for name in (ROCR, *VISIBLE) if name in environment]
    if not is_set:
        return list(every), None
    if is_set[0] == ROCR and len(is_set) > 1:
        raise UserError(f"{ROCR} and {is_set[1]} are both set, and the second counts within the first: unset one")
    setting = environment[is_set[0]]
    return visible(every, setting, named), f"{is_set[0]}={setting}"


# changes no number: which boards a run gets
def exposing(boards: Sequence[Board]) -> dict[str, str | None]:
    """HIP's indices, which Zeus reads too; nothing where no AMD driver is."""
    if not boards and not any(place.exists() for place in PLACES):
        return {}
    return {**dict.fromkeys(VISIBLE, ",".join(str(board.index) for board in boards)), ROCR: None}


# changes no number: told beside the numbers
def driver() -> str | None:
    """The driver's version."""
    gpus = _gpus() if any(place.exists() for place in PLACES) else []
    if not gpus:
        return None
    from zeus.device.gpu.amd import amdsmi

    version: str | None = _told(lambda: amdsmi.amdsmi_get_gpu_driver_info(gpus[0].handle)["driver_version"])
    return version
