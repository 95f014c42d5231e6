"""Verdicts on quality, and intervals of a cell that was chosen by looking: simulated with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiers

from joulesweep.analyse.comparisons import BEYOND, OPEN, WITHIN, asked, chosen_ratio, not_above, qualities
from joulesweep.analyse.statistics import Fit

SWEEPS = 400


def fitted(random, logs, noise, repeats=3, seed_noise=0.01):
    runs = np.asarray(logs)[:, None] + random.normal(0, seed_noise, repeats)
    runs = runs + random.normal(0, noise, runs.shape)
    return Fit({cell: dict(enumerate(np.exp(row))) for cell, row in enumerate(runs)})


def test_a_manifest_without_answer_has_the_defaults():
    assert asked({}) == (0.01, "validation_loss")
    assert asked({"answer": {"margin": 0.02, "quality": "rougeL"}}) == (0.02, "rougeL")


@pytest.mark.slow
@pytest.mark.parametrize("number_of_best", [1, 12])
@pytest.mark.parametrize(("apart", "wrong_verdict", "seed"), [(1.0101, WITHIN, 1), (1.0099, BEYOND, 2)])
def test_a_cell_near_the_margin_is_seldom_put_on_its_wrong_side(number_of_best, apart, wrong_verdict, seed):
    random = np.random.default_rng(seed)
    logs = [0.0] * number_of_best + [math.log(apart)] * 6
    wrong = [
        qualities(fitted(random, logs, 0.003), "validation_loss", 0.01)[cell].verdict == wrong_verdict
        for _ in range(SWEEPS)
        for cell in range(number_of_best, len(logs))
    ]
    assert np.mean(wrong) <= 0.065  # 5 %, and what 400 sweeps leave to chance


def test_cells_that_are_well_apart_are_told():
    fit = fitted(np.random.default_rng(3), [0.0, 0.002, 0.05], 0.0005)
    assert [quality.verdict for quality in qualities(fit, "validation_loss", 0.01).values()] == [WITHIN, WITHIN, BEYOND]


def test_of_accuracy_the_highest_is_best():
    fit = fitted(np.random.default_rng(3), [0.0, -0.05], 0.0005)
    verdicts = qualities(fit, "masked_accuracy", 0.01)
    assert (verdicts[0].verdict, verdicts[1].verdict) == (WITHIN, BEYOND)
    assert verdicts[1].above_best == pytest.approx(math.expm1(0.05), rel=0.05)


def test_one_repeat_tells_the_best_alone():
    fit = fitted(np.random.default_rng(3), [0.0, 0.5], 0.001, repeats=1)
    verdicts = qualities(fit, "validation_loss", 0.01)
    assert [(quality.verdict, quality.high) for quality in verdicts.values()] == [(WITHIN, None), (OPEN, None)]


def test_the_best_among_some_is_the_best_of_those():
    fit = fitted(np.random.default_rng(4), [0.0, 0.05, 0.051], 0.0005)
    among = qualities(fit, "validation_loss", 0.01, {1, 2})
    assert set(among) == {1, 2} and among[1].above_best == 0


@pytest.mark.parametrize("repeats", tiers.first(1, [3, 2, 10]))
def test_the_interval_of_the_cheapest_of_equals_covers_the_truth(repeats):
    random = np.random.default_rng(5)
    cells, covered, cheaper = list(range(24)), [], []
    for _ in range(SWEEPS):
        fit = fitted(random, np.zeros(24), 0.01, repeats)
        ratio = chosen_ratio(fit, min(cells, key=fit.mean_of), 0, cells)
        if ratio is not None:
            covered.append(ratio.low <= 1 <= ratio.high)
            cheaper.append(ratio.high < 1)
    assert np.mean(covered) >= 0.93 and np.mean(cheaper) <= 0.05


def test_cells_that_are_well_apart_need_no_correction():
    fit = fitted(np.random.default_rng(6), [0.0, -0.5, 0.5, 1.0], 0.01)
    assert chosen_ratio(fit, 1, 0, [0, 1, 2, 3]) == fit.ratio(1, 0)
    assert not_above(fit, 1, [0, 1, 2, 3], 0.975) == [1]
    assert chosen_ratio(fit, 0, 0, [0, 1]) is None
