"""GreenTrainer saves more than a rival, or less, or nobody can tell, by records in which that is planted."""

from __future__ import annotations

import pytest
import studied
import synthetic

METHODS = ["full", {"freeze-bottom": {"fraction": 0.5}}, "sampled-backward", {"greentrainer": {"rho": 0.7}}]
GREEN, FROZEN, SAMPLED = "greentrainer(rho=0.7)", "freeze-bottom(fraction=0.5)", "sampled-backward(keep=0.5)"
SAME_LOSS = {"full": 1.0, "freeze-bottom": 1.0, "sampled-backward": 1.0, "greentrainer": 1.0}


def answer(folder, costs, losses=SAME_LOSS, measured=True, **axes):
    """What is said where methods take these shares of full training's cost, and reach these multiples of its loss."""
    raw = synthetic.raw_config({**synthetic.METHODS, "method": METHODS, **axes}, answer={"margin": 0.05})

    def planted(row):
        method = row["spec"]["method"]
        factor, (phase,) = costs[method], row["measurement"]["phases"]
        work = {unit: factor * flops for unit, flops in phase["flop_coefficients"].items()}
        measurement = {**row["measurement"], "phases": [{**phase, "flop_coefficients": work}]}
        loss = losses[method] * row["quality"]["validation_loss"]
        quality = {**row["quality"], "validation_loss": loss}
        return synthetic.measured({**row, "measurement": measurement, "quality": quality}, 50 * factor)

    def estimated(row):
        return {**planted(row), "measurement": {**planted(row)["measurement"], "energy": synthetic.no_meter()}}

    return studied.answer(folder, "rivals", raw, planted if measured else estimated)


COSTS = {"full": 1.0, "freeze-bottom": 0.5, "sampled-backward": 0.9, "greentrainer": 0.7}


def test_it_saves_more_than_one_and_less_than_another(tmp_path):
    found = answer(tmp_path, COSTS)
    assert found.answered
    start, rest = found.sentence.split(" saves more than ")
    more, less = rest.split(", saves less than ")
    assert start == f"At a margin of 5 % in validation loss, by measured joules, {GREEN}"
    assert more.startswith(f"{SAMPLED} (0.7") and less.startswith(f"{FROZEN} (1.4") and less.endswith("(n = 3).")
    low, high = (float(end) for end in more.partition("[")[2].partition("]")[0].split(", "))
    assert low < 0.7 / 0.9 < high


def test_it_is_the_other_way_round_where_its_cost_is(tmp_path):
    found = answer(tmp_path, {**COSTS, "freeze-bottom": 0.9, "sampled-backward": 0.5})
    assert f"saves more than {FROZEN} (" in found.sentence and f"saves less than {SAMPLED} (" in found.sentence


@pytest.mark.parametrize(
    ("method", "loss", "said"),
    [
        ("greentrainer", 1.3, f"costs less but is worse by more than the margin than {SAMPLED}"),
        ("freeze-bottom", 1.3, f"costs more but is better by more than the margin than {FROZEN}"),
        ("greentrainer", 0.7, f"costs more but is better by more than the margin than {FROZEN}"),
        ("greentrainer", 1.05, f"costs less, at a quality that cannot be told within the margin, than {SAMPLED}"),
        ("freeze-bottom", 1.05, f"costs more, at a quality that cannot be told within the margin, than {FROZEN}"),
    ],
)
def test_less_cost_at_a_worse_quality_is_no_saving(method, loss, said, tmp_path):
    assert said in answer(tmp_path, COSTS, {**SAME_LOSS, method: loss}).sentence


def test_a_difference_that_is_not_shown_is_no_saving(tmp_path):
    found = answer(tmp_path, {**COSTS, "freeze-bottom": 0.7, "sampled-backward": 0.7})
    assert f"{GREEN} is not shown to cost more or less than {SAMPLED} (" in found.sentence
    assert f"and {FROZEN} (" in found.sentence and "saves" not in found.sentence


def test_without_joules_it_answers_by_flops_and_says_so(tmp_path):
    found = answer(tmp_path, COSTS, measured=False)
    assert found.answered
    assert f", by FLOPs since energy was not measured, {GREEN} saves more than {SAMPLED} (0.778 [" in found.sentence
    shares = {GREEN: "0.700", SAMPLED: "0.900", FROZEN: "0.500"}
    taken = ", ".join(f"{name} {share} [{share}, {share}]" for name, share in shares.items())
    assert found.findings[0].endswith(f" take {taken}.")
    assert any(", at equal CPU-seconds: " in finding for finding in found.findings)


def test_what_is_more_is_better_where_the_measure_says_so(tmp_path):
    raw = synthetic.raw_config(
        {**synthetic.METHODS, "method": METHODS}, answer={"margin": 0.05, "quality": "masked_accuracy"}
    )

    def planted(row):
        share = {"greentrainer": 0.3}.get(row["spec"]["method"], 0.4) * row["quality"]["validation_loss"] / 3.5
        row = {**row, "quality": {**row["quality"], "masked_accuracy": share}}
        return synthetic.measured(row, 50 * COSTS[row["spec"]["method"]])

    said = studied.answer(tmp_path, "rivals", raw, planted).sentence
    assert "in masked accuracy" in said and f"costs less but is worse by more than the margin than {SAMPLED}" in said


def test_the_table_has_a_row_for_each_rival(tmp_path):
    (table,) = answer(tmp_path, COSTS).tables
    assert [row[0] for row in table.rows] == [SAMPLED, FROZEN]
    assert table.rows[1][3] == "greentrainer saves less" and table.rows[0][1][0].startswith("0.7")


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"repeats": 1}, f"It cannot be told: {GREEN} shares no two seeds with known measured joules with a rival."),
        ({"method": ["full", "sampled-backward"]}, "It takes finished runs of greentrainer and of sampled-backward, "),
        ({"method": ["full", {"greentrainer": {"rho": 0.7}}]}, "It takes finished runs of greentrainer and of "),
    ],
)
def test_without_seeds_or_rivals_it_says_what_it_takes(axes, reason, tmp_path):
    found = answer(tmp_path, COSTS, **axes)
    assert not found.answered and found.sentence.startswith(reason)


def test_of_nothing_finished_it_says_what_it_takes(tmp_path):
    found = studied.answer(tmp_path, "rivals", synthetic.raw_config(), lambda row: None)
    assert not found.answered and found.sentence.startswith("It takes finished runs of greentrainer and of ")
