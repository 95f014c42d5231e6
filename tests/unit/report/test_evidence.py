"""Conditions, flags, drift and what the sweep cost, as a reader of the report meets them."""

from __future__ import annotations

import re

import pages
import polars as pl
import pytest
import synthetic
from pages import rendered, words

from joulesweep.analyse import collect, run_rows
from joulesweep.core import files
from joulesweep.report import evidence

CARBON = {"country": None, "g_per_kwh": 360.0, "source": "my contract, 2025"}
ASKED = {"carbon": CARBON, "price_per_kwh": 0.36, "currency": "EUR"}
ABSENCES = re.compile(r"(?<![\d.,])0(\.0+)? (k?J|m?g|EUR)\b|\bNaN\b|\bNone\b|\bnan\b|\bnull\b")


def sweep(tmp_path, change=synthetic.on_gpus, axes=None, energy=None):
    sections = {**synthetic.GPU_CONFIG, "energy": energy or {}}
    return synthetic.write_sweep(tmp_path, synthetic.raw_config(axes, **sections), change)


def page(tmp_path, change=synthetic.on_gpus, axes=None, energy=None):
    return pages.page(tmp_path, change, axes, **{**synthetic.GPU_CONFIG, "energy": energy or {}})


def shown(html):
    """The reader's words without the config's text, which has the word null."""
    return words(html).split("The config of this sweep")[0]


def some_flags(row):
    row = synthetic.on_gpus(row)
    if row["spec"]["repeat"] == 1:
        row = synthetic.flagged(row, "short_window", "gpu:0: window of 12 s")
    return synthetic.flagged(row, "throttled", "hot <b>") if row["spec"]["strategy"] == "ddp" else row


def test_flags_by_kind_with_an_example(tmp_path):
    html = page(tmp_path, some_flags)
    text = shown(html)
    assert "16 of 24 finished runs are flagged" in text
    assert re.search(r"short_window 8 The window is too short .* single fp32 bs32 r1: gpu:0: window of 12 s", text)
    assert re.search(r"throttled 12 Something limited .* ddp2 fp32 bs32 r1: hot <b>", text)
    assert "hot &lt;b&gt;" in html and "hot <b>" not in html


def test_flagged_configurations_are_marked_with_a_title(tmp_path):
    def change(row):
        return some_flags(row) if row["spec"]["strategy"] == "ddp" else synthetic.on_gpus(row)

    html = page(tmp_path, change)
    table = html[html.index('<section id="configurations"') : html.index('<section id="conditions"')]
    assert table.count("⚑</span></th>") == 4
    assert 'title="3 of 3 runs flagged: short_window, throttled"' in table
    assert re.search(r"single fp32 bs32</label></th>", table)


def test_no_flags_no_marks(tmp_path):
    html = page(tmp_path)
    assert "No finished run is flagged." in shown(html) and "⚑" not in html


def test_why_results_of_other_code_were_kept_is_told(tmp_path):
    accepted = [{"code_digest": "0ther", "reason": "wording alone", "accepted": "2026-01-03"}]
    assert "wording alone" in shown(page(tmp_path, lambda row: {**synthetic.on_gpus(row), "accepted": accepted}))


def host_joules(row, exclusive):
    """The same run with CPU joules and a neighbour on its host."""
    row = synthetic.flagged(synthetic.on_gpus(row), "shared_host", "others")
    boards = [one for one in row["measurement"]["energy"] if one["kind"] == "gpu"]
    row = synthetic.with_energy(row, *boards, synthetic.energy_row("cpu:0", 7.0))
    row["measurement"]["conditions"]["exclusive"] = exclusive
    return row


def test_a_neighbour_marks_no_configuration_whose_joules_are_its_boards_alone(tmp_path):
    html = page(tmp_path, lambda row: host_joules(row, "gpu"))
    text, table = (
        shown(html),
        html[html.index('<section id="configurations"') : html.index('<section id="conditions"')],
    )
    assert "⚑" not in table and "Runs of it are flagged" not in text
    assert "24 of 24 finished runs are flagged" in text and "shared_host 24 Another run used the host" in text
    html = page(tmp_path / "node", lambda row: host_joules(row, "node"))
    assert 'title="3 of 3 runs flagged: shared_host"' in html and "Runs of it are flagged ( shared_host )" in shown(
        html
    )


