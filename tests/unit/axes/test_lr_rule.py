"""Each rule gives the rate at a batch, and says where rules meet."""

from __future__ import annotations

import pytest

from joulesweep.axes.lr_rule import LR_RULES, leading_to, peak


@pytest.mark.parametrize(
    ("rule", "batch_size", "expected"),
    [
        ("constant", 256, 2e-5),
        ("sqrt", 128, 4e-5),
        ("sqrt", 64, 2.82843e-5),
        ("linear", 96, 6e-5),
        ("linear", 8, 5e-6),
        ("linear", 32, 2e-5),
    ],
)
def test_the_rate_of_a_batch(rule, batch_size, expected):
    assert peak(rule, 2e-5, batch_size, 32) == expected


@pytest.mark.parametrize("rule", LR_RULES)
def test_at_the_base_the_rate_keeps_all_its_digits(rule):
    assert peak(rule, 1.23456789e-5, 32, 32) == 1.23456789e-5


def test_a_rate_tells_the_rules_that_lead_to_it():
    asked = {"rules": ["constant", "sqrt", "linear"], "rates": [1e-3, 2e-3]}
    assert leading_to(1e-3, 16, 16, **asked) == ["constant", "sqrt", "linear"]
    assert leading_to(2e-3, 64, 16, **asked) == ["constant", "sqrt"]
    assert leading_to(3e-3, 64, 16, **asked) == []
    assert leading_to(1e-3, 64, None, rules=["constant"], rates=[1e-3]) == ["constant"]
