"""Memory of a run's process: copies of weights, peaks of training, and parsing of out-of-memory messages."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from joulesweep.core.outcome import PeakMemory

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]


def local(value: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor that FSDP shards; any other tensor unchanged."""
    part: torch.Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part.detach()


def room_for(core: torch.nn.Module, held: Sequence[Weights]) -> Weights:
    """Allocate memory for a copy of the rank's weights, tied ones once, and write to it so that it is really allocated.

    If the copies would fill the GPU, this is pinned host memory, which the GPU can write to.

    Args:
        core: the module.
        held: copies that exist already.
    """
    weights = {name: local(value) for name, value in core.state_dict().items()}
    device = next(iter(weights.values())).device
    taken = sum(nbytes(copy, device) for copy in held) + nbytes(weights, device)
    full = device.type == "cuda" and taken > torch.cuda.get_device_properties(device).total_memory / 10
    options: dict[str, Any] = {"device": CPU, "pin_memory": True} if full else {"device": device}
    places = {name: (value.data_ptr(), value.shape) for name, value in weights.items()}  # empty parts have one address
    unique = {places[name]: value for name, value in weights.items()}
    rooms = {place: torch.zeros(value.shape, dtype=value.dtype, **options) for place, value in unique.items()}
    return {name: rooms[place] for name, place in places.items()}


def fill(weights: Weights, core: torch.nn.Module) -> None:
    """Copy the current weights to a copy, in place. Copies to the host may finish after this returns."""
    pairs = {id(weights[name]): (weights[name], local(value)) for name, value in core.state_dict().items()}
    for room, value in pairs.values():
        room.copy_(value, non_blocking=True)


def copy_weights(core: torch.nn.Module, held: Sequence[Weights]) -> Weights:
    """Return a copy of the rank's current weights, see `room_for` and `fill`."""
    weights = room_for(core, held)
    fill(weights, core)
    return weights


def load_weights(core: torch.nn.Module, weights: Weights) -> None:
    """Restore the weights from a copy, in place."""
    for name, value in core.state_dict().items():
        local(value).copy_(weights[name])


def nbytes(weights: Weights, device: torch.device) -> int:
    """Count the bytes of weights on a device; tied ones count once."""
    return sum({value.data_ptr(): value.nbytes for value in weights.values() if value.device == device}.values())


def give_back(device: torch.device) -> None:
    """Release freed memory that the allocators keep, so that it does not count to the peak of the training."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Peaks:
    """Peak memory of training, without the copies of weights that wait to be scored.

    Copies in pinned memory are subtracted from the process's resident memory like any others. Whether resident memory
    includes a driver's pages has not been tested on a GPU: if not, the host's figure is too low by these copies.
    """

    def __init__(self, device: torch.device, num_gpus: int) -> None:
        self.cuda = device.type == "cuda"
        devices = [device] if self.cuda else []
        self.gpus = [torch.device("cuda", i) for i in range(num_gpus)] if self.cuda and num_gpus > 1 else devices
        self.peaks: list[tuple[int, int, int]] = []
        self.reset()

    def reset(self) -> None:
        """Restart the measurement of peaks."""
        with contextlib.suppress(OSError):  # some sandboxes lack the file; the peak is then that of the whole process
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, see proc(5)
        for gpu in self.gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def note(self, kept: Sequence[Weights]) -> None:
        """Record the peak since the last call, less the copies held meanwhile."""
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        host = 1024 * (int(match[1]) if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        host -= sum(nbytes(weights, CPU) for weights in kept)
        allocated, reserved = (self._fullest(kept, most) for most in ("max_memory_allocated", "max_memory_reserved"))
        self.peaks.append((host, allocated, reserved))
        self.reset()

    def note_captured(self, kept: Sequence[Weights]) -> None:
        """Record the memory of captured graphs, which the allocator counts as free when they are replayed.

        It stays reserved, so later notes include it; memory of the steps before a capture is released.
        """
        self.peaks.append((0, self._fullest(kept, "max_memory_allocated"), 0))
        if self.cuda:
            torch.cuda.empty_cache()

    def _fullest(self, kept: Sequence[Weights], name: str) -> int:
        """Return a figure of PyTorch's allocator for the fullest GPU, less the copies held there."""
        most = getattr(torch.cuda, name)
        return max((most(gpu) - sum(nbytes(weights, gpu) for weights in kept) for gpu in self.gpus), default=0)

    def peak(self) -> PeakMemory:
        """Return the highest peak of the epochs, in bytes; GPU figures are those of the fullest GPU."""
        host, allocated, reserved = (max(values) for values in zip(*self.peaks, strict=True))
        return PeakMemory(
            host_rss_bytes=host,
            gpu_allocated_bytes=allocated if self.cuda else None,
            gpu_reserved_bytes=reserved if self.cuda else None,
        )


#: Pattern of out-of-memory messages of PyTorch, cuBLAS, NCCL and the CPU's allocator.
OUT_OF_MEMORY = r"out of memory|ALLOC_FAILED|allocate memory"


def is_lacking(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and re.search(OUT_OF_MEMORY, str(error)) is not None


def bytes_asked(message: str) -> int | None:
    """Parse the number of bytes in an out-of-memory message of PyTorch's GPU or CPU allocator."""
    match = re.search(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]iB)?", message)
    if match is None:
        return None
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    return round(float(match[1].rstrip(".")) * units.get(match[2], 1))
