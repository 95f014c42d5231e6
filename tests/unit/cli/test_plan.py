"""`joulesweep plan` says what is to do, done and refused, and what the rest will take, with its basis."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import synthetic
import yaml

from joulesweep.cli import main, plan
from joulesweep.core import files
from joulesweep.measure import machine, meters
from joulesweep.measure.devices import Board
from joulesweep.plan import staleness
from joulesweep.plan.config import validate
from joulesweep.plan.grid import dataset_key, expand, model_key

HERE = synthetic.environment()["cpu_model"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "cpu_model", lambda: HERE)
    monkeypatch.setattr(plan, "_boards", list)


def sweep(num_finished=0, change=lambda row: row, axes=None, **sections):
    """A config, with the records of its first runs; returns the specs."""
    raw = synthetic.raw_config(axes, **sections)
    files.write_text(plan.Path("my.yaml"), yaml.safe_dump(raw))
    specs = expand(validate(raw)).runs
    for run in list(specs)[:num_finished]:
        write(change({**synthetic.ok_record(run, specs[run]), "code_digest": staleness.run_digest(specs[run])}))
    return specs


def write(row):
    files.write_json(plan.Path("results/synthetic/runs", row["run"], "record.json"), row)


def command(*arguments):
    return main.main(["plan", "--configfile", "my.yaml", *arguments])


def as_json(capsys, *arguments):
    assert command("--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_before_anything_is_fetched_it_knows_nothing_and_says_why(capsys):
    sweep()
    assert command() == 0
    out = capsys.readouterr().out
    assert out.startswith("my.yaml: 24 runs to do; 0 done; 0 cells refused\n")
    assert "Time    unknown: nothing finished yet; before models and texts are fetched" in out
    assert "Energy  unknown: nothing finished yet" in out


def test_nothing_known_is_null_in_json(capsys):
    sweep()
    made = as_json(capsys)
    assert (made["wall_s"], made["seconds"], made["joules"]) == (None, None, {})
    assert (made["num_timeless"], made["num_powerless"]) == (24, 24)
    assert {run["seconds"] for run in made["runs"]} == {None}


def test_finished_runs_are_the_basis_of_the_others(capsys):
    specs = sweep(8)  # the first repeat of every cell
    made = as_json(capsys)
    assert (made["num_to_do"], made["done"]) == (16, {"ok": 8})
    assert {run["basis"] for run in made["runs"]} == {"1 finished run of the cell"}
    truths = {run: synthetic.ok_record(run, spec)["measurement"]["window_s"] for run, spec in specs.items()}
    inside = [run["window_s"]["low"] <= truths[run["run"]] <= run["window_s"]["high"] for run in made["runs"]]
    assert sum(inside) >= 14
    assert made["seconds"]["mid"] == pytest.approx(16 * 60, rel=0.3)


def test_screen_has_a_line_per_quantity_and_cell(capsys):
    sweep(8, energy={"estimate": True, "carbon": {"country": "DEU"}, "price_per_kwh": 0.3, "currency": "EUR"})
    assert command("--cells") == 0
    out = capsys.readouterr().out
    assert "one run at a time" in out
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["Time", "Energy", "CO2e", "Cost"]
    assert all("estimated" in line for line in out.splitlines()[2:5])
    assert "   16  1 finished run of the cell" in out
    assert "ddp2 bf16-mixed bs64" in out


def test_without_factor_and_price_there_is_no_footprint(capsys):
    sweep(8)
    assert set(as_json(capsys)["joules"]["estimated"]) == {"energy_j"}


def test_joules_nobody_asked_for_are_unknown_never_zero(capsys):
    sweep(8, energy={"estimate": False})
    made = as_json(capsys)
    assert made["joules"] == {}
    assert {run["energy_j"] for run in made["runs"]} == {None}
    assert {run["energy_basis"] for run in made["runs"]} == {plan.JOULELESS}


def test_measured_joules_are_planned_as_measured(capsys):
    sweep(8, synthetic.measured)
    assert list(as_json(capsys)["joules"]) == ["measured"]


def test_all_done_is_nothing_to_do(capsys):
    sweep(24)
    assert command() == 0
    assert capsys.readouterr().out == "my.yaml: 0 runs to do; 24 done; 0 cells refused\n"


def test_runs_that_other_code_measured_are_to_do(capsys):
    sweep(24, lambda row: {**row, "code_digest": "c0de" * 4})
    made = as_json(capsys)
    assert (made["num_to_do"], made["num_outdated"]) == (24, 24)
    assert {run["basis"] for run in made["runs"]} == {"3 finished runs of the cell"}


def test_accepted_runs_are_done(capsys):
    def accept(row):
        entry = {"code_digest": row["code_digest"], "reason": "a name", "accepted": row["finished"]}
        return {**row, "code_digest": "c0de" * 4, "accepted": [entry]}

    sweep(24, accept)
    assert as_json(capsys)["num_to_do"] == 0


def test_runs_of_another_machine_count_only_if_it_is_named(capsys):
    other = synthetic.environment(hostname="node7", cpu_model="Intel Xeon Platinum 8480")
    sweep(8, lambda row: {**row, "environment": other})
    foreign = as_json(capsys)
    assert foreign["seconds"] is None
    assert foreign["num_to_do"] == 16  # they are done, wherever they ran
    named = as_json(capsys, "--machine", "node7")
    assert named["machine"] == "node7"
    assert named["seconds"]["mid"] > 0


def test_before_anything_ran_boards_have_their_rates_and_limits(capsys, monkeypatch):
    board = Board(index=0, uuid="GPU-0", name="NVIDIA H200", memory_bytes=141 * 2**30, has_counter=True, mig=False)
    monkeypatch.setattr(plan, "_boards", lambda: [board, board])
    monkeypatch.setattr(meters, "sensor", lambda board: SimpleNamespace(power_limit_w=lambda: 700.0))
    specs = sweep(axes={"devices": [2]}, **synthetic.GPU_CONFIG)
    spec = next(iter(specs.values()))
    model, texts = model_key(spec.model, spec.model_source), dataset_key(spec.dataset, spec.dataset_source)
    shapes = {"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 30522}
    files.write_json(plan.Path("resources/models", model, "config.json"), shapes)
    files.write_json(plan.Path("resources/tokens", texts, f"{model}.json"), {"num_texts": 9000, "num_tokens": 90000})
    made = as_json(capsys)
    assert made["together"] == "on 2 GPUs"
    assert list(made["joules"]) == ["measured"]
    assert all("of the peak rate of H200" in run["basis"] for run in made["runs"])
    assert all("700 W" in run["energy_basis"] for run in made["runs"])
    assert made["wall_s"]["mid"] < made["seconds"]["mid"]
    assert made["wall_s"]["low"] < made["wall_s"]["mid"] < made["wall_s"]["high"]


def test_a_machine_nobody_ran_on_is_refused(capsys):
    sweep(8)
    assert command("--machine", "node2") == 2
    assert capsys.readouterr().err == (
        "error: --machine: unknown machine with finished runs 'node2'; allowed: node1 (did you mean 'node1'?)\n"
    )


def test_a_machine_is_refused_where_nothing_finished(capsys):
    sweep()
    assert command("--machine", "node2") == 2
    assert "no run of this sweep has finished on any machine" in capsys.readouterr().err


def test_cells_that_cannot_run_are_refused_with_the_reason(capsys):
    sweep(
        axes={"strategy": ["single", "dp"], "devices": [2]},
        exclude=[{"when": {"batch_size": 64, "strategy": "single"}, "reason": "seen before"}],
    )
    made = as_json(capsys)
    reasons = {row["label"]: row["reason"] for row in made["refused"]}
    assert reasons["single fp32 bs64"] == "seen before"
    assert "dp" in reasons["dp2 fp32 bs32"]
    assert {run["label"].split()[0] for run in made["runs"]} == {"single"}


def test_unsupported_runs_are_refused_not_done(capsys):
    sweep(1, lambda row: synthetic.failed(row, "unsupported", "no such unit"))
    made = as_json(capsys)
    assert made["done"] == {}
    assert made["refused"] == [{"label": "single fp32 bs32", "reason": "no such unit"}]


def test_failed_runs_are_done_and_said_to_be_so(capsys):
    sweep(8, lambda row: synthetic.failed(row, "oom", "no memory"))
    assert command() == 0
    assert "16 runs to do; 8 done (8 oom)" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "joulesweep-record"}'])
def test_an_unreadable_record_is_a_run_to_do(capsys, content):
    run = next(iter(sweep(1)))
    files.write_text(plan.Path("results/synthetic/runs", run, "record.json"), content)
    assert as_json(capsys)["num_to_do"] == 24


def test_boards_share_the_work(capsys):
    def row(one):
        return synthetic.on_gpus(one)

    sweep(8, row, {"devices": [2]}, **synthetic.GPU_CONFIG)
    walls = {gpus: as_json(capsys, "--machine", "node1", "--gpus", str(gpus))["wall_s"]["mid"] for gpus in (2, 4)}
    assert 1.5 < walls[2] / walls[4] < 2.1


@pytest.mark.parametrize("option", ["--cores", "--gpus"])
def test_less_than_one_slot_is_refused(capsys, option):
    sweep()
    assert command(option, "0") == 2
    assert capsys.readouterr().err == f"error: {option}: must be 1 or more, got 0\n"


def test_it_needs_neither_torch_nor_tables():
    heavy = "('torch', 'polars', 'snakemake')"
    code = f"import sys; from joulesweep.cli import plan; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
