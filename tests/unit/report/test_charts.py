import json
import subprocess
import sys

import pages
import polars as pl
import pytest
import synthetic
from pages import drawn, text_of

from joulesweep.analyse import tables
from joulesweep.analyse.cells import pareto_front
from joulesweep.report import charts


def build(*given, **sections):
    return pages.build(*given, **sections)[1]


def test_front_by_hand():
    cells = pl.DataFrame({"cell": list("abcde"), "cost": [1, 2, 3, 4, 2], "loss": [9.0, 5.0, 7.0, 1.0, 6.0]})
    assert pareto_front(cells, "cost", "loss") == ["a", "b", "d"]


def test_unmeasured_energy_is_said_and_estimates_are_labelled(tmp_path):
    text = text_of(charts.draw("pareto", build(tmp_path)))
    assert "energy was not measured" in text
    assert "Estimated energy of a run (J), not measured" in text
    assert '"Time of a run (s)"' in text


def test_only_the_measured_cost_has_a_front(tmp_path):
    measured, estimated = charts.draw("pareto", build(tmp_path)).to_dict()["vconcat"]
    assert "step-after" in json.dumps(measured) and "step-after" not in json.dumps(estimated)
    keys = [len(part["vconcat"][0]["hconcat"]) for part in (measured, estimated)]
    assert keys == [2, 1]  # the plot with the names on the front beside it, and the plot alone


def test_estimated_points_are_hollow(tmp_path):
    measured, estimated = charts.draw("pareto", build(tmp_path)).to_dict()["vconcat"]
    assert '"fillOpacity": {"value": 1}' in json.dumps(measured)
    assert '"fillOpacity": {"value": 0}' in json.dumps(estimated)


@pytest.mark.parametrize("name", ["pareto", "loss"])
def test_measured_joules_leave_no_room_for_estimates(tmp_path, name):
    text = text_of(charts.draw(name, build(tmp_path, synthetic.measured)))
    assert "Estimated" not in text
    assert name == "loss" or "Energy of a run (J), measured" in text


@pytest.mark.parametrize("name", ["pareto", "loss"])
def test_no_estimate_unless_asked(tmp_path, name):
    text = text_of(charts.draw(name, build(tmp_path, energy={"estimate": False})))
    assert "stimated" not in text


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("name", charts.names())
def test_unmeasured_joules_are_nowhere_zero_or_nan(tmp_path, name, estimate):
    chart = charts.draw(name, build(tmp_path, energy={"estimate": estimate}))
    costs = [row[key] for row in drawn(chart) for key in ("cost", "value") if key in row and row.get("epoch") != 0]
    assert all(cost > 0 for cost in costs) and "NaN" not in text_of(chart)
    if name == "energy" and not estimate:
        assert "energy was not measured, and not estimated" in text_of(chart) and not costs
    else:
        assert costs or name in ("power", "tensors")


def test_joules_of_different_scopes_are_drawn_apart(tmp_path):
    def change(row):
        dram = [synthetic.energy_row("dram:0", 5.0)] if row["spec"]["precision"] == "fp32" else []
        return synthetic.with_energy(row, synthetic.energy_row("cpu:0", 100.0), *dram)

    found = build(tmp_path, change)
    chart = charts.draw("energy", found)
    first, second = chart.to_dict()["vconcat"]
    assert "measured, scope cpu+dram" in json.dumps(first) and "measured, scope cpu" in json.dumps(second)
    assert {row["value"] for row in drawn(chart, 0)} == {105.0}
    assert {row["value"] for row in drawn(chart, 1)} == {100.0}
    pareto = charts.draw("pareto", found).to_dict()
    assert "The front is over time: joules of different scopes are not ranked together: cpu+dram, cpu." in text_of(
        charts.draw("pareto", found)
    )
    assert len(pareto["vconcat"]) == 1


def test_configurations_without_joules_are_named_and_not_drawn(tmp_path):
    def change(row):
        return row if row["spec"]["strategy"] == "ddp" else synthetic.measured(row)

    found = build(tmp_path, change)
    text = text_of(charts.draw("energy", found))
    assert "Without joules: ddp2 fp32 bs32, ddp2 fp32 bs64, ddp2 bf16-mixed bs32 and 1 more" in text
    assert {row["name"].split()[0] for row in drawn(charts.draw("energy", found))} == {"single"}
    assert "joules are known of 4 of 8 configurations" in text_of(charts.draw("pareto", found))


def test_integrated_joules_are_pale_named_and_not_ranked(tmp_path):
    def change(row):
        return synthetic.on_gpus(row, status="integrated", power_ratio=None)

    found = build(tmp_path, change, **synthetic.GPU_CONFIG)
    bars = text_of(charts.draw("energy", found))
    assert "Energy of a run (J), integrated, scope gpu" in bars and '"opacity": 0.4' in bars
    time, joules = charts.draw("pareto", found).to_dict()["vconcat"]
    assert "step-after" in json.dumps(time) and "step-after" not in json.dumps(joules)
    assert "energy was integrated from power readings" in text_of(charts.draw("pareto", found))