def test_a_neighbour_does_not_hide_a_flag_that_concerns_the_joules(tmp_path):
    def change(row):
        row = host_joules(row, "gpu")
        return synthetic.flagged(row, "throttled", "hot") if row["spec"]["repeat"] == 2 else row

    assert page(tmp_path, change).count('title="1 of 3 runs flagged: throttled"') == 8


def test_conditions_and_the_cross_check(tmp_path):
    def change(row):
        if row["spec"]["repeat"] < 3:
            return synthetic.on_gpus(row, power_ratio=0.99)
        return synthetic.flagged(synthetic.on_gpus(row, power_ratio=1.25), "power_disagrees", "gpu:0: 1.25 ×")

    text = shown(page(tmp_path, change))
    assert "the counter's joules median 0.990 of 24 runs; 8 refuted by it" in text
    assert "temperature of the hottest board at the start 35.0 to 36.0 °C" in text
    assert (
        "passes over the training in a window 2 to 5" in text or "passes over the training in a window 2 to 4" in text
    )
    assert re.search(r"share of a window spent on measuring at most 0\.0\d+ %", text)


def test_what_is_unknown_has_no_line(tmp_path):
    text = shown(page(tmp_path, lambda row: row))
    assert "°C" not in text and "counter's joules" not in text and "SM clock" not in text
    assert "Unknown: no run's joules were read." in text


def test_provenance_of_joules(tmp_path):
    text = shown(page(tmp_path))
    assert "12 runs: measured, scope gpu; Zeus: NVML energy counter; the counter moves every 100 ms" in text or (
        "24 runs: measured, scope gpu; Zeus: NVML energy counter; the counter moves every 100 ms" in text
    )
    assert "boards: GPU-0, GPU-1" in text


def test_the_sweeps_own_cost_counts_every_pass(tmp_path):
    def change(row):
        row = synthetic.on_gpus(row)
        if row["spec"]["repeat"] < 3:
            return row
        return synthetic.with_energy(row, *synthetic.no_meter())

    grid, runs = sweep(tmp_path, change)
    found = collect.aggregate(grid, runs)
    total_j = found.runs["total_energy_j"].sum()
    assert total_j > 1.5 * found.runs["energy_j"].sum()  # several passes each
    text = shown(rendered(grid, found))
    assert f"{total_j / 1e3:.0f} kJ (measured, scope gpu, 16 runs)" in text
    assert "8 finished runs lack joules." in text


def test_what_whole_runs_used_is_told_beside_their_windows(tmp_path):
    """Start-up, idling and scoring have a sentence; a run in which a board in the scope was lost is not in it."""

    def change(row):
        row = synthetic.on_gpus(row)
        if row["spec"]["devices"] == 2 and row["spec"]["repeat"] == 1:
            row["measurement"]["overhead"]["whole_run_energy"][1] |= {"energy_j": None, "reason": "gone"}
        if row["spec"]["devices"] == 1 and row["spec"]["repeat"] == 2:
            row["measurement"]["overhead"]["whole_run_energy"].clear()
        return row

    grid, runs = sweep(tmp_path, change)
    found = collect.aggregate(grid, runs)
    lacking = found.devices.filter("in_scope", pl.col("whole_run_energy_j").is_null())
    assert set(lacking["whole_run_reason"]) == {"gone", run_rows.NOT_TRACED}
    known = found.runs.join(lacking, on="run", how="anti")
    idle_j = (90.0 * synthetic.START_S * known["devices"]).sum()
    whole_j = known["total_energy_j"].sum() + idle_j
    assert known.height == 16
    text = shown(rendered(grid, found))
    assert f"finished runs used {whole_j / 1e3:.0f} kJ in 16 runs." in text
    read = [row for row in lacking.iter_rows(named=True) if row["total_energy_j"] is not None]
    assert len(read) == 8


