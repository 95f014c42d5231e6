import known_sweeps
import pytest
import studied
import synthetic

#: Planted (seconds, watts) by value of an axis: two boards take half the time and more than twice the watts.
PHYSICS = {
    "single": (1.0, 1.0),
    "ddp": (0.54, 2.2),
    "fp32": (1.0, 1.0),
    "bf16-mixed": (0.57, 0.70),
    32: (1.0, 1.0),
    64: (0.80, 1.03),
}
CHEAPEST, FASTEST = "single bf16-mixed bs64", "ddp2 bf16-mixed bs64"
FASTEST_COSTS, LEAST_WATTS_COST = 0.54 * 2.2 - 1, 1 / (0.80 * 1.03) - 1  # of joules, over the cheapest


def physics(row, watts=None):
    """Seconds and watts of a run; watts of all runs alike, if given."""
    a_spec = row["spec"]
    parts = [PHYSICS[a_spec[axis]] for axis in ("strategy", "precision", "batch_size")]
    seconds, factor = 30.0, 1.0
    for part in parts:
        seconds, factor = seconds * part[0], factor * part[1]
    return seconds, watts or 300 * factor


def planted(row, loss=lambda a_spec: 3.0, watts=None, flops=lambda a_spec: 1.0):
    a_spec = row["spec"]
    return known_sweeps.planted(row, *physics(row, watts), loss(a_spec), flops(a_spec))


def answer(folder, change=planted, axes=None, **sections):
    raw = synthetic.raw_config(axes, **{**synthetic.GPU_CONFIG, **sections})
    return studied.answer(folder, "proxy", raw, change)


def costs(told):
    """By proxy: its choice, and percent more joules with both ends."""
    rows = {}
    for row in told.tables[0].rows:
        number, interval = row[2]
        low, high = interval.strip("[]").split(", ")
        rows[row[0]] = row[1], float(number.strip("+ %")), float(low), float(high)
    return rows


def test_the_planted_loss_of_each_proxy_is_recovered(tmp_path):
    told = answer(tmp_path, lambda row: planted(row, flops=lambda a_spec: 1 + 0.01 * (a_spec["batch_size"] == 64)))
    known = costs(told)
    assert known["seconds"][0] == FASTEST and known["power limit × time"][0] == CHEAPEST
    for proxy, loss in (("seconds", FASTEST_COSTS), ("mean watts", LEAST_WATTS_COST)):
        _, cost, low, high = known[proxy]
        assert low <= 100 * loss <= high and abs(cost - 100 * loss) < 2 and high - low < 6
    assert known["executed FLOPs"][0].startswith("any of 4: ")
    assert known["power limit × time"][2] == 0


def test_the_sentence_names_losses_intervals_and_n(tmp_path):
    told = answer(tmp_path)
    number, low, high = (f"{x:.0f}" for x in costs(told)["seconds"][1:])
    assert told.answered and told.sentence.count(". ") == 0
    assert f"by seconds or an estimate from CPU-seconds {number} % [{low}, {high}]" in told.sentence
    assert told.sentence.startswith("Choosing by executed FLOPs or useful FLOPs instead of joules costs 90 % [")
    assert (
        "among 8 configurations whose loss is within 1 % of the best (measured joules of gpu, n = 3)" in told.sentence
    )
    assert told.sentence.endswith("; no loss is shown by power limit × time (the same choice).")


def test_where_watts_are_equal_no_loss_is_shown(tmp_path):
    told = answer(tmp_path, lambda row: planted(row, watts=300), {"strategy": ["single"]})
    assert costs(told)["seconds"][2] == 0
    assert "; no loss is shown by seconds" in told.sentence and "seconds, 0" not in "".join(told.findings)


