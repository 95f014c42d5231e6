"""Every column is described, every row fills its columns and no other, and files say what their columns are."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import polars as pl
import pytest
import synthetic

from joulesweep.analyse import columns, run_rows, tables
from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.columns import TABLES, Column
from joulesweep.core import files
from joulesweep.core.errors import UserError
from joulesweep.core.work import COUNTED
from joulesweep.report import numbers

#: The unit that the end of a name stands for; the first that fits.
ENDS = {
    "samples_per_s": "texts/s",
    "padded_tokens_per_s": "positions/s",
    "tokens_per_s": "tokens/s",
    "_per_minute": "epochs/min",
    "_per_step": "bytes/step",
    "_flops_per_j": "FLOP/J",
    "_s": "s",
    "_j": "J",
    "_w": "W",
    "_g": "g",
    "_c": "°C",
    "_mhz": "MHz",
    "_bytes": "bytes",
    "_flops": "FLOP",
    "_macs": "MAC",
    "_loss": "nat/token",
}
EVERY = [
    pytest.param(table, column, id=f"{table}-{name}") for table in TABLES for name, column in TABLES[table].items()
]


@pytest.mark.parametrize(("table", "column"), EVERY)
def test_a_column_is_described_in_a_line_and_has_the_unit_of_its_name(table, column):
    stem = re.sub("_(mean|low|high)$", "", column.name)
    assert column.unit == next((unit for end, unit in ENDS.items() if stem.endswith(end)), None)
    assert len(column.about) > 10 and column.about == " ".join(column.about.split()).rstrip(".")
    assert column.null is None or column.null.split()[0] in {
        "where",
        "unless",
        "without",
        "with",
        "of",
        "on",
        "outside",
    }


def test_every_table_is_described():
    assert list(TABLES) == list(columns.ABOUT) == list(tables.NAMES)
    assert all(name == column.name for table in TABLES.values() for name, column in table.items())


def test_a_table_has_no_column_twice():
    with pytest.raises(ValueError, match="twice"):
        columns._table(*[Column("run", columns.TEXT, None, "id of the run")] * 2)


def test_intervals_are_made_from_the_row_of_their_quantity():
    for quantity, end in itertools.product(columns.QUANTITIES, ("mean", "low", "high")):
        made, of = columns.CELLS[f"{quantity}_{end}"], columns.RUNS[quantity]
        assert (made.unit, made.dtype) == (of.unit, columns.REAL)
    assert columns.RUNS["energy_j"].about in columns.CELLS["energy_j_mean"].about


@pytest.mark.parametrize("name", [name for name, column in columns.RUNS.items() if column.heading])
def test_a_column_of_the_page_is_shown_in_a_way_that_there_is(name):
    column = columns.RUNS[name]
    assert column.show in numbers.FORMATS
    assert column.mean or name.startswith("estimated_"), "else the cells have no number of it"


def test_files_say_what_their_columns_are(tmp_path):
    found = aggregate(*synthetic.write_sweep(tmp_path, synthetic.raw_config({"repeats": 1})))
    tables.write(found, tmp_path / "tables")
    for name in tables.NAMES:
        described = tables.described(tmp_path / "tables" / f"{name}.parquet")
        assert list(described.items()) == list(TABLES[name].items())
        assert dict(getattr(found, name).schema) == {
            column.name: tables.DTYPES[column.dtype] for column in described.values()
        }


@pytest.mark.parametrize("kind", ["absent", "text", "plain"])
def test_a_file_without_descriptions_is_refused_in_a_line(tmp_path, kind):
    path = tmp_path / "runs.parquet"
    if kind == "text":
        path.write_text("run,cell")
    elif kind == "plain":
        pl.DataFrame({"run": ["a"]}).write_parquet(path)
    with pytest.raises(UserError, match=re.escape(f"{path}: ")) as caught:
        tables.described(path)
    assert "\n" not in str(caught.value)


TABLE = columns._table(
    Column("run", columns.TEXT, None, "id of the run"),
    Column("energy_j", columns.REAL, "J", "joules of the run", "where none were read"),
)


def test_what_a_row_lacks_is_null_where_its_column_may_be():
    assert tables.frame([{"run": "a"}, {"energy_j": 1, "run": "b"}], TABLE).rows() == [("a", None), ("b", 1.0)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"run": "a", "enery_j": 1.0}, "unknown column 'enery_j'.* 'energy_j'"),
        ({"run": "a", "enery_j": None}, "unknown column 'enery_j'.* 'energy_j'"),
        ({"energy_j": 1.0}, "nothing fills column run"),
    ],
)
def test_a_row_that_does_not_fit_its_table_is_an_error(row, words):
    with pytest.raises(tables.ColumnError, match=words):
        tables.frame([{"run": "b", "energy_j": 2.0}, row], TABLE)


def test_values_are_checked_of_columns_alone():
    with pytest.raises(tables.ColumnError, match="unknown column"):
        tables.check({"enery_j": 1.0}, TABLE)


def test_a_column_is_filled_once():
    assert tables.combined(TABLE, {"run": "a"}, {"energy_j": 1.0}) == {"run": "a", "energy_j": 1.0}
    with pytest.raises(tables.ColumnError, match="energy_j is filled twice"):
        tables.combined(TABLE, {"run": "a", "energy_j": 1.0}, {"energy_j": 1.0})


def test_code_that_fills_columns_names_those_that_there_are():
    assert columns.named(TABLE, "energy_j run") == ("energy_j", "run")
    with pytest.raises(KeyError, match="enery_j"):
        columns.named(TABLE, "run enery_j")


def test_every_count_of_a_step_is_a_column():
    assert set(COUNTED) <= columns.RUNS.keys()


ONE = {"strategy": ["single"], "precision": ["fp32"], "batch_size": [32], "repeats": 1}


@pytest.mark.parametrize(
    ("place", "name", "replacement", "words"),
    [
        (
            run_rows.roofline,
            "columns",
            lambda *given: SimpleNamespace(useful_flop=1.0, useful_flops=None),
            "unknown column 'useful_flop'.*'useful_flops'",
        ),
        (run_rows, "headline", lambda *given: SimpleNamespace(window_s=1.0, energy_j=None), "window_s is filled twice"),
        (run_rows, "by_epoch", lambda *given: SimpleNamespace(energy=1.0), "unknown column 'energy'"),
        (run_rows, "_timed", lambda *given: {"ratings_s": 1.0}, "unknown column 'ratings_s'"),
        (run_rows, "CITED", {**run_rows.CITED, "made": "certificate_date"}, "unknown column 'certificate_date'"),
        (run_rows, "SCORED", run_rows.SCORED[1:], "nothing fills column validation_loss"),
        (run_rows, "OF_EPOCH", run_rows.OF_EPOCH[1:], "nothing fills column epoch"),
        (run_rows, "OF_DEVICE", run_rows.OF_DEVICE[1:], "nothing fills column device"),
    ],
)
def test_a_mistake_in_what_fills_rows_is_no_corrupt_record(tmp_path, monkeypatch, place, name, replacement, words):
    axes = {**ONE, "method": [{"greentrainer": {"rho": 0.5}}]}
    sweep = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes), synthetic.choosing)
    aggregate(*sweep)
    monkeypatch.setattr(place, name, replacement)
    with pytest.raises(tables.ColumnError, match=words):
        aggregate(*sweep)


def told(row):
    """The same run with all that a record can tell."""
    uncounted = {"flop_reason": "einsum is not counted"} if row["spec"]["repeat"] == 2 else {}
    row = synthetic.choosing(synthetic.on_gpus(row), **uncounted)
    row = synthetic.flagged(row, "throttled", "gpu:0: clocks held down")
    measurement, first = row["measurement"], row["spec"]["repeat"] == 1
    reasons = dict.fromkeys(("idle_reason", "net_reason", "ratio_reason"), "the trace has too few readings")
    judged = {"doubt": "idle power is 2 × the run's", "power_method": "instant", **(reasons if first else {})}
    energy = [{**one, **(judged if one["kind"] == "gpu" else {})} for one in measurement["energy"]]
    doubtful = {"doubt": "less than the joules of gpu:0, which it contains"}
    silent = {"status": "unavailable", "method": None, "reason": "it reports power alone, and that could not be read"}
    wall_j = sum(one["energy_j"] for one in energy if one["energy_j"]) if first else None
    energy.append(synthetic.energy_row("wall:0", wall_j, **(doubtful if first else silent)))
    boards = [synthetic.board_state(0, throttle_reasons=["power cap"])]
    conditions = {**measurement["conditions"], "boards": boards, "cpu_wait_share": 0.1}
    certificate = {
        "digest": "c0ffee",
        "made": "2026-01-02",
        "holds": ["tick"],
        "fails": ["lag"],
        "not_tried": ["clock"],
    }
    certificates = [{**certificate, "device": "gpu:0", "name": "GPU-0", "reason": "of another driver"}]
    batch = {"system": "slurm", "job": "4711", "node": "n1", "account": "green", "partition": "gpu"}
    return {
        **row,
        "measurement": {**measurement, "energy": energy, "conditions": conditions, "texts": synthetic.TEXT_COUNTS},
        "environment": {**row["environment"], "certificates": certificates, "batch": batch},
        "accepted": [{"code_digest": "0ther", "reason": "wording alone", "accepted": "2026-01-03"}],
        "quality": {**row["quality"], "choice_accuracy": 0.5},
        "epochs": [{**epoch, "choice_accuracy": 0.5} for epoch in row["epochs"]],
        "evaluations": [EVALUATED, {**EVALUATED, "category": "age", "before": None, "after": None}],
    }


def not_all_well(row):
    """The same run, measured on a CPU; of a batch size out of memory, or without joules."""
    if row["spec"]["batch_size"] == 32:
        return synthetic.measured(row)
    return synthetic.failed(row, "oom", "asked for 2 GiB") if row["spec"]["repeat"] == 3 else row


def without_the_first(row):
    """The same run; the first cell out of memory, and two values that slow each other down."""
    spec = row["spec"]
    if (spec["strategy"], spec["precision"], spec["batch_size"]) == ("single", "fp32", 32):
        return synthetic.failed(row, "oom", "asked for 2 GiB")
    factor = 2 if (spec["strategy"], spec["precision"]) == ("ddp", "bf16-mixed") else 1
    measurement = row["measurement"]
    return {**row, "measurement": {**measurement, "window_s": factor * measurement["window_s"]}}


#: A metric of an evaluation, and the scores of its items.
EVALUATED = {"evaluation": "crows-pairs", "category": "all", "metric": "neutral", "before": 1.0, "after": 2.0, "n": 1}
SCORED = {"score": "neutral", "before": [0.0], "after": [100.0]}
ITEMS = {"evaluation": "crows-pairs", "categories": ["age"], "scores": [SCORED]}
#: An attempt that failed, in its two lines.
ATTEMPT = [
    {"attempt": "1", "began": "2026-01-02T03:04:05", "cpu_model": "AMD EPYC 7763", "cpu_cores": 2},
    {"attempt": "1", "ended": "2026-01-02T03:05:05", "status": "failed", "waited_s": 1.0, "held_s": 2.0, "cpu_s": 1.0},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tables of a sweep on GPUs whose records tell all that they can, and of one on the CPU."""
    energy = {"carbon": {"g_per_kwh": 360.0, "source": "a contract"}, "price_per_kwh": 0.36, "currency": "EUR"}
    axes = {**synthetic.METHODS, "batch_size": [32, 64], "micro_batch_size": [None, 16], "max_grad_norm": [1.0]}
    gpu = synthetic.raw_config(axes, hardware={"accelerator": "cuda"}, energy=energy)
    cpu = synthetic.raw_config({"precision": ["fp32"]}, energy={**energy, "estimate": True})
    found = []
    for raw, change in ((gpu, told), (cpu, not_all_well)):
        folder = tmp_path_factory.mktemp("sweep")
        sweep = synthetic.write_sweep(folder, raw, change)
        summary = {"text": 1, "summary": "a cat", "references": ["a cat sat"]}
        for run in sweep[0]["runs"]:
            files.write_lines(sweep[1] / run / "summaries.jsonl", [summary])
            files.write_lines(sweep[1] / run / "steps.jsonl", [{"step": 1, "train_loss": 2.0}] * 30)
            files.write_lines(sweep[1] / run / "evaluations.jsonl", [ITEMS])
        files.write_lines(sweep[1] / run / "attempts.jsonl", ATTEMPT)
        synthetic.write_anchors(sweep, folder, "2026-03-01", 2, 1.01)
        found.append(aggregate(*sweep, folder / "anchors"))
    sweep = synthetic.write_sweep(tmp_path_factory.mktemp("first"), synthetic.raw_config(), without_the_first)
    found.append(aggregate(*sweep))
    return found


def test_every_column_is_filled_by_some_run(made):
    for name in tables.NAMES:
        rows_of = pl.concat([getattr(one, name) for one in made])
        assert [column for column in rows_of.columns if not rows_of[column].count()] == []


def test_a_column_that_says_nothing_of_null_always_has_a_value(made):
    for name in tables.NAMES:
        rows_of = pl.concat([getattr(one, name) for one in made])
        if name in ("runs", "cells"):
            rows_of = rows_of.filter(pl.col("status") == "ok" if name == "runs" else pl.col("num_ok") > 0)
        always = [column.name for column in TABLES[name].values() if column.null is None]
        assert rows_of.height and [column for column in always if rows_of[column].null_count()] == []
