"""The boards of this machine, and which of them a run may use.

Boards are told apart by UUID. NVML numbers them in the order of the PCI bus; CUDA does so only under
CUDA_DEVICE_ORDER=PCI_BUS_ID, which every run's processes get. Indices in the config and in CUDA_VISIBLE_DEVICES are
read in that order.
"""

# changes no number: which boards a run gets, not what they read
from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from joulesweep.core import bounded
from joulesweep.core.errors import UserError, one_of
from joulesweep.core.spec import RunSpec

VISIBLE = "CUDA_VISIBLE_DEVICES"
START_S = 30.0  # a driver that sleeps between its users wakes all boards first


@dataclass(frozen=True, kw_only=True)
class Board:
    """One GPU, or one slice of a GPU that is split by MIG.

    Attributes:
        index: NVML's number; None for a slice named by its own UUID.
        uuid: NVML's.
        name: of the product.
        memory_bytes: of the board or slice; None if it could not be read.
        has_counter: whether it answers how many joules it has counted.
        mig: whether only a slice of it computes: NVML has no joules for that.
    """

    index: int | None
    uuid: str
    name: str
    memory_bytes: int | None
    has_counter: bool
    mig: bool

    @property
    def device(self) -> str:
        """The name in tables: `gpu:3`; of a slice its UUID."""
        return f"gpu:{self.uuid if self.index is None else self.index}"

    @property
    def counts(self) -> bool:
        """Whether its counter gives the joules of a run: it has one, and no other slice shares it."""
        return self.has_counter and not self.mig

    def described(self) -> dict[str, str | int | bool | None]:
        """As a mapping, for job files and records."""
        return {"device": self.device, **asdict(self)}


