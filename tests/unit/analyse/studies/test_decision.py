"""Which configuration is recommended, by which cost, and in which words."""

from __future__ import annotations

import pytest
import synthetic

from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.studies.decision import Limits, decisions, sentence


def build(tmp_path, change=lambda row: row, axes=None, **sections):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes, **sections), change)
    return aggregate(grid, runs), grid["config"]


def decided(tmp_path, change=lambda row: row, axes=None, **sections):
    (decision,) = decisions(*build(tmp_path, change, axes, **sections))
    return decision


def with_loss(row, loss):
    return {**row, "quality": {**row["quality"], "validation_loss": loss}}


def by_batch(**losses):
    """The loss depends on the batch size and the seed alone."""
    return lambda row: with_loss(row, losses[f"b{row['spec']['batch_size']}"] + 0.01 * row["spec"]["repeat"])


def with_time(row, window_s):
    return {**row, "measurement": {**row["measurement"], "window_s": window_s}}


def test_the_fastest_within_the_margin_is_recommended(tmp_path):
    decision = decided(tmp_path, by_batch(b32=3.00, b64=3.02))  # 0.7 % apart
    assert decision.recommended.row["name"] == "ddp2 bf16-mixed bs64"
    assert (decision.by, decision.verdicts["within"], decision.num_cells) == ("window_s", 8, 8)


def test_a_worse_loss_is_not_chosen_for_its_speed(tmp_path):
    decision = decided(tmp_path, by_batch(b32=3.00, b64=3.10))
    assert decision.recommended.row["name"] == "ddp2 bf16-mixed bs32"
    assert decision.verdicts == {"within": 4, "beyond": 4, "cannot be told yet": 0}


def test_the_margin_of_the_config_decides(tmp_path):
    decision = decided(tmp_path, by_batch(b32=3.00, b64=3.10), answer={"margin": "5%"})
    assert decision.margin == 0.05 and decision.recommended.row["name"] == "ddp2 bf16-mixed bs64"
    assert "no more than 5 % above the best" in sentence(decision)


def test_the_measure_of_quality_of_the_config_decides(tmp_path):
    def change(row):  # a larger batch has a worse loss, and more of its tokens right
        right = 0.4 if row["spec"]["batch_size"] == 32 else 0.5
        return {**row, "quality": {**row["quality"], "masked_accuracy": right + 0.001 * row["spec"]["repeat"]}}

    decision = decided(tmp_path, change, answer={"quality": "masked_accuracy"})
    assert decision.best["batch_size"] == decision.recommended.row["batch_size"] == 64
    assert decision.verdicts["beyond"] == 4


def test_measured_joules_rank_and_estimated_ones_do_not(tmp_path):
    def thirsty(row):  # the fastest strategy burns most
        return synthetic.measured(with_loss(row, 3.0), watts=500 if row["spec"]["strategy"] == "ddp" else 50)

    decision = decided(tmp_path / "measured", thirsty)
    assert (decision.by, decision.recommended.row["strategy"]) == ("energy_j", "single")

    def slow_but_idle(row):  # ddp is fastest; its estimate is by far the highest
        cpu_s = 900.0 if row["spec"]["strategy"] == "ddp" else 1.0
        row = with_loss(row, 3.0)
        return {**row, "measurement": {**row["measurement"], "cpu_s": cpu_s}}

    decision = decided(tmp_path / "estimated", slow_but_idle)
    assert (decision.by, decision.recommended.row["strategy"]) == ("window_s", "ddp")


def joules(row, of_strategy):
    """Both strategies have one loss; these joules, with 1 % of noise."""
    number = of_strategy[row["spec"]["strategy"]] * (1 + 0.01 * (-1) ** row["spec"]["repeat"])
    number *= 1 + 0.005 * (row["spec"]["precision"] == "fp32") * row["spec"]["repeat"] ** 2
    return synthetic.with_energy(with_loss(row, 3.0), synthetic.energy_row("cpu:0", number))


