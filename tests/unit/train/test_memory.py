"""Peak memory is that of training alone, and what PyTorch says when there is too little is understood."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_run
import torch

from joulesweep.launch import node
from joulesweep.train import memory

MIB = 2**20


@pytest.mark.parametrize(
    ("message", "num_bytes"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.5 GiB", 20 * MIB),
        ("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity", 1.5 * 2**30),
        ("CUDA out of memory. Tried to allocate 512 bytes. GPU", 512),
        ("CUDA out of memory. Tried to allocate 2.00 KiB.", 2048),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12", 4096),
        ("CUDA error: out of memory", None),
        ("", None),
    ],
)
def test_the_bytes_asked_for_are_read_from_torchs_message(message, num_bytes):
    assert memory.bytes_asked(message) == num_bytes


def test_the_message_of_torchs_own_cpu_allocator_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.bytes_asked(str(caught.value)) == 2**60
    assert re.search(memory.OUT_OF_MEMORY, str(caught.value))


@pytest.mark.parametrize(
    ("message", "exhausted"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_messages_of_exhausted_memory_are_told_from_others(message, exhausted):
    assert (re.search(memory.OUT_OF_MEMORY, message) is not None) is exhausted


def test_peak_memory_leaves_out_the_copies_that_wait_to_be_scored():
    peaks = memory.Peaks(torch.device("cpu"), 1)
    peaks.note([])
    copies = [{"weight": torch.ones(25 * MIB)}]  # 100 MiB
    peaks.note(copies)
    without, held = (values[0] for values in peaks.peaks)
    assert abs(held - without) < 30 * MIB
    assert peaks.peak().host_rss_bytes == max(without, held)


def test_memory_that_training_gave_back_is_in_the_peak():
    """Else a peak that is always the same would pass the test above."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pytest.skip("this kernel does not reset a process's peak memory")
    peaks = memory.Peaks(torch.device("cpu"), 1)
    peaks.note([])
    torch.ones(25 * MIB)  # gone before the next look
    peaks.note([])
    before, after = (values[0] for values in peaks.peaks)
    assert after - before > 70 * MIB


def test_a_run_on_the_cpu_has_no_gpu_figures():
    peaks = memory.Peaks(torch.device("cpu"), 2)
    peaks.note([])
    peak = peaks.peak()
    assert peak.gpu_allocated_bytes is peak.gpu_reserved_bytes is None


@pytest.mark.parametrize(("num_gpus", "allocated"), [(1, 3000), (2, 5000)])
def test_peak_memory_of_gpus_is_the_fullest_ones(monkeypatch, num_gpus, allocated):
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    in_use = {first: 3000, second: 5000}
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", in_use.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda gpu: 2 * in_use[gpu])
    peaks = memory.Peaks(first, num_gpus)
    peaks.note([])
    monkeypatch.setattr(memory, "nbytes", lambda weights, device: 100 if device == first else 0)
    peaks.note([{"weight": torch.ones(25)}])
    peak = peaks.peak()
    assert (peak.gpu_allocated_bytes, peak.gpu_reserved_bytes) == (allocated, 2 * allocated)
    assert peaks.peaks[1][1] == {1: 2900, 2: 5000}[num_gpus], "copies lie on the first GPU alone"
    assert len(reset) == 3 * num_gpus


def test_memory_of_captured_graphs_is_theirs_alone(monkeypatch):
    """Of 900 bytes reserved while steps were warmed up and captured, 400 are the graphs' and stay reserved."""
    gpu, now, peak = torch.device("cuda", 0), {"allocated": 50, "reserved": 900}, {"allocated": 700, "reserved": 900}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda gpu: peak.update(now))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: peak["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda gpu: peak["reserved"])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: now.update(reserved=400))
    peaks = memory.Peaks(gpu, 1)
    peak.update(allocated=700)
    monkeypatch.setattr(memory, "nbytes", lambda weights, device: 100 if device == gpu else 0)
    peaks.note_captured([{}])
    peaks.reset()
    peaks.note([{}, {}])
    found = peaks.peak()
    assert (found.gpu_allocated_bytes, found.gpu_reserved_bytes) == (600, 200)
    assert found.host_rss_bytes > 50 * MIB


def test_a_sandbox_that_cannot_reset_the_peak_has_one_all_the_same(monkeypatch):
    def read_only(path, text, encoding):
        raise PermissionError(path)

    monkeypatch.setattr(memory.Path, "write_text", read_only)
    peaks = memory.Peaks(torch.device("cpu"), 1)
    peaks.note([])
    assert peaks.peak().host_rss_bytes > 50 * MIB


def test_copied_weights_are_those_of_the_moment_and_tied_ones_stay_tied():
    core = tiny_run.network()
    kept = memory.copy_weights(core, [])
    before = {name: value.clone() for name, value in core.state_dict().items()}
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(1.0)
    assert list(kept) == list(core.state_dict())
    assert all(torch.equal(kept[name], before[name]) for name in before)
    tied = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
    assert kept[tied[0]].data_ptr() == kept[tied[1]].data_ptr()
    unique = {value.data_ptr(): value.nbytes for value in core.state_dict().values()}
    assert memory.nbytes(kept, memory.CPU) == sum(unique.values()) < sum(value.nbytes for value in kept.values())
    assert memory.nbytes(kept, torch.device("cuda", 0)) == 0


def test_loaded_weights_are_written_where_the_old_ones_lie():
    core = tiny_run.network()
    kept = memory.copy_weights(core, [])
    places = {name: value.data_ptr() for name, value in core.state_dict().items()}
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.mul_(2.0).add_(1.0)
    memory.load_weights(core, kept)
    assert {name: value.data_ptr() for name, value in core.state_dict().items()} == places
    assert all(torch.equal(value, kept[name]) for name, value in core.state_dict().items())
    assert not set(places.values()) & {value.data_ptr() for value in kept.values()}  # a copy still
    assert all(parameter.requires_grad and parameter.grad is None for parameter in core.parameters())


def test_weights_are_loaded_in_the_precision_of_the_module():
    core = tiny_run.network().to(torch.bfloat16)
    memory.load_weights(core, memory.copy_weights(tiny_run.network(seed=1), []))
    expected = tiny_run.network(seed=1).to(torch.bfloat16).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in core.state_dict().items())


