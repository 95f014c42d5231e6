"""A training that was stopped and goes on ends with the same bits as one that was not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import stopping
import tiers
import tiny_run
import torch

from joulesweep.nets import onednn
from joulesweep.train import checkpoint

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

NUM_STEPS = 3  # in one epoch, 16 texts each
CHOOSES = {"method": "greentrainer", "method_params": {"rho": 0.8, "reselect_epochs": 1}}
CASES = [
    CHOOSES,
    {},
    {"precision": "fp16-mixed", "micro_batch_size": 5},
    {"precision": "bf16-true", "schedule": "cosine", "max_steps": 7},
    {"method": "lora"},
    {"method": "sampled-backward"},
    {**CHOOSES, "precision": "fp16-mixed"},
    {"method": "random", "method_params": {"reselect_epochs": 1}},
]


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory, assets):
    folder = tiny_run.model(tmp_path_factory.mktemp("dropout") / "model", dropout=0.3)
    return tiny_run.Assets(model_folder=folder, tokens=assets.tokens)


def assert_same(again, whole):
    assert again[0] == whole[0]
    assert again[1].keys() == whole[1].keys()
    assert all(torch.equal(value, again[1][name]) for name, value in whole[1].items())


@pytest.mark.parametrize(
    "changes",
    tiers.first(1, CASES),
    ids=lambda changes: "-".join(map(str, changes.values())) or "full",
)
def test_a_stopped_training_ends_with_the_same_bits(with_dropout, tmp_path, changes):
    changes = changes if "max_steps" in changes else {"epochs": 3, **changes}
    whole = stopping.attempts(with_dropout, tmp_path, **changes)
    often = [[1, 2], [NUM_STEPS, 2 * NUM_STEPS], [NUM_STEPS + 1]]
    for stops in often if changes in ({"epochs": 3}, {"epochs": 3, **CHOOSES}) else [[NUM_STEPS - 1, NUM_STEPS]]:
        assert_same(stopping.attempts(with_dropout, tmp_path, [[stop] for stop in stops], **changes), whole)


def test_who_asks_late_finds_a_rank_that_has_stopped(with_dropout, tmp_path):
    stopping.stopped(with_dropout, tmp_path)
    assert (tmp_path / "has-stopped0").exists() and not (tmp_path / "listens0").exists()


@pytest.mark.slow
def test_a_training_goes_on_from_what_was_kept_of_its_texts(tmp_path):
    folder = tmp_path / "assets"
    folder.mkdir()
    tiny_run.network("opt", dropout=0.3, decoder_layers=4).save_pretrained(folder / "model")
    tiny_run.tokenizer(folder / "model")
    on = tiny_run.Assets(
        model_folder=folder / "model", tokens=tiny_run.token_file(folder / "tokens.safetensors", suffix=[])
    )
    changes = {"method": "freeze-cache", "task": "clm", "epochs": 3}
    whole = stopping.attempts(on, tmp_path, **changes)
    for stops in ([1, NUM_STEPS + 1], [NUM_STEPS]):
        assert_same(stopping.attempts(on, tmp_path, [[stop] for stop in stops], **changes), whole)


def test_a_training_goes_on_with_the_library_that_it_began_with(with_dropout, tmp_path, monkeypatch):
    whole = stopping.attempts(with_dropout, tmp_path)
    train, factor = stopping.loop.train, iter((1.0, 100.0))

    def on_another_day(*rest):
        times = next(factor)
        monkeypatch.setattr(
            onednn._Try, "seconds", lambda one: 2.0 * times if type(one.layer) is onednn.Linear else 3.0
        )
        return train(*rest)

    monkeypatch.setattr(stopping.loop, "train", on_another_day)
    assert_same(stopping.attempts(with_dropout, tmp_path, [[4]]), whole)


def test_loss_scale_and_costs_are_those_of_the_attempt_before(with_dropout, tmp_path, monkeypatch):
    save, restore, restored = checkpoint.save, checkpoint.restore, []

    def changed(checkpoints, trainer, **state):
        trainer.scaler.update(512.0)
        trainer.selector = replace(trainer.selector, cost=replace(trainer.selector.cost, forward=123.0))
        return save(checkpoints, trainer, **state)

    def noted(state, trainer, kept, peaks):
        ends = restore(state, trainer, kept, peaks)
        restored.append((trainer.scaler.get_scale(), trainer.selector.cost.forward))
        return ends

    monkeypatch.setattr(checkpoint, "save", changed)
    monkeypatch.setattr(checkpoint, "restore", noted)
    stopping.attempts(with_dropout, tmp_path, [[2]], **CHOOSES, precision="fp16-mixed")
    assert restored == [(512.0, 123.0)]


RANKS = [
    {"strategy": "ddp", "micro_batch_size": 3},
    {"strategy": "fsdp", "method": "lora"},
    {"strategy": "fsdp", "precision": "bf16-true"},
    {"strategy": "ddp", **CHOOSES},
]


@pytest.mark.slow
def test_two_ranks_stop_together_and_end_with_the_same_bits(with_dropout, tmp_path):
    apart = [[[2, 4], [7, 6]], [[3, 3]], [[7, 1]]]
    trainings = [
        (stops, {"devices": 2, **changes}) for i, changes in enumerate(RANKS) for stops in ([], apart[i % len(apart)])
    ]
    paths = {"model_folder": str(with_dropout.model_folder), "tokens": str(with_dropout.tokens)}
    ranks.on_two(Path(stopping.__file__), tmp_path, **paths, trainings=trainings)
    for rank in (0, 1):
        results = torch.load(tmp_path / f"rank{rank}.pt")
        for whole, again in zip(results[::2], results[1::2], strict=True):
            assert_same(again, whole)
