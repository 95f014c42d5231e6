"""List the boards of this machine, and choose those that a run may use.

Boards are identified by UUID. Their meter defines how they are numbered and hidden: see `joulesweep.measure.meters`.
"""

# changes no number: which boards a run gets, not what they read
from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from joulesweep.core.errors import UserError, one_of
from joulesweep.core.spec import RunSpec
from joulesweep.measure import batch_system, meters


@dataclass(frozen=True, kw_only=True)
class Board:
    """One GPU, or one slice of a GPU that is split by MIG.

    Attributes:
        index: the driver's number; None for a slice named by its own UUID.
        uuid: the driver's.
        name: of the product.
        memory_bytes: of the board or slice; None if it could not be read.
        has_counter: whether it has an energy counter that answers.
        mig: whether it is split by MIG: NVML has no joules for a slice.
        meter: name of the meter that reads it.
        no_counter: why it has no counter, if its meter knows the reason.
    """

    index: int | None
    uuid: str
    name: str
    memory_bytes: int | None
    has_counter: bool
    mig: bool
    meter: str = "nvidia"
    no_counter: str | None = None

    @property
    def device(self) -> str:
        """The name in tables: `gpu:3`; of a slice its UUID."""
        return f"gpu:{self.uuid if self.index is None else self.index}"

    @property
    def counts(self) -> bool:
        """Whether its counter gives the joules of a run: it has one, which no other slice shares."""
        return self.has_counter and not self.mig

    def described(self) -> dict[str, str | int | bool | None]:
        """As a mapping, for job files and records."""
        return {"device": self.device, **asdict(self)}


def boards() -> list[Board]:
    """All boards of the first meter that has any; empty without a driver.

    Raises:
        UserError: a driver does not answer.
    """
    by_meter = (list(meter.devices(None)) for meter in meters.of_boards().values())
    return next(filter(None, by_meter), [])


def visible(
    every: Sequence[Board], setting: str | None, named: Callable[[Sequence[Board], str], Board | None]
) -> list[Board]:
    """The boards that a variable such as CUDA_VISIBLE_DEVICES leaves, in its order.

    As CUDA reads it: indices, UUIDs (their beginning is enough) or slices, up to the first entry that names nothing,
    such as -1; a board named twice leaves none at all.

    Args:
        every: the machine's.
        setting: the variable's value; None where it is not set.
        named: returns the board of an entry, or None.
    """
    if setting is None:
        return list(every)
    shown: list[Board] = []
    for entry in (part.strip() for part in setting.split(",")):
        board = named(every, entry)
        if board is None:
            break
        if board in shown:
            return []
        shown.append(board)
    return shown


def named_among(every: Sequence[Board], name: str) -> Board | None:
    """The board with an index or a UUID prefix; None if there is none."""
    if name.isdecimal():
        return next((board for board in every if board.index == int(name)), None)
    matches = [board for board in every if name.startswith("GPU-") and board.uuid.startswith(name)]
    return matches[0] if len(matches) == 1 else None


def left(environment: Mapping[str, str] = os.environ) -> tuple[list[Board], str | None]:
    """The boards that the environment does not hide, and the variable that hides some, with its value.

    Raises:
        UserError: a driver does not answer, or variables contradict each other.
    """
    every = boards()
    meter = meters.of_board(every[0]) if every else meters.of_boards()["nvidia"]
    return meter.left(every, environment)


def pool(gpus: str | Sequence[int | str], environment: Mapping[str, str] = os.environ) -> list[Board]:
    """The boards that a run may take.

    In a job of a batch system that grants other boards than those named, it may take those granted.

    Args:
        gpus: "auto" for all that the environment leaves, or indices and UUIDs among them.
        environment: has CUDA_VISIBLE_DEVICES or the like, if a batch system or the user set it.

    Raises:
        UserError: a named board does not exist, is hidden by the environment, or is named twice.
    """
    allowed, hiding = left(environment)
    if isinstance(gpus, str):
        return allowed
    try:
        return _named(gpus, allowed, hiding)
    except UserError:
        if hiding is None or batch_system.system_of(environment) is None:
            raise
        return allowed  # a batch system says which ones; who wrote the config could not know


def _named(gpus: Sequence[int | str], allowed: Sequence[Board], hiding: str | None) -> list[Board]:
    """The boards with these indices and UUIDs; an error if one is none of those that are allowed, or named twice."""
    every = boards()
    chosen = []
    for name in map(str, gpus):
        board = next((b for b in allowed if name == b.uuid), None) or named_among(every, name)
        if board is None:
            known = [*(str(b.index) for b in every), *(b.uuid for b in every)]
            raise UserError(f"measure.gpus: {one_of('GPU of this machine', name, known)}")
        if board not in allowed:
            raise UserError(f"measure.gpus: {name} is not among the GPUs that {hiding} leaves")
        if board in chosen:
            raise UserError(f"measure.gpus: {name} is {board.device} once more; name each board once")
        chosen.append(board)
    return chosen


def num_boards(spec: RunSpec, exclusive: str) -> int:
    """The number of boards that a run takes on each node: GPU runs compute on them, CPU runs only meter them.

    Args:
        spec: the run's inputs.
        exclusive: "node": a run on the CPU that is alone on its machine meters all the boards that the config names;
            else one per device.
    """
    if spec.accelerator == "cuda":
        return spec.node_devices
    if spec.gpus == "auto":
        return 0
    return len(spec.gpus) if exclusive == "node" else spec.node_devices


def too_few(spec: RunSpec, needed: int, candidates: Sequence[Board]) -> str | None:
    """Why this machine has too few boards for a run, in one line; None if it has enough.

    Args:
        spec: the run's inputs.
        needed: boards that it takes.
        candidates: those of its pool.
    """
    if len(candidates) >= needed:
        return None
    allowed, hiding = left()
    counts = [f"this machine has {len(boards())}"]
    counts += [f"of which {hiding} leaves {len(allowed)}"] if hiding is not None else []
    counts += [f"and measure.gpus names {len(candidates)}"] if len(candidates) < len(allowed) else []
    return f"{spec.strategy} asks for {needed} GPU{'s' if needed > 1 else ''}; {', '.join(counts)}"


def exposing(chosen: Sequence[Board]) -> dict[str, str | None]:
    """The environment that shows a run's processes only its boards; None: the variable is not set."""
    of_none = (meter.exposing([]) for meter in meters.of_boards().values())
    hidden = {name: value for environment in of_none for name, value in environment.items()}
    return hidden | (meters.of_board(chosen[0]).exposing(chosen) if chosen else {})


def driver() -> str | None:
    """The version of the boards' driver; None if there is none or it does not answer."""
    versions = (meter.driver() for meter in meters.of_boards().values())
    return next(filter(None, versions), None)


def is_board(uuid: str, board_uuid: str) -> bool:
    """Whether PyTorch's UUID of a board matches the driver's; PyTorch writes AMD's letters as hexadecimal bytes."""
    digits = uuid.replace("-", "")
    try:
        letters = bytes.fromhex(digits).decode("ascii")
    except ValueError:
        letters = uuid
    return uuid in board_uuid or letters in board_uuid