@functools.cache
def nvml() -> Any:  # noqa: ANN401 - the module pynvml
    """The module pynvml, initialised once per process; None where NVML does not start."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def nvml_problem() -> tuple[str, bool] | None:
    """Why NVML does not start, and whether that is for want of a driver; None if it does.

    A machine with no driver has no boards to measure. One whose driver does not answer (another version than the
    library's, no permission) may have some.
    """
    problem, silent = bounded.within(START_S, _start_problem)
    return problem if silent is None else (f"NVML does not start: {silent}", False)


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
    told = absent.get(failure.value)
    return (told, True) if told else (f"NVML does not start: {failure}", False)


def ask(function: str, *args: Any) -> Any:  # noqa: ANN401 - whatever NVML answers
    """The answer of an NVML function, by its name in pynvml; None where it has none."""
    module = nvml()
    if module is None:
        return None
    try:
        return getattr(module, function)(*args)
    except (module.NVMLError, module.NVMLLibraryMismatchError, AttributeError):  # or an older driver, an older pynvml
        return None


def boards() -> list[Board]:
    """Every board that NVML reports, in its order; an empty list without driver.

    A board that does not answer is left out, and said so.

    Raises:
        UserError: the driver itself does not answer.
    """
    count, silent = bounded.within(START_S, ask, "nvmlDeviceGetCount")
    if silent is not None:
        raise UserError(f"the NVIDIA driver does not tell its boards: {silent}")
    return [board for i in range(count or 0) if (board := _answering(i)) is not None]


def _answering(index: int) -> Board | None:
    board, silent = bounded.within(bounded.LIMIT_S, _numbered, index)
    if silent is not None:
        print(f"gpu:{index} is left out: {silent}", file=sys.stderr, flush=True)
    return board


def _numbered(index: int) -> Board | None:
    handle = ask("nvmlDeviceGetHandleByIndex", index)
    return None if handle is None else _board(index, handle)


def _board(index: int | None, handle: object) -> Board:
    memory = ask("nvmlDeviceGetMemoryInfo", handle)
    mode = ask("nvmlDeviceGetMigMode", handle)
    return Board(
        index=index,
        uuid=ask("nvmlDeviceGetUUID", handle) or f"GPU-unknown-{index}",
        name=ask("nvmlDeviceGetName", handle) or "unknown",
        memory_bytes=int(memory.total) if memory else None,
        has_counter=ask("nvmlDeviceGetTotalEnergyConsumption", handle) is not None,
        mig=bool(mode and mode[0]),
    )


def _slice(uuid: str) -> Board:
    """A slice named in CUDA_VISIBLE_DEVICES."""
    handle = ask("nvmlDeviceGetHandleByUUID", uuid)
    memory = ask("nvmlDeviceGetMemoryInfo", handle) if handle is not None else None
    name = ask("nvmlDeviceGetName", handle) if handle is not None else None
    return Board(
        index=None,
        uuid=uuid,
        name=name or "MIG slice",
        memory_bytes=int(memory.total) if memory else None,
        has_counter=False,
        mig=True,
    )


def visible(all_boards: Sequence[Board], setting: str | None) -> list[Board]:
    """The boards that CUDA_VISIBLE_DEVICES leaves, in its order.

    As CUDA reads it: indices, UUIDs (their beginning is enough) or slices, up to the first entry that names nothing,
    such as -1; a board named twice leaves none at all.

    Args:
        all_boards: the machine's.
        setting: the variable's value; None where it is not set.
    """
    if setting is None:
        return list(all_boards)
    found: list[Board] = []
    for entry in (part.strip() for part in setting.split(",")):
        board = _slice(entry) if entry.startswith("MIG-") else _named(all_boards, entry)
        if board is None:
            break
        if board in found:
            return []
        found.append(board)
    return found


def _named(all_boards: Sequence[Board], name: str) -> Board | None:
    """The board of an index or of the beginning of a UUID."""
    if name.isdecimal():
        return next((board for board in all_boards if board.index == int(name)), None)
    matches = [board for board in all_boards if name.startswith("GPU-") and board.uuid.startswith(name)]
    return matches[0] if len(matches) == 1 else None


def pool(gpus: str | Sequence[int | str], environment: Mapping[str, str] = os.environ) -> list[Board]:
    """The boards that a run may take.

    Args:
        gpus: "auto" for all that CUDA_VISIBLE_DEVICES leaves, or indices and UUIDs among them.
        environment: has CUDA_VISIBLE_DEVICES, if a batch system or the user set it.

    Raises:
        UserError: a named board is not there, not left by CUDA_VISIBLE_DEVICES, or named twice.
    """
    every, setting = boards(), environment.get(VISIBLE)
    left = visible(every, setting)
    if isinstance(gpus, str):
        return left
    chosen = []
    for name in map(str, gpus):
        board = next((b for b in left if name == b.uuid), None) or _named(every, name)
        if board is None:
            known = [*(str(b.index) for b in every), *(b.uuid for b in every)]
            raise UserError(f"measure.gpus: {one_of('GPU of this machine', name, known)}")
        if board not in left:
            raise UserError(f"measure.gpus: {name} is not among the GPUs that {VISIBLE}={setting} leaves")
        if board in chosen:
            raise UserError(f"measure.gpus: {name} is {board.device} once more; name each board once")
        chosen.append(board)
    return chosen


def num_boards(spec: RunSpec, exclusive: str) -> int:
    """How many boards a run takes: on GPUs those it computes on; on the CPU those it is to meter.

    Args:
        spec: the run's inputs.
        exclusive: "node": a run on the CPU that is alone on its machine meters all the boards that the config names;
            else one per device.
    """
    if spec.accelerator == "cuda":
        return spec.devices
    if spec.gpus == "auto":
        return 0
    return len(spec.gpus) if exclusive == "node" else spec.devices


def too_few(spec: RunSpec, needed: int, found: Sequence[Board]) -> str | None:
    """Why a run cannot have its boards here: one line, or None if it can.

    Args:
        spec: the run's inputs.
        needed: boards that it takes.
        found: those of its pool.
    """
    if len(found) >= needed:
        return None
    every, setting = boards(), os.environ.get(VISIBLE)
    left = visible(every, setting)
    told = [f"this machine has {len(every)}"]
    told += [f"of which {VISIBLE}={setting} leaves {len(left)}"] if setting is not None else []
    told += [f"and measure.gpus names {len(found)}"] if len(found) < len(left) else []
    return f"{spec.strategy} asks for {needed} GPU{'s' if needed > 1 else ''}; {', '.join(told)}"


def exported(chosen: Sequence[Board]) -> str:
    """CUDA_VISIBLE_DEVICES for a run's processes: indices, since Zeus fails on UUIDs; a slice has its UUID alone."""
    return ",".join(board.uuid if board.index is None else str(board.index) for board in chosen)
