import numpy as np
import pytest

from benchmarks import proxy_power


@pytest.mark.slow
@pytest.mark.parametrize("case", ["planted", "equal"])
def test_the_loss_is_covered_and_none_is_invented(case):
    told = proxy_power.judged(np.random.default_rng(7), case, 60, 3, 0.02, draws=50)
    for rates in told.values():
        assert rates.mean("covered") >= 0.88  # 95 % of 60 sweeps, less 2.5 standard errors
    loss = told["seconds"].mean("true")
    if case == "planted":
        assert loss == pytest.approx(0.54 * 2.2 - 1) and abs(told["seconds"].mean("said") - loss) < 0.02
        assert told["seconds"].mean("shown") == 1
    else:
        assert loss == 0 and told["seconds"].mean("shown") == 0 and told["mean watts"].mean("flips") == 0
