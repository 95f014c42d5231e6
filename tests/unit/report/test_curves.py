"""Loss and power against time and joules, and which tensors trained."""

from __future__ import annotations

import json

import pages
import polars as pl
import pytest
import synthetic
from pages import drawn, results, text_of

from joulesweep.analyse.epochs import with_joules
from joulesweep.report.charts import loss, power, tensors
from joulesweep.report.results import BASELINE


def build(*given, **sections):
    return results(*pages.build(*given, **sections))


def replaced(swept, **frames):
    return results(swept.manifest, synthetic.replaced(swept.tables, **frames))


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    return build(tmp_path_factory.mktemp("gpu"), synthetic.on_gpus, **synthetic.GPU_CONFIG)


def test_the_loss_falls_with_seconds_and_with_joules_that_were_read(gpu):
    figure = loss.draw(gpu)
    assert len(figure.plots) == 2
    for plot in (0, 1):  # the window begins with the untrained model
        rows = drawn(figure, plot)
        assert {row["epoch"] for row in rows} == {0, 1, 2, 3}
        assert all((row["cost"] == 0) == (row["epoch"] == 0) for row in rows)
    assert "Energy (J), integrated, scope gpu" in text_of(figure)
    assert "stimated" not in text_of(figure)


def test_few_lines_are_drawn_and_the_others_counted(gpu):
    figure = loss.draw(gpu)
    roles = {row["role"] for row in drawn(figure, 0)}
    assert BASELINE in roles and any("recommended" in role for role in roles) and len(roles) <= loss.MAX_LINES
    names = {row["name"] for row in drawn(figure, 0)}
    assert f"Other configurations, not drawn: {8 - len(names)}." in figure.notes


def test_a_line_is_the_mean_over_the_repeats(gpu):
    rows = [row for row in drawn(loss.draw(gpu), 0) if row["role"] == BASELINE]
    epochs = gpu.tables.epochs.filter(name=rows[0]["name"])
    for row in rows:
        assert row["loss"] == pytest.approx(epochs.filter(epoch=row["epoch"])["validation_loss"].mean(), rel=1e-4)


def test_epochs_that_a_repeat_has_no_joules_of_are_not_drawn(gpu):
    lost = pl.when(epoch=1, repeat=1).then(None).otherwise(pl.col("energy_j"))
    kept, _ = with_joules(gpu.tables.epochs.with_columns(energy_j=lost))
    assert set(kept["epoch"]) == {0, 2, 3}


def test_joules_of_different_scopes_are_not_drawn_together(gpu):
    scope = pl.when(repeat=1).then(pl.lit("gpu+cpu")).otherwise(pl.col("energy_scope"))
    kept, why = with_joules(gpu.tables.epochs.with_columns(energy_scope=scope))
    assert kept.is_empty() and why == "joules of different scopes are not drawn together: gpu+cpu, gpu"


def test_a_measured_run_without_joules_by_epoch_says_why(tmp_path):
    text = text_of(loss.draw(build(tmp_path, synthetic.measured)))
    assert "Not against joules: not every device was read after each epoch." in text
    assert "Energy (J)" not in text and "stimated" not in text


def test_a_cell_without_joules_by_epoch_has_no_begin_either(gpu):
    cell = gpu.tables.epochs["cell"][0]
    lost = pl.when(cell=cell).then(None).otherwise(pl.col("energy_j"))
    kept, _ = with_joules(gpu.tables.epochs.with_columns(energy_j=lost))
    assert cell not in set(kept["cell"]) and set(kept["epoch"]) == {0, 1, 2, 3}


def test_estimated_joules_begin_with_the_untrained_model(tmp_path):
    figure = loss.draw(build(tmp_path))
    assert "Estimated energy (J), not measured" in text_of(figure)
    rows = drawn(figure, 1)
    assert {row["epoch"] for row in rows} == {0, 1, 2, 3}
    assert all((row["cost"] == 0) == (row["epoch"] == 0) for row in rows)


def test_no_estimate_unless_asked(tmp_path):
    assert "stimated" not in text_of(loss.draw(build(tmp_path, energy={"estimate": False})))


def test_power_of_recommended_and_baseline_with_the_window(gpu):
    figure = power.draw(gpu)
    assert [plot.title.split(":")[0] for plot in figure.plots][1] == BASELINE
    assert "Other runs, not drawn: 22;" in figure.notes[1]
    for plot in range(2):
        rows = [row for row in drawn(figure, plot) if "power_w" in row]
        first = gpu.tables.power.filter(repeat=1, name=rows[0]["name"])
        assert {row["device"] for row in rows} == set(first["device"])
        assert [row["window_s"] for row in rows] == pytest.approx([first["window_s"][0]] * len(rows), rel=1e-4)
        for device in set(first["device"]):
            line = [row["power_w"] for row in rows if row["device"] == device]
            assert 100 < len(line) <= power.MAX_POINTS
            assert sum(line) / len(line) == pytest.approx(first.filter(device=device)["power_w"].mean(), rel=0.01)


def test_flagged_runs_have_their_power_drawn(tmp_path):
    def change(row):
        row = synthetic.on_gpus(row)
        hot = row["spec"]["batch_size"] == 64 and row["spec"]["repeat"] == 2
        return synthetic.flagged(row, "throttled", "GPU 0 was hot") if hot else row

    titles = [plot.title for plot in power.draw(build(tmp_path, change, **synthetic.GPU_CONFIG)).plots]
    assert titles[2] == "throttled: single fp32 bs64" and len(titles) == 3


