"""What a record says of environment, conditions and choices, and which runs are flagged."""

from __future__ import annotations

import pytest
import synthetic

from joulesweep.analyse import columns, tables
from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.run_rows import fingerprint
from joulesweep.core.outcome import Environment
from joulesweep.core.work import COUNTED


def environment(**changes):
    return synthetic.typed(Environment, synthetic.environment(**changes))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"hostname": "node2", "cpu_cores": 64}, True),
        ({"driver": "570.1"}, False),
        ({"cpu_model": "AMD EPYC 9654"}, False),
        ({"gpus": [synthetic.board(0)]}, False),
    ],
)
def test_fingerprint(change, same):
    assert (fingerprint(environment()) == fingerprint(environment(**change))) is same


def test_neither_identity_nor_number_of_boards_splits_cells():
    boards = ([synthetic.board(0)], [synthetic.board(1)], [synthetic.board(0), synthetic.board(1)])
    assert len({fingerprint(environment(gpus=gpus)) for gpus in boards}) == 1
    other = [synthetic.board(0), {**synthetic.board(1), "name": "NVIDIA A30"}]
    assert fingerprint(environment(gpus=other)) != fingerprint(environment(gpus=boards[2]))


def tabulated(tmp_path, change, **sections):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(**sections), change)
    return aggregate(grid, runs).runs


def test_flags_have_a_line_of_text_each(tmp_path):
    def change(row):
        row = synthetic.flagged(row, "throttled", "gpu:0: clocks held down")
        row = synthetic.flagged(row, "short_window", "gpu:0: window of 2 s;\n30 s make a headline")
        return synthetic.flagged(row, "throttled", "gpu:1: clocks held down")

    row = tabulated(tmp_path, change).row(0, named=True)
    assert row["flags"] == "throttled, short_window"
    assert row["flag_texts"].split("\n") == [
        "gpu:0: clocks held down; gpu:1: clocks held down",
        "gpu:0: window of 2 s; 30 s make a headline",
    ]


def test_every_count_of_a_record_has_a_column(tmp_path):
    """Those of targets too: tokens per second are of both."""
    counts = {name: number for number, name in enumerate(COUNTED)}
    row = tabulated(tmp_path, lambda row: {**row, "measurement": {**row["measurement"], **counts}}).row(0, named=True)
    assert {name: row[name] for name in COUNTED} == counts


def test_the_batch_systems_job_has_columns_and_splits_no_cell(tmp_path):
    job = {"system": "slurm", "node": "n1", "account": "green", "partition": None}

    def change(row):
        batch = {**job, "job": str(row["spec"]["repeat"])}
        return {**row, "environment": {**row["environment"], "batch": batch}}

    runs = tabulated(tmp_path, change)
    assert runs["job_id"].to_list() == [str(repeat) for repeat in runs["repeat"]]
    assert set(runs["batch_system"]) == {"slurm"} and set(runs["account"]) == {"green"}
    assert runs["environment"].n_unique() == 1


def test_outside_a_batch_system_its_columns_are_null(tmp_path):
    runs = tabulated(tmp_path, synthetic.measured)
    names = ("batch_system", "job_id", "node", "account", "partition")
    assert {runs[name].null_count() for name in names} == {runs.height}


def test_no_flags_is_null(tmp_path):
    runs = tabulated(tmp_path, synthetic.measured)
    assert runs["flags"].null_count() == runs["flag_texts"].null_count() == runs.height


def test_unknown_conditions_are_null(tmp_path):
    nothing = dict.fromkeys(("temperature_start_c", "temperature_end_c", "sm_clock_mean_mhz", "power_limit_w"))

    def change(row):
        conditions = synthetic.conditions(boards=[synthetic.board_state(0, **nothing, throttle_reasons=None)])
        overhead = synthetic.overhead(trace_cpu_s=None)
        return {**row, "measurement": {**row["measurement"], "conditions": conditions, "overhead": overhead}}

    row = tabulated(tmp_path, change).row(0, named=True)
    assert {row[key] for key in (*nothing, "throttle_reasons", "meter_overhead_fraction", "settled")} == {None}


def at(row, begin_s, end_s, exclusive="gpu", hostname="node1"):
    """The record of a run whose window had these seconds of a minute."""
    times = {"window_begin": f"2026-01-02T03:04:{begin_s:06.3f}+00:00"}
    times["window_end"] = f"2026-01-02T03:04:{end_s:06.3f}+00:00"
    conditions = {**row["measurement"]["conditions"], **times, "exclusive": exclusive}
    environment = {**row["environment"], "hostname": hostname}
    return {**row, "environment": environment, "measurement": {**row["measurement"], "conditions": conditions}}


