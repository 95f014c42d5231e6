"""The grid is the product of the axes, each run once, less what is excluded or cannot mean anything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny_run

from joulesweep.core.errors import UserError
from joulesweep.measure import machine
from joulesweep.plan import grid
from joulesweep.plan.config import DatasetConfig, validate
from joulesweep.plan.strict import Place
from joulesweep.runs.identity import run_id


def expand(**changes):
    return grid.expand(validate(tiny_run.config(**changes)), Place("my.yaml"))


def points(expanded, *axes):
    return [tuple(getattr(spec, axis) for axis in axes) for spec in expanded.runs.values()]


def test_the_grid_is_the_product_of_the_axes_and_each_run_has_its_own_id():
    runs = expand(
        grid__precision=["fp32", "bf16-mixed"], grid__batch_size=[8, 16], grid__lr=[1e-3, 1e-4], grid__repeats=2
    ).runs
    assert len(runs) == 2 * 2 * 2 * 2
    assert all(run_id(spec) == run for run, spec in runs.items())


def test_repeats_come_slowest_so_that_every_cell_is_seen_early():
    found = points(expand(grid__batch_size=[8, 16], grid__repeats=2), "repeat", "batch_size")
    assert found == [(1, 8), (1, 16), (2, 8), (2, 16)]


def test_one_device_is_one_run_whatever_the_axis_devices_and_the_scope_say():
    found = points(
        expand(
            grid__strategy=["single", "ddp"],
            grid__devices=[2, 4],
            grid__batch_size_scope=["global", "per_device"],
            grid__repeats=1,
        ),
        "strategy",
        "devices",
        "batch_size_scope",
    )
    spread = [("ddp", devices, scope) for devices in (2, 4) for scope in ("global", "per_device")]
    assert found == [("single", 1, "global"), *spread]


TWO_BY_FOUR = {"nodes": 2, "per_node": 4}


def test_devices_of_several_nodes_are_counted_together_and_single_keeps_its_one():
    grid = expand(grid__strategy=["single", "ddp"], grid__devices=[2, TWO_BY_FOUR], grid__repeats=1)
    assert points(grid, "strategy", "devices", "nodes") == [("single", 1, 1), ("ddp", 2, 1), ("ddp", 8, 2)]
    spec = list(grid.runs.values())[-1]
    assert (spec.node_devices, spec.global_batch_size, spec.device_batch_size) == (4, 8, 1)
    assert run_id(spec).startswith("bert-texts-ddp-2x4-fp32-bs8-r1-")


def test_dp_cannot_be_spread_over_nodes_and_is_left_out_with_the_reason():
    grid = expand(grid__strategy=["dp", "ddp"], grid__devices=[TWO_BY_FOUR], grid__repeats=1)
    assert points(grid, "strategy") == [("ddp",)]
    (left_out,) = grid.excluded
    assert (left_out.label, left_out.reason.split(",")[0]) == ("dp 2×4 fp32 bs8", "dp is one process")


@pytest.mark.parametrize(
    ("devices", "line"),
    [
        ([2, TWO_BY_FOUR], "grid.devices[1]: several nodes need strategy ddp or fsdp; the grid has single, dp"),
        ([TWO_BY_FOUR, TWO_BY_FOUR], "grid.devices[1]: {'nodes': 2, 'per_node': 4} is given twice"),
        ([{"nodes": 1, "per_node": 4}], "grid.devices[0].nodes: input should be greater than or equal to 2, got 1"),
        ([{"nodes": 2}], "grid.devices[0].per_node: missing"),
        ([{**TWO_BY_FOUR, "gpus": 2}], "grid.devices[0].gpus: unknown key 'gpus'; allowed: nodes, per_node"),
        (["2x4"], "grid.devices[0]: input should be a valid integer, got '2x4'"),
    ],
)
def test_nodes_that_mean_nothing_are_refused_in_one_line(devices, line):
    with pytest.raises(UserError) as caught:
        expand(grid__strategy=["single", "dp"], grid__devices=devices)
    assert str(caught.value).partition(": ")[2] == line


def test_devices_of_several_nodes_are_excluded_by_their_own_value():
    when = {"when": {"devices": TWO_BY_FOUR}, "reason": "one switch"}
    grid = expand(grid__strategy=["ddp"], grid__devices=[8, TWO_BY_FOUR], exclude=[when], grid__repeats=1)
    assert points(grid, "devices", "nodes") == [(8, 1)]


@pytest.mark.parametrize(
    ("axis", "values", "line"),
    [
        ("batch_size", [8, 16, 8], "grid.batch_size[2]: 8 is given twice"),
        ("precision", ["fp32", "fp32"], "grid.precision[1]: 'fp32' is given twice"),
        ("lr", [1, 1.0], "grid.lr[1]: 1.0 is given twice"),
        ("micro_batch_size", [None, None], "grid.micro_batch_size[1]: None is given twice"),
        ("method", ["freeze-bottom", {"freeze-bottom": {"fraction": 0.5}}], "grid.method[1]: {'freeze-bottom': "),
    ],
)
def test_a_value_given_twice_is_refused(axis, values, line):
    with pytest.raises(UserError) as caught:
        expand(**{f"grid__{axis}": values})
    assert str(caught.value).startswith(f"config: {line}")


def test_every_batch_that_does_not_divide_is_told():
    with pytest.raises(UserError) as caught:
        expand(grid__strategy=["ddp"], grid__batch_size=[7, 8, 9], grid__repeats=1)
    lines = str(caught.value).splitlines()
    assert [line.split(" does not")[0].rsplit(" ", 1)[1] for line in lines] == ["7", "9"]


def test_a_method_brings_its_parameters():
    found = points(
        expand(grid__method=["full", {"freeze-bottom": {"fraction": 0.25}}], grid__repeats=1), "method", "method_params"
    )
    assert found == [("full", {}), ("freeze-bottom", {"fraction": 0.25})]


def test_every_key_of_train_and_measure_reaches_the_spec():
    given = {
        "max_steps": 7,
        "schedule": "cosine",
        "lr_warmup_fraction": 0.1,
        "weight_decay": 0.0,
        "mask_probability": 0.3,
        "max_length": 64,
        "threads_per_device": 2,
        "timeout_s": 60.0,
        "keep_model": "best",
    }
    measure = {"warmup_steps": 5, "gpus": [1, 0], "min_seconds": 2.0, "cooldown_s": 3.0, "idle_s": 4.0}
    spec = next(iter(expand(train=given, measure=measure, hardware__name="a30").runs.values()))
    wanted = {**given, **measure, "epochs": None, "hardware_name": "a30", "accelerator": "cpu"}
    assert {name: getattr(spec, name) for name in wanted} == wanted


def test_who_else_may_run_and_in_which_order_is_no_part_of_a_run():
    plain = expand(grid__batch_size=[8, 16]).runs
    assert expand(grid__batch_size=[8, 16], measure={"exclusive": "none", "order_seed": 3, "anchors": 2}).runs == plain


@pytest.mark.parametrize(("accelerator", "suited"), [("cpu", (0.0, 0.0, 0.0)), ("cuda", (30.0, 60.0, 5.0))])
def test_what_the_config_leaves_open_suits_the_machine(accelerator, suited):
    (point,) = set(points(expand(hardware__accelerator=accelerator), "min_seconds", "cooldown_s", "idle_s"))
    assert point == suited
    same = {"min_seconds": suited[0], "cooldown_s": suited[1], "idle_s": suited[2]}
    assert (
        expand(hardware__accelerator=accelerator, measure=same).runs == expand(hardware__accelerator=accelerator).runs
    )


def test_accelerator_auto_is_what_the_machine_has(monkeypatch):
    for found in ("cuda", "cpu"):
        monkeypatch.setattr(machine, "probe_accelerator", lambda found=found: found)
        assert set(points(expand(hardware__accelerator="auto"), "accelerator")) == {(found,)}


def test_a_given_accelerator_is_not_probed(monkeypatch):
    monkeypatch.setattr(machine, "probe_accelerator", lambda: pytest.fail("looked at this machine"))
    assert set(points(expand(hardware__accelerator="cuda"), "accelerator")) == {("cuda",)}


@pytest.mark.parametrize(
    ("devices", "batch_sizes", "said"),
    [
        ([2], [9], "9 does not divide over 2 devices (ddp); nearest: 8 or 10"),
        ([2], [1], "1 does not divide over 2 devices (ddp); nearest: 2"),
        ([4], [8, 10], "10 does not divide over 4 devices (ddp); nearest: 8 or 12"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(devices, batch_sizes, said):
    with pytest.raises(UserError) as caught:
        expand(grid__strategy=["ddp"], grid__devices=devices, grid__batch_size=batch_sizes)
    assert str(caught.value) == f"my.yaml: grid.batch_size: {said}; or give batch_size_scope: [per_device]"


def test_a_batch_that_does_not_divide_is_fine_per_device_on_one_device_and_excluded():
    assert expand(grid__strategy=["ddp"], grid__batch_size=[9], grid__batch_size_scope=["per_device"]).runs
    assert expand(grid__strategy=["single"], grid__batch_size=[9]).runs
    excluded = [{"when": {"strategy": "ddp", "batch_size": 9}, "reason": "odd"}]
    found = expand(grid__strategy=["ddp"], grid__batch_size=[8, 9], exclude=excluded, grid__repeats=1)
    assert points(found, "batch_size") == [(8,)]


def test_excluded_cells_match_all_conditions_and_keep_their_reason():
    excluded = [{"when": {"strategy": "ddp", "batch_size": [8, 16]}, "reason": "too small to split"}]
    found = expand(grid__strategy=["single", "ddp"], grid__batch_size=[8, 16, 32], grid__repeats=1, exclude=excluded)
    assert points(found, "strategy", "batch_size") == [("single", 8), ("single", 16), ("single", 32), ("ddp", 32)]
    assert [(cell.label, cell.reason) for cell in found.excluded] == [
        ("ddp2 fp32 bs8", "too small to split"),
        ("ddp2 fp32 bs16", "too small to split"),
    ]


def test_a_method_is_excluded_by_some_of_its_parameters():
    """Those that the grid leaves out count with their defaults."""
    given = ["full", {"greentrainer": {"rho": 0.4}}, {"greentrainer": {"rho": 0.5}}]
    excluded = [{"when": {"method": {"greentrainer": {"rho": 0.4, "objective": "flops"}}}, "reason": "below the floor"}]
    found = expand(grid__method=given, grid__repeats=1, exclude=excluded)
    assert [spec.method_params.get("rho") for spec in found.runs.values()] == [None, 0.5]
    both = [{"when": {"method": ["full", {"greentrainer": {}}]}, "reason": "all"}]
    with pytest.raises(UserError, match="nothing is left to run"):
        expand(grid__method=given, exclude=both)


def test_what_has_no_targets_is_no_text_for_an_encoder_decoder():
    found = expand(grid__task=["mlm", "seq2seq"], grid__repeats=1)
    assert [spec.task for spec in found.runs.values()] == ["mlm"]
    reason = "task seq2seq: data set texts has no targets; name their field, or choose another task"
    assert [entry.reason for entry in found.excluded] == [reason]
    with pytest.raises(UserError, match=f"nothing is left to run: {reason}"):
        expand(grid__task=["seq2seq"])


def test_each_excluded_cell_is_counted_and_labelled_by_what_varies():
    excluded = [{"when": {"strategy": "ddp"}, "reason": "no"}]
    found = expand(grid__strategy=["single", "ddp"], grid__lr=[1e-3, 1e-4], exclude=excluded)
    assert [cell.label for cell in found.excluded] == ["0.001 ddp2 fp32 bs8", "0.0001 ddp2 fp32 bs8"]


def test_excluding_everything_is_refused():
    with pytest.raises(
        UserError, match=r"^my\.yaml: exclude: nothing is left to run; every cell of the grid is excluded$"
    ):
        expand(exclude=[{"when": {"strategy": "single"}, "reason": "no"}])


@pytest.mark.parametrize(
    ("changes", "label", "reason"),
    [
        (
            {"engine": ["eager", "graph"], "strategy": ["ddp"], "batching": ["packed"]},
            "graph ddp2 fp32 bs8",
            "engine graph works under strategy single only",
        ),
        (
            {"engine": ["eager", "graph"], "batching": ["dynamic"]},
            "graph single fp32 bs8",
            "engine graph needs few different shapes: batching fixed or packed",
        ),
        (
            {"engine": ["graph"], "batching": ["packed"], "checkpoint_activations": [False, True]},
            "checkpointed single fp32 bs8",
            "checkpoint_activations reads the random state in the step, which engine graph cannot capture",
        ),
    ],
)
def test_what_no_machine_can_do_is_left_out_with_the_reason(changes, label, reason):
    found = expand(**{f"grid__{axis}": values for axis, values in changes.items()}, grid__repeats=1)
    assert [(cell.label, cell.reason) for cell in found.excluded] == [(label, reason)]
    assert len(found.runs) == 1


def test_a_grid_in_which_nothing_is_possible_is_refused():
    with pytest.raises(UserError, match=r"^my\.yaml: grid: nothing is left to run: engine graph needs few different"):
        expand(grid__engine=["graph"])


def test_what_is_impossible_beside_what_is_excluded_is_the_reason_that_nothing_is_left():
    changes = {"grid__engine": ["graph"], "grid__batching": ["packed", "dynamic"]}
    with pytest.raises(UserError, match=r"^my\.yaml: grid: nothing is left to run: engine graph needs few different"):
        expand(**changes, exclude=[{"when": {"batching": "packed"}, "reason": "no"}])


def test_a_micro_batch_as_large_as_the_devices_batch_is_no_micro_batch():
    sizes = [None, 3, 4, 8, 16]
    found = expand(grid__strategy=["single", "ddp"], grid__micro_batch_size=sizes, grid__repeats=1)
    told = sorted((spec.strategy, spec.micro_batch_size or 0) for spec in found.runs.values())
    assert told == [("ddp", 0), ("ddp", 3), ("single", 0), ("single", 3), ("single", 4)]  # batches of 4 and of 8


@pytest.mark.parametrize(
    ("size", "left_out", "runs"),
    [
        (16, ["micro16 single fp32 bs32"], [(8, None), (32, None)]),
        (None, ["whole single fp32 bs8", "whole single fp32 bs32"], [(32, 16)]),
    ],
)
def test_what_is_left_out_and_what_runs_have_nothing_in_common(size, left_out, runs):
    axes = {"grid__micro_batch_size": [None, 16], "grid__batch_size": [8, 32], "grid__repeats": 1}
    found = expand(**axes, exclude=[{"when": {"micro_batch_size": size}, "reason": "no"}])
    assert points(found, "batch_size", "micro_batch_size") == runs
    assert [cell.label for cell in found.excluded] == left_out


MANY = [0.1 + i for i in range(5000)]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"grid__repeats": 10_000, "grid__batch_size": list(range(1, 11))},
            "grid: 10 cells of 10,000 repeats, excluded ones counted, are 100,000 runs; at most 30,000",
        ),
        (
            {"grid__lr": MANY, "grid__batch_size": list(range(1, 501))},
            "grid: 2,500,000 cells of 3 repeats, excluded ones counted, are 7,500,000 runs; at most 30,000",
        ),
        (
            {"grid__lr": MANY, "exclude": [{"when": {"lr": 0.1}, "reason": "x"}] * 300},
            "exclude: 300 entries are too many for a grid of that size",
        ),
    ],
)
def test_a_grid_too_large_is_refused_before_it_is_expanded(changes, line, monkeypatch):
    monkeypatch.setattr(grid, "RunSpec", None)
    with pytest.raises(UserError) as caught:
        expand(**changes)
    assert str(caught.value) == f"my.yaml: {line}"


def test_a_run_whose_name_no_file_system_takes_is_refused():
    model, data = "m" * 100, "d" * 100
    names = {"models": {model: {"source": {"hub": "x"}}}, "grid__model": [model], "grid__dataset": [data]}
    with pytest.raises(UserError, match=r"^my\.yaml: grid: a run's name would have 23\d characters, at most 230: "):
        expand(**names, datasets={data: {"source": {"local": "x"}, "format": "text"}})


def test_labels_say_how_a_step_is_computed_where_that_varies():
    changes = {"head": ["dense", "masked"], "micro_batch_size": [None, 4], "checkpoint_activations": [False, True]}
    config = validate(tiny_run.config(**{f"grid__{axis}": values for axis, values in changes.items()}))
    labels = {entry["label"] for entry in grid.manifest(config)["runs"].values()}
    assert "dense-head whole stored single fp32 bs8" in labels
    assert "masked-head micro4 checkpointed single fp32 bs8" in labels
    assert len(labels) == 8


def test_labels_name_the_norm_where_it_varies():
    config = validate(tiny_run.config(grid__max_grad_norm=[None, 1.0, 0.5], grid__repeats=1))
    entries = grid.manifest(config)["runs"].values()
    assert [entry["label"] for entry in entries] == [
        f"{word} single fp32 bs8" for word in ("unclipped", "clip1", "clip0.5")
    ]
    assert [entry["max_grad_norm"] for entry in entries] == [None, 1.0, 0.5]


RULES = {"grid__lr": [1e-3], "grid__lr_rule": ["constant", "sqrt", "linear"], "grid__repeats": 1}


def test_rules_give_the_rate_of_each_batch_and_meet_at_the_base():
    grown = expand(**RULES, grid__lr_base_batch_size=16, grid__batch_size=[8, 16, 64])
    rates = {8: (0.001, 0.000707107, 0.0005), 16: (0.001,), 64: (0.001, 0.002, 0.004)}
    assert points(grown, "batch_size", "lr") == [(size, lr) for size, each in rates.items() for lr in each]
    plain = expand(grid__lr=[1e-3], grid__batch_size=[8, 16, 64], grid__repeats=1)
    assert set(plain.runs) < set(grown.runs), "a rule changes no id of a run that was there"


@pytest.mark.parametrize(
    ("strategy", "scope", "expected"),
    [("single", "per_device", 0.001), ("ddp", "per_device", 0.002), ("ddp", "global", 0.001)],
)
def test_rates_grow_with_the_texts_of_all_devices(strategy, scope, expected):
    axes = {"grid__strategy": [strategy], "grid__batch_size": [16], "grid__batch_size_scope": [scope]}
    (spec,) = expand(**{**RULES, "grid__lr_rule": ["linear"]}, grid__lr_base_batch_size=16, **axes).runs.values()
    assert spec.lr == expected


def test_the_manifest_says_which_rules_a_run_serves():
    config = validate(tiny_run.config(**RULES, grid__lr_base_batch_size=16, grid__batch_size=[16, 64]))
    entries = grid.manifest(config)["runs"].values()
    assert [(entry["label"], entry["lr_rule"]) for entry in entries] == [
        ("0.001 single fp32 bs16", "constant, sqrt, linear"),
        ("0.001 single fp32 bs64", "constant"),
        ("0.002 single fp32 bs64", "sqrt"),
        ("0.004 single fp32 bs64", "linear"),
    ]


def test_what_one_rule_leaves_out_another_may_run():
    out = [{"when": {"lr_rule": "linear"}, "reason": "no"}]
    axes = {**RULES, "grid__lr_base_batch_size": 16, "grid__batch_size": [16, 64]}
    grown = expand(**axes, exclude=out)
    assert points(grown, "batch_size", "lr") == [(16, 0.001), (64, 0.001), (64, 0.002)]
    assert [cell.label for cell in grown.excluded] == ["0.004 single fp32 bs64"]


def test_the_manifest_names_each_run_its_cell_and_its_axes():
    config = validate(tiny_run.config(grid__batch_size=[8, 16], grid__lr=[1e-3, 1e-4], grid__repeats=2))
    manifest = grid.manifest(config)
    assert json.loads(json.dumps(manifest, allow_nan=False)) == manifest
    assert list(manifest["runs"]) == list(grid.expand(config).runs)
    assert len({entry["cell"] for entry in manifest["runs"].values()}) == 4
    entry = next(iter(manifest["runs"].values()))
    assert set(entry) == {"cell", "label", "repeat", "method_params", "nodes", *grid.EXPANDED}
    assert (entry["label"], entry["repeat"], entry["batch_size"]) == ("0.001 single fp32 bs8", 1, 8)
    assert manifest["config"]["train"]["epochs"] == 1


def test_what_does_not_vary_is_not_in_a_label():
    entry = next(iter(grid.manifest(validate(tiny_run.config()))["runs"].values()))
    assert entry["label"] == "single fp32 bs8"


def test_two_sweeps_that_name_the_same_run_share_its_id():
    one, other = expand(sweep="one"), expand(sweep="other", grid__batch_size=[8, 16])
    assert set(one.runs) < set(other.runs)


def test_how_texts_are_split_does_not_fetch_them_again_and_where_they_come_from_does():
    def key(**changes):
        source = validate(tiny_run.config(**changes)).datasets["texts"]
        return grid.dataset_key("texts", grid.dataset_source(source))

    assert key() == key(datasets__texts__split="unique", datasets__texts__split_seed=3)
    assert key() != key(datasets__texts__source={"local": "others.txt"})


def test_what_makes_targets_of_texts_fetches_them_again():
    """And what was fetched before there were targets keeps its folder."""

    def key(**keys):
        section = DatasetConfig(source={"local": "a.jsonl"}, **keys)
        return grid.dataset_key("texts", grid.dataset_source(section))

    assert key(format="text") == "texts-983cf2566c"
    assert key(format="jsonl", field="q") == "texts-ce85b6de56"
    assert key(format="jsonl", field="q", prompt="{source}", target=None) == "texts-ce85b6de56"
    different = (
        {},
        {"target": "t"},
        {"target": "u"},
        {"target": "t", "prompt": "{source} TL;DR: "},
        {"choices": "c", "answer": "i"},
        {"choices": "c", "answer": "j"},
    )
    assert len({key(format="jsonl", field="q", **keys) for keys in different}) == len(different)


def test_a_trained_tokenizer_is_part_of_the_model_by_its_texts_and_their_split():
    def source(name="texts", **changes):
        trained = {"trained_on": name, "vocab_size": 1000}
        spec = next(iter(expand(models__bert__tokenizer=trained, **changes).runs.values()))
        return spec.model_source

    plain = source()
    assert plain["tokenizer"]["trained_on"]["format"] == "text" and plain["tokenizer"]["vocab_size"] == 1000
    assert source(datasets__texts__split_seed=3) != plain
    assert "bert" not in grid.model_key("m", plain) and grid.model_key("m", plain) == grid.model_key("m", source())


def test_a_model_from_elsewhere_is_another_folder():
    keys = {
        grid.model_key("bert", grid.model_source(validate(tiny_run.config(models__bert__source=source)).models["bert"]))
        for source in ({"local": "model"}, {"local": "other"}, {"hub": "model"}, {"hub": "model", "revision": "v1"})
    }
    assert len(keys) == 4


def test_expanding_ten_thousand_runs_imports_nothing_heavy():
    """The seconds it takes are the subject of benchmarks/expand.py."""
    code = (
        "import sys; from benchmarks.expand import config; from joulesweep.plan.grid import expand\n"
        "runs = expand(config()).runs\n"
        "heavy = ('torch', 'polars', 'altair', 'datasets', 'transformers', 'snakemake', 'zeus', 'pandas', 'numpy')\n"
        "print(len(runs), *[name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["10000"]


def test_a_method_by_its_name_is_the_run_with_its_default_written_out():
    written_out = expand(grid__method=[{"freeze-bottom": {"fraction": 0.5}}])
    assert written_out.runs == expand(grid__method=["freeze-bottom"]).runs


@pytest.mark.parametrize(
    ("when", "line"),
    [
        ({"precision": "bf16"}, "exclude[0].when.precision: unknown precision of the grid 'bf16'; allowed: fp32"),
        ({"method": ["full", "ful"]}, "exclude[0].when.method: unknown method of the grid 'ful'; allowed: full"),
    ],
)
def test_an_exclusion_of_what_is_not_in_the_grid_is_refused(when, line):
    with pytest.raises(UserError) as caught:
        expand(exclude=[{"when": when, "reason": "no"}])
    assert line in str(caught.value)


def test_an_evaluation_is_part_of_a_run_with_its_source_and_defaults():
    (spec,) = expand(evaluate=["crows-pairs", {"held-out": {"dataset": "texts"}}], grid__repeats=1).runs.values()
    crows, held_out = spec.evaluate
    local = {"local": "data/crows_pairs/crows_pairs_anonymized.csv"}
    assert crows == {"name": "crows-pairs", "source": {"source": local, "format": "crows-pairs"}}
    assert held_out == {"name": "held-out", "dataset": "texts", "texts": 1000, "source": spec.dataset_source}
    assert [str(path) for path in grid.evaluation_paths(spec, "bert-0")] == [
        f"resources/datasets/{grid.evaluation_key(crows)}.jsonl",
        f"resources/tokens/{grid.dataset_key('texts', spec.dataset_source)}/bert-0.safetensors",
    ]


def test_a_task_to_which_an_evaluation_does_not_apply_is_left_out_with_its_reason():
    targets = {"source": {"local": "texts.jsonl"}, "format": "jsonl", "field": "t", "target": "u"}
    expanded = expand(evaluate=["stereoset"], grid__task=["mlm", "seq2seq"], datasets__texts=targets)
    assert {spec.task for spec in expanded.runs.values()} == {"mlm"}
    (excluded,) = expanded.excluded
    assert excluded.reason == "evaluation stereoset: not for task seq2seq, only for mlm and clm"


def test_other_texts_without_targets_are_not_for_an_encoder_decoder():
    targets = {"source": {"local": "texts.jsonl"}, "format": "jsonl", "field": "t", "target": "u"}
    datasets = {"texts": targets, "general": {"source": {"local": "texts.txt"}, "format": "text"}}
    evaluate = [{"held-out": {"dataset": "general"}}]
    with pytest.raises(UserError, match=r"held-out\(general\): the data set has no targets, which task seq2seq needs"):
        expand(evaluate=evaluate, grid__task=["seq2seq"], datasets=datasets)