def num_devices(plot):
    return len({row["device"] for rows in plot.chart.to_dict()["datasets"].values() for row in rows if "device" in row})


def test_short_traces_are_drawn_as_they_are(gpu):
    few = gpu.tables.power.group_by("run", "device", maintain_order=True).head(1)
    rows = [row for row in drawn(power.draw(replaced(gpu, power=few))) if "power_w" in row]
    assert sorted(row["t_s"] for row in rows) == [-5.0] * len(rows) and len(rows) == sum(
        map(num_devices, power.draw(gpu).plots)
    )


def test_nothing_traced_says_so(gpu, tmp_path):
    assert power.draw(build(tmp_path)).notes == ["No power could be read."]
    unread = gpu.tables.power.with_columns(power_w=pl.lit(None, pl.Float64))
    assert not power.draw(replaced(gpu, power=unread)).plots


@pytest.fixture(scope="module")
def choosing(tmp_path_factory):
    return build(tmp_path_factory.mktemp("choosing"), synthetic.choosing, synthetic.METHODS)


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["cls.bias", "bert.layer.10.a.weight", "bert.layer.1.a.weight", "bert.emb.weight"],
         ["cls", "bert.layer.10", "bert.layer.1", "bert.emb"]),
        (["decoder.block.0.layer.2.wi.weight", "decoder.block.0.layer.0.q.weight", "shared.weight"],
         ["decoder.block.0", "shared"]),
        (["2.weight", "0.weight", "scale"], ["2", "0", "scale"]),
        (["base_model.model.h.3.q.lora_B.default.weight"], ["base_model.model.h.3"]),
    ],
)  # fmt: skip
def test_tensors_count_to_their_layer(choosing, names, layers):
    lists = [pl.Series([names]).alias(column) for column in ("candidates", "chosen")]
    assert tensors.shares(choosing.tables.selections.head(1).with_columns(lists))["layer"].to_list() == layers


def test_shares_are_over_tensors_and_repeats(choosing):
    candidates = ["head.weight", "layer.0.b", "layer.0.w"]
    chosen = [["head.weight", "layer.0.w"], ["layer.0.b", "layer.0.w"], []]
    three = choosing.tables.selections.filter(pl.col("name").str.starts_with("random"), epoch=1)
    made = tensors.shares(three.with_columns(candidates=pl.Series([candidates] * 3), chosen=pl.Series(chosen)))
    assert made["share"].to_list() == pytest.approx([1 / 3, 3 / 6])
    assert made["num_tensors"].to_list() == [1, 2] and made["num_runs"].to_list() == [3, 3]


def test_every_choice_is_drawn_from_the_output_down(choosing):
    figure = tensors.draw(choosing)
    rows, selections = drawn(figure), choosing.tables.selections
    assert {(row["name"], row["epoch"]) for row in rows} == set(selections.select("name", "epoch").rows())
    layers = ["cls.predictions", "cls.predictions.transform.LayerNorm", "cls.predictions.transform.dense"]
    layers += ["bert.encoder.layer.1", "bert.encoder.layer.0", "bert.embeddings.LayerNorm"]
    layers += [f"bert.embeddings.{part}_embeddings" for part in ("token_type", "position", "word")]
    assert list(dict.fromkeys(row["layer"] for row in rows)) == layers
    assert f'"scale": {{"domain": {json.dumps(layers)}}}' in text_of(figure)
    shares = [row["share"] for row in rows]
    assert min(shares) >= 0 and 0 < sum(shares) < len(shares) and max(shares) <= 1
    assert [plot.title for plot in figure.plots] == [
        *("greentrainer rho=0.5 single fp32 bs32", "random rho=0.5 single fp32 bs32")
    ]


def test_a_large_model_has_a_row_per_layer(choosing):
    large = [f"model.layers.{layer}.part{part}.weight" for layer in reversed(range(32)) for part in range(16)]
    rows = choosing.tables.selections.height
    lists = {"candidates": pl.Series([large] * rows), "chosen": pl.Series([large[:100]] * rows)}
    made = replaced(choosing, selections=choosing.tables.selections.with_columns(**lists))
    assert len({row["layer"] for row in drawn(tensors.draw(made))}) == 32


def test_models_of_different_layers_have_axes_of_their_own(choosing):
    cut = pl.col("candidates").list.slice(0, 21)
    random = pl.col("name").str.starts_with("random")
    made = choosing.tables.selections.with_columns(
        pl.when(random).then(cut).otherwise("candidates").alias("candidates")
    )
    plots = tensors.draw(replaced(choosing, selections=made)).plots
    assert [len(plot.chart.to_dict()["encoding"]["y"]["scale"]["domain"]) for plot in plots] == [9, 4]


def test_more_choosing_configurations_than_anyone_looks_at_are_cut(choosing, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_PLOTS", 1)
    figure = tensors.draw(choosing)
    assert len(figure.plots) == 1 and "The first 1 of 2 configurations." in figure.notes


def test_no_method_that_chooses_says_so(gpu):
    assert tensors.draw(gpu).notes == ["No method chose tensors."]
