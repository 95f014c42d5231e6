"""Processes, and shares of the texts, are not the same number: a strategy's row says how many there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import ranks
import tiny_run
import torch

from joulesweep.axes import strategy
from joulesweep.train.trainer import RankContext

#: A rank of a strategy whose two processes compute each text together.
TOGETHER = """
from dataclasses import replace
import ranks
from joulesweep.axes.strategy import STRATEGIES

STRATEGIES["together"] = replace(STRATEGIES["ddp"], ranks_per_text=None)
ranks.main()
"""
CASES = ({}, {"max_grad_norm": 0.01, "micro_batch_size": 3}, {"method": "greentrainer"})


@pytest.mark.parametrize(
    ("world", "ranks_per_text", "shares"),
    [(1, 1, [0]), (4, 1, [0, 1, 2, 3]), (4, 2, [0, 0, 1, 1]), (4, 4, [0, 0, 0, 0])],
)
def test_ranks_that_compute_a_text_together_have_one_share(world, ranks_per_text, shares):
    places = [
        RankContext(device=torch.device("cpu"), rank=rank, world=world, local_rank=rank, ranks_per_text=ranks_per_text)
        for rank in range(world)
    ]
    assert [place.data_rank for place in places] == shares
    assert {place.data_parallel for place in places} == {len(set(shares))}


def test_a_row_says_how_many_ranks_compute_a_text(monkeypatch):
    assert {name: strategy.ranks_per_text(name, 8) for name in strategy.STRATEGIES} == dict.fromkeys(
        strategy.STRATEGIES, 1
    )
    row = strategy.STRATEGIES["ddp"]
    for each, expected in ((None, 8), (2, 2)):
        monkeypatch.setitem(strategy.STRATEGIES, "new", replace(row, ranks_per_text=each))
        assert strategy.ranks_per_text("new", 8) == expected


@pytest.mark.slow
def test_two_ranks_that_compute_every_text_have_the_gradients_of_one(tmp_path, torch_as_it_was):
    assets = tiny_run.assets(tmp_path / "assets")
    (tmp_path / "rank.py").write_text(TOGETHER, encoding="utf-8")
    trainings = [{**case, "strategy": "together", "devices": 2} for case in CASES]
    paths = {"bert": [str(assets.model_folder), str(assets.tokens)]}
    ranks.on_two(tmp_path / "rank.py", tmp_path, assets=paths, trainings=trainings)
    outcomes = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for number, case in enumerate(CASES):
        alone = ranks.trained(assets, tmp_path, **case)
        for found in (outcome[number] for outcome in outcomes):
            assert found["losses"] == pytest.approx(alone["losses"], rel=1e-6)
            assert found["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-6)
            assert found["counts"] == alone["counts"], "each rank has every text"
            for step, expected in zip(found["gradients"], alone["gradients"], strict=True):
                torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)