@pytest.mark.parametrize(("ddp_j", "chosen"), [(101.0, "ddp"), (110.0, "single")])
def test_of_ties_in_energy_the_faster_is_recommended(tmp_path, ddp_j, chosen):
    def change(row):
        return joules(row, {"single": 100.0, "ddp": ddp_j})

    decision = decided(tmp_path, change, {"batch_size": [32]})
    assert (decision.by, decision.recommended.row["strategy"]) == ("energy_j", chosen)


def test_an_unsure_lead_is_told(tmp_path):
    def change(row):  # bf16-mixed is faster with one seed and slower with the next
        factor = {1: 1.2, 2: 0.8, 3: 1.2}[row["spec"]["repeat"]] if row["spec"]["precision"] == "bf16-mixed" else 1.0
        return with_time(row, 10.0 * factor)

    decision = decided(tmp_path, change, {"strategy": ["single"], "batch_size": [32]})
    assert decision.ties == [
        {"fp32": "single bf16-mixed bs32", "bf16-mixed": "single fp32 bs32"}[decision.recommended.row["precision"]]
    ]


def test_one_repeat_decides_by_estimates_and_says_so(tmp_path):
    decision = decided(tmp_path, axes={"repeats": 1})
    assert not decision.told and decision.resolution is None and decision.recommended is not None
    assert "one repeat, no interval" in sentence(decision)


def test_a_baseline_that_ran_out_of_memory_is_replaced_by_name(tmp_path):
    def change(row):
        first = row["spec"]["strategy"] == "single" and row["spec"]["precision"] == "fp32"
        return synthetic.failed(row, "oom", "no memory") if first else row

    tables, config = build(tmp_path, change)
    (decision,) = decisions(tables, config)
    assert decision.baseline["name"] == "single bf16-mixed bs32"
    assert decision.baseline_why == "single fp32 bs32 ran out of memory"
    cells = {row["name"]: row for row in tables.cells.to_dicts()}
    of_64 = cells["ddp2 fp32 bs64"]
    assert of_64["baseline"] == "single bf16-mixed bs64" and of_64["speedup"] > 1
    assert of_64["baseline_why"] == "single fp32 bs64 ran out of memory"
    assert cells["single fp32 bs32"]["baseline"] is None and cells["single fp32 bs32"]["compared_with"] is None


def test_a_cell_of_which_a_run_diverged_is_not_recommended(tmp_path):
    def change(row):
        is_best = row["spec"]["strategy"] == "ddp" and row["spec"]["repeat"] == 2
        return synthetic.failed(row, "diverged", "loss is NaN") if is_best else with_loss(row, 3.0)

    assert decided(tmp_path, change).recommended.row["strategy"] == "single"


def test_a_measure_that_no_run_has_decides_nothing(tmp_path):
    assert decisions(*build(tmp_path, answer={"quality": "choice_accuracy"})) == []


def test_a_baseline_without_the_measure_is_still_what_the_others_are_compared_with(tmp_path):
    def change(row):
        first = row["spec"]["strategy"] == "single" and row["spec"]["precision"] == "fp32"
        right = None if first else 0.5 + 0.001 * row["spec"]["repeat"]
        return {**row, "quality": {**row["quality"], "choice_accuracy": right}}

    decision = decided(tmp_path, change, answer={"quality": "choice_accuracy"})
    assert decision.baseline["name"] == "single fp32 bs32" and decision.num_cells == 6
    assert decision.recommended.ratios["time"] is not None


def test_limits_leave_out_what_takes_more(tmp_path):
    tables, config = build(tmp_path, lambda row: with_loss(row, 3.0))
    (free,) = decisions(tables, config)
    (one_device,) = decisions(tables, config, Limits(devices=1))
    assert (free.recommended.row["devices"], one_device.recommended.row["devices"]) == (2, 1)
    assert (one_device.num_cells, one_device.num_over) == (4, 4)
    (nothing,) = decisions(tables, config, Limits(time_s=1e-3))
    assert nothing.recommended is None and "meets the limits" in sentence(nothing)
    (unknown,) = decisions(tables, config, Limits(kwh=100.0))
    assert unknown.recommended is None, "joules that nobody measured meet no limit"


