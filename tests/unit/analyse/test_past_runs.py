"""What runs took is read from their records: within and around the window, and on which machine."""

from __future__ import annotations

import pytest
import synthetic

from joulesweep.analyse import collect, past_runs
from joulesweep.analyse.estimator import Job
from joulesweep.analyse.past_runs import Machine
from joulesweep.plan.config import validate
from joulesweep.plan.grid import expand
from joulesweep.reference.cpu_estimate import Asked

EPYC = "AMD EPYC 7763 64-Core Processor"


@pytest.fixture
def record():
    run, spec = next(iter(expand(validate(synthetic.raw_config())).runs.items()))
    return synthetic.ok_record(run, spec)


@pytest.fixture
def on_gpus():
    config = validate(synthetic.raw_config({"devices": [2]}, **synthetic.GPU_CONFIG))
    run, spec = next(iter(expand(config).runs.items()))
    return synthetic.on_gpus(synthetic.ok_record(run, spec))


def past(row, asked=None):
    return past_runs.of_record(Job(run=row["run"], cell="c", label="c", axes={}), row, asked or Asked(True))


def with_conditions(row, *flags, **changes):
    measured = row["measurement"]
    conditions = {**measured["conditions"], **changes}
    rows = [{"flag": flag, "text": "seen"} for flag in flags]
    return {**row, "measurement": {**measured, "conditions": conditions, "flags": rows}}


def test_the_rest_of_a_run_is_around_its_window(record):
    took = past(record)
    assert took.window_s == record["measurement"]["window_s"]
    assert took.around_s == pytest.approx(60 - took.window_s)  # it began at 03:04:05 and ended at 03:05:05


def test_waiting_for_boards_to_settle_is_part_of_it(record):
    assert past(with_conditions(record, cooldown_s=20.0)).around_s == pytest.approx(past(record).around_s + 20)


def test_start_up_is_the_least_there_is_around_a_window(record):
    short = {**record, "finished": record["started"]}
    assert past(short).around_s == record["measurement"]["startup_s"]


def test_joules_are_estimated_only_where_the_config_asks(record):
    assert past(record).energy_status == "estimated"
    assert past(record).spread[0] < 1 < past(record).spread[1]
    assert past(record, Asked(False)).energy_j is None


def test_read_joules_come_before_estimates(record):
    took = past(synthetic.measured(record, watts=50.0))
    assert took.energy_status == "measured"
    assert took.energy_j == pytest.approx(50 * took.window_s)
    assert took.spread == (1.0, 1.0)


def test_doubtful_joules_tell_nothing(record):
    doubtful = synthetic.energy_row("cpu:0", 100.0, doubt="its power contradicts it")
    assert past(synthetic.with_energy(record, doubtful), Asked(False)).energy_j is None


def test_joules_around_the_window_are_of_the_same_devices(on_gpus):
    took, measured = past(on_gpus), on_gpus["measurement"]
    whole = {row["device"]: row["energy_j"] for row in measured["overhead"]["whole_run_energy"]}
    boards = [row for row in measured["energy"] if row["kind"] == "gpu"]
    expected = sum(whole[row["device"]] - row["total_energy_j"] for row in boards)
    assert took.energy_scope == "gpu"
    assert took.around_j == pytest.approx(expected)
    assert took.around_j > 0


def test_joules_around_the_window_are_unknown_where_a_device_was_not_read_so_long(on_gpus):
    measured = on_gpus["measurement"]
    row = {**on_gpus, "measurement": {**measured, "overhead": {**measured["overhead"], "whole_run_energy": []}}}
    assert past(row).around_j is None
    assert past(row).energy_j is not None


def test_a_failed_run_took_time_and_no_joules(record):
    took = past(synthetic.failed(record, "oom", "no memory"))
    assert (took.status, took.window_s, took.around_s, took.energy_j) == ("oom", None, 60.0, None)


@pytest.mark.parametrize(
    ("flags", "conditions", "waited"),
    [
        (["contended"], {"cpu_wait_share": 0.4}, 0.4),
        (["contended"], {"cpu_share": 0.7}, 0.3),
        (["contended"], {}, 0.0),
        (["contended"], {"cpu_wait_share": 1.0}, 0.95),
        ([], {"cpu_wait_share": 0.4}, 0.0),
    ],
)
def test_waiting_for_cores_counts_where_a_run_is_flagged(record, flags, conditions, waited):
    assert past(with_conditions(record, *flags, **conditions)).waited == pytest.approx(waited)


def test_waiting_for_cores_takes_a_share_of_the_estimated_joules(record):
    took = past(with_conditions(record, "contended", cpu_wait_share=0.5))
    assert 0 < took.waited_j < 0.5
    assert past(record).waited_j == 0


def busy(row):
    return with_conditions(row, "contended", cpu_wait_share=0.25)


def test_rows_of_the_table_tell_the_same(tmp_path, record):
    record = busy(record)
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(), busy)
    row = next(collect.aggregate(grid, runs).runs.iter_rows(named=True))
    of_row, of_record = past_runs.of_row(row), past(record)
    assert row["run"] == record["run"]
    for name in ("status", "window_s", "around_s", "energy_j", "energy_status", "waited"):
        assert getattr(of_row, name) == getattr(of_record, name)


def test_runs_of_another_processor_are_of_another_machine(record):
    assert past_runs.is_of(record, Machine(EPYC, ()))
    assert not past_runs.is_of(record, Machine("Intel Xeon", ()))


def test_runs_on_boards_are_of_a_machine_with_such_boards(on_gpus):
    assert past_runs.is_of(on_gpus, Machine("any processor", ("NVIDIA H200",)))
    assert not past_runs.is_of(on_gpus, Machine(EPYC, ("NVIDIA A30",)))
    assert not past_runs.is_of(on_gpus, Machine(EPYC, ()))


@pytest.mark.parametrize("name", ["node1", "NODE1", "h200", "7763"])
def test_a_machine_is_named_by_host_board_or_processor(on_gpus, name):
    assert past_runs.named([on_gpus], name) == [Machine(EPYC, ("NVIDIA H200",), "node1")]


def test_no_machine_of_a_name_is_none(on_gpus):
    assert past_runs.named([on_gpus], "a30") == []


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"format": "other"}, {"run": "other"}, {"measurement": {}}, {"started": "yesterday"}]
)
def test_what_is_no_record_is_refused(record, change):
    with pytest.raises((ValueError, LookupError, TypeError)):
        past_runs.check({**record, **change}, record["run"])
    past_runs.check(record, record["run"])
