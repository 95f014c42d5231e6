"""After how many trainings a sweep is paid back: by hand."""

from __future__ import annotations

import dataclasses

import pytest
import synthetic

from joulesweep.analyse import ledger
from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.studies.decision import decisions
from joulesweep.analyse.studies.payback import payback, words


def spent(**changes):
    nothing = {"measured_j": None, "estimated_j": None, "seconds": 0.0, "num_attempts": 24, "num_unknown": 0}
    return ledger.Spent(**{**nothing, "num_windows": 0, "parts": [], **changes})


def decided(tmp_path, change, ratio=None):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(), change)
    (decision,) = decisions(aggregate(grid, runs), grid["config"])
    if ratio is None:
        return decision
    name = "energy" if decision.by == "energy_j" else "time"
    pick = dataclasses.replace(decision.recommended, ratios={**decision.recommended.ratios, name: ratio})
    baseline = {**decision.baseline, f"{decision.by}_mean": 1000.0}
    return dataclasses.replace(decision, picks=[pick], baseline=baseline)


def ratio(mean, low, high):
    return Ratio(ratio=mean, low=low, high=high, n=3, verdict="lower")


def test_joules_are_paid_back_with_an_interval(tmp_path):
    paid = payback(decided(tmp_path, synthetic.measured, ratio(0.5, 0.4, 0.75)), spent(measured_j=10_000.0))
    assert (paid.unit, paid.saved, paid.saved_low, paid.saved_high) == ("J", 500, 250, pytest.approx(600))
    assert (paid.trainings_low, paid.trainings, paid.trainings_high) == (17, 20, 40)
    assert words(paid, "10 kJ").startswith("The sweep itself took 10 kJ: paid back after 20 trainings with the ")


def test_where_joules_do_not_decide_seconds_are_paid_back(tmp_path):
    paid = payback(decided(tmp_path, lambda row: row, ratio(0.5, 0.4, 0.75)), spent(estimated_j=9.0, seconds=5000.0))
    assert (paid.unit, paid.trainings, paid.at_least) == ("s", 10, False)


def test_an_interval_that_saves_nothing_has_no_end(tmp_path):
    paid = payback(decided(tmp_path, synthetic.measured, ratio(0.9, 0.7, 1.1)), spent(measured_j=1000.0, num_unknown=1))
    assert (paid.trainings, paid.trainings_high, paid.at_least) == (10, None, True)
    assert "took at least 1 kJ" in words(paid, "1 kJ") and "perhaps never" in words(paid, "1 kJ")


def test_what_takes_more_never_pays(tmp_path):
    paid = payback(decided(tmp_path, synthetic.measured, ratio(1.1, 1.05, 1.2)), spent(measured_j=1000.0))
    assert paid.trainings is None and "never pays back" in words(paid, "1 kJ")


def test_what_is_unknown_pays_nothing_back(tmp_path):
    assert payback(decided(tmp_path, synthetic.measured), spent()) is None
    assert payback(decided(tmp_path / "none", synthetic.measured, ratio(0.5, 0.4, 0.6)), spent(measured_j=None)) is None


def test_a_recommended_baseline_pays_nothing_back(tmp_path):
    def change(row):
        first = row["spec"]["strategy"] == "single" and row["spec"]["precision"] == "fp32"
        return synthetic.measured(row, watts=1 if first else 500)

    assert payback(decided(tmp_path, change), spent(measured_j=1000.0)) is None
