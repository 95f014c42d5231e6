import math
import random

import pytest
from scipy import stats

from joulesweep.core.student import mean_interval, t_quantile


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


def test_interval_covers_at_its_rate():
    draw = random.Random(1)
    hits = 0
    for _ in range(2000):
        found = mean_interval([draw.gauss(0, 1) for _ in range(3)])
        hits += found.low <= 0 <= found.high
    assert 0.93 < hits / 2000 < 0.97


@pytest.mark.parametrize("degrees", [1, 2, 3, 46, 1000])
def test_quantiles_are_scipys(degrees):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)
