"""Exports say what the tables say, in the form that other tools read."""

from __future__ import annotations

import gzip
import io
import json
import re

import pages
import pandas as pd
import polars as pl
import pytest
import synthetic

from joulesweep.analyse import columns, tables
from joulesweep.report import charts, exports
from joulesweep.report.exports import data, emissions, paper, writing
from joulesweep.report.results import Results

FACTORS = {"carbon": {"country": "DEU"}, "price_per_kwh": None, "currency": None, "pue": 1.5}
GPU = {"hardware": {"accelerator": "cuda"}, "energy": FACTORS}


def on_gpus(row):
    return synthetic.choosing(synthetic.on_gpus(row))


def oom_single_fp32(row):
    spec = row["spec"]
    is_oom = (spec["strategy"], spec["precision"]) == ("single", "fp32")
    return synthetic.failed(row, "oom", "asked for 2 GiB") if is_oom else synthetic.on_gpus(row)


def doubtful_fp32(row):
    doubt = "idle power is twice the run's" if row["spec"]["precision"] == "fp32" else None
    return synthetic.on_gpus(row, doubt=doubt)


def results(tmp_path, change=synthetic.on_gpus, axes=None, **sections):
    return Results(*pages.build(tmp_path, change, axes, **sections))


def emitted(text) -> list[dict]:
    return pl.read_csv(io.StringIO(text), infer_schema_length=None).rows(named=True)


# The tables


