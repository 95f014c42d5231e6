import known_sweeps
import pytest
import synthetic

from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.studies.proxies import ESTIMATE, panels
from joulesweep.reference.cpu_estimate import Asked

ALONE = {"strategy": ["single"]}


def planted(row):
    return known_sweeps.planted(row, 40.0 if row["spec"]["precision"] == "fp32" else 20.0, 300.0, 3.0)


def read(folder, change=planted, axes=None, **sections):
    manifest, runs = synthetic.write_sweep(
        folder, synthetic.raw_config(axes, **{**synthetic.GPU_CONFIG, **sections}), change
    )
    return panels(aggregate(manifest, runs), Asked(estimate=False))


def test_proxies_are_those_that_every_configuration_has(tmp_path):
    (panel,) = read(tmp_path, axes=ALONE)
    assert [one.proxy for one in panel.standings] == [
        "seconds",
        "executed FLOPs",
        "useful FLOPs",
        "mean watts",
        "power limit × time",
        ESTIMATE,
    ]
    assert panel.scope == "gpu" and panel.repeats == 3 and len(panel.rows) == 4
    assert panel.lacking == {"time per token": "all configurations train on as many tokens, so it ranks as seconds do"}


def test_a_power_limit_that_nobody_recorded_is_lacking(tmp_path):
    def change(row):
        row = planted(row)
        boards = [{**board, "power_limit_w": None} for board in row["measurement"]["conditions"]["boards"]]
        conditions = {**row["measurement"]["conditions"], "boards": boards}
        return {**row, "measurement": {**row["measurement"], "conditions": conditions}}

    (panel,) = read(tmp_path, change, ALONE)
    assert panel.lacking["power limit × time"] == "no board's power limit is recorded"


def test_time_per_token_counts_where_tokens_differ(tmp_path):
    def change(row):
        row = planted(row)
        factor = 2.0 if row["spec"]["batch_size"] == 64 else 1.0
        return {
            **row,
            "measurement": {**row["measurement"], "tokens_per_s": factor * row["measurement"]["tokens_per_s"]},
        }

    (panel,) = read(tmp_path, change, ALONE)
    assert "time per token" in [one.proxy for one in panel.standings]


def test_a_configuration_of_another_scope_is_left_out(tmp_path):
    def change(row):
        row = planted(row)
        if row["spec"]["precision"] == "fp32" or row["spec"]["batch_size"] == 32:
            return row
        host = synthetic.energy_row("cpu:0", 900.0)
        energy = [one for one in row["measurement"]["energy"] if one["kind"] == "gpu"]
        conditions = {**row["measurement"]["conditions"], "exclusive": "node"}
        row = synthetic.with_energy(row, *energy, host)
        return {**row, "measurement": {**row["measurement"], "conditions": conditions}}

    (panel,) = read(tmp_path, change, ALONE)
    assert len(panel.rows) == 3
    assert panel.left_out == ("single bf16-mixed bs64: joules of gpu+cpu, the others' are of gpu",)


def test_one_repeat_has_a_reason_and_no_standings(tmp_path):
    (panel,) = read(tmp_path, axes={**ALONE, "repeats": 1})
    assert panel.standings == () and "measured once" in panel.why_not


def test_the_estimate_takes_the_user_s_watts(tmp_path):
    manifest, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(ALONE, **synthetic.GPU_CONFIG), planted)
    tables = aggregate(manifest, runs)
    # All watts are idle ones: the estimate is seconds times a constant; CPU-seconds are 1.1 × the seconds either way.
    (panel,) = panels(tables, Asked(estimate=True, cpu_watts={"min_w": 20.0, "max_w": 20.0}))
    error = {one.proxy: one.error.mean for one in panel.standings}
    assert error[ESTIMATE] == pytest.approx(error["seconds"], abs=1e-9)