class Divided:
    """As a tensor of FSDP: what a rank can touch is its part."""

    def __init__(self, part):
        self.part = part

    def to_local(self):
        return self.part


def test_the_part_of_a_rank_is_what_is_local():
    part = torch.ones(2, requires_grad=True)
    for value in (part, Divided(part)):
        found = memory.local(value)
        assert found.data_ptr() == part.data_ptr()
        assert not found.requires_grad


@pytest.mark.parametrize("shapes", [((2, 3), (4,)), ((0, 3), (0,)), ((0,), (0, 3), (2,))])
def test_parts_are_copied_and_loaded_also_where_they_are_empty(shapes):
    """Of a weight with fewer rows than ranks, some ranks have none."""
    parts = {str(shape): torch.ones(shape) for shape in shapes}
    core = SimpleNamespace(state_dict=lambda: {name: Divided(part) for name, part in parts.items()})
    kept = memory.copy_weights(core, [])
    assert {name: str(tuple(value.shape)) for name, value in kept.items()} == {name: name for name in parts}
    for part in parts.values():
        part.zero_()
    memory.load_weights(core, kept)
    assert all(bool((part == 1).all()) for part in parts.values())
    assert memory.nbytes(kept, memory.CPU) == sum(part.nbytes for part in parts.values())


HOST = {"device": memory.CPU, "pin_memory": True}
GPU = {"device": torch.device("cuda", 0)}


@pytest.mark.parametrize(("num_kept", "place"), [(0, GPU), (1, GPU), (2, HOST)])
def test_copies_that_would_fill_a_gpu_go_to_host_memory(monkeypatch, num_kept, place):
    """Copies may take a tenth of the GPU: here two of them, with the one to be made."""
    weight = SimpleNamespace(**GPU, nbytes=50, shape=(), dtype=torch.float32, data_ptr=lambda: 1)
    weight.detach = lambda: weight
    core, made = SimpleNamespace(state_dict=lambda: {"weight": weight}), []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch, "zeros", lambda shape, dtype, **given: made.append(given))
    memory.room_for(core, [{"weight": weight}] * num_kept)
    assert made == [place]


def test_room_is_set_aside_once_and_filled_in_place_as_often_as_asked():
    core = tiny_run.network()
    room = memory.room_for(core, [])
    places = {name: value.data_ptr() for name, value in room.items()}
    tied = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
    assert room[tied[0]] is room[tied[1]]
    assert not any(value.any() for value in room.values())
    for _ in range(2):
        memory.fill(room, core)
        assert all(torch.equal(value, room[name]) for name, value in core.state_dict().items())
        with torch.no_grad():
            for parameter in core.parameters():
                parameter.mul_(2.0).add_(1.0)
        assert not torch.equal(room[tied[0]], core.state_dict()[tied[0]])
    assert {name: value.data_ptr() for name, value in room.items()} == places


@pytest.mark.slow
def test_what_was_freed_is_no_part_of_the_next_peak():
    """Run apart, under the allocator's settings of a run: they let it keep whatever it once had."""
    code = (
        "import torch; from joulesweep.train import memory; cpu = torch.device('cpu')\n"
        "blocks = [torch.ones(2**16) for _ in range(4000)]; del blocks\n"
        "peaks = memory.Peaks(cpu, 1); peaks.note([]); kept = peaks.peak().host_rss_bytes\n"
        "memory.give_back(cpu)\n"
        "peaks = memory.Peaks(cpu, 1); peaks.note([]); print(kept - peaks.peak().host_rss_bytes)"
    )
    environ = {**os.environ, **node.ALLOCATOR}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 4000 * 2**18 * 0.8
