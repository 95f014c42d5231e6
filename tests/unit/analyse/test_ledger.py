"""The ledger has every joule of a sweep once: in windows, around them, failed, repeated, anchors and by hand."""

from __future__ import annotations

import json

import pytest
import synthetic

from joulesweep.analyse import ledger
from joulesweep.analyse.collect import aggregate
from joulesweep.core import files
from joulesweep.plan.config import validate
from joulesweep.plan.grid import expand, manifest
from joulesweep.reference.cpu_estimate import Asked, estimate_cpu
from joulesweep.runs import attempted

ASKED = Asked(True)
MACHINE = synthetic.environment()


class Sweep:
    """A sweep's folder, filled by hand: on boards, or on a CPU without a meter."""

    def __init__(self, folder, **sections):
        config = validate(synthetic.raw_config({"devices": [2]}, **sections))
        self.folder, self.specs, self.grid = folder, expand(config).runs, manifest(config)
        self.runs = list(self.specs)

    def record(self, run, place="runs", change=lambda row: row):
        row = change(synthetic.ok_record(run, self.specs[run]))
        files.write_json(self.folder / place / run / "record.json", row)
        return row

    def note(self, run, place="runs", begun="2026-01-02T03:04:00", **ended):
        """Note an attempt; without `ended` it is open."""
        path = self.folder / place / run / attempted.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        name = {"attempt": f"{begun} {len(path.read_text()) if path.exists() else 0}"}
        first = {"began": begun, "cpu_model": MACHINE["cpu_model"], "cpu_cores": 2}
        last = {"reason": None, "waited_s": 1.0, "held_s": 50.0, "cpu_s": 40.0, "energy": [], **ended}
        with path.open("a", encoding="utf-8") as file:
            for row in [first, *([{"ended": "2026-01-02T03:05:06", **last}] if ended else [])]:
                file.write(json.dumps({**name, **row}) + "\n")

    def table(self, asked=ASKED):
        energy = {**self.grid["config"]["energy"], "estimate": asked.estimate}
        config = {**self.grid["config"], "energy": energy}
        return aggregate({**self.grid, "config": config}, self.folder / "runs").attempts

    def rows(self, asked=ASKED):
        return self.table(asked).to_dicts()

    def spent(self, asked=ASKED):
        return ledger.spent(self.table(asked))


@pytest.fixture
def on_boards(tmp_path):
    return Sweep(tmp_path, **synthetic.GPU_CONFIG)


@pytest.fixture
def on_cpu(tmp_path):
    return Sweep(tmp_path)


def board(energy_j, reason=None):
    return [{"device": "gpu:0", "kind": "gpu", "energy_j": energy_j, "reason": reason}]


def parts(spent):
    return {part.name: part for part in spent.parts}


def window_j(row):
    return sum(part["total_energy_j"] for part in row["measurement"]["energy"] if part["kind"] == "gpu")


def test_no_attempt_took_nothing_and_nothing_is_unknown(on_boards):
    spent = on_boards.spent()
    assert (spent.num_attempts, spent.num_unknown, spent.parts) == (0, 0, [])
    assert (spent.measured_j, spent.estimated_j) == (None, None)


def test_a_finished_run_is_its_window_and_what_is_around_it(on_boards):
    row = on_boards.record(on_boards.runs[0], change=synthetic.on_gpus)
    on_boards.note(on_boards.runs[0], status="ok", energy=board(window_j(row) + 500.0))
    spent = on_boards.spent()
    assert spent.measured_j == pytest.approx(window_j(row) + 500)
    assert parts(spent)["windows of the finished runs"].measured_j == pytest.approx(window_j(row))
    assert parts(spent)["around the windows"].measured_j == pytest.approx(500)
    assert parts(spent)["around the windows"].seconds == pytest.approx(50 - row["measurement"]["total_window_s"])
    assert spent.seconds == pytest.approx(50)


def test_an_older_run_is_what_its_record_says_of_the_whole_run(on_boards):
    row = on_boards.record(on_boards.runs[0], change=synthetic.on_gpus)
    whole = {part["device"]: part["energy_j"] for part in row["measurement"]["overhead"]["whole_run_energy"]}
    assert on_boards.spent().measured_j == pytest.approx(sum(whole[f"gpu:{i}"] for i in (0,)))
    assert on_boards.spent().num_windows == 0
    assert on_boards.spent().seconds == pytest.approx(60)  # from its begin to its end


