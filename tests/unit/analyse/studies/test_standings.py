import math

import numpy as np
import pytest

from joulesweep.analyse.statistics import Fit
from joulesweep.analyse.studies.standings import ALL, Fits, choice, kendall, levelled, spearman, standing


def fit(logs, noise=0.0, seed=1):
    """A fit of cells 0, 1, … with three repeats of these logs."""
    chance = np.random.default_rng(seed)
    runs = np.asarray(logs)[:, None] + chance.normal(0, noise, (len(logs), 3))
    return Fit({cell: dict(enumerate(np.exp(row))) for cell, row in enumerate(runs)})


def stands(joules, proxy, noise=0.003):
    fits = Fits(
        joules=fit(joules, noise, 1), proxy=fit(proxy, noise, 2), quotient=fit(np.subtract(joules, proxy), noise, 3)
    )
    return standing("proxy", fits, {ALL: list(range(len(joules)))}, draws=200)


def test_spearman_and_kendall_are_those_of_a_worked_example():
    # Ranks 1 2 3 4 against 1.5 1.5 3 4; Kendall: 5 pairs agree, one is tied in the second.
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 5.0, 6.0, 7.0])
    assert spearman(first, second) == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert kendall(first, second) == pytest.approx(5 / math.sqrt(6 * 5))
    assert kendall(first, -first) == spearman(first, -first) == -1
    assert math.isnan(kendall(first, np.ones(4))) and math.isnan(spearman(np.ones(4), first))


def test_what_hardly_differs_is_one_level():
    levels = levelled(np.array([2.0, 1.0, 1.0005, 2.0 + 1e-12]))
    assert levels[0] == levels[3] and levels[1] == levels[2] == pytest.approx(1.00025) and levels[0] > levels[1]


def test_a_proxy_that_is_joules_times_a_factor_is_perfect():
    joules = np.log([1.0, 1.3, 1.7, 2.5])
    told = stands(joules, joules + 5)
    assert told.spearman.mean == told.kendall.mean == 1 and told.reversed == 0 and told.pairs == 6
    assert told.error.low == 0 and told.error.high < 0.02
    assert told.choices[ALL].chosen == (0,) and not told.choices[ALL].shown


def test_a_proxy_the_other_way_round_reverses_every_pair():
    joules = np.log([1.0, 1.3, 1.7, 2.5])
    told = stands(joules, -joules)
    assert told.kendall.mean == -1 and told.pairs == told.reversed == 6 and len(told.flips) == 3
    assert (told.flips[0].less, told.flips[0].more) == (0, 3)
    assert told.flips[0].joules.high < 1 < told.flips[0].proxy.low
    regret = told.choices[ALL].regret
    assert regret.low < 2.5 < regret.high and regret.ratio == pytest.approx(2.5, rel=0.02)
    assert told.error.mean == pytest.approx(math.expm1(float((2 * joules).std(ddof=1))), rel=0.05)


def test_ties_of_a_proxy_are_chosen_among_at_random():
    told = stands(np.log([1.0, 2.0, 4.0]), np.log([1.0, 1.0, 2.0]), noise=1e-5)
    assert told.choices[ALL].chosen == (0, 1)
    assert told.choices[ALL].regret.ratio == pytest.approx(math.sqrt(2), rel=1e-3)


def test_pairs_that_luck_may_have_turned_are_not_reversed():
    told = stands([0.0, 0.005, 0.01], [0.01, 0.005, 0.0], noise=0.02)
    assert told.pairs == told.reversed == 0 and told.flips == ()
    assert not told.choices[ALL].shown and told.kendall.low < 0 < told.kendall.high


def test_one_who_chooses_by_joules_loses_nothing():
    told = choice(fit([0.0, 0.2, 0.4], 0.003), [0], [0, 1, 2], 1)
    assert told.regret.ratio == told.regret.low == told.regret.high == 1 and not told.shown
