import math
import random

import numpy as np
import pytest
from scipy import stats

from joulesweep.analyse.statistics import (
    LENT,
    NO_DIFFERENCE,
    NO_INTERVAL,
    Contrast,
    Fit,
    bartlett,
    best_of,
    crossed_mean,
    heterogeneity,
    paired_difference,
    paired_ratio,
    positive_interval,
    power_to_pass,
    repeats_to_pass,
    repeats_to_tell,
    shrunk,
    summary,
)


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


def test_interval_of_a_positive_quantity_by_hand():
    found = positive_interval([2.0, 8.0])
    half = stats.t.ppf(0.975, 1) * np.std(np.log([2.0, 8.0]), ddof=1) / math.sqrt(2)
    assert found.mean == 5.0
    assert (found.low, found.high) == pytest.approx((5 / math.exp(half), 5 * math.exp(half)))
    assert positive_interval([1e-3, 1e3, 1.0]).low > 0


def test_interval_of_a_positive_quantity_covers_at_its_rate():
    draw = random.Random(2)
    intervals = [positive_interval([math.exp(draw.gauss(0, 0.02)) for _ in range(3)]) for _ in range(2000)]
    assert 0.93 < sum(one.low <= 1 <= one.high for one in intervals) / 2000 < 0.97


def runs_of(cells, seeds, noise=0.02, lost=(), seed=1):
    """Runs of made-up cells, in which each seed and each run has noise of its own."""
    draw = np.random.default_rng(seed)
    logs = draw.normal(0, 1, cells)[:, None] + draw.normal(0, 0.5, seeds) + draw.normal(0, noise, (cells, seeds))
    return {
        cell: {seed: math.exp(logs[cell, seed]) for seed in range(seeds) if (cell, seed) not in lost}
        for cell in range(cells)
    }


def least_squares(values, weights):
    """The estimate and standard error of a contrast, by a regression on columns for every cell and seed."""
    rows = [(cell, seed, math.log(value)) for cell, of in values.items() for seed, value in of.items()]
    seeds = sorted({seed for _, seed, _ in rows})
    design = np.zeros((len(rows), len(values) + len(seeds)))
    for i, (cell, seed, _) in enumerate(rows):
        design[i, cell] = design[i, len(values) + seeds.index(seed)] = 1
    logs = np.array([log for *_, log in rows])
    solved, *_ = np.linalg.lstsq(design, logs, rcond=None)
    degrees = len(rows) - np.linalg.matrix_rank(design)
    variance = ((logs - design @ solved) ** 2).sum() / degrees
    contrast = np.zeros(design.shape[1])
    for cell, weight in weights.items():
        contrast[cell] = weight
    error = math.sqrt(variance * contrast @ np.linalg.pinv(design.T @ design) @ contrast)
    return contrast @ solved, error, degrees


@pytest.mark.parametrize("lost", [(), ((0, 0), (3, 2), (4, 1))])
@pytest.mark.parametrize("weights", [{0: 1.0, 4: -1.0}, {0: 0.5, 1: 0.5, 2: -0.25, 3: -0.75}])
def test_a_fit_is_least_squares_over_cells_and_seeds(lost, weights):
    values = runs_of(6, 3, lost=lost)
    log, error, degrees = least_squares(values, weights)
    contrast = Fit(values).contrast(weights)
    assert (contrast.log, contrast.error, contrast.degrees) == pytest.approx((log, error, degrees))
    low, high = stats.t.interval(0.95, degrees, log, error)
    assert (contrast.ratio().low, contrast.ratio().high) == pytest.approx((math.exp(low), math.exp(high)))


def test_a_fit_of_two_cells_is_the_paired_t_test():
    values = runs_of(2, 5)
    a, b = (list(values[cell].values()) for cell in (0, 1))
    fitted, paired = Fit(values).ratio(0, 1), paired_ratio(a, b)
    ends = stats.ttest_rel(np.log(a), np.log(b)).confidence_interval()
    assert (fitted.ratio, fitted.low, fitted.high) == pytest.approx((paired.ratio, paired.low, paired.high))
    assert (fitted.low, fitted.high) == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
    assert fitted.verdict == paired.verdict and fitted.n == 5


def test_every_cell_against_one_is_each_pair():
    fit = Fit(runs_of(5, 3, lost=((1, 0), (2, 2))))
    logs, errors, degrees = fit.versus(2)
    for cell in (0, 1, 3, 4):
        pair = fit.contrast({cell: 1.0, 2: -1.0})
        assert (logs[cell], errors[cell], degrees[cell]) == pytest.approx((pair.log, pair.error, pair.degrees))


def test_what_is_asked_often_is_answered_alike():
    values = runs_of(5, 3, lost=((1, 0), (2, 2)))
    first = [Fit(values).ratio(cell, 2) for cell in range(5)]
    fit = Fit(values)
    for _ in range(60):
        fit.ratio(0, 2)
    for cell in range(5):
        often = fit.ratio(cell, 2)
        assert (often is None) == (first[cell] is None)
        if often is not None:
            assert (often.ratio, often.low, often.high) == pytest.approx(
                (first[cell].ratio, first[cell].low, first[cell].high)
            )
            assert (often.n, often.verdict) == (first[cell].n, first[cell].verdict)


