"""Loss and power against time and joules, and which tensors trained."""

from __future__ import annotations

import json

import polars as pl
import pytest
import synthetic
from test_charts import build, drawn, text_of

from joulesweep import theme
from joulesweep.charts import loss, power, tensors
from joulesweep.epochs import with_joules


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    return build(tmp_path_factory.mktemp("gpu"), synthetic.on_gpus, **synthetic.GPU_CONFIG)


def test_the_loss_falls_with_seconds_and_with_joules_that_were_read(gpu):
    chart = loss.draw(gpu)
    assert {row["epoch"] for row in drawn(chart, 0)} == {0, 1, 2, 3}
    assert {row["epoch"] for row in drawn(chart, 1)} == {0, 1, 2, 3}
    for part in (0, 1):  # the window begins with the untrained model
        assert all((row["cost"] == row["mean_cost"] == 0) == (row["epoch"] == 0) for row in drawn(chart, part))
    assert "Energy (J), integrated, scope gpu" in text_of(chart)
    assert "stimated" not in text_of(loss.draw(gpu))


def test_epochs_that_a_repeat_has_no_joules_of_are_not_drawn(gpu):
    lost = pl.when(epoch=1, repeat=1).then(None).otherwise(pl.col("energy_j"))
    found, _ = with_joules(gpu.epochs.with_columns(energy_j=lost))
    assert set(found["epoch"]) == {0, 2, 3}


def test_joules_of_different_scopes_are_not_drawn_together(gpu):
    scope = pl.when(repeat=1).then(pl.lit("gpu+cpu")).otherwise(pl.col("energy_scope"))
    found, why = with_joules(gpu.epochs.with_columns(energy_scope=scope))
    assert found.is_empty() and why == "joules of different scopes are not drawn together: gpu+cpu, gpu"


def test_a_measured_run_without_joules_by_epoch_says_why(tmp_path):
    text = text_of(loss.draw(build(tmp_path, synthetic.measured)))
    assert "Not against joules: not every device was read after each epoch." in text
    assert "Energy (J)" not in text and "stimated" not in text


def test_a_cell_without_joules_by_epoch_has_no_begin_either(gpu):
    cell = gpu.epochs["cell"][0]
    lost = pl.when(cell=cell).then(None).otherwise(pl.col("energy_j"))
    found, _ = with_joules(gpu.epochs.with_columns(energy_j=lost))
    assert cell not in set(found["cell"]) and set(found["epoch"]) == {0, 1, 2, 3}


def test_estimated_joules_begin_with_the_untrained_model(tmp_path):
    rows = drawn(loss.draw(build(tmp_path)), 1)
    assert {row["epoch"] for row in rows} == {0, 1, 2, 3}
    assert all((row["cost"] == 0) == (row["epoch"] == 0) for row in rows)


def test_power_of_the_first_repeat_with_its_window(gpu):
    chart = power.draw(gpu)
    rows = drawn(chart)
    assert {row["name"] for row in rows} == set(gpu.cells["name"])
    first = gpu.power.filter(repeat=1)
    for name in ("single fp32 bs32", "ddp2 bf16-mixed bs64"):
        mine, traced = [row for row in rows if row["name"] == name], first.filter(name=name)
        assert {row["device"] for row in mine} == set(traced["device"])
        assert [row["window_s"] for row in mine] == pytest.approx([traced["window_s"][0]] * len(mine), rel=1e-5)
        for device in set(traced["device"]):
            line = [row["power_w"] for row in mine if row["device"] == device]
            assert 150 < len(line) <= power.MAX_POINTS
            assert sum(line) / len(line) == pytest.approx(traced.filter(device=device)["power_w"].mean(), rel=0.01)
    assert '"rect"' in text_of(chart) and "Grey: the measured window" in text_of(chart)


def test_the_first_traced_repeat_stands_in_for_one_without_trace(gpu):
    found = power.draw(synthetic.replaced(gpu, power=gpu.power.filter(pl.col("repeat") > 1)))
    assert {row["name"] for row in drawn(found)} == set(gpu.cells["name"])


def test_short_traces_are_drawn_as_they_are(gpu):
    few = gpu.power.group_by("run", "device", maintain_order=True).head(1)
    rows = drawn(power.draw(synthetic.replaced(gpu, power=few)))
    assert len(rows) == few.filter(repeat=1).height


