"""Batches made in another thread are the same ones, in order; the thread ends however the training ends."""

from __future__ import annotations

import contextlib
import threading

import pytest
import tiny_run
import torch
from places import ALONE

from joulesweep.axes import engine
from joulesweep.train import ahead, assembly, data, loop, memory
from joulesweep.train.trainer import RankContext

pytestmark = pytest.mark.usefixtures("torch_as_it_was")


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def counting(number, made, fails_at=None):
    for i in range(number):
        if i == fails_at:
            raise LookupError(f"no item {i}")
        made.append((i, threading.current_thread().name))
        yield i


@pytest.mark.parametrize("depth", [1, 3, 100])
@pytest.mark.parametrize("number", [0, 1, 20])
def test_items_come_in_order_from_another_thread_which_then_ends(number, depth):
    made = []
    assert list(ahead.ahead(counting(number, made), depth)) == list(range(number))
    assert {name for _, name in made} <= {"batches"}
    assert threads() == []


def test_no_more_are_made_than_may_wait():
    made, depth = [], 3
    with contextlib.closing(ahead.ahead(counting(20, made), depth)) as items:
        for taken in range(1, 6):
            next(items)
            assert taken <= len(made) <= taken + depth


def test_they_are_made_while_nobody_asks():
    ready = threading.Event()

    def made():
        yield 1
        ready.set()
        yield 2

    with contextlib.closing(ahead.ahead(made())) as items:
        assert next(items) == 1
        assert ready.wait(60)


def test_an_error_comes_in_its_place_and_is_the_same_one():
    items = ahead.ahead(counting(5, [], fails_at=3))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="no item 3") as caught:
        next(items)
    assert caught.traceback[-1].name == "counting"
    assert threads() == []


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_whoever_takes_no_more_ends_the_thread_and_what_it_runs(taken):
    closed = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    with contextlib.closing(ahead.ahead(endless(), 2)) as items:
        for _ in range(taken):
            next(items)
    assert threads() == []
    assert closed == (["batches"] if taken else [])


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """Build a trainer whose batches are laid out as for a GPU; what is pinned is a copy here."""
    pinned, devices = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (pinned.append(tensor), tensor.clone())[1])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.append((device, threading.current_thread())))
    assets = tiny_run.assets(tmp_path)

    def build(**changes):
        built = assembly.assemble(tiny_run.spec(**changes), assets.model_folder, assets.tokens, ALONE)
        monkeypatch.setattr(built, "steps", lambda first=0: ahead.ahead(built._pinned_steps(first)))
        return built

    return build, pinned, devices


def test_steps_laid_out_ahead_are_those_of_the_epochs(on_gpu):
    build, pinned, devices = on_gpu
    built = build(max_steps=7, batching="packed", micro_batch_size=5)
    assert built.num_epochs == 3
    expected = [step for epoch in (1, 2, 3) for step in built.batches(epoch)][:7]
    found = list(built.steps())
    assert len(found) == len(expected)
    for (batches, number), (others, same) in zip(found, expected, strict=True):
        assert number == same
        assert [batch.counts for batch in batches] == [batch.counts for batch in others]
        for one, other in zip(batches, others, strict=True):
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))
    assert len(pinned) == sum(t is not None for batches, _ in found for batch in batches for t in batch.tensors)
    ((device, thread),) = devices
    assert (device, thread.name) == (built.place.device, "batches"), "a thread begins on the first GPU, not on its own"


def test_the_thread_takes_one_core(on_gpu, monkeypatch):
    """Else it would start as many threads for its operators as the training has."""
    build, _, _ = on_gpu
    built, seen = build(), []
    monkeypatch.setattr(torch, "set_num_threads", lambda number: seen.append((number, threading.current_thread().name)))
    list(built.steps())
    assert seen == [(1, "batches")]


@pytest.mark.parametrize("name", ["graph", "compile-graph"])
def test_no_thread_is_at_work_and_nothing_is_pinned_while_graphs_are_captured(on_gpu, monkeypatch, name):
    """To pin memory is a call to the driver, which breaks a capture that any thread can break."""
    build, pinned, _ = on_gpu
    seen = []

    class GraphedStep:
        def __init__(self, step, device):
            pass

        def __call__(self, inputs, factor):
            seen.append((len(threads()), len(pinned)))
            return torch.zeros(())

    monkeypatch.setattr(engine, "GraphedStep", GraphedStep)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: None)
    built = build(engine=name, batching="packed", epochs=3)
    loop._warm_up(built, memory.Peaks(built.place.device, 1))
    assert pinned
    assert set(seen) == {(0, len(pinned))}


def test_only_a_gpu_has_its_steps_laid_out_ahead(on_gpu, monkeypatch):
    build, pinned, _ = on_gpu
    built = build()
    monkeypatch.undo()
    assert len(list(built.steps())) == 3
    assert pinned == []
    began = []
    monkeypatch.setattr(ahead, "ahead", lambda made: began.append(made) or made)
    built.place = RankContext(device=torch.device("cuda", 0), rank=0, world=1, local_rank=0)
    built.steps()
    assert [made.__name__ for made in began] == ["_pinned_steps"]


def test_a_training_ahead_has_the_losses_of_one_in_line(on_gpu):
    build, _, _ = on_gpu
    losses = []
    for inline in (True, False):
        built = build(epochs=3, batching="packed")
        if inline:
            built.steps = built._steps
        assert [epoch for epoch, _ in loop._run_epochs(built)] == [1, 2, 3]
        losses.append(torch.stack(built.losses).tolist())
        assert threads() == []
    assert losses[0] == losses[1]


def test_a_training_that_stops_leaves_no_thread(on_gpu, monkeypatch):
    build, _, _ = on_gpu
    built = build(epochs=3, lr=1e30)
    with pytest.raises(loop.RunEnded, match="the loss was not finite"):
        for _ in loop._run_epochs(built):
            pass
    assert threads() == []

    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    built = build(epochs=3)
    monkeypatch.setattr(loop, "_step", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        next(loop._run_epochs(built))
    assert threads() == []
    built = build(epochs=3)
    monkeypatch.setattr(data, "_collate", broken)  # in the thread
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        next(loop._run_epochs(built))
    assert threads() == []
