"""Wrong orders of single runs, counted by hand."""

from __future__ import annotations

import synthetic

from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.studies.single_runs import single_runs

AXES = {"strategy": ["single"], "precision": ["fp32", "bf16-mixed"], "batch_size": [32], "repeats": 4}


def build(folder, seconds):
    def change(row):
        window_s = seconds[row["spec"]["precision"]][row["spec"]["repeat"] - 1]
        return {**row, "measurement": {**row["measurement"], "window_s": window_s}}

    return aggregate(*synthetic.write_sweep(folder, synthetic.raw_config(AXES), change))


def test_draws_of_any_two_seeds_are_counted(tmp_path):
    # The cells are 10 % apart, the seeds of each up to 18 %.
    slow = [1.0, 1.06, 1.12, 1.18]
    one = single_runs(build(tmp_path, {"fp32": slow, "bf16-mixed": [value / 1.1 for value in slow]}), "window_s")
    assert (one.told, one.open, one.draws) == (1, 0, 16)
    assert one.wrong == sum(a < b / 1.1 for a in slow for b in slow) == 3


def test_pairs_that_are_not_told_apart_are_apart(tmp_path):
    one = single_runs(build(tmp_path, {"fp32": [1.0, 1.1, 1.2, 1.3], "bf16-mixed": [1.3, 1.2, 1.1, 1.0]}), "window_s")
    assert (one.told, one.open, one.draws, one.wrong) == (0, 1, 0, 0)


def test_joules_that_nobody_measured_tell_no_order(tmp_path):
    assert single_runs(build(tmp_path, {"fp32": [1.0] * 4, "bf16-mixed": [2.0] * 4}), "energy_j") is None