def test_where_only_the_window_was_read_it_says_so(on_boards):
    def alone(row):
        row = synthetic.on_gpus(row)
        measured = row["measurement"]
        return {**row, "measurement": {**measured, "overhead": {**measured["overhead"], "whole_run_energy": []}}}

    row = on_boards.record(on_boards.runs[0], change=alone)
    spent = on_boards.spent()
    assert spent.measured_j == pytest.approx(window_j(row))
    assert spent.num_windows == 1
    assert on_boards.rows()[0]["energy_reason"] == ledger.WINDOW_ALONE


def test_failed_and_repeated_attempts_count(on_boards):
    run = on_boards.runs[0]
    on_boards.note(run, status="failed", reason="a process ended", energy=board(300.0))
    on_boards.note(run, begun="2026-01-01T00:00:00", ended="2026-01-01T00:01:00", status="ok", energy=board(700.0))
    row = on_boards.record(run, change=synthetic.on_gpus)
    on_boards.note(run, status="ok", energy=board(window_j(row)))
    spent = on_boards.spent()
    assert parts(spent)["failed"].measured_j == 300
    assert parts(spent)["repeated"].measured_j == 700
    assert spent.measured_j == pytest.approx(1000 + window_j(row))
    assert [one["is_kept"] for one in on_boards.rows()] == [False, False, True]


def test_a_recorded_failure_is_failed_and_kept(on_boards):
    run = on_boards.runs[0]
    on_boards.record(run, change=lambda row: synthetic.failed(row, "oom", "no memory"))
    on_boards.note(run, status="oom", reason="no memory", energy=board(80.0))
    (row,) = on_boards.rows()
    assert (row["status"], row["is_kept"]) == ("oom", True)
    assert parts(on_boards.spent())["failed"].measured_j == 80


def test_anchors_and_runs_by_hand_are_apart(on_boards):
    run = on_boards.runs[0]
    for place in ("anchors/2026-01-03", "by-hand"):
        row = on_boards.record(run, place, synthetic.on_gpus)
        on_boards.note(run, place, status="ok", energy=board(window_j(row) + 1))
    spent = on_boards.spent()
    assert set(parts(spent)) == {"anchors", "by hand"}
    assert spent.measured_j == pytest.approx(2 * (window_j(row) + 1))


def test_what_nobody_knows_is_counted_and_never_zero(on_boards):
    on_boards.note(on_boards.runs[0])
    on_boards.note(on_boards.runs[1], status="failed", reason="x", energy=board(None, "it has no counter"))
    first, second = on_boards.rows()
    assert (first["status"], first["energy_j"], first["energy_reason"]) == ("open", None, ledger.UNREAD)
    assert second["energy_reason"] == "gpu:0: it has no counter"
    spent = on_boards.spent()
    assert (spent.measured_j, spent.num_attempts, spent.num_unknown) == (None, 2, 2)


def test_joules_of_some_boards_are_not_those_of_the_attempt(on_boards):
    on_boards.note(on_boards.runs[0], status="failed", energy=[*board(5.0), *board(None, "lost")])
    assert on_boards.rows()[0]["energy_j"] is None


def test_estimates_stay_apart_from_what_was_read(on_cpu):
    on_cpu.record(on_cpu.runs[0])
    on_cpu.note(on_cpu.runs[0], status="ok")
    on_cpu.note(on_cpu.runs[1], status="failed")
    expected = estimate_cpu(40.0, 50.0, MACHINE["cpu_model"], 2, None).mid_j
    spent = on_cpu.spent()
    assert spent.measured_j is None
    assert spent.estimated_j == pytest.approx(2 * expected)
    assert spent.num_unknown == 0
    assert parts(spent)["failed"].estimated_j == pytest.approx(expected)


def test_estimates_nobody_asked_for_are_unknown(on_cpu):
    on_cpu.record(on_cpu.runs[0])
    on_cpu.note(on_cpu.runs[0], status="ok")
    spent = on_cpu.spent(Asked(False))
    assert (spent.estimated_j, spent.num_unknown) == (None, 1)


def test_read_joules_are_not_estimated_too(on_cpu):
    on_cpu.record(on_cpu.runs[0], change=synthetic.measured)
    energy = [{"device": "cpu:0", "kind": "cpu", "energy_j": 9000.0, "reason": None}]
    on_cpu.note(on_cpu.runs[0], status="ok", energy=energy)
    spent = on_cpu.spent()
    assert (spent.measured_j, spent.estimated_j) == (9000.0, None)


def test_an_older_run_without_meter_has_its_window_estimated(on_cpu):
    row = on_cpu.record(on_cpu.runs[0])
    measured = row["measurement"]
    expected = estimate_cpu(measured["cpu_s"], measured["window_s"], MACHINE["cpu_model"], 2, None).mid_j
    assert on_cpu.spent().estimated_j == pytest.approx(expected)