def test_cells_that_no_seed_links_are_not_compared():
    values = {0: {0: 1.0, 1: 1.1}, 1: {0: 2.0, 1: 2.1}, 2: {5: 3.0, 6: 3.1}, 3: {5: 3.3, 6: 3.2}}
    fit = Fit(values)
    assert fit.ratio(0, 1) is not None and fit.ratio(2, 3) is not None
    assert fit.ratio(0, 2) is None and fit.ratio(0, "unknown") is None


def test_one_repeat_has_no_interval():
    ratio = Fit({0: {0: 2.0}, 1: {0: 1.0}}).ratio(0, 1)
    assert (ratio.ratio, ratio.low, ratio.high, ratio.verdict) == (pytest.approx(2), None, None, NO_INTERVAL)


def test_without_noise_nothing_is_odd():
    fit = Fit({cell: dict.fromkeys(range(3), 3.7 * cell + 0.1) for cell in range(8)})
    assert (fit.variance, fit.outliers, fit.unequal) == (0.0, [], None)
    assert fit.ratio(3, 1).low == fit.ratio(3, 1).high == pytest.approx(11.2 / 3.8)


def test_an_outlier_is_named():
    values = runs_of(12, 3)
    values[7][2] *= 1.5
    ((cell, seed, ratio),) = Fit(values).outliers
    assert (cell, seed) == (7, 2) and ratio == pytest.approx(1.5, rel=0.1)
    assert "run 2 of cell 7 is 1.5" in summary(Fit(values), lambda key: f"cell {key}")[0]


def test_normal_noise_is_seldom_called_odd():
    fits = [Fit(runs_of(12, 3, seed=seed)) for seed in range(200)]
    assert sum(bool(fit.outliers) for fit in fits) <= 8
    assert sum(fit.unequal is not None for fit in fits) <= 8


def test_unequal_noise_is_seen_and_intervals_follow_it():
    draw = np.random.default_rng(3)
    noise = np.where(np.arange(24) < 12, 0.002, 0.04)
    logs = draw.normal(0, 1, (24, 5)) * noise[:, None]
    fit = Fit({cell: dict(enumerate(np.exp(row))) for cell, row in enumerate(logs)})
    assert fit.unequal < 0.01
    quiet, loud = fit.contrast({0: 1.0, 1: -1.0}), fit.contrast({20: 1.0, 21: -1.0})
    assert quiet.error < loud.error / 3


def test_bartletts_test_is_scipys():
    draw = np.random.default_rng(5)
    samples = [draw.normal(0, scale, number) for scale, number in ((1, 3), (2, 4), (0.5, 3), (1.5, 6))]
    assert bartlett(samples) == pytest.approx(stats.bartlett(*samples).pvalue)


def test_equal_variances_are_drawn_together_and_unequal_ones_less():
    draw = np.random.default_rng(4)
    degrees = np.full(200, 4.0)
    equal, prior = shrunk(draw.chisquare(4, 200) / 4, degrees)
    apart, of_apart = shrunk(draw.chisquare(4, 200) / 4 * np.exp(draw.normal(0, 2, 200)), degrees)
    assert prior / LENT > 8 > 3 > of_apart / LENT
    assert np.ptp(np.log(equal)) < 2 < 5 < np.ptp(np.log(apart))


@pytest.mark.parametrize(("number", "quantile"), [(1, 1.72), (2, 2.03), (3, 2.19), (4, 2.30), (5, 2.39)])
def test_the_best_of_several_has_dunnetts_quantiles(number, quantile):
    # Dunnett 1955, table 1a: one-sided 5 %, 20 degrees of freedom.
    assert best_of(number, 20, 0.95) == pytest.approx(quantile, abs=0.006)


def test_more_repeats_tell_what_fewer_do_not():
    assert repeats_to_tell(0.05, 0.01**2, 24) == 2
    few, many = repeats_to_tell(0.01, 0.01**2, 24), repeats_to_tell(0.007, 0.01**2, 24)
    assert 2 < few < many
    assert repeats_to_tell(1e-9, 0.01**2, 24) is None


def of_two_cells(log: float, n: int = 2, variance: float = 0.5) -> Contrast:
    return Contrast(log=log, error=math.sqrt(2 * variance / n), degrees=n - 1, n=n)


@pytest.mark.parametrize(("n", "apart"), [(2, 11.6), (3, 3.26), (4, 2.13), (5, 1.68), (8, 1.16), (10, 1.0)])
@pytest.mark.parametrize(("had", "side"), [(2, 1), (4, -1)])
def test_power_of_two_cells_is_that_of_the_paired_t_test(n, apart, had, side):
    """Differences that are found with 80 %, in standard deviations of the paired log ratios."""
    contrast, line = of_two_cells(1 + side * apart, had), 1.0
    assert power_to_pass(contrast, line, 0.975, n) == pytest.approx(0.8, abs=0.01)
    assert repeats_to_pass(of_two_cells(1 + side * apart * 1.01, had), line, 0.975) == n


