"""Optimizers are rows of a table; what cannot be is said before it is tried; state of 8 bits is undone and kept."""

from __future__ import annotations

import importlib.util
import itertools

import bits
import pytest
import stopping
import tiny_run
import torch

from joulesweep.axes import optimizer
from joulesweep.train.loop import train
from joulesweep.train.trainer import RunEnded

pytestmark = pytest.mark.usefixtures("torch_as_it_was")
EIGHT = {"optimizer": "adamw-8bit"}


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_each_optimizer_is_described_and_some_run_may_have_it(name):
    assert optimizer.OPTIMIZERS[name].about
    assert optimizer.incompatible_reason(tiny_run.spec(optimizer=name)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"precision": "bf16-true", "strategy": "ddp", "devices": 2}, None),
        ({"precision": "bf16-kahan"}, "precision bf16-kahan has an AdamW of its own; use optimizer: [adamw]"),
        ({"strategy": "fsdp", "devices": 2}, "optimizer adamw-8bit quantises whole tensors, which fsdp shards"),
        (
            {"engine": "graph", "batching": "packed"},
            "optimizer adamw-8bit counts its steps on the host, which engine graph cannot capture",
        ),
    ],
)
def test_what_eight_bits_fit_no_machine_with_is_said(changes, reason):
    assert optimizer.incompatible_reason(tiny_run.spec(**EIGHT, **changes)) == reason
    assert optimizer.incompatible_reason(tiny_run.spec(**changes)) is None


@pytest.mark.parametrize(
    ("name", "accelerator", "is_there", "reason"),
    [
        ("adamw", "cpu", False, None),
        ("adamw", "cuda", False, None),
        ("adamw-8bit", "cuda", True, None),
        ("adamw-8bit", "cpu", True, "optimizer adamw-8bit needs an NVIDIA GPU; this run uses the CPU"),
        (
            "adamw-8bit",
            "cuda",
            False,
            "optimizer adamw-8bit needs bitsandbytes, which is not installed: "
            "pip install -c constraints.txt -e '.[bitsandbytes]'",
        ),
    ],
)
def test_what_a_machine_lacks_is_one_line(monkeypatch, name, accelerator, is_there, reason):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object() if is_there else None)
    assert optimizer.unsupported_reason(name, accelerator) == reason


def test_a_run_of_eight_bits_on_the_cpu_is_unsupported(assets, tmp_path):
    with pytest.raises(RunEnded, match="needs an NVIDIA GPU") as ended:
        train(tiny_run.spec(**EIGHT), assets.model_folder, assets.tokens, tmp_path)
    assert ended.value.outcome.status == "unsupported"


def test_the_library_is_asked_for_its_adamw_with_groups_and_rate(monkeypatch):
    bits.install(monkeypatch)
    weight = torch.nn.Parameter(torch.ones(64, 64))
    made = optimizer.OPTIMIZERS["adamw-8bit"].make([{"params": [weight], "weight_decay": 0.5}], 0.125, False)
    assert isinstance(made, bits.AdamW8bit)
    assert (made.param_groups[0]["weight_decay"], made.param_groups[0]["lr"]) == (0.5, 0.125)
    weight.grad = torch.ones_like(weight)
    made.step()
    assert made.state[weight]["state1"].dtype == torch.uint8


@pytest.fixture
def losses(assets, tmp_path, monkeypatch):
    bits.install(monkeypatch)
    monkeypatch.setattr(optimizer, "LEAST_8BIT", 64)
    folders = itertools.count()

    def trained(**changes):
        folder = tmp_path / str(next(folders))
        return train(tiny_run.spec(**changes), assets.model_folder, assets.tokens, folder).losses

    return trained


def test_eight_bits_learn_nearly_what_thirty_two_do(losses):
    plain, eight = (losses(epochs=3, optimizer=name) for name in ("adamw", "adamw-8bit"))
    assert eight[0] == plain[0]
    assert eight[1:] != plain[1:]
    assert eight[-1] == pytest.approx(plain[-1], rel=0.05)


def test_warming_up_leaves_no_trace_in_state_of_eight_bits(losses):
    assert losses(**EIGHT, warmup_steps=3) == losses(**EIGHT, warmup_steps=0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16-mixed"])
def test_a_stopped_training_of_eight_bits_ends_the_same(assets, tmp_path, monkeypatch, precision):
    bits.install(monkeypatch)
    monkeypatch.setattr(optimizer, "LEAST_8BIT", 64)
    whole = stopping.attempts(assets, tmp_path, **EIGHT, precision=precision)
    again = stopping.attempts(assets, tmp_path, [[2], [3]], **EIGHT, precision=precision)
    assert again[0] == whole[0]
    assert all(torch.equal(value, again[1][name]) for name, value in whole[1].items())
