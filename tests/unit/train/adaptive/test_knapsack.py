import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import selector
from joulesweep.train.adaptive.knapsack import Choice, floor, select

settings.register_profile("same-everywhere", derandomize=True, deadline=None, max_examples=200)
settings.load_profile("same-everywhere")


def best_importance(importances, weight_costs, reach, budget):
    """Brute force over all choices."""
    best = 0.0
    for chosen in itertools.product((False, True), repeat=len(reach)):
        ks = [k for k, is_chosen in enumerate(chosen) if is_chosen]
        if ks and math.fsum([reach[ks[-1]], *(weight_costs[k] for k in ks)]) <= budget:
            best = max(best, math.fsum(importances[k] for k in ks))
    return best


def best_of_integers(importances, weight_costs, reach, budget):
    """The same brute force, for numbers whose sums are exact."""
    num = len(reach)
    choices = np.arange(2**num)[:, None] >> np.arange(num) & 1
    deepest = np.where(choices, np.arange(1, num + 1), 0).max(axis=1)
    costs = choices @ np.array(weight_costs) + np.array([0, *reach])[deepest]
    return (choices @ np.array(importances))[(costs <= budget) | (deepest == 0)].max()


def check(choice: Choice, importances, weight_costs, reach, budget):
    """What a choice says of itself is true, and it is within the budget."""
    ks = [k for k, is_chosen in enumerate(choice.chosen) if is_chosen]
    assert len(choice.chosen) == len(reach)
    assert choice.importance == math.fsum(importances[k] for k in ks)
    assert choice.cost == (math.fsum([reach[ks[-1]], *(weight_costs[k] for k in ks)]) if ks else 0)
    assert not ks or choice.cost <= budget
    assert all(importances[k] > 0 for k in ks)
    assert choice.importance <= choice.bound
    assert 0 <= choice.gap <= 1