def test_open_cells_that_are_cheaper_say_what_would_tell_them(tmp_path):
    def change(row):  # the larger batch is faster, and its loss too noisy to tell
        spread = {1: -0.06, 2: 0.07, 3: -0.01}[row["spec"]["repeat"]] if row["spec"]["batch_size"] == 64 else 0.0
        return with_loss(row, 3.0 + spread + 0.005 * (row["spec"]["batch_size"] == 64))

    decision = decided(tmp_path, change, {"strategy": ["single"], "precision": ["fp32"]})
    assert decision.verdicts["within"] == 0 and decision.recommended.row["batch_size"] == 32
    assert "which cannot be told yet, is cheaper: grid.repeats of " in decision.settle
    assert "its loss is the lowest of 2" in sentence(decision)


def first_precision(row):
    return row["spec"]["precision"] == "fp32"


def with_dram(row):
    dram = [synthetic.energy_row("dram:0", 5.0)] if first_precision(row) else []
    return synthetic.with_energy(row, synthetic.energy_row("cpu:0", 100.0), *dram)


def partly_integrated(row):
    status = "integrated" if first_precision(row) else "measured"
    return synthetic.with_energy(row, synthetic.energy_row("cpu:0", 100.0, status=status))


def all_integrated(row):
    return synthetic.with_energy(row, synthetic.energy_row("cpu:0", 100.0, status="integrated"))


def partly_measured(row):
    return synthetic.measured(row) if first_precision(row) else row


def one_repeat_unmeasured(row):
    return row if row["spec"]["repeat"] == 2 and first_precision(row) else synthetic.measured(row)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda row: row, "energy was not measured"),
        (with_dram, "joules of different scopes are not ranked together: cpu+dram, cpu"),
        (partly_integrated, "joules of different statuses are not ranked together: integrated, measured"),
        (all_integrated, "energy was integrated from power readings, not counted"),
        (partly_measured, "joules are known of 4 of 8 configurations"),
        (one_repeat_unmeasured, "joules are known of 4 of 8 configurations"),
    ],
)
def test_joules_that_cannot_be_compared_leave_the_rank_to_time(tmp_path, change, why):
    decision = decided(tmp_path, change)
    assert (decision.by, decision.unranked) == ("window_s", why)
    assert "energy" not in sentence(decision)


@pytest.mark.parametrize("change", [synthetic.measured, synthetic.on_gpus])
def test_measured_joules_of_one_scope_are_ranked(tmp_path, change):
    sections = synthetic.GPU_CONFIG if change is synthetic.on_gpus else {}
    decision = decided(tmp_path, change, **sections)
    assert (decision.by, decision.unranked) == ("energy_j", None)
    assert "less energy [" in sentence(decision)


def test_each_panel_is_ranked_by_itself(tmp_path):
    def change(row):
        return synthetic.measured(row) if row["spec"]["model"] == "tiny" else row

    both = decisions(*build(tmp_path, change, {"model": ["tiny", "other"]}))
    assert [(decision.panel, decision.by) for decision in both] == [("tiny", "energy_j"), ("other", "window_s")]
    assert [sentence(decision).split(":")[0] for decision in both] == ["tiny", "other"]


@pytest.mark.parametrize(
    ("change", "compared"),
    [(synthetic.measured, True), (with_dram, False), (all_integrated, False), (one_repeat_unmeasured, False)],
)
def test_energy_is_compared_only_where_measured_in_one_scope(tmp_path, change, compared):
    tables, _ = build(tmp_path, change)
    (row,) = tables.cells.filter(strategy="single", batch_size=32, precision="bf16-mixed").to_dicts()
    assert (row["energy_ratio"] is not None) is compared
    assert row["time_ratio"] is not None