def shared(tmp_path, windows, meter=synthetic.measured):
    """Which of a sweep's runs are flagged as sharing their host; each has begin, end and more of `at`."""
    given = iter(windows)
    axes = {"strategy": ["single"], "precision": ["fp32"], "batch_size": [32], "repeats": len(windows)}
    raw = synthetic.raw_config(axes)
    grid, runs = synthetic.write_sweep(tmp_path, raw, lambda row: at(meter(row), *next(given)))
    return [flags == "shared_host" for flags in aggregate(grid, runs).runs["flags"]]


@pytest.mark.parametrize(
    ("windows", "flagged"),
    [
        ([(0, 10), (5, 15), (20, 30)], [True, True, False]),
        ([(20, 30), (5, 15), (0, 10)], [False, True, True]),  # not in the order of the manifest
        ([(0, 50), (1, 2), (40, 45)], [True, True, True]),
        ([(0, 10), (10, 20)], [False, False]),  # one ends as the other begins
        ([(0, 10), (5, 15, "gpu", "node2")], [False, False]),
        ([(0, 10, "node"), (5, 15, "node")], [False, False]),
        ([(0, 10, "none"), (5, 15, "none")], [True, True]),
    ],
)
def test_windows_that_overlap_share_their_host(tmp_path, windows, flagged):
    assert shared(tmp_path, windows) == flagged


def test_without_host_joules_nothing_is_shared(tmp_path):
    assert shared(tmp_path, [(0, 10), (5, 15)], meter=lambda row: row) == [False, False]


def test_a_flag_that_is_there_is_not_added_again(tmp_path):
    def meter(row):
        return synthetic.flagged(synthetic.measured(row), "shared_host", "seen by the run itself")

    assert shared(tmp_path, [(0, 10), (5, 15)], meter) == [True, True]


def selections(tmp_path, change, axes=None):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes), change)
    return aggregate(grid, runs).selections


GREEN = {**synthetic.METHODS, "method": [{"greentrainer": {"rho": 0.5}}], "repeats": 1}


def test_a_choice_is_told_as_the_record_has_it(tmp_path):
    written = []

    def change(row):
        written.append(synthetic.choosing(row))
        return written[-1]

    found = selections(tmp_path, change, GREEN).to_dicts()
    phases = [phase for phase in written[0]["measurement"]["phases"] if phase["kind"] == "training"]
    assert len(found) == len(phases) == 2
    for row, phase in zip(found, phases, strict=True):
        assert {key: row[key] for key in row if key in phase} == {key: phase[key] for key in row if key in phase}
        assert row["num_chosen"] == len(phase["chosen"]) < row["num_candidates"] == 42 and row["rho"] == 0.5
        assert row["counted_cost"] == pytest.approx(1.01 * row["predicted_cost"]) and row["cost_reason"] is None
        assert (row["rating_s"], row["step_s"]) == (0.25, 3.0 / phase["num_steps"])


def test_counted_cost_by_hand(tmp_path):
    every = {"token": 6.0, "head_position": 60.0, "token_pair": 3.0}
    every |= {"recomputed_token": 2.0, "recomputed_token_pair": 1.0}
    chosen = {"token": 3.0, "head_position": 40.0, "token_pair": 1.0}
    counts = {"num_tokens": 100, "num_predicted": 10, "num_token_pairs": 1000}

    def change(row):
        row = synthetic.choosing(row, flop_coefficients=chosen, **counts, num_padded_tokens=10**9)
        for phase in row["measurement"]["phases"]:
            phase["flop_coefficients"] = every if phase["kind"] == "rating" else chosen
        return row

    expected = (300 + 400 + 1000) / (800 + 600 + 4000)
    assert selections(tmp_path, change, GREEN)["counted_cost"].to_list() == pytest.approx([expected] * 2)


@pytest.mark.parametrize("kind", ["training", "rating"])
def test_a_cost_that_was_not_counted_is_null_with_a_reason(tmp_path, kind):
    def change(row):
        row = synthetic.choosing(row)
        for phase in row["measurement"]["phases"]:
            if phase["kind"] == kind:
                phase.update(flop_coefficients=None, bytes_per_step=None, flop_reason="einsum is not counted")
        return row

    found = selections(tmp_path, change, GREEN)
    assert found["counted_cost"].count() == 0 and found["predicted_cost"].count() == 2
    assert found["cost_reason"].to_list() == ["einsum is not counted"] * 2


def test_a_choice_without_rating_before_it_is_not_counted(tmp_path):
    def change(row):
        row = synthetic.choosing(row)
        row["measurement"]["phases"] = row["measurement"]["phases"][1:]
        return row

    first, second = selections(tmp_path, change, GREEN).to_dicts()
    assert first["counted_cost"] is None and "every tensor was counted" in first["cost_reason"]
    assert second["counted_cost"] > 0


def test_where_no_method_chooses_the_table_has_its_columns_and_no_row(tmp_path):
    found = selections(tmp_path, lambda row: row)
    assert found.is_empty() and found.schema == tables.frame([], columns.SELECTIONS).schema
