import math
import random

import pytest

from joulesweep.stats import (
    NO_DIFFERENCE,
    NO_INTERVAL,
    mean_interval,
    paired_difference,
    paired_ratio,
    t_quantile,
)


def test_interval_by_hand():
    found = mean_interval([1.0, 2.0, 3.0])  # t(2, 97.5 %) = 4.302653, sd 1
    assert found.mean == pytest.approx(2)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)
    assert found.n == 3


def test_table_value_of_t():
    assert t_quantile(10, 0.95) == pytest.approx(2.228139, rel=1e-6)
    assert t_quantile(1, 0.95) == pytest.approx(12.7062047, rel=1e-8)
    assert t_quantile(2, 0.99) == pytest.approx(9.9248432, rel=1e-8)
    assert t_quantile(1000, 0.999) == pytest.approx(3.30028265, rel=1e-8)
    assert t_quantile(4, 0.90) == pytest.approx(2.131847, rel=1e-6)


def test_one_value_has_no_interval():
    found = mean_interval([5.0])
    assert (found.mean, found.low, found.high, found.n) == (5.0, None, None, 1)


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_ratio_by_hand():
    found = paired_ratio([2.0, 8.0], [1.0, 2.0])  # logs: ln 2, ln 4; mean 1.5 ln 2; sd ln 2 / sqrt 2
    half = 12.7062047 * (math.log(2) / math.sqrt(2)) / math.sqrt(2)
    assert found.ratio == pytest.approx(2**1.5)
    assert found.low == pytest.approx(math.exp(1.5 * math.log(2) - half), rel=1e-6)
    assert found.high == pytest.approx(math.exp(1.5 * math.log(2) + half), rel=1e-6)
    assert found.verdict == NO_DIFFERENCE


def test_pairing_removes_what_the_seed_shares():
    seeds = [1.0, 10.0, 100.0]
    found = paired_ratio([2.00 * s for s in seeds], [1.0 * s for s in seeds])
    assert found.ratio == pytest.approx(2) and found.verdict == "higher"
    assert paired_ratio(seeds, [2.00 * s * (1 + 0.01 * i) for i, s in enumerate(seeds)]).verdict == "lower"


def test_one_pair_has_no_interval():
    found = paired_ratio([3.0], [2.0])
    assert (found.ratio, found.low, found.high, found.verdict) == (pytest.approx(1.5), None, None, NO_INTERVAL)


def test_difference_by_hand():
    found = paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])  # 1, 2, 3: the interval of the first test
    half = 4.302653 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), rel=1e-6)
    assert (found.n, found.verdict) == (3, NO_DIFFERENCE)


def test_a_difference_that_all_seeds_share_is_shown():
    seeds = [1.0, 10.0, 100.0]
    assert paired_difference(seeds, [seed + 0.5 + seed / 1000 for seed in seeds]).verdict == "lower"
    assert paired_difference([seed + 0.5 for seed in seeds], seeds).verdict == "higher"
    one = paired_difference([3.0], [2.0])
    assert (one.mean, one.low, one.high, one.verdict) == (1.0, None, None, NO_INTERVAL)


def test_unequal_lengths_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])


def test_interval_covers_at_its_rate():
    draw = random.Random(1)
    hits = 0
    for _ in range(2000):
        found = mean_interval([draw.gauss(0, 1) for _ in range(3)])
        hits += found.low <= 0 <= found.high
    assert 0.93 < hits / 2000 < 0.97