def test_nothing_traced_says_so(gpu, tmp_path):
    assert "no power could be read" in text_of(power.draw(build(tmp_path)))
    unread = gpu.power.with_columns(power_w=pl.lit(None, pl.Float64))
    assert "no power could be read" in text_of(power.draw(synthetic.replaced(gpu, power=unread)))


def test_more_configurations_than_anyone_looks_at_are_cut(gpu, monkeypatch):
    monkeypatch.setattr(power, "MAX_TRACES", 3)
    chart = power.draw(gpu)
    assert len({row["name"] for row in drawn(chart)}) == 3
    assert "The first 3 of 8 configurations." in text_of(chart)


def test_the_traces_have_the_colours_of_the_other_charts(gpu):
    scale = theme.setup_scale(gpu.cells).to_dict()
    assert json.dumps(scale["range"]) in text_of(power.draw(gpu))


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
    assert tensors.shares(choosing.selections.head(1).with_columns(lists))["layer"].to_list() == layers


def test_shares_are_over_tensors_and_repeats(choosing):
    candidates = ["head.weight", "layer.0.b", "layer.0.w"]
    chosen = [["head.weight", "layer.0.w"], ["layer.0.b", "layer.0.w"], []]
    three = choosing.selections.filter(pl.col("name").str.starts_with("random"), epoch=1)
    found = tensors.shares(three.with_columns(candidates=pl.Series([candidates] * 3), chosen=pl.Series(chosen)))
    assert found["share"].to_list() == pytest.approx([1 / 3, 3 / 6])
    assert found["num_tensors"].to_list() == [1, 2] and found["num_runs"].to_list() == [3, 3]


def test_every_choice_is_drawn_from_the_output_down(choosing):
    chart = tensors.draw(choosing)
    rows = drawn(chart)
    assert {(row["name"], row["epoch"]) for row in rows} == set(choosing.selections.select("name", "epoch").rows())
    layers = ["cls.predictions", "cls.predictions.transform.LayerNorm", "cls.predictions.transform.dense"]
    layers += ["bert.encoder.layer.1", "bert.encoder.layer.0", "bert.embeddings.LayerNorm"]
    layers += [f"bert.embeddings.{part}_embeddings" for part in ("token_type", "position", "word")]
    assert list(dict.fromkeys(row["layer"] for row in rows)) == layers
    assert f'"scale": {{"domain": {json.dumps(layers)}}}' in text_of(chart)
    shares = [row["share"] for row in rows]
    assert min(shares) >= 0 and 0 < sum(shares) < len(shares) and max(shares) <= 1
    (title,) = {row["title"] for row in rows if row["name"].startswith("random")}
    assert title == "random rho=0.5 single fp32 bs32"


def test_a_large_model_has_a_row_per_layer(choosing):
    large = [f"model.layers.{layer}.part{part}.weight" for layer in reversed(range(32)) for part in range(16)]
    rows = choosing.selections.height
    lists = {"candidates": pl.Series([large] * rows), "chosen": pl.Series([large[:100]] * rows)}
    found = synthetic.replaced(choosing, selections=choosing.selections.with_columns(**lists))
    assert len({row["layer"] for row in drawn(tensors.draw(found))}) == 32


def test_models_of_different_layers_have_axes_of_their_own(choosing):
    cut = pl.col("candidates").list.slice(0, 21)
    random = pl.col("name").str.starts_with("random")
    found = choosing.selections.with_columns(pl.when(random).then(cut).otherwise("candidates").alias("candidates"))
    plots = tensors.draw(synthetic.replaced(choosing, selections=found)).to_dict()["vconcat"]
    assert [len(plot["spec"]["encoding"]["y"]["scale"]["domain"]) for plot in plots] == [9, 4]
    assert len(tensors.draw(choosing).to_dict()["vconcat"]) == 1


def test_more_choosing_configurations_than_anyone_looks_at_are_cut(choosing, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_TRACES", 1)
    chart = tensors.draw(choosing)
    assert len({row["name"] for row in drawn(chart)}) == 1
    assert "The first 1 of 2 configurations." in text_of(chart)


def test_no_method_that_chooses_says_so(gpu):
    assert "no method chose tensors" in text_of(tensors.draw(gpu))