def integer_instance(seed):
    """Up to ten tensors with ties, zero costs, negative importances and sometimes no budget."""
    draw = random.Random(seed)
    num = draw.randint(1, 10)
    most = draw.choice((1, 4, 30))
    importances = [draw.randint(-most // 2, 2 * most) for _ in range(num)]
    weight_costs = [draw.choice((0, draw.randint(0, most))) if draw.random() < 0.4 else most for _ in range(num)]
    if draw.random() < 0.7:
        weight_costs = [draw.randint(0, most) for _ in range(num)]
    reach = list(itertools.accumulate(draw.choice((0, draw.randint(0, most))) for _ in range(num)))
    budget = draw.choice((0, most, draw.randint(0, reach[-1] + sum(weight_costs)), reach[-1] + sum(weight_costs)))
    return importances, weight_costs, reach, budget


def real_instance(seed, size):
    draw = random.Random(seed)
    num = draw.randint(1, size)
    importances = [draw.gauss(1, 1) for _ in range(num)]
    weight_costs = [draw.choice((0.0, 1e12, 1e15)) * draw.random() for _ in range(num)]
    reach = list(itertools.accumulate(draw.choice((0.0, 1e14)) * draw.random() for _ in range(num)))
    return importances, weight_costs, reach, draw.random() * (reach[-1] + sum(weight_costs))


@pytest.mark.parametrize("unit", [1, 7, 0.375])
def test_optimal_where_the_levels_hold_the_costs(unit):
    nothing_chosen = 0
    for seed in range(1000):
        importances, weight_costs, reach, budget = integer_instance(seed)
        scaled = [x * unit for x in weight_costs], [x * unit for x in reach], budget * unit
        found = select(importances, *scaled, levels=max(budget, 1))
        check(found, importances, *scaled)
        assert found.importance == best_of_integers(importances, weight_costs, reach, budget), seed
        assert found.gap < 1e-11
        nothing_chosen += not any(found.chosen)
    assert 50 < nothing_chosen < 500  # the instances are of both kinds


def test_the_reach_is_no_multiple_of_the_quantum():
    for seed in range(300):
        importances, weight_costs, reach, budget = integer_instance(seed)
        reach = [4 * x + seed % 3 for x in reach]
        costs = [5 * x for x in weight_costs]
        found = select(importances, costs, reach, 4 * budget, levels=max(budget, 1))
        assert found.importance == best_of_integers(importances, costs, reach, 4 * budget), seed


@pytest.mark.parametrize("levels", [None, 1, 40])
def test_real_costs_keep_the_budget_and_the_certificate_is_true(levels):
    gaps = []
    for seed in range(400):
        instance = real_instance(seed, 8)
        found = select(*instance, levels=levels)
        check(found, *instance)
        best = best_importance(*instance)
        assert found.importance <= best * (1 + 1e-12) and best <= found.bound, seed
        gaps.append(found.gap)
    assert max(gaps) <= 0.01


def test_every_rounding_is_certified_against_the_exact_choice():
    """Fifty tensors, beyond brute force: whole costs and many levels give the optimum, few levels give bounds on it."""
    for seed in range(30):
        draw = random.Random(seed)
        importances = [draw.lognormvariate(0, 1) for _ in range(50)]
        weight_costs = [draw.choice((1, 10, 1000)) * draw.randint(1, 20) for _ in range(50)]
        reach = list(itertools.accumulate(draw.randint(0, 1000) for _ in range(50)))
        instance = importances, weight_costs, reach, draw.randint(3000, 100_000)
        exact = select(*instance, levels=100_000)
        assert exact.gap < 1e-11
        for levels in (1, 10, 100, 1000):
            found = select(*instance, levels=levels)
            check(found, *instance)
            assert found.importance <= exact.importance * (1 + 1e-12) <= found.bound * (1 + 2e-12)
            assert found.gap <= 0.01


def test_as_many_levels_as_the_budget_has_units_are_enough():
    """A tensor of one unit among others of two: no coarser quantum will do."""
    for seed in range(100):
        draw = random.Random(seed)
        weight_costs = [1] + [2 * draw.randint(1, 30) for _ in range(59)]
        importances = [1.2] + [cost * draw.uniform(0.95, 1.05) for cost in weight_costs[1:]]
        found = select(importances, weight_costs, [0] * 60, 300, levels=300)
        assert found.gap < 1e-11, seed


def test_biases_do_not_make_the_large_costs_inexact():
    """The weights' costs are multiples of 1,000, so that 150 levels hold them; the biases' costs are not."""
    for seed in range(20):
        draw = random.Random(seed)
        weight_costs = [1000 * draw.randint(1, 9) for _ in range(60)] + [draw.randint(1, 3) for _ in range(60)]
        importances = [cost * draw.uniform(0.9, 1.1) for cost in weight_costs]
        assert select(importances, weight_costs, [0] * 120, 100_500, levels=150).gap < 1e-11, seed


def test_a_few_tensors_have_so_many_levels_that_whole_costs_are_exact():
    for seed in range(20):
        draw = random.Random(seed)
        weight_costs = [draw.randint(1, 50_000) for _ in range(30)]
        found = select([cost * draw.uniform(0.9, 1.1) for cost in weight_costs], weight_costs, [0] * 30, 100_000)
        assert found.gap < 1e-11, seed


def test_a_gap_that_no_table_can_close_is_told():
    """The first two exceed the budget by less than any level; the table's own choice is deeper than the bound's."""
    found = select([1.0, 1.0, 1.5], [1.0, 1 + 2.0**-40, 2.0], [0.0, 0.0, 0.0], 2.0)
    assert (found.importance, found.gap) == (1.5, pytest.approx(0.25))


def test_the_bound_allows_for_the_rounding_of_sums():
    """0.1 added ten times is less than 1; the importances are added up exactly."""
    found = select([0.1] * 10, [1.0] * 10, [0.0] * 10, 10.0)
    assert found.importance == 1.0 and found.bound >= 1.0


def test_fifty_real_costs_are_within_half_a_percent():
    for seed in range(60):
        draw = random.Random(seed)
        importances = [draw.lognormvariate(0, 1) for _ in range(50)]
        weight_costs = [draw.choice((1, 1e-3, 0.1)) * draw.random() for _ in range(50)]
        if seed % 2:
            importances = [x * cost for x, cost in zip(importances, weight_costs, strict=True)]
        reach = list(itertools.accumulate(0.2 * draw.random() for _ in range(50)))
        budget = draw.uniform(0.1, 1) * (reach[-1] + sum(weight_costs))
        assert select(importances, weight_costs, reach, budget).gap <= 0.005, seed


def test_reach_is_paid_once_for_the_deepest():
    costs = [1.0, 1.0, 1.0], [0.0, 10.0, 10.0]
    assert select([1.0, 5.0, 5.0], *costs, 12.0).chosen == (False, True, True)
    assert select([1.0, 5.0, 5.0], *costs, 10.5).chosen == (True, False, False)
    assert select([1.0, 5.0, -1.0], *costs, 100.0).chosen == (True, True, False)


def test_what_costs_nothing_is_taken_if_it_is_not_deeper():
    found = select([3.0, 1e-9, 2.0, 1.0], [5.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 2.0], 6.0)
    assert found == Choice(chosen=(True, True, True, False), cost=6.0, importance=5.000000001, bound=found.bound)


def test_tensors_far_below_a_quantum_are_chosen_greedily():
    """The table holds few of them, and none of the best, which are deepest."""
    importances = [10.0] + [1.0] * 1500 + [2.0] * 1500
    found = select(importances, [1e5] + [1.0] * 3000, [0.0] + [98_500.0] * 3000, 1e5)
    assert found.importance == 3000 and found.gap < 1e-11


def test_a_budget_that_was_added_up_from_the_costs_is_enough_for_them():
    """0.5 + 0.1 is more than the number nearest to 0.6, by less than its last digit."""
    assert all(select([1.0, 1.0], [0.5, 0.1], [0.0, 0.0], 0.6).chosen)
    assert not all(select([1.0, 1.0], [0.1, 0.2], [0.0, 0.0], 0.3).chosen)  # fsum: 0.30000000000000004
    assert not all(select([1.0, 1.0], [1.0, 2.0**-53], [0.0, 0.0], math.nextafter(1, 0)).chosen)
    odd = 1 + 2.0**-52  # halfway to the next number, which is even: rounded up, and too much
    assert not all(select([1.0, 1.0], [odd, 2.0**-53], [0.0, 0.0], odd).chosen)


@pytest.mark.parametrize("rho", selector.RHOS)
def test_opt_2_7b_is_within_one_percent(rho):
    weight_costs, reach, _ = selector.tensors()
    assert len(reach) == 516
    for seed in range(2):
        for kind, importances in selector.importances(seed).items():
            found = select(importances, weight_costs, reach, selector.budget(rho))
            check(found, importances, weight_costs, reach, selector.budget(rho))
            assert found.gap <= 0.01 and found.importance > 0, kind


def test_a_finer_table_is_used_when_the_gap_is_large():
    weight_costs, reach, _ = selector.tensors()
    found = select(weight_costs, weight_costs, reach, selector.budget(0.4), levels=30)
    assert found.gap <= 0.01


@pytest.mark.parametrize(
    "instance",
    [
        ([], [], [], 1.0),
        ([1.0], [1.0], [1.0], 1.9),
        ([1.0], [0.0], [0.0], -1.0),
        ([0.0, -1.0], [1.0, 1.0], [0.0, 0.0], 9.0),
    ],
    ids=["no tensors", "too dear", "negative budget", "nothing of importance"],
)
def test_nothing_is_chosen(instance):
    found = select(*instance)
    assert found == Choice(chosen=(False,) * len(instance[0]), cost=0.0, importance=0.0, bound=0.0)
    assert found.gap == 0


def test_no_budget_takes_what_is_free():
    assert select([1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], 0.0).chosen == (True, True, False)


def test_floor_is_where_choices_begin():
    for seed in range(200):
        importances, weight_costs, reach, _ = integer_instance(seed)
        least = floor(weight_costs, reach)
        ones = [1] * len(importances)
        assert any(select(ones, weight_costs, reach, least).chosen)
        assert not any(select(ones, weight_costs, reach, least - 0.5).chosen)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"importances": [1.0]}, "inputs must have one number per tensor"),
        ({"weight_costs": [1.0, 1.0, 1.0]}, "inputs must have one number per tensor"),
        ({"importances": [1.0, math.nan]}, "importances must be finite"),
        ({"weight_costs": [math.inf, 1.0]}, "weight_costs must be finite"),
        ({"reach": [0.0, math.inf]}, "reach must be finite"),
        ({"weight_costs": [1.0, -1.0]}, "weight_costs must not be negative, got -1.0"),
        ({"reach": [-1.0, 0.0]}, "reach must not be negative, got -1.0"),
        ({"reach": [2.0, 1.0]}, "reach must not decrease from the output to the input"),
        ({"budget": math.nan}, "the budget finite, not 1 and nan"),
        ({"budget": math.inf}, "the budget finite"),
        ({"levels": 0}, "levels must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(changed, message):
    good = {"importances": [1.0, 1.0], "weight_costs": [1.0, 1.0], "reach": [0.0, 1.0], "budget": 9.0, "levels": 1}
    with pytest.raises(ValueError, match=message) as caught:
        select(**{**good, **changed})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (([], []), "no tensors"),
        (([1.0], []), "one number per tensor"),
        (([-1.0], [0.0]), "must not be negative"),
        (([1.0, 1.0], [1.0, 0.0]), "must not decrease"),
    ],
)
def test_floor_refuses_the_same(costs, message):
    with pytest.raises(ValueError, match=message):
        floor(*costs)