def test_the_joules_of_a_machine_are_counted_once(tmp_path):
    """Of runs that had neighbours, CPU joules are in the record and in no sum."""
    for exclusive, factor in (("gpu", 0.0), ("node", 24 * 7.0)):
        grid, runs = sweep(tmp_path / exclusive, lambda row, exclusive=exclusive: host_joules(row, exclusive))
        found = collect.aggregate(grid, runs)
        boards_j = sum(
            one["total_energy_j"]
            for run in grid["runs"]
            for one in files.read_json(runs / run / "record.json", "record")["measurement"]["energy"]
            if one["kind"] == "gpu"
        )
        (line,) = evidence.sweep_energy(found, None)["lines"]
        scope = "gpu" if exclusive == "gpu" else "gpu+cpu"
        assert line.endswith(f"(measured, scope {scope}, 24 runs)")
        assert found.runs["total_energy_j"].sum() == pytest.approx(boards_j + factor)


def test_joules_at_the_plug_are_a_line_of_their_own(tmp_path):
    def plugged(row):
        row = host_joules(row, "node")
        energy = [*row["measurement"]["energy"], synthetic.energy_row("wall:0", 900.0, status="integrated")]
        return {**row, "measurement": {**row["measurement"], "energy": energy}}

    found = collect.aggregate(*sweep(tmp_path, plugged))
    sums, plug = evidence.sweep_energy(found, None)["lines"]
    assert sums.endswith("(measured, scope gpu+cpu, 24 runs)")
    assert plug.endswith("(integrated, at the plug of the machine: those of its devices are among them, 24 runs)")
    assert set(found.runs["wall_j"]) == {900.0}


def test_net_of_idle_is_a_second_column(tmp_path):
    html = page(tmp_path)
    assert "Net of idle" in shown(html) and "Measured energy (gpu)" in shown(html)
    without = shown(page(tmp_path / "none", lambda row: synthetic.on_gpus(row, net_energy_j=None)))
    assert "Net of idle" not in without and "Measured energy (gpu)" in without


def test_emissions_and_cost_only_when_asked_for(tmp_path):
    text = shown(page(tmp_path / "asked", energy=ASKED))
    assert re.search(r"CO2e [\d.]+ m?g cost [\d.]+ EUR", text) and "kWh EUR g CO2e Trainings per kWh" in text
    assert "1 kWh = 360 g CO2e (my contract, 2025; number given in the config) × PUE 1.0" in text
    assert "1 kWh = 0.36 EUR" in text
    assert re.search(r"kJ \(measured, scope gpu, 24 runs\) = [\d.]+ g CO2e = [\d.]+ EUR", text)
    text = shown(page(tmp_path / "plain"))
    assert "CO2e" not in text and "EUR" not in text and "Cost" not in text and "names no factors" in text
    text = shown(page(tmp_path / "carbon", energy={"carbon": CARBON}))
    assert "kWh g CO2e Trainings" in text and "Cost" not in text


def test_emissions_of_estimates_are_marked(tmp_path):
    raw = synthetic.raw_config(energy={"estimate": True, "carbon": CARBON})
    grid, runs = synthetic.write_sweep(tmp_path, raw)
    text = shown(rendered(grid, collect.aggregate(grid, runs)))
    assert re.search(r"CO2e, a guess ≈ [\d.]+ m?g estimated", text)
    assert "Estimated CO2e" in text and "CO2e ≈" not in text
    assert "The joules include no share for cooling: PUE multiplies emissions and cost only." in text


def drifted(tmp_path, *anchors):
    written = sweep(tmp_path)
    for day, factor, change in anchors:
        synthetic.write_anchors(written, tmp_path, day, 2, factor, change)
    grid, runs = written
    return shown(rendered(grid, collect.aggregate(grid, runs, anchors_folder=tmp_path / "anchors")))


def test_drift_between_days(tmp_path):
    def newer(row):
        return {**row, "environment": {**row["environment"], "driver": "999.1"}}

    text = drifted(
        tmp_path,
        ("2026-02-03", 1.02, lambda row: row),
        ("2026-03-01", 0.97, newer),
    )
    assert "Drift between days" in text
    assert "2026-02-03 2 1.020× 1.020, 1.020 1.020× 1.020, 1.020" in text
    assert "2026-03-01 2 – – another environment, not comparable (2 of 2)" in text
    assert re.search(r"kJ \(measured, scope gpu, 4 anchors\)", text)


