from __future__ import annotations

import itertools

import pairwise

AXES = {"a": range(4), "b": range(3), "c": range(5), "d": range(2)}
CASES = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


def met(cases):
    return {pair for case in cases for pair in itertools.combinations(case.items(), 2)}


def test_every_two_values_meet_in_a_few_cases():
    numbers = pairwise.chosen(CASES)
    assert met([CASES[i] for i in numbers]) == met(CASES)
    assert 20 <= len(numbers) <= 30 < len(CASES)  # 4 × 5 is the least there can be


def test_pairs_that_no_case_has_are_not_asked_for():
    allowed = [case for case in CASES if (case["a"], case["b"]) != (0, 0)]
    assert met([allowed[i] for i in pairwise.chosen(allowed)]) == met(allowed)


def test_a_case_that_adds_no_pair_is_left_out():
    assert pairwise.chosen([{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2}]) == [0]