@st.composite
def instances(draw, numbers, most=7):
    num = draw(st.integers(1, most))
    column = st.lists(numbers, min_size=num, max_size=num)
    importances = [-x if draw(st.booleans()) else x for x in draw(column)]
    return importances, draw(column), sorted(draw(column)), draw(numbers)


REALS = st.one_of(st.floats(0, 1e15, allow_subnormal=False), st.floats(0, 1), st.integers(0, 10).map(lambda x: x / 10))


@given(instances(REALS), st.sampled_from([None, 1, 1000]))
def test_any_real_instance_keeps_budget_and_certificate(instance, levels):
    found = select(*instance, levels=levels)
    check(found, *instance)
    best = best_importance(*instance)
    assert found.importance <= best * (1 + 1e-12) and best <= found.bound


@given(instances(st.integers(0, 12), most=9), st.integers(1, 9))
def test_any_whole_instance_is_optimal_in_any_unit(instance, unit):
    importances, weight_costs, reach, budget = instance
    found = select(importances, [unit * x for x in weight_costs], [unit * x for x in reach], unit * budget, levels=12)
    assert found.importance == best_of_integers(*instance)


@given(instances(st.integers(0, 12), most=9))
def test_more_budget_is_never_worse_and_no_tensor_is_missed_for_one_that_is_useless(instance):
    importances, weight_costs, reach, budget = instance
    found = select(*instance, levels=99)
    assert select(importances, weight_costs, reach, budget + 1, levels=99).importance >= found.importance
    deeper = [*importances, 0], [*weight_costs, 0], [*reach, reach[-1]]
    assert select(*deeper, budget, levels=99).chosen == (*found.chosen, False)