def test_an_anchor_that_cannot_be_read_is_told(tmp_path):
    text = drifted(tmp_path, ("2026-02-03", 1.02, lambda row: {**row, "version": 1}))
    assert "2026-02-03 2 – – record cannot be read (2 of 2)" in text and "not finished" not in text


def test_no_anchors_no_section(tmp_path):
    assert "Drift" not in drifted(tmp_path)


def below_resolution(row):
    row = synthetic.on_gpus(row)
    lost = dict.fromkeys(("energy_j", "total_energy_j", "net_energy_j", "power_ratio"))
    lost |= {"status": "below_resolution", "reason": "shorter than 10 updates"}
    return synthetic.with_energy(row, *({**one, **lost} for one in row["measurement"]["energy"]))


def mixed(row):
    measured = row["spec"]["precision"] == "fp32" or row["spec"]["repeat"] == 1
    return synthetic.on_gpus(row) if measured else below_resolution(row)


@pytest.mark.parametrize("change", [lambda row: row, below_resolution, mixed, synthetic.on_gpus])
def test_missing_joules_are_never_zero(tmp_path, change):
    """Neither in a table nor in the report."""
    grid, runs = sweep(tmp_path, change, energy=ASKED)
    found = collect.aggregate(grid, runs)
    assert not ABSENCES.search(shown(rendered(grid, found)))
    for name, columns in (("runs", "energy_j net_energy_j total_energy_j co2e_g cost"), ("epochs", "energy_j")):
        values = getattr(found, name).select(columns.split())
        assert (values.fill_null(1.0).min_horizontal() > 0).all()
    lacks = found.runs["energy_j"].is_null()
    assert found.runs.filter(lacks).select(pl.all_horizontal(pl.col("energy_reason").is_not_null())).to_series().all()
    assert found.runs.filter(lacks)[["net_energy_j", "total_energy_j", "co2e_g", "cost"]].null_count().row(0) == (
        (lacks.sum(),) * 4
    )


def test_below_resolution_and_mixtures_have_their_words(tmp_path):
    text = shown(page(tmp_path, mixed))
    assert "not averaged measured, below_resolution" in text
    assert "Ranked by time: joules are known of 4 of 8 configurations." in text
    assert "below resolution" in shown(page(tmp_path / "below", below_resolution))


def test_integrated_joules_are_labelled(tmp_path):
    text = shown(page(tmp_path, lambda row: synthetic.on_gpus(row, status="integrated", power_ratio=None)))
    assert "Integrated energy (gpu)" in text and "integrated energy (gpu)" in text
    assert "Measured energy" not in text and "Ranked by time: energy was integrated" in text


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate {} GiB. GPU 0 has a total capacity of 79.11 GiB of which {} is free."
    " Process {} has 77.90 GiB memory in use. Of the allocated memory 76.20 GiB is allocated by PyTorch."
)


def test_repeats_that_ran_out_of_memory_have_one_short_reason(tmp_path):
    free = {1: "1.20 GiB", 2: "900.50 MiB", 3: "8 bytes"}

    def change(row):
        repeat = row["spec"]["repeat"]
        said = OUT_OF_MEMORY.format(f"{repeat}.00", free[repeat], 12344 + repeat)
        return synthetic.failed(row, "oom", said) if row["spec"]["batch_size"] == 64 else synthetic.on_gpus(row)

    grid, runs = sweep(tmp_path, change)
    problems = evidence.problems(collect.aggregate(grid, runs).runs)
    assert len(problems) == 4 and {problem["repeats"] for problem in problems} == {"1, 2, 3"}
    short = OUT_OF_MEMORY.format("1.00", free[1], "").partition(" Process")[0]
    assert {problem["reasons"] for problem in problems} == {short}


def test_a_run_without_numbers_makes_no_environment_of_its_own(tmp_path):
    def change(row):
        if row["spec"]["strategy"] == "single":
            return synthetic.on_gpus(row)
        return synthetic.failed(row, "unsupported", "ddp asks for 2 GPUs; this machine has 1")  # without boards

    grid, runs = sweep(tmp_path, change)
    found = collect.aggregate(grid, runs)
    assert found.cells["panel"].unique().to_list() == [""]
    assert {problem["panel"] for problem in evidence.problems(found.runs)} == {""}