def test_net_joules_have_a_tick_where_they_are_known(tmp_path):
    with_net = charts.draw("energy", build(tmp_path / "gpu", synthetic.on_gpus, **synthetic.GPU_CONFIG))
    assert '"tick"' in text_of(with_net) and "net of idle" in text_of(with_net)
    assert all(0 < row["net"] < row["value"] for row in drawn(with_net)) and len(drawn(with_net)) == 8
    without = text_of(charts.draw("energy", build(tmp_path / "cpu", synthetic.measured)))
    assert '"tick"' not in without and "net of idle" not in without


def test_speedup_leaves_the_baseline_out(tmp_path):
    text = text_of(charts.draw("speedup", build(tmp_path)))
    assert "Dashed line: single fp32 at the same batch size." in text
    assert '"name": "ddp2 fp32 bs32"' in text and '"name": "single fp32 bs32"' not in text


def test_many_baselines_are_not_all_named_and_no_label_is_cut(tmp_path):
    axes = {"lr": [part / 1000 for part in range(1, 7)]}
    chart = charts.draw("speedup", build(tmp_path, axes=axes)).to_dict()
    subtitle = chart["title"]["subtitle"]
    assert "single fp32 lr0.001, " in subtitle[0] and "and 3 more" in " ".join(subtitle)
    assert max(map(len, subtitle)) <= 130
    assert chart["config"]["axis"]["labelLimit"] == chart["config"]["legend"]["labelLimit"] == 0


def test_memory_is_of_the_gpus_where_there_are_any(tmp_path):
    def change(row):
        memory = {"gpu_allocated_bytes": 3 * 2**30, "gpu_reserved_bytes": 4 * 2**30, "host_rss_bytes": 2**30}
        return {**row, "measurement": {**row["measurement"], "peak_memory": memory}}

    assert "GPU memory" in text_of(charts.draw("memory", build(tmp_path / "gpu", change)))
    assert "host memory" in text_of(charts.draw("memory", build(tmp_path / "host")))


def test_out_of_memory_is_named(tmp_path):
    def change(row):
        return synthetic.failed(row, "oom", "full") if row["spec"]["batch_size"] == 64 else row

    assert "Out of memory: single fp32 bs64" in text_of(charts.draw("memory", build(tmp_path, change)))


def test_one_repeat_is_said_to_have_no_interval(tmp_path):
    found = build(tmp_path, axes={"repeats": 1})
    for name in ("pareto", "speedup", "memory"):
        assert "no interval" in text_of(charts.draw(name, found)), name


def test_models_are_drawn_apart(tmp_path):
    found = build(tmp_path, axes={"model": ["tiny", "other"]}, energy={"estimate": False})
    (both,) = charts.draw("pareto", found).to_dict()["vconcat"]
    titles = [part["hconcat"][0]["title"]["text"] for part in both["vconcat"]]
    assert titles == ["tiny", "other"]


@pytest.mark.parametrize("name", charts.names())
def test_a_chart_without_runs_says_why(tmp_path, name):
    found = build(tmp_path, lambda row: synthetic.failed(row, "diverged", "loss is nan"))
    assert "24 diverged" in text_of(charts.draw(name, found))


def test_colours_are_the_same_in_every_chart(tmp_path):
    found = build(tmp_path)
    scales = set()
    for name in charts.names():
        for part in text_of(charts.draw(name, found)).split('"scale": ')[1:]:
            scale, _ = json.JSONDecoder().raw_decode(part)
            if "ddp2 fp32" in scale.get("domain", ()):
                scales.add((tuple(scale["domain"]), tuple(scale["range"])))
    assert len(scales) == 1


@pytest.mark.parametrize("failed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_script_writes_every_chart_twice_without_network(tmp_path, failed):
    found = build(tmp_path, lambda row: synthetic.failed(row, "oom", "full") if failed else row)
    tables.write(found, tmp_path / "tables")
    arguments = ["--tables", str(tmp_path / "tables"), "--output", str(tmp_path / "charts")]
    subprocess.run([sys.executable, "-m", "scripts.charts", *arguments], check=True)
    for name in charts.names():
        assert (tmp_path / "charts" / f"{name}.svg").read_text().startswith("<svg")
        page = (tmp_path / "charts" / f"{name}.html").read_text()
        assert "vegaEmbed" in page and '<script src="http' not in page.replace("'", '"')


def test_script_without_tables_says_so(tmp_path):
    arguments = ["--tables", str(tmp_path), "--output", str(tmp_path / "charts")]
    done = subprocess.run([sys.executable, "-m", "scripts.charts", *arguments], capture_output=True, text=True)
    _, line, *rest = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"error: {tmp_path}") and not rest


@pytest.mark.parametrize("name", charts.names())
def test_a_chart_says_in_its_caption_what_it_shows(name):
    first, _, rest = charts.caption(name).partition("\n\n")
    assert first.endswith(".") and rest.endswith(".")