def test_the_repeats_asked_for_pass_the_line_as_often_as_promised():
    """Four cells, fitted anew 600 times: as many draws pass as the power says."""
    generator = np.random.default_rng(3)

    def drawn(n: int) -> Fit:
        logs = (
            np.array([0.1, 0.0, 0.4, -0.2])[:, None] + generator.normal(0, 0.3, n) + generator.normal(0, 0.08, (4, n))
        )
        return Fit({cell: dict(enumerate(np.exp(logs[cell]))) for cell in range(4)})

    truth = Contrast(log=0.1, error=0.08 * math.sqrt(2 / 3), degrees=6.0, n=3)
    n = repeats_to_pass(truth, 0.04, 0.95)
    assert n is not None and power_to_pass(truth, 0.04, 0.95, n - 1) < 0.8
    contrasts = [drawn(n).contrast({0: 1.0, 1: -1.0}) for _ in range(600)]
    passed = np.mean([one.bounds(0.95)[0] > math.exp(0.04) for one in contrasts])
    assert passed == pytest.approx(power_to_pass(truth, 0.04, 0.95, n), abs=0.05)  # three standard errors


def test_power_without_noise_or_without_difference():
    silent = of_two_cells(0.1, variance=0.0)
    assert (power_to_pass(silent, 0.0, 0.95, 2), power_to_pass(silent, 0.1, 0.95, 2)) == (1, 0)
    assert power_to_pass(of_two_cells(0.3), 0.3, 0.95, 3) == pytest.approx(0.05)
    assert power_to_pass(of_two_cells(1e3, variance=1e-6), 0.0, 0.95, 2) == 1
    assert repeats_to_pass(of_two_cells(1e-6), 0.0, 0.95, most=50) is None


@pytest.mark.parametrize("sizes", [(5, 5), (3, 4, 6), (5, 5, 5, 8, 3, 5, 5)])
def test_heterogeneity_is_scipys_welch_anova(sizes):
    generator = np.random.default_rng(len(sizes))
    samples = [generator.normal(0.3 * i, 0.2 * (1 + i % 3), size) for i, size in enumerate(sizes)]
    contrasts = [
        Contrast(log=part.mean(), error=part.std(ddof=1) / math.sqrt(len(part)), degrees=len(part) - 1, n=len(part))
        for part in samples
    ]
    assert heterogeneity(contrasts) == pytest.approx(stats.f_oneway(*samples, equal_var=False).pvalue)


def test_heterogeneity_of_what_has_no_noise_or_one_run():
    exact = [Contrast(log=log, error=0.0, degrees=4, n=5) for log in (0.1, 0.1, 0.2)]
    assert heterogeneity(exact[:2]) == 1 and heterogeneity(exact) < 1e-6
    assert heterogeneity([exact[0], Contrast(log=0.1, error=None, degrees=0, n=1)]) is None


def test_bounds_and_inverse_of_a_contrast_by_hand():
    contrast = Contrast(log=math.log(2), error=0.1, degrees=4, n=5)
    half = 2.1318468 * 0.1
    assert contrast.bounds() == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))
    assert contrast.inverse().bounds() == pytest.approx((math.exp(-half) / 2, math.exp(half) / 2))
    assert Contrast(log=0.0, error=None, degrees=0, n=1).bounds() is None


def crossed(items, seeds, noise, shift=0.0, num_items=40, num_seeds=3, draw=None):
    draw = draw or np.random.default_rng(0)
    parts = draw.standard_normal((num_items, 1)) * items + draw.standard_normal(num_seeds) * seeds
    return shift + parts + noise * draw.standard_normal((num_items, num_seeds))


@pytest.mark.parametrize("parts", [(1.0, 0.0, 1.0), (1.0, 0.3, 1.0), (0.0, 0.0, 1.0)])
def test_the_interval_over_items_and_seeds_holds_the_truth(parts):
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        low, high = crossed_mean(crossed(*parts, shift=5.0, draw=draw)).interval()
        held += low <= 5.0 <= high
    assert 0.91 <= held / 400 <= 1.0


def test_seeds_that_differ_widen_the_interval_as_items_do():
    plain, seeded = (crossed_mean(crossed(1.0, seeds, 0.1)) for seeds in (0.0, 2.0))
    assert seeded.error > 2 * plain.error and seeded.degrees < plain.degrees


def test_several_intervals_are_wider_and_one_seed_has_none():
    made = crossed_mean(crossed(1.0, 0.1, 0.5))
    (low, high), (lower, higher) = made.interval(), made.interval(9)
    assert lower < low < made.mean < high < higher
    one = crossed_mean(crossed(1.0, 0.1, 0.5, num_seeds=1))
    assert one.interval() is None and one.num_items == 40


def test_a_change_without_any_noise_is_itself():
    assert crossed_mean(np.full((5, 3), 2.0)).interval() == (2.0, 2.0)
