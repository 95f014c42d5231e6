import itertools
import json
import subprocess
import sys

import known_sweeps
import pages
import polars as pl
import pytest
import synthetic
import tiers
from pages import drawn, results, text_of

from joulesweep.analyse import tables
from joulesweep.analyse.comparisons import OPEN
from joulesweep.core import files
from joulesweep.report import charts, looks
from joulesweep.report.charts import effects, ladder, quality
from joulesweep.report.results import key


def build(*given, **sections):
    return results(*pages.build(*given, **sections))


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_gpus")
    return build(folder, known_sweeps.on_a30, known_sweeps.TWO_GPUS, **synthetic.GPU_CONFIG)


def marks(figure):
    return {row["n"]: row for row in drawn(figure) if "n" in row and "v" in row}


@pytest.mark.slow
def test_a_mark_is_a_cell_at_its_joules_and_its_loss_above_the_best(two_gpus):
    figure = quality.draw(two_gpus)
    shown, cells = marks(figure), two_gpus.tables.cells.drop_nulls("above_best")
    assert len(shown) == cells.height == 44
    for row in cells.iter_rows(named=True):
        mark = shown[two_gpus.looks.words(row)]
        assert mark["x"] == pytest.approx(row["energy_j_mean"] / 1e3, rel=1e-4)
        assert mark["y"] == pytest.approx(100 * row["above_best"], rel=1e-3, abs=1e-4)
        assert mark["yl"] <= mark["y"] + 1e-3 and mark["y"] <= mark["yh"] + 1e-3


@pytest.mark.slow
def test_costs_have_a_log_scale_and_the_margin_a_band(two_gpus):
    text = text_of(quality.draw(two_gpus))
    assert '"type": "log"' in text and "Energy of one training (kJ, log scale)" in text
    assert '"low": ' in text and '"high": 1.0' in text


def test_recommended_and_baseline_are_named(two_gpus):
    text = text_of(quality.draw(two_gpus))
    (decision,) = two_gpus.decisions
    assert f"recommended: {two_gpus.looks.words(decision.recommended.row)}" in text
    assert f"baseline: {two_gpus.looks.words(decision.baseline)}" in text


def test_the_title_says_what_was_saved(two_gpus):
    assert quality.draw(two_gpus).title.startswith("−60 % energy")


def test_the_title_claims_no_quality_that_is_not_shown(tmp_path):
    assert quality.draw(build(tmp_path, axes={"repeats": 1})).title == "Time and quality"


def test_unmeasured_energy_is_said_and_time_ranks(tmp_path):
    figure = quality.draw(build(tmp_path))
    assert "By time, since energy was not measured." in " ".join(figure.notes)
    assert "Time of one training (s, log scale)" in text_of(figure)


def test_a_cell_without_the_cost_is_named(tmp_path):
    def change(row):
        doubt = {"doubt": "power disagrees"} if row["spec"]["precision"] == "fp32" else {}
        return synthetic.on_gpus(row, **doubt) if row["spec"]["strategy"] == "ddp" else synthetic.on_gpus(row)

    swept = build(tmp_path, change, **synthetic.GPU_CONFIG)
    lost = pl.when(pl.col("name") == "single fp32 bs64").then(None).otherwise("energy_j_mean").alias("energy_j_mean")
    cells = swept.tables.cells.with_columns(lost)
    swept.decisions  # noqa: B018 - decided before the number is lost
    object.__setattr__(swept, "tables", synthetic.replaced(swept.tables, cells=cells))
    assert "Without a mark, since the cost is unknown: single fp32 bs64." in quality.draw(swept).notes


def test_a_loss_far_above_the_margin_has_a_scale_that_shows_it(tmp_path):
    def change(row):
        row = synthetic.measured(row)
        far = 9.0 if row["spec"]["strategy"] == "ddp" and row["spec"]["batch_size"] == 64 else 0.0
        return {**row, "quality": {**row["quality"], "validation_loss": row["quality"]["validation_loss"] + far}}

    figure = quality.draw(build(tmp_path, change))
    assert '"type": "symlog"' in text_of(figure)
    layers = figure.whole().to_dict()["layer"]
    scale = next(layer["encoding"]["y"]["scale"] for layer in layers if "scale" in layer["encoding"].get("y", {}))
    assert scale["domain"][1] > max(mark["y"] for mark in marks(figure).values()) > 200


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (37, 64), (40, 320), (3, 40000)])
def test_ticks_are_few_round_and_within(low, high):
    ticks = quality.ticks(low, high)
    assert 2 <= len(ticks) <= 10 and all(low <= tick <= high for tick in ticks) and ticks == sorted(set(ticks))