def test_boards_that_a_run_on_the_cpu_metered_are_in_no_sum(on_cpu):
    host = [{"device": "cpu:0", "kind": "cpu", "energy_j": 10.0, "reason": None}]
    on_cpu.note(on_cpu.runs[0], status="failed", energy=[*board(900.0), *host])
    on_cpu.note(on_cpu.runs[1], status="failed", energy=board(900.0))
    first, second = on_cpu.rows()
    assert (first["energy_j"], first["energy_scope"]) == (10.0, "cpu")
    assert (second["energy_j"], second["energy_reason"]) == (None, ledger.UNREAD)
    assert second["estimated_energy_j"] > 0


def test_without_its_boards_a_run_on_gpus_has_no_joules(on_boards):
    host = [{"device": "cpu:0", "kind": "cpu", "energy_j": 10.0, "reason": None}]
    on_boards.note(on_boards.runs[0], status="failed", energy=host)
    assert on_boards.rows()[0]["energy_j"] is None


@pytest.mark.parametrize("line", ["", "{", "[]", "7", '{"ended": "x"}', '{"attempt": "y", "ended": "x"}'])
def test_torn_lines_are_left_out(on_boards, line):
    run = on_boards.runs[0]
    on_boards.note(run, status="failed", energy=board(1.0))
    with (on_boards.folder / "runs" / run / attempted.FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    assert on_boards.spent().measured_j == 1


def test_attempts_of_other_grids_do_not_count(on_boards):
    on_boards.runs.append("another")
    on_boards.note("another", status="failed", energy=board(1.0))
    assert on_boards.rows() == []


def test_an_unreadable_record_leaves_the_attempts(on_boards):
    run = on_boards.runs[0]
    files.write_text(on_boards.folder / "runs" / run / "record.json", "{")
    on_boards.note(run, status="ok", energy=board(12.0))
    assert parts(on_boards.spent())["repeated"].measured_j == 12


def test_every_joule_of_a_preempted_run_counts_once(on_boards):
    """Two attempts did parts of the run, one between them died; their windows are apart from what is around them."""
    run = on_boards.runs[0]

    def in_two_attempts(row):
        part = {
            "attempt": "a", "hostname": "h", "first_step": 1, "last_step": 2, "window_s": 5.0, "cpu_s": 1.0,
            "took_s": 9.0, "energy": [], "flags": [], "conditions": row["measurement"]["conditions"],
            "overhead": row["measurement"]["overhead"],
        }  # fmt: skip
        row["measurement"]["segments"] = [part, part]
        return row

    def window(energy_j):
        return {"window": [{"device": "gpu:0", "kind": "gpu", "energy_j": energy_j, "status": "measured"}]}

    row = on_boards.record(run, change=in_two_attempts)
    on_boards.note(
        run, status="preempted", begun="2026-01-02T01:00:00", energy=board(70.0), window_s=2.0, **window(60.0)
    )
    on_boards.note(
        run, status="preempted", begun="2026-01-02T02:00:00", energy=board(90.0), window_s=3.0, **window(80.0)
    )
    on_boards.note(run, status="stopped", begun="2026-01-02T02:30:00", energy=board(11.0))
    on_boards.note(run, status="ok", energy=board(200.0), window_s=5.0, **window(150.0))
    rows = on_boards.rows()
    assert [one["is_kept"] for one in rows] == [False, True, False, True]  # the first one's checkpoint was discarded
    assert [one["window_energy_j"] for one in rows] == [None, 80.0, None, 150.0]
    assert [one["window_s"] for one in rows] == [None, 3.0, None, 5.0]
    spent = on_boards.spent()
    assert spent.measured_j == 371.0
    assert parts(spent)[ledger.WINDOWS].measured_j == 230.0
    assert parts(spent)[ledger.WINDOWS].seconds == 8.0
    assert parts(spent)[ledger.AROUND].measured_j == 60.0
    assert parts(spent)[ledger.FAILED].measured_j == 81.0
    assert row["measurement"]["energy"]  # the record's own sum is counted nowhere


def test_windows_of_a_preempted_run_count_where_no_counter_was_read(on_boards):
    run = on_boards.runs[0]
    on_boards.record(run)
    own = [{"device": "gpu:0", "kind": "gpu", "energy_j": 150.0, "status": "integrated"}]
    on_boards.note(run, status="ok", energy=[], window_s=5.0, window=own)
    (row,) = on_boards.rows()
    assert (row["energy_j"], row["energy_status"], row["energy_reason"]) == (150.0, "integrated", ledger.WINDOW_ALONE)
    assert (row["window_s"], row["window_energy_j"]) == (5.0, 150.0)
