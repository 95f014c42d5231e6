"""A run's identity: equal inputs, equal id, for good."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import tiny_run

from joulesweep import methods
from joulesweep.axes.engine import ENGINES
from joulesweep.axes.optimizer import OPTIMIZERS
from joulesweep.axes.precision import PRECISIONS
from joulesweep.axes.strategy import STRATEGIES
from joulesweep.core import spec
from joulesweep.core.errors import UserError
from joulesweep.plan import config
from joulesweep.plan.grid import expand
from joulesweep.runs import identity

GOLDEN = tiny_run.SUPPORT / "golden"
IDS = json.loads((GOLDEN / "ids.json").read_text(encoding="utf-8"))
#: A value other than the omission value, for every field that has one.
OTHER = {
    "task": "clm",
    "method": "freeze-bottom",
    "method_params": {"fraction": 0.25},
    "strategy": "ddp",
    "devices": 2,
    "nodes": 2,
    "precision": "bf16-mixed",
    "batching": "fixed",
    "head": "dense",
    "engine": "compile",
    "optimizer": "adamw-8bit",
    "micro_batch_size": 4,
    "checkpoint_activations": True,
    "batch_size_scope": "per_device",
    "epochs": 3,
    "max_steps": 7,
    "schedule": "cosine",
    "lr_warmup_fraction": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "mask_probability": 0.3,
    "max_length": 64,
    "max_target_length": 32,
    "generate": {"texts": 10, "beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0},
    "evaluate": [{"name": "crows-pairs", "source": {"source": {"local": "pairs.csv"}, "format": "crows-pairs"}}],
    "threads_per_device": 4,
    "timeout_s": 60.0,
    "keep_model": "best",
    "warmup_steps": 5,
    "hardware_name": "a30",
    "gpus": [0, "GPU-1"],
    "min_seconds": 30.0,
    "cooldown_s": 60.0,
    "idle_s": 5.0,
}
REQUIRED = {
    "model": "bert",
    "model_source": {"source": {"local": "model"}},
    "dataset": "texts",
    "dataset_source": {"source": {"local": "texts.txt"}, "format": "text"},
    "batch_size": 16,
    "lr": 0.001,
    "repeat": 1,
    "accelerator": "cpu",
}


def test_every_id_ever_given_is_still_the_id_of_the_same_inputs():
    changed = {run for run, given in IDS.items() if identity.run_id(spec.from_mapping(given)) != run}
    assert changed == set(), "an id changed: every finished run would be lost; see tests/support/golden/add.py"


def test_what_a_stripped_spec_means_is_what_it_meant():
    for given in IDS.values():
        read_back = spec.full(spec.from_mapping(json.loads(json.dumps(spec.strip(spec.from_mapping(given))))))
        assert {name: read_back[name] for name in given} == given


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_still_means_the_runs_that_it_meant(path):
    runs = {run: spec.full(found) for run, found in expand(config.load(path)).runs.items()}
    assert {run: {name: found[name] for name in IDS.get(run, found)} for run, found in runs.items()} == {
        run: IDS.get(run, "not in ids.json; see tests/support/golden/add.py") for run in runs
    }


def test_the_golden_file_has_every_row_every_method_and_every_field_off_its_omission_value():
    def seen(name):
        return {json.dumps(given[name]) for given in IDS.values() if name in given}  # older ids know fewer fields

    assert {json.loads(value) for value in seen("strategy")} >= set(STRATEGIES)
    assert {json.loads(value) for value in seen("precision")} >= set(PRECISIONS)
    assert {json.loads(value) for value in seen("engine")} >= set(ENGINES)
    assert {json.loads(value) for value in seen("optimizer")} >= set(OPTIMIZERS) - {spec.OMISSION["optimizer"]}
    assert {json.loads(value) for value in seen("batching")} >= set(config.BATCHINGS)
    assert {json.loads(value) for value in seen("head")} >= set(config.HEADS)
    assert {json.loads(value) for value in seen("method")} >= set(methods.names())
    assert {json.loads(value) for value in seen("task")} >= set(config.TASKS)
    assert {name for name, value in spec.OMISSION.items() if not seen(name) - {json.dumps(value)}} == set()


def test_omission_values_are_the_defaults():
    defaults = spec.full(spec.from_mapping(REQUIRED))
    assert {name: defaults[name] for name in spec.OMISSION} == spec.OMISSION


def test_every_field_is_required_or_has_an_omission_value():
    assert set(REQUIRED) | set(spec.OMISSION) == set(spec.FIELDS)
    assert set(REQUIRED) & set(spec.OMISSION) == set()


def test_fields_at_their_omission_value_are_stripped():
    assert spec.strip(spec.from_mapping({**REQUIRED, **spec.OMISSION})) == REQUIRED


@pytest.mark.parametrize("name", OTHER)
def test_another_value_of_a_field_stays_and_is_another_run(name):
    base, changed = spec.from_mapping(REQUIRED), spec.from_mapping({**REQUIRED, name: OTHER[name]})
    assert spec.strip(changed) == {**REQUIRED, name: OTHER[name]}
    assert identity.run_id(changed) != identity.run_id(base)
    assert identity.cell_id(changed) != identity.cell_id(base)


def test_the_table_above_has_every_field():
    assert set(OTHER) == set(spec.OMISSION)


def test_a_stripped_spec_reads_back_as_itself():
    whole = spec.from_mapping({**REQUIRED, **OTHER})
    assert spec.from_mapping(spec.strip(whole)) == whole
    assert spec.from_mapping(spec.full(whole)) == whole
    assert spec.strip(spec.from_mapping(spec.strip(whole))) == spec.strip(whole)


def test_a_new_field_at_its_omission_value_leaves_every_id_as_it_is(monkeypatch):
    wider = dataclasses.make_dataclass(
        "RunSpec", [("gadget", str, "none")], bases=(spec.RunSpec,), frozen=True, kw_only=True
    )
    ids = {run: spec.strip(spec.from_mapping(given)) for run, given in IDS.items()}
    monkeypatch.setattr(spec, "FIELDS", (*spec.FIELDS, "gadget"))
    monkeypatch.setitem(spec.OMISSION, "gadget", "none")
    same = {run for run, given in ids.items() if identity.run_id(wider(**{"method_params": {}, **given})) == run}
    assert same == set(ids)
    plain, shiny = (wider(**REQUIRED, method_params={}, gadget=gadget) for gadget in ("none", "shiny"))
    assert identity.run_id(plain) != identity.run_id(shiny)


def test_an_unknown_field_is_refused_with_the_nearest_name():
    with pytest.raises(
        UserError, match=r"^spec: unknown field 'batchsize'; allowed: .*\(did you mean 'batch_size'\?\)$"
    ):
        spec.from_mapping({**REQUIRED, "batchsize": 1})


def test_missing_fields_are_all_named():
    with pytest.raises(UserError, match=r"^spec: missing lr, repeat$"):
        spec.from_mapping({name: value for name, value in REQUIRED.items() if name not in ("lr", "repeat")})


def test_the_order_of_keys_does_not_matter():
    turned = dict(reversed(REQUIRED.items()))
    turned["dataset_source"] = dict(reversed(REQUIRED["dataset_source"].items()))
    assert identity.run_id(spec.from_mapping(turned)) == identity.run_id(spec.from_mapping(REQUIRED))


def test_repeats_are_runs_of_one_cell():
    first, second = (spec.from_mapping({**REQUIRED, "repeat": repeat}) for repeat in (1, 2))
    assert identity.cell_id(first) == identity.cell_id(second)
    assert identity.run_id(first) != identity.run_id(second)


def test_the_accelerator_is_part_of_the_id():
    on_cpu, on_gpu = (spec.from_mapping({**REQUIRED, "accelerator": name}) for name in ("cpu", "cuda"))
    assert identity.run_id(on_cpu) != identity.run_id(on_gpu)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "single fp32 bs16"),
        ({"strategy": "ddp", "devices": 2, "precision": "bf16-mixed"}, "ddp2 bf16-mixed bs16"),
        ({"strategy": "ddp", "devices": 2, "batch_size_scope": "per_device"}, "ddp2 fp32 bs16/device"),
        ({"method": "freeze-bottom"}, "freeze-bottom single fp32 bs16"),
        (
            {"method": "freeze-bottom", "method_params": {"fraction": 0.25}},
            "freeze-bottom(fraction=0.25) single fp32 bs16",
        ),
    ],
)
def test_a_label_says_what_a_person_needs(changes, said):
    assert identity.label(spec.from_mapping({**REQUIRED, **changes})) == said


def test_an_id_is_a_readable_slug_the_repeat_and_a_hash_and_a_safe_folder_name():
    odd = {"model": "bert", "method": "freeze-bottom", "method_params": {"fraction": 0.25}, "devices": 2}
    run = identity.run_id(spec.from_mapping({**REQUIRED, **odd, "strategy": "ddp", "batch_size_scope": "per_device"}))
    assert re.fullmatch(r"bert-texts-freeze-bottom-fraction-0\.25-ddp2-fp32-bs16d-r1-[0-9a-f]{10}", run)
    assert all(re.fullmatch(r"[a-z0-9._-]+", name) for name in IDS)  # the Snakefile's wildcard


def test_batch_sizes_over_all_devices_and_on_each():
    two = {**REQUIRED, "strategy": "ddp", "devices": 2}
    over_all, on_each = spec.from_mapping(two), spec.from_mapping({**two, "batch_size_scope": "per_device"})
    assert (over_all.global_batch_size, over_all.device_batch_size) == (16, 8)
    assert (on_each.global_batch_size, on_each.device_batch_size) == (32, 16)


def test_sources_are_stripped_at_every_level_and_keep_what_differs():
    source = {"hub": "a", "revision": "main", "subset": None, "splits": ["train"]}
    section = {"source": source, "format": "hub", "field": "text", "split": "random", "split_seed": 3}
    assert spec.strip_source(section) == {"source": {"hub": "a"}, "format": "hub", "field": "text", "split_seed": 3}


def test_omission_values_of_sources_are_the_configs_defaults():
    sections = (config.ModelConfig, config.DatasetConfig, config.HubDataSource, config.TrainedTokenizer)
    fields = {name: field for section in sections for name, field in section.model_fields.items()}
    optional = {name: field.get_default() for name, field in fields.items() if not field.is_required()}
    assert optional == spec.SOURCE_OMISSION  # a new optional key without its entry would change every id


def test_the_hash_is_forty_bits_of_sha256_over_sorted_json():
    assert spec.canonical({"b": [1, 2.5, None], "a": "ü"}) == '{"a":"ü","b":[1,2.5,null]}'
    assert spec.short_hash({}) == "44136fa355"  # sha256sum of the two bytes {}