def test_one_repeat_has_no_whiskers(tmp_path):
    assert not [mark for mark in marks(quality.draw(build(tmp_path, axes={"repeats": 1}))).values() if "yl" in mark]


def test_models_are_drawn_apart(tmp_path):
    figure = quality.draw(build(tmp_path, axes={"model": ["tiny", "other"]}))
    assert [plot.title for plot in figure.plots] == ["tiny", "other"]


def test_a_colour_stands_for_one_value_of_an_axis(two_gpus):
    keys = two_gpus.looks.keys
    assert [key.label for key in keys] == ["1 GPU", "2 GPUs, DP", "2 GPUs, DDP", "fp32", "fp16-mixed", "bf16-mixed"]
    colours = [key.colour for key in keys if key.colour]
    assert len(set(colours)) == len(colours) == 3
    assert two_gpus.looks.untold() == []


def test_no_more_than_eight_colours_carry_meaning(tmp_path):
    axes = {"lr": [k / 1000 for k in range(1, 13)], "strategy": ["single"], "precision": ["fp32"], "batch_size": [32]}
    swept = build(tmp_path, axes=axes)
    (*first, others) = swept.looks.keys
    assert len(first) == 7 and others.label == "5 others"
    values = [swept.looks.colour(row) for row in swept.tables.cells.iter_rows(named=True)]
    assert values.count(others.value) == 5 and set(values) == {key.value for key in swept.looks.keys}


def test_axes_that_no_look_tells_are_said(tmp_path):
    swept = build(tmp_path, axes={"lr": [0.001, 0.002], "batch_size": [32]})
    assert swept.looks.untold() == ["Learning rate"]
    assert "Neither colour nor shape tells: learning rate." in quality.draw(swept).notes


def test_what_varies_is_told_in_words(two_gpus):
    row = two_gpus.tables.cells.filter(name="ddp2 bf16-mixed bs32").row(0, named=True)
    assert two_gpus.looks.words(row) == "2 GPUs, DDP · bf16-mixed · batch 32"
    assert looks.spread({**row, "strategy": "single", "devices": 1}) == "1 GPU"


def test_a_ladder_changes_one_axis_at_a_time(two_gpus):
    (decision,) = two_gpus.decisions
    rows = ladder.ladder(two_gpus, decision)
    assert [row["head"].split(":")[0] for row in rows] == [
        *("baseline", "+ bf16-mixed", "+ 2 GPUs, DDP", "recommended", "not yet")
    ]
    assert [row["kind"] for row in rows] == [
        *("total", "saves", "no difference shown", "total", "quality not yet shown")
    ]
    for before, after in itertools.pairwise(rows[:3]):
        assert after["from"] == before["to"]
    assert rows[3]["to"] == decision.recommended.row["energy_j_mean"] and rows[0]["from"] == rows[3]["from"] == 0
    assert rows[1]["head"] == "+ bf16-mixed: −60 % [−60, −60]" and rows[1]["below"].startswith("time −43 % [")


def test_the_step_not_shown_yet_is_the_cheapest_open_one(two_gpus):
    (decision,) = two_gpus.decisions
    (*_, further) = ladder.ladder(two_gpus, decision)
    chosen = decision.recommended.row
    open_rows = [row for row in two_gpus.rows("") if row["quality_verdict"] == OPEN]
    near = [row for row in open_rows if len(ladder.differences(two_gpus.looks, chosen, row)) == 1]
    cheaper = [row["energy_j_mean"] for row in near if row["energy_j_mean"] < chosen["energy_j_mean"]]
    assert further["to"] == min(cheaper)


def test_a_step_from_doubtful_joules_is_not_compared(tmp_path):
    def change(row):
        return synthetic.on_gpus(row, **({"doubt": "power disagrees"} if row["spec"]["precision"] == "fp32" else {}))

    swept = build(tmp_path, change, {"strategy": ["single"], "batch_size": [32]}, **synthetic.GPU_CONFIG)
    (_, step, _) = ladder.ladder(swept, swept.decisions[0])
    assert step["kind"] == "cannot be compared" and step["head"] == "+ bf16-mixed: unknown"