def pandas_dtypes(made, name):
    dictionary = pd.read_csv(io.StringIO(made["columns.csv"]))
    return dict(dictionary[dictionary["table"] == name][["column", "pandas"]].to_numpy())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A sweep on GPUs whose methods choose tensors, and its files."""
    made = results(tmp_path_factory.mktemp("sweep"), on_gpus, synthetic.METHODS, **GPU)
    return made.tables, data.contents(made)


@pytest.mark.parametrize("name", columns.TABLES)
def test_pandas_reads_each_csv_with_the_dictionarys_dtypes(both, name):
    its_tables, made = both
    table = getattr(its_tables, name)
    text = made.get(f"tables/{name}.csv") or gzip.decompress(made[f"tables/{name}.csv.gz"]).decode()
    dtypes = pandas_dtypes(made, name)
    frame = pd.read_csv(io.StringIO(text), dtype=dtypes, keep_default_na=False, na_values=[""])
    assert list(frame.columns) == table.columns == list(dtypes)
    assert {str(dtype) for dtype in frame.dtypes} <= {"string", "Int64", "Float64", "boolean"}
    for column in table.columns:
        if table.schema[column] in (pl.Int64, pl.Float64, pl.Boolean):
            assert [None if value is pd.NA else value for value in frame[column]] == table[column].to_list(), column
        elif isinstance(table.schema[column], pl.List):
            assert [json.loads(value) for value in frame[column]] == table[column].to_list()


def test_a_count_that_is_missing_somewhere_stays_whole(both):
    text = both[1]["tables/runs.csv"]
    frame = pd.read_csv(io.StringIO(text), dtype=pandas_dtypes(both[1], "runs"))
    assert frame["micro_batch_size"].isna().all() and str(frame["micro_batch_size"].dtype) == "Int64"
    assert str(pd.read_csv(io.StringIO(text))["micro_batch_size"].dtype) != "Int64", "as it is without the dictionary"


def test_pandas_reads_parquet_with_nullable_dtypes(tmp_path, both):
    tables.write(both[0], tmp_path)
    frame = pd.read_parquet(tmp_path / "runs.parquet", dtype_backend="numpy_nullable")
    assert str(frame["num_passes"].dtype) == "Int64" and str(frame["settled"].dtype) == "boolean"
    chosen = pd.read_parquet(tmp_path / "selections.parquet")["chosen"]
    assert list(chosen[0]) == both[0].selections["chosen"][0].to_list()


def test_the_dictionary_describes_every_column(both):
    rows = emitted(both[1]["columns.csv"])
    assert [(row["table"], row["column"]) for row in rows] == [
        (name, column) for name, table in columns.TABLES.items() for column in table
    ]
    (window,) = [row for row in rows if (row["table"], row["column"]) == ("runs", "window_s")]
    assert (window["dtype"], window["pandas"], window["unit"]) == ("Float64", "Float64", "s")
    text = both[1]["columns.md"]
    assert len(re.findall(r"^\| `", text, re.MULTILINE)) == len(rows)
    assert columns.RUNS["energy_reason"].about in text


def test_equal_tables_give_equal_bytes(both, tmp_path):
    made = Results({}, both[0])
    assert data.contents(made) == data.contents(made)


# For a paper


def test_a_digit_is_shown_only_where_the_interval_allows_it():
    assert paper.number((12.3456, 12.1, 12.6)) == "12.35 [12.10, 12.60]"
    assert paper.number((1234.5, 1100.0, 1400.0)) == "1{,}234 [1{,}100, 1{,}400]"
    assert paper.number((0.5, None, None)) == "0.500"
    assert paper.number((None, None, None)) == "--"
    assert paper.number((-1.5, -2.5, -0.5)) == "$-$1.5 [$-$2.5, $-$0.5]"
    assert paper.number((3.0, 3.0, 3.0)) == "3.00 [3.00, 3.00]"


def test_no_character_of_a_name_has_a_meaning_in_latex():
    assert paper.escaped("50% & a_b #1 {x} \\ ~ ^ $") == (
        r"50\% \& a\_b \#1 \{x\} \textbackslash{} \textasciitilde{} \textasciicircum{} \$"
    )
    assert paper.escaped("a\nb") == "a b"


def test_the_latex_table_is_balanced_and_has_a_row_per_cell(tmp_path):
    made = results(tmp_path, oom_single_fp32, **GPU)
    text = paper.contents(made)["cells.tex"]
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    head, *rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == made.tables.cells.height
    assert {row.count(" & ") for row in rows} == {head.count(" & ")}
    assert text.count("{") == text.count("}") and text.count("[") == text.count("]")
    assert re.findall(r"^single fp32 bs32 \(3 oom\) & 0 & --", body, re.MULTILINE)


def test_heads_have_units_and_the_caption_says_n_and_interval(tmp_path):
    text = paper.contents(results(tmp_path, **GPU))["cells.tex"]
    for head in ("Energy (kJ)", "Energy ratio", "Time (s)", "Peak memory (GiB)", "Validation loss (nat/token)"):
        assert f" & {head} & " in text
    caption = re.search(r"\\caption\{(.*)\}", text)[1]
    said = ("$n = 3$ finished seeds", r"95\,\% confidence intervals", "measured (scope gpu)", r"$\pm$5\,\%")
    for words in (*said, "A ratio is to single fp32 bs32, paired by seed", r"margin is 1\,\%"):
        assert words in caption


def test_unmeasured_energy_is_said_and_estimates_have_their_own_column(tmp_path):
    text = paper.contents(results(tmp_path, pages.as_it_is))["cells.tex"]
    assert "Estimated energy (" in text and "Energy was not measured." in text
    assert "& Energy (" not in text


def test_doubtful_joules_are_marked(tmp_path):
    text = paper.contents(results(tmp_path, doubtful_fp32, **GPU))["cells.tex"]
    marked = [line for line in text.splitlines() if r"]$^{\dagger}$" in line]
    assert marked and all(" fp32 " in line for line in marked)
    assert "cross-check" in text


def test_the_chosen_columns_are_columns_of_the_cells(tmp_path):
    made = results(tmp_path, **GPU)
    rows = emitted(paper.contents(made)["cells.csv"])
    assert rows[0]["energy_j_mean"] == made.tables.cells["energy_j_mean"][0]
    assert len(rows[0]) < made.tables.cells.width / 2


def test_a_cell_beyond_the_margin_is_marked(tmp_path):
    made = results(tmp_path, **GPU)
    verdicts = dict(made.tables.cells.select("name", "quality_verdict").rows())
    lines = {line.split(" & ")[0]: line for line in paper.contents(made)["cells.tex"].splitlines()}
    assert set(verdicts.values()) == {"within", "beyond"}
    for name, verdict in verdicts.items():
        assert lines[name].endswith(r"]$^{\times}$ \\") == (verdict == "beyond")


def test_the_effects_have_a_row_per_change_and_a_column_per_quantity(tmp_path):
    made = results(tmp_path, **GPU)
    text = paper.contents(made)["effects.tex"]
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    head, *rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert head == r"Change & Pairs & Energy & Time & Validation loss & Peak memory \\"
    assert [row.split(" & ")[0] for row in rows if not row.startswith(r"\quad")] == [
        r"single $\rightarrow$ ddp2",
        r"fp32 $\rightarrow$ bf16-mixed",
        r"batch 32 $\rightarrow$ batch 64",
    ]
    effect = made.tables.effects.filter(kind="effect", axis="strategy", quantity="energy_j").row(0, named=True)
    assert paper.number([effect["ratio"], effect["low"], effect["high"]]) in rows[0]


def test_a_sweep_of_one_configuration_has_no_effects(tmp_path):
    one = {"strategy": ["single"], "precision": ["fp32"], "batch_size": [32]}
    text = paper.contents(results(tmp_path, synthetic.on_gpus, one, **GPU))["effects.tex"]
    assert r"\midrule" not in text and text.count("{") == text.count("}")


# Emissions


def test_emissions_have_codecarbons_columns_and_a_row_per_ok_run(tmp_path):
    made = results(tmp_path, oom_single_fp32, **GPU)
    text = emissions.contents(made)["emissions.csv"]
    header = text.splitlines()[0].split(",")
    assert len(header) == 38 and header[:5] == ["timestamp", "project_name", "run_id", "experiment_id", "duration"]
    assert [row["run_id"] for row in emitted(text)] == made.tables.runs.filter(status="ok")["run"].to_list()


def test_emissions_are_kilowatt_hours_times_pue_and_factor(tmp_path):
    made = results(tmp_path, **GPU)
    row, run = emitted(emissions.contents(made)["emissions.csv"])[0], made.tables.runs.row(0, named=True)
    assert row["energy_consumed"] == pytest.approx(1.5 * run["energy_j"] / 3.6e6)
    assert row["gpu_energy"] == pytest.approx(row["energy_consumed"]) and row["cpu_energy"] is None
    assert row["gpu_power"] == pytest.approx(row["energy_consumed"] * 3.6e6 / row["duration"])
    assert row["emissions"] == pytest.approx(run["co2e_g"] / 1000)
    assert row["emissions_rate"] == pytest.approx(row["emissions"] / row["duration"])
    assert (row["country_iso_code"], row["country_name"], row["pue"]) == ("DEU", "Germany", 1.5)
    assert row["longitude"] is None and row["codecarbon_version"] is None and row["on_cloud"] is None


def test_without_a_factor_there_are_no_emissions(tmp_path):
    text = emissions.contents(results(tmp_path, hardware={"accelerator": "cuda"}, energy={}))["emissions.csv"]
    assert {row["emissions"] for row in emitted(text)} == {None}
    assert all(row["energy_consumed"] > 0 for row in emitted(text))


def test_estimates_are_in_a_file_of_their_own(tmp_path):
    made = emissions.contents(results(tmp_path, pages.as_it_is, energy={"estimate": True, **FACTORS}))
    assert {row["energy_consumed"] for row in emitted(made["emissions.csv"])} == {None}
    assert all(row["energy_consumed"] == row["cpu_energy"] > 0 for row in emitted(made["emissions-estimated.csv"]))


def test_measured_runs_have_no_row_among_estimates(tmp_path):
    assert emitted(emissions.contents(results(tmp_path, **GPU))["emissions-estimated.csv"]) == []


def test_doubtful_joules_are_no_emissions(tmp_path):
    made = results(tmp_path, doubtful_fp32, **GPU)
    rows = emitted(emissions.contents(made)["emissions.csv"])
    empty = {row["run_id"] for row in rows if row["energy_consumed"] is None and row["emissions"] is None}
    assert empty == set(made.tables.runs.filter(precision="fp32")["run"])


# All of them


@pytest.mark.slow
def test_every_file_that_is_named_is_written(tmp_path):
    made = results(tmp_path, **GPU)
    charts.save_all(made, tmp_path / "charts")
    writing.save_all(made, tmp_path / "runs", tmp_path / "charts", tmp_path / "exports")
    written = {str(path.relative_to(tmp_path / "exports")) for path in (tmp_path / "exports").rglob("*.*")}
    assert written == set(exports.names())
    for name in charts.names():
        assert (tmp_path / f"exports/charts/{name}.png").read_bytes()[:4] == b"\x89PNG"
        chart = json.loads((tmp_path / f"exports/charts/{name}.json").read_text(encoding="utf-8"))
        assert chart["$schema"].startswith("https://vega.github.io/schema/vega-lite/")