def test_where_all_proxies_agree_the_sentence_says_so(tmp_path):
    def change(row):  # more watts take more time, and more FLOPs
        size = 1 + (row["spec"]["batch_size"] == 64) + 2 * (row["spec"]["precision"] == "fp32")
        return known_sweeps.planted(row, 30.0 * size, 200.0 + 50 * size, 3.0, float(size))

    told = answer(tmp_path, change, {"strategy": ["single"]})
    assert told.answered and told.sentence.startswith("No loss is shown from choosing by ")
    assert "(the same choice) instead of by joules, among 4" in told.sentence and len(told.tables) == 1


def test_the_choice_is_among_those_within_the_margin(tmp_path):
    told = answer(tmp_path, lambda row: planted(row, lambda a_spec: 3.0 if a_spec["batch_size"] == 32 else 3.3))
    assert "among 4 configurations whose loss" in told.sentence
    row = next(row for row in told.tables[0].rows if row[0] == "seconds")
    assert (row[1], row[3]) == (FASTEST, "ddp2 bf16-mixed bs32")


def test_reversed_pairs_are_shown_with_both_differences(tmp_path):
    told = answer(tmp_path)
    rows = [row for row in told.tables[1].rows if row[0] == "seconds"]
    assert 0 < len(rows) <= 3
    for _, less, more, joules, seconds in rows:
        assert less.startswith("single") and more.startswith("ddp2")
        assert joules[0].startswith("−") and seconds[0].startswith("+") and "[" in joules[1]
    (finding,) = [text for text in told.findings if "in seconds, " in text]
    assert rows[0][1] in finding and rows[0][2] in finding


def test_correlations_and_errors_are_those_of_the_planted(tmp_path):
    told = answer(tmp_path, lambda row: planted(row, watts=300), {"strategy": ["single"]})
    row = next(row for row in told.tables[0].rows if row[0] == "seconds")
    assert row[-3][0] == row[-2][0] == "1.00" and row[-3][1].endswith(", 1.00]")
    assert float(row[-1][0].strip(" %")) < 1.5
    flops = next(row for row in told.tables[0].rows if row[0] == "useful FLOPs")
    assert flops[-3] == ("–", "the same everywhere")


def test_estimated_joules_are_no_answer_and_a_meter_is_named(tmp_path):
    told = studied.answer(tmp_path, "proxy", synthetic.raw_config())
    assert not told.answered and not told.tables
    assert "no joule was measured (cpu:0: no RAPL counters" in told.sentence
    assert "only stand for themselves" in told.sentence and "joulesweep study proxy --run" in told.sentence


@pytest.mark.parametrize(
    ("change", "axes", "why"),
    [
        (planted, {"repeats": 1}, "measured once, so nothing tells the noise"),
        (planted, {"strategy": ["single"], "precision": ["fp32"]}, "of 2 configurations, and 3 are needed"),
        (lambda row: synthetic.on_gpus(row, status="integrated"), {}, "integrated from power readings, not counted"),
        (lambda row: synthetic.on_gpus(row, doubt="power disagrees"), {}, "every configuration are doubtful"),
        (lambda row: None, {}, "no run has finished"),
    ],
    ids=["one seed", "few", "integrated", "doubtful", "nothing"],
)
def test_what_is_no_answer_says_why(tmp_path, change, axes, why):
    told = answer(tmp_path, change, axes)
    assert not told.answered and why in told.sentence


def test_doubtful_and_unmeasured_configurations_are_left_out(tmp_path):
    def change(row):
        if row["spec"]["batch_size"] == 64 and row["spec"]["strategy"] == "ddp":
            return synthetic.on_gpus(row, doubt="power disagrees")
        return planted(row)

    told = answer(tmp_path, change)
    assert "among 6 configurations" in told.sentence
    (finding,) = [text for text in told.findings if text.startswith("Left out: ")]
    assert finding.count("doubtful joules: gpu:0: power disagrees") == 2


def test_each_panel_has_its_own_answer(tmp_path):
    told = answer(tmp_path, axes={"model": ["tiny", "other"], "batch_size": [32]})
    assert told.sentence.startswith("tiny: Choosing by ")
    assert any(text.startswith("other: Choosing by ") for text in told.findings)