def test_a_baseline_that_is_recommended_has_no_ladder(tmp_path):
    def change(row):
        worse = 0.0 if (row["spec"]["strategy"], row["spec"]["precision"]) == ("single", "fp32") else 1.0
        return {**row, "quality": {**row["quality"], "validation_loss": row["quality"]["validation_loss"] + worse}}

    figure = ladder.draw(build(tmp_path, change, {"batch_size": [32]}))
    assert not figure.plots and "nothing saves more" in figure.notes[0]


def test_effects_are_those_of_the_table(two_gpus):
    figure = effects.draw(two_gpus)
    table = two_gpus.tables.effects.filter(kind="effect", quantity="energy_j")
    rows = {row["n"]: row for row in drawn(figure, 0) if "n" in row}
    assert len(rows) == table.height == 10
    for row in table.iter_rows(named=True):
        shown = rows[f"{row['from_value']} → {row['to_value']}"]
        assert shown["ratio"] == pytest.approx(100 * (row["ratio"] - 1), rel=1e-3)
        assert shown["smallest"] <= shown["ratio"] <= shown["largest"] and shown["p"] == row["num_pairs"]


def test_only_quality_has_the_band_of_the_margin(two_gpus):
    specs = [json.dumps(plot.chart.to_dict()) for plot in effects.draw(two_gpus).plots]
    assert ['"rect"' in spec for spec in specs] == [False, False, True]


@pytest.mark.parametrize("name", charts.names())
def test_a_chart_without_runs_is_a_sentence(tmp_path, name):
    figure = charts.draw(name, build(tmp_path, lambda row: synthetic.failed(row, "diverged", "loss is nan")))
    assert not figure.plots and "24 diverged" in " ".join(figure.notes)


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("name", charts.names())
def test_unmeasured_joules_are_nowhere_zero_or_nan(tmp_path, name, estimate):
    figure = charts.draw(name, build(tmp_path, energy={"estimate": estimate}))
    costs = [row[key] for row in drawn(figure) for key in ("cost", "x", "to") if row.get(key) and row.get("epoch") != 0]
    assert all(cost > 0 for cost in costs) and "NaN" not in text_of(figure)
    if name != "loss" or not estimate:
        assert "stimated" not in text_of(figure)


def test_the_rows_of_the_page_have_keys_of_their_own(tmp_path):
    def change(row):
        return synthetic.on_gpus(row) if row["spec"]["repeat"] > 1 else known_sweeps.on_a30(row)

    swept = build(tmp_path, change, **synthetic.GPU_CONFIG)
    keys = [key(row) for row in swept.tables.cells.iter_rows(named=True)]
    assert len(set(keys)) == len(keys) == 16


@pytest.mark.parametrize("failed", tiers.first(1, [False, True]))
def test_script_writes_every_chart_without_network(tmp_path, failed):
    manifest, made = pages.build(tmp_path, lambda row: synthetic.failed(row, "oom", "full") if failed else row)
    tables.write(made, tmp_path / "tables")
    files.write_json(tmp_path / "grid.json", manifest)
    arguments = ["--grid", tmp_path / "grid.json", "--tables", tmp_path / "tables", "--output", tmp_path / "charts"]
    subprocess.run([sys.executable, "-m", "scripts.charts", *map(str, arguments)], check=True)
    for name in charts.names():
        assert (tmp_path / "charts" / f"{name}.svg").read_text().startswith("<svg")
        page = (tmp_path / "charts" / f"{name}.html").read_text()
        assert "vegaEmbed" in page and '<script src="http' not in page.replace("'", '"')


def test_script_without_tables_says_so(tmp_path):
    manifest, _ = pages.build(tmp_path / "sweep")
    files.write_json(tmp_path / "grid.json", manifest)
    arguments = ["--grid", tmp_path / "grid.json", "--tables", tmp_path, "--output", tmp_path / "charts"]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.charts", *map(str, arguments)], capture_output=True, text=True
    )
    (_, error) = done.stderr.splitlines()
    assert done.returncode == 2 and error.startswith(f"error: {tmp_path}")


@pytest.mark.parametrize("name", charts.names())
def test_a_chart_says_in_its_caption_what_it_shows(name):
    first, _, rest = charts.caption(name).partition("\n\n")
    assert first.endswith(".") and rest.endswith(".")
