"""Every mistake in a config is told in one line: where it is, what is allowed, which name is nearest."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path

import pytest
import tiny_run
import yaml
from pydantic import BaseModel

from joulesweep import methods, readers
from joulesweep.axes.engine import ENGINES
from joulesweep.axes.optimizer import OPTIMIZERS
from joulesweep.axes.precision import PRECISIONS
from joulesweep.axes.strategy import STRATEGIES
from joulesweep.core.errors import MOST_MISTAKES, MOST_NAMES, UserError, one_of
from joulesweep.plan import config
from joulesweep.plan.strict import Place

FILES = sorted((tiny_run.REPOSITORY / "config").glob("*.yaml"))
WHEEL = {"wheel": "a==1", "sha256": "0" * 64, "path": "p"}
HUB = {"datasets__texts__format": "hub", "datasets__texts__field": "question"}
JSONL = {"datasets__texts__format": "jsonl", "datasets__texts__field": "question"}
CSV = {**JSONL, "datasets__texts__format": "csv"}
CHOICES = {"datasets__texts__choices": "c", "datasets__texts__answer": "i"}
SOURCES = "{wheel, sha256, path}, {hub, revision}, {local}"
GRID_KEYS = (
    "model, dataset, task, method, strategy, devices, precision, batching, head, engine, optimizer, batch_size, "
    "batch_size_scope, micro_batch_size, checkpoint_activations, lr, lr_rule, lr_base_batch_size, … (20 in all)"
)
BOARDS = "must be auto or a list of NVML indices and UUIDs, each once"
NO_BOARDS = (2, "all", None, [], [0, 0], ["GPU-a", "GPU-a"], [-1], ["0"], [True], [1.0], [[0]], [0, "board"])
ONE_FACTOR = "give either country, or g_per_kwh with its source"

MISTAKES = [
    # rules of the rate
    (
        {"grid__lr_rule": ["sqr"]},
        "grid.lr_rule[0]: unknown rule of lr 'sqr'; allowed: constant, sqrt, linear (did you mean 'sqrt'?)",
    ),
    ({"grid__lr_rule": ["constant", "sqrt"]}, "grid: lr_base_batch_size: needed with lr_rule constant, sqrt"),
    ({"grid__lr_base_batch_size": 32}, "grid: lr_base_batch_size: has no meaning with lr_rule constant"),
    # tokenizers that are trained
    (
        {"models__bert__tokenizer": {"trained_on": "txts", "vocab_size": 1000}},
        "models.bert.tokenizer.trained_on: unknown data set 'txts'; allowed: texts (did you mean 'texts'?)",
    ),
    (
        {"models__bert__tokenizer": {"trained_on": "texts", "vocab_size": 5}},
        "models.bert.tokenizer.vocab_size: input should be greater than or equal to 100, got 5",
    ),
    (
        {"models__bert__tokenizer": {"trained_on": "texts", "vocab_size": 1000, "like": {"local": "x"}}},
        "models.bert: tokenizer.like: has no meaning: the model has a tokenizer",
    ),
    (
        {
            "models__bert__source": {"random": {"model_type": "bert"}},
            "models__bert__tokenizer": {"trained_on": "texts", "vocab_size": 1000},
        },
        "models.bert: tokenizer.like: needed with random weights",
    ),
    # columns by number
    (
        {**CSV, "datasets__texts__header": False},
        "datasets.texts: field: without a header it is a column's number, from 0, got 'question'",
    ),
    (
        {**CSV, "datasets__texts__header": False, "datasets__texts__field": -1},
        "datasets.texts: field: without a header it is a column's number, from 0, got '-1'",
    ),
    (
        {**CSV, "datasets__texts__header": False, "datasets__texts__field": 0, "datasets__texts__target": "01"},
        "datasets.texts: target: without a header it is a column's number, from 0, got '01'",
    ),
    ({**JSONL, "datasets__texts__header": False}, "datasets.texts: header: has no meaning with format jsonl"),
    # unknown keys: of the file, of a section, inside a source
    (
        {"sweeep": 1},
        "sweeep: unknown key 'sweeep'; allowed: sweep, models, datasets, grid, train, measure, energy, hardware, "
        "answer, evaluate, studies, exclude (did you mean 'sweep'?)",
    ),
    (
        {"grid__batchsize": [1]},
        f"grid.batchsize: unknown key 'batchsize'; allowed: {GRID_KEYS} (did you mean 'batch_size'?)",
    ),
    (
        {"measure__min_secs": 3},
        "measure.min_secs: unknown key 'min_secs'; allowed: warmup_steps, exclusive, gpus, pin_boards, min_seconds, "
        "cooldown_s, idle_s, grace_s, order_seed, anchors (did you mean 'min_seconds'?)",
    ),
    ({"hardware__gpus": 2}, "hardware.gpus: unknown key 'gpus'; allowed: accelerator, name, wall, memory_mb"),
    (
        {"models__bert__source": {**WHEEL, "pat": 1}},
        "models.bert.source.pat: unknown key 'pat'; allowed: wheel, sha256, path (did you mean 'path'?)",
    ),
    (
        {"models__bert__source": {"hub": "x", "subset": "y"}},
        "models.bert.source.subset: unknown key 'subset'; allowed: hub, revision (did you mean 'hub'?)",
    ),
    (
        {"models__bert__tokenizer": {"hub": "x", "revison": "y"}},
        "models.bert.tokenizer.revison: unknown key 'revison'; allowed: hub, revision (did you mean 'revision'?)",
    ),
    (
        {**HUB, "datasets__texts__source": {"hub": "x", "subsett": "y"}},
        "datasets.texts.source.subsett: unknown key 'subsett'; allowed: hub, revision, subset, splits "
        "(did you mean 'subset'?)",
    ),
    (
        {"datasets__texts__fields": "x"},
        "datasets.texts.fields: unknown key 'fields'; allowed: source, format, header, field, target, choices, answer, "
        "prompt, split, validation_fraction, split_seed (did you mean 'field'?)",
    ),
    (
        {"energy__cpu_watts": {"min": 1, "max_w": 2}},
        "energy.cpu_watts.min: unknown key 'min'; allowed: min_w, max_w (did you mean 'min_w'?)",
    ),
    (
        {"energy__carbon": {"contry": "DEU"}},
        "energy.carbon.contry: unknown key 'contry'; allowed: country, g_per_kwh, source (did you mean 'country'?)",
    ),
    (
        {"exclude": [{"when": {"strategy": "dp"}, "why": "slow"}]},
        "exclude[0].why: unknown key 'why'; allowed: when, reason (did you mean 'when'?)",
    ),
    # names that name nothing, on every axis
    ({"grid__model": ["bret"]}, "grid.model[0]: unknown model 'bret'; allowed: bert (did you mean 'bert'?)"),
    ({"grid__dataset": ["text"]}, "grid.dataset[0]: unknown data set 'text'; allowed: texts (did you mean 'texts'?)"),
    (
        {"grid__task": ["cml"]},
        "grid.task[0]: unknown task 'cml'; allowed: mlm, clm, seq2seq (did you mean 'mlm'?)",
    ),
    (
        {"grid__strategy": ["single", "dpp"]},
        "grid.strategy[1]: unknown strategy 'dpp'; allowed: single, dp, ddp, fsdp (did you mean 'dp'?)",
    ),
    (
        {"grid__precision": ["fp32", "fp16"]},
        "grid.precision[1]: unknown precision 'fp16'; allowed: fp32, tf32, fp16-mixed, bf16-mixed, bf16-true, "
        "bf16-kahan (did you mean 'fp16-mixed'?)",
    ),
    (
        {"grid__batching": ["dynamc"]},
        "grid.batching[0]: unknown batching 'dynamc'; allowed: dynamic, fixed, packed (did you mean 'dynamic'?)",
    ),
    (
        {"grid__batch_size_scope": ["globl"]},
        "grid.batch_size_scope[0]: unknown value 'globl'; allowed: global, per_device (did you mean 'global'?)",
    ),
    (
        {"grid__method": ["ful"]},
        "grid.method[0]: unknown method 'ful'; allowed: freeze-bottom, freeze-cache, full, greentrainer, last-k, "
        "lora, prefix, qlora, random, sampled-backward (did you mean 'full'?)",
    ),
    (
        {"grid__method": [{"freeze-bottom": {"frac": 0.5}}]},
        "grid.method[0]: unknown parameter of method freeze-bottom 'frac'; allowed: fraction "
        "(did you mean 'fraction'?)",
    ),
    (
        {"grid__method": [{"freeze-bottom": {"fraction": 1.5}}]},
        "grid.method[0]: method freeze-bottom: fraction must lie between 0 and 1, got 1.5",
    ),
    (
        {"grid__method": [{"freeze-bottom": {"fraction": "half"}}]},
        "grid.method[0]: parameter fraction of method freeze-bottom: must be of type float, got 'half'",
    ),
    (
        {"grid__method": [{"full": {}, "freeze-bottom": {}}]},
        "grid.method[0]: a method is a name or {name: {parameter: value}}, one name each",
    ),
    (
        {"exclude": [{"when": {"method": {"greentrainer": {"rho": 0.4}}}, "reason": "slow"}]},
        "exclude[0].when.method: the grid has no method {'greentrainer': {'rho': 0.4}}",
    ),
    (
        {"exclude": [{"when": {"method": [{"full": None}]}, "reason": "slow"}]},
        "exclude[0].when.method: the grid has no method {'full': None}",
    ),
    (
        {"exclude": [{"when": {"precison": "fp32"}, "reason": "slow"}]},
        "exclude[0].when: unknown axis 'precison'; allowed: model, dataset, task, method, strategy, devices, "
        "precision, batching, head, engine, optimizer, batch_size, batch_size_scope, micro_batch_size, "
        "checkpoint_activations, lr, lr_rule, max_grad_norm (did you mean 'precision'?)",
    ),
    # choices
    (
        {"datasets__texts__format": "jsn"},
        "datasets.texts.format: unknown format 'jsn'; allowed: csv, dialogsum, hub, jsonl, scitldr, text, vizwiz "
        "(did you mean 'jsonl'?)",
    ),
    (
        {"datasets__texts__split": "uniq"},
        "datasets.texts.split: unknown value 'uniq'; allowed: random, unique (did you mean 'unique'?)",
    ),
    (
        {"train__schedule": "lin"},
        "train.schedule: unknown value 'lin'; allowed: constant, linear, cosine (did you mean 'linear'?)",
    ),
    (
        {"measure__exclusive": "nod"},
        "measure.exclusive: unknown value 'nod'; allowed: gpu, node, none (did you mean 'node'?)",
    ),
    (
        {"hardware__accelerator": "gpu"},
        "hardware.accelerator: unknown value 'gpu'; allowed: auto, cpu, cuda (did you mean 'cpu'?)",
    ),
    ({"train__keep_model": True}, "train.keep_model: unknown value True; allowed: none, best, last"),
    # wrong types: nothing is converted in silence
    ({"grid__batch_size": ["8"]}, "grid.batch_size[0]: input should be a valid integer, got '8'"),
    ({"grid__batch_size": [8, True]}, "grid.batch_size[1]: input should be a valid integer, got True"),
    ({"grid__batch_size": [8.0]}, "grid.batch_size[0]: input should be a valid integer, got 8.0"),
    ({"grid__batch_size": 8}, "grid.batch_size: input should be a valid list, got 8; write [8]"),
    ({"grid__model": "bert"}, "grid.model: input should be a valid list, got 'bert'; write [bert]"),
    ({"grid__method": [3]}, "grid.method[0]: input should be a valid string, got 3; quote it if it is text"),
    ({"grid__lr": ["fast"]}, "grid.lr[0]: input should be a valid number, got 'fast'"),
    ({"train__epochs": "2"}, "train.epochs: input should be a valid integer, got '2'"),
    ({"energy__estimate": "yes"}, "energy.estimate: input should be a valid boolean, got 'yes'"),
    ({"models__bert__source": "bert"}, f"models.bert.source: must be one of: {SOURCES}, {{random}}"),
    # numbers out of range
    ({"grid__batch_size": [0]}, "grid.batch_size[0]: input should be greater than 0, got 0"),
    ({"grid__lr": [-1.0]}, "grid.lr[0]: input should be greater than 0, got -1.0"),
    ({"grid__lr": [float("inf")]}, "grid.lr[0]: input should be a finite number, got inf"),
    ({"grid__repeats": 0}, "grid.repeats: input should be greater than 0, got 0"),
    ({"train__max_length": 3}, "train.max_length: input should be greater than or equal to 4, got 3"),
    (
        {"datasets__texts__validation_fraction": 1.0},
        "datasets.texts.validation_fraction: input should be less than 1, got 1.0",
    ),
    ({"energy__cpu_watts": {"min_w": 9, "max_w": 2}}, "energy.cpu_watts: min_w 9 is more than max_w 2"),
    ({"energy__pue": 0.9}, "energy.pue: input should be greater than or equal to 1, got 0.9"),
    ({"measure__min_seconds": -1}, "measure.min_seconds: input should be greater than or equal to 0, got -1"),
    ({"measure__anchors": -1}, "measure.anchors: input should be greater than or equal to 0, got -1"),
    # boards
    *(({"measure__gpus": given}, f"measure.gpus: {BOARDS}") for given in NO_BOARDS),
    # a country without a factor: none is assumed
    (
        {"energy__carbon": {"country": "GER"}},
        "energy.carbon.country: unknown country 'GER'; allowed: ",
    ),
    (
        {"energy__carbon": {"country": "de"}},
        "energy.carbon.country: string should match pattern '^[A-Z]{3}$', got 'de'",
    ),
    # empty
    ({"grid__model": []}, "grid.model: must not be empty"),
    ({"grid__method": []}, "grid.method: must not be empty"),
    ({"grid__lr": []}, "grid.lr: must not be empty"),
    ({"models": {}}, "models: must not be empty"),
    ({"exclude": [{"when": {}, "reason": "slow"}]}, "exclude[0].when: must not be empty"),
    ({"exclude": [{"when": {"strategy": "dp"}}]}, "exclude[0].reason: missing"),
    # what belongs together
    ({"train__max_steps": 3}, "train: give exactly one of epochs and max_steps"),
    ({"train": {}}, "train: give exactly one of epochs and max_steps"),
    ({"energy__carbon": {}}, f"energy.carbon: {ONE_FACTOR}"),
    ({"energy__carbon": {"g_per_kwh": 350}}, f"energy.carbon: {ONE_FACTOR}"),
    ({"energy__carbon": {"source": "supplier"}}, f"energy.carbon: {ONE_FACTOR}"),
    ({"energy__carbon": {"country": "DEU", "g_per_kwh": 350, "source": "supplier"}}, f"energy.carbon: {ONE_FACTOR}"),
    ({"energy__carbon": {"country": "DEU", "source": "supplier"}}, f"energy.carbon: {ONE_FACTOR}"),
    ({"energy__price_per_kwh": 0.3}, "energy: price_per_kwh and currency go together"),
    ({"energy__currency": "EUR"}, "energy: price_per_kwh and currency go together"),
    ({"datasets__texts__format": "csv"}, "datasets.texts: field: needed with format csv"),
    ({"datasets__texts__field": "x"}, "datasets.texts: field: has no meaning with format text"),
    (
        {"datasets__texts__source": {"hub": "x"}},
        "datasets.texts: format: a hub source needs format hub, other sources another one",
    ),
    (HUB, "datasets.texts: format: a hub source needs format hub, other sources another one"),
    # targets
    ({"datasets__texts__target": "t"}, "datasets.texts: target: has no meaning with format text"),
    (
        {"datasets__texts__format": "scitldr", "datasets__texts__target": "t"},
        "datasets.texts: target: has no meaning with format scitldr",
    ),
    (
        {"datasets__texts__format": "dialogsum", "datasets__texts__field": "q"},
        "datasets.texts: field: has no meaning with format dialogsum",
    ),
    ({**CSV, **CHOICES}, "datasets.texts: choices: has no meaning with format csv"),
    ({**CSV, "datasets__texts__answer": "i"}, "datasets.texts: answer: has no meaning with format csv"),
    ({**JSONL, "datasets__texts__answer": "i"}, "datasets.texts: choices and answer go together"),
    ({**JSONL, "datasets__texts__choices": "c"}, "datasets.texts: choices and answer go together"),
    (
        {**JSONL, **CHOICES, "datasets__texts__target": "t"},
        "datasets.texts: target: has no meaning with choices, where the answer is the target",
    ),
    ({**JSONL, "datasets__texts__prompt": "{source} A: "}, "datasets.texts: prompt: has no meaning without targets"),
    *(
        (
            {**JSONL, "datasets__texts__target": "t", "datasets__texts__prompt": given},
            f"datasets.texts.prompt: must have {{source}} once and no other braces, got {given!r}",
        )
        for given in ("", "TL;DR", "{source}{source}", "{source} {target}", "{{source}}", "{source} }", "{text}\n")
    ),
    (
        {"models__bert__source": {"random": {"model_type": "bert"}}},
        "models.bert: tokenizer: a model with random weights needs the source of a tokenizer",
    ),
    (
        {"models__bert__source": {"random": {}}, "models__bert__tokenizer": {"hub": "x"}},
        "models.bert.source: random: needs model_type (e.g. bert)",
    ),
    # sources
    ({"models__bert__source": {"url": "x"}}, f"models.bert.source: must be one of: {SOURCES}, {{random}}"),
    ({"datasets__texts__source": {"random": {}}}, f"datasets.texts.source: must be one of: {SOURCES}"),
    (
        {"models__bert__source": {**WHEEL, "sha256": "abc"}},
        "models.bert.source.sha256: string should match pattern '^[0-9a-f]{64}$', got 'abc'",
    ),
    (
        {"models__bert__source": {**WHEEL, "wheel": "a"}},
        "models.bert.source.wheel: string should match pattern '^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$', got 'a'",
    ),
    ({"sweep": "My Sweep"}, "sweep: string should match pattern '^[a-z0-9][a-z0-9_.-]*$', got 'My Sweep'"),
    ({"models__BERT": {"source": {"local": "x"}}}, "models.BERT: string should match pattern"),
]


def refusal(raw: object) -> str:
    with pytest.raises(UserError) as caught:
        config.validate(raw, Place("my.yaml"))
    return str(caught.value)


def test_the_smallest_config_is_valid():
    assert config.validate(tiny_run.config()).grid.repeats == 3


@pytest.mark.parametrize(
    ("changes", "line"), MISTAKES, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_a_mistake_is_one_line_with_its_path_what_is_allowed_and_the_nearest_name(changes, line):
    said = refusal(tiny_run.config(**changes))
    assert said.startswith(f"my.yaml: {line}")
    assert "\n" not in said
    if "pattern" not in line and "unknown country" not in line:
        assert said == f"my.yaml: {line}"


@pytest.mark.parametrize(
    "energy",
    [
        {"carbon": {"country": "DEU"}},
        {"carbon": {"g_per_kwh": 350, "source": "supplier, 2025"}, "pue": 1.2},
        {"price_per_kwh": 0.3, "currency": "EUR"},
    ],
)
def test_emissions_and_cost_may_be_asked_for(energy):
    found = config.validate(tiny_run.config(energy=energy)).energy
    assert found.model_dump(exclude_unset=True) == energy


def test_nothing_is_assumed_about_emissions_and_cost():
    found = config.validate(tiny_run.config()).energy
    assert (found.carbon, found.price_per_kwh, found.currency, found.pue) == (None, None, None, 1.0)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (JSONL, False),
        ({**JSONL, "datasets__texts__target": "t"}, True),
        ({**CSV, "datasets__texts__target": "t"}, True),
        ({**JSONL, **CHOICES}, True),
        ({"datasets__texts__format": "scitldr"}, True),
        ({"datasets__texts__format": "dialogsum"}, True),
    ],
)
def test_only_data_sets_with_targets_may_have_a_prompt(keys, expected):
    assert config.validate(tiny_run.config(**keys)).datasets["texts"].has_targets is expected
    if expected:
        config.validate(tiny_run.config(**keys, datasets__texts__prompt="summarize: {source}\nTL;DR: "))


@pytest.mark.parametrize("gpus", ["auto", [0], [3, 1], ["GPU-a", "MIG-b", 0]])
def test_boards_are_named_in_the_order_of_the_config(gpus):
    assert config.validate(tiny_run.config(measure__gpus=gpus)).measure.gpus == gpus


@pytest.mark.parametrize(
    ("accelerator", "gpus", "suited"),
    [
        ("cpu", "auto", ("node", 0.0, 0.0, 0.0)),
        ("cuda", "auto", ("gpu", 30.0, 60.0, 5.0)),
        ("cuda", [0], ("gpu", 30.0, 60.0, 5.0)),
        ("cpu", [0], ("node", 30.0, 60.0, 5.0)),  # boards are metered, the CPU trains
    ],
)
def test_what_is_null_suits_the_machine(accelerator, gpus, suited):
    def values(found):
        return (found.exclusive, found.min_seconds, found.cooldown_s, found.idle_s)

    assert values(config.Measure(gpus=gpus).resolved(accelerator)) == suited
    given = {"exclusive": "none", "min_seconds": 1.0, "cooldown_s": 2.0, "idle_s": 3.0}
    assert values(config.Measure(gpus=gpus, **given).resolved(accelerator)) == tuple(given.values())
    assert values(config.Measure(gpus=gpus, min_seconds=0.0).resolved(accelerator)) == (suited[0], 0.0, *suited[2:])


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_file_that_holds_no_mapping_is_one_line(raw):
    said = refusal(raw)
    assert said.startswith("my.yaml: the file: ")
    assert "\n" not in said


def test_a_misspelt_key_is_named_rather_than_the_key_that_is_therefore_missing():
    raw = tiny_run.config(grid__batchsize=[8])
    del raw["grid"]["batch_size"]
    assert "unknown key 'batchsize'" in refusal(raw)


@pytest.mark.parametrize("path", ["sweep", "models", "datasets", "grid", "train", "grid.lr", "grid.model"])
def test_a_missing_key_is_named(path):
    raw = tiny_run.config()
    *parents, last = path.split(".")
    section = raw[parents[0]] if parents else raw
    del section[last]
    assert refusal(raw) == f"my.yaml: {path}: missing"


MANY = """sweep: Tiny
models: {bert: {source: {local: model}}}
datasets: {texts: {source: {local: texts.txt}, format: txt}}
grid:
  model: [brt]
  dataset: [texts]
  strategy: [single, DDP]
  precision: [fp16]
  batch_size: 32
  lr: [1.0e-3, 0.001]
train: {epoch: 1}
energy: {carbon: {country: Germany}}
"""


def test_all_mistakes_are_told_at_once_each_with_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, MANY)
    lines = str(caught.value).splitlines()
    heads = [re.match(r"sweep\.yaml:(\d+): ([\w.\[\]]+): ", line).groups() for line in lines]
    assert heads == [
        ("1", "sweep"),
        ("3", "datasets.texts.format"),
        ("5", "grid.model[0]"),
        ("7", "grid.strategy[1]"),
        ("8", "grid.precision[0]"),
        ("9", "grid.batch_size"),
        ("11", "train.epoch"),
        ("12", "energy.carbon.country"),
    ]
    assert lines[3].endswith("(did you mean 'ddp'?)")
    assert lines[5].endswith("write [32]")
    assert lines[7].endswith("(did you mean 'DEU', Germany?)")


def test_all_words_that_yaml_readers_dispute_are_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, "a: yes\nb: 010\na: 1\n")
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        "sweep.yaml:1",
        "sweep.yaml:2",
        "sweep.yaml:3",
    ]


def test_a_very_wrong_config_is_told_in_part():
    lines = refusal(tiny_run.config(grid__precision=[f"fp{i}" for i in range(100)])).splitlines()
    assert len(lines) == MOST_MISTAKES + 1
    assert lines[-1] == "and 79 more mistakes"


@pytest.mark.parametrize(("word", "meant"), [("DDP", "ddp"), ("Ddp", "ddp"), ("FSDP", "fsdp"), ("SINGLE", "single")])
def test_a_name_in_another_case_is_known(word, meant):
    assert refusal(tiny_run.config(grid__strategy=[word])).endswith(f"(did you mean {meant!r}?)")


@pytest.mark.parametrize(
    ("country", "code"), [("Germany", "DEU"), ("germany", "DEU"), ("Argentina", "ARG"), ("de", "DEU"), ("GER", "")]
)
def test_a_country_by_its_name_is_told_with_its_code(country, code):
    said = refusal(tiny_run.config(energy__carbon={"country": country}))
    assert f"did you mean {code!r}" in said if code else "unknown country 'GER'" in said


@pytest.mark.parametrize(
    ("evaluate", "problem"),
    [
        (
            ["crows"],
            "unknown evaluation 'crows'; allowed: crows-pairs, held-out, stereoset (did you mean 'crows-pairs'?)",
        ),
        (["held-out"], "evaluation held-out needs the parameter dataset"),
        ([{"held-out": {"dataset": "text"}}], "evaluation held-out: unknown data set 'text'; allowed: texts"),
        ([{"held-out": {"dataset": "texts", "texts": 0}}], "evaluation held-out: texts must be at least 1, got 0"),
        ([{"held-out": {"dataset": "texts", "text": 1}}], "unknown parameter of evaluation held-out 'text'"),
        (
            [{"stereoset": {"source": {"file": "x"}}}],
            "evaluation stereoset: source: must be one of: {wheel, sha256, path}",
        ),
        (
            [{"crows-pairs": {}, "stereoset": {}}],
            "an evaluation is a name or {name: {parameter: value}}, one name each",
        ),
    ],
)
def test_a_wrong_evaluation_is_one_line(evaluate, problem):
    line = refusal(tiny_run.config(evaluate=evaluate))
    assert line.startswith(f"my.yaml: evaluate[0]: {problem}") and "\n" not in line


def test_an_evaluation_is_named_once_but_for_its_data_set():
    assert "evaluate[1]: stereoset is given twice" in refusal(tiny_run.config(evaluate=["stereoset", "stereoset"]))
    held_out = [{"held-out": {"dataset": name}} for name in ("texts", "others")]
    datasets = {name: {"source": {"local": "texts.txt"}, "format": "text"} for name in ("texts", "others")}
    assert len(config.validate(tiny_run.config(evaluate=held_out, datasets=datasets)).evaluate) == 2


def test_nothing_trains_on_the_items_of_an_evaluation():
    line = refusal(tiny_run.config(datasets__texts={"source": {"local": "x.csv"}, "format": "crows-pairs"}))
    assert (
        line
        == "my.yaml: datasets.texts.format: crows-pairs is of an evaluation: name it under evaluate, and train on texts"
    )


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^\S*nowhere\.yaml: No such file or directory$"):
        config.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["a: 1\ngrid: [b: }", "a: 1\nb: c: d", "a: 1\n\tgrid: 1", "a: 1\nb: \x01"])
def test_a_file_that_is_no_yaml_is_one_line(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{path}:2: not YAML: ")) as caught:
        config.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"a: 1\n\x89PNG\xff\xfe")
    with pytest.raises(UserError, match=re.escape(f"{path}:2: not UTF-8: byte 0x89")):
        config.load(path)


def test_a_number_that_yaml_takes_for_text_is_read_as_a_number(tmp_path):
    path = tmp_path / "sweep.yaml"
    text = yaml.safe_dump(tiny_run.config(grid__lr=["LR", "1e-3"])).replace("LR", "2e5").replace("'", "")
    path.write_text(text)
    assert isinstance(yaml.safe_load(text)["grid"]["lr"][0], str)  # else this test proves nothing
    assert config.load(path).grid.lr == [2e5, 1e-3]


def loaded(tmp_path, raw, *overrides):
    path = tmp_path / "sweep.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw), encoding="utf-8")
    return config.load(path, overrides)


def test_a_revision_that_looks_like_a_number_stays_text(tmp_path):
    raw = yaml.safe_dump(tiny_run.config(models__bert__source={"hub": "x", "revision": "12e4567"}))
    assert "revision: 12e4567" in raw
    assert loaded(tmp_path, raw).models["bert"].source.revision == "12e4567"


def test_what_is_quoted_is_text(tmp_path):
    """Also where it looks like a number: names, fields, reasons."""
    raw = {
        **tiny_run.config(),
        "sweep": "NAME",
        "models": {"NAME": {"source": {**WHEEL, "path": "NAME"}}},
        "datasets": {"NAME": {"source": {"local": "NAME"}, "format": "csv", "field": "NAME"}},
        "hardware": {"accelerator": "cpu", "name": "NAME"},
        "exclude": [{"when": {"strategy": "ddp"}, "reason": "NAME"}],
    }
    raw["grid"] |= {"model": ["NAME"], "dataset": ["NAME"], "strategy": ["single", "ddp"]}
    found = loaded(tmp_path, yaml.safe_dump(raw).replace("NAME", '"5e-5"'))
    model, data = found.models["5e-5"], found.datasets["5e-5"]
    named = (found.sweep, data.source.local, data.field, found.hardware.name, found.exclude[0].reason)
    assert (*named, model.source.path, *found.grid.model, *found.grid.dataset) == ("5e-5",) * 8


ON_LINE = {
    "sweep: tiny\nsweep: other": "sweep.yaml:2: sweep: the key is given twice, first in line 1",
    "sweep: 010": "sweep.yaml:1: sweep: '010': some readers of YAML take this for another number; "
    "write it in plain decimals, or quote it as text",
    "sweep: 5": "sweep.yaml:1: sweep: input should be a valid string, got 5; quote it if it is text",
    "train:\n  epochs: 1\n\n  epoch: 2": "sweep.yaml:4: train.epoch: unknown key 'epoch'; allowed: ",
    "grid:\n  {model: [bert], dataset: [texts], batch_size: [1], lr: [1e-3,\n  0]}": "sweep.yaml:3: grid.lr[1]: input "
    "should be greater than 0, got 0",
    "models:\n  bert:\n    source:\n      hub: x\n      subset: y": (
        "sweep.yaml:5: models.bert.source.subset: unknown key 'subset'; allowed: hub, revision (did you mean 'hub'?)"
    ),
    "train:\n  epochs: 1\n  max_steps: 2": "sweep.yaml:1: train: give exactly one of epochs and max_steps",
    "grid: {model: [bert]}": "sweep.yaml:1: grid.dataset: missing",
    "exclude:\n- when: {}\n  reason: x": "sweep.yaml:2: exclude[0].when: must not be empty",
    "energy:\n  pue: 1.0\n  carbon: {country: GER}": "sweep.yaml:3: energy.carbon.country: unknown country 'GER'",
}


@pytest.mark.parametrize(("changed", "line"), ON_LINE.items())
def test_a_mistake_is_told_with_its_line(tmp_path, monkeypatch, changed, line):
    monkeypatch.chdir(tmp_path)
    key = changed.partition(":")[0]
    rest = {name: value for name, value in tiny_run.config().items() if name != key}
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, f"{changed}\n{yaml.safe_dump(rest)}")
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["grid={lr: [1e-3, 2], repeats: 1}"], ([1e-3, 2.0], 1, "tiny")),
        (["grid={'lr': [0.5]}", "sweep=other"], ([0.5], 3, "other")),
        (['sweep="5e-5"', "grid={repeats: 2}", "grid={repeats: 4}"], ([0.001], 4, "5e-5")),
    ],
)
def test_the_command_line_lays_values_over_the_file(tmp_path, given, read):
    found = loaded(tmp_path, tiny_run.config(), *given)
    assert (found.grid.lr, found.grid.repeats, found.sweep) == read
    assert found.grid.model == ["bert"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("grid={lr: [fast]}", "--config grid: grid.lr[0]: input should be a valid number, got 'fast'"),
        ("grid={repeats: 1, repeats: 2}", "--config grid:1: repeats: the key is given twice, first in line 1"),
        ("swep=x", "--config swep: swep: unknown key 'swep'; allowed: sweep, "),
        ("sweep=", "--config sweep: sweep: input should be a valid string, got None"),
        ("sweep=[", "--config sweep: sweep: string should match pattern"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_as_one(tmp_path, given, line):
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, tiny_run.config(), given)
    assert str(caught.value).startswith(line)


ABSURD = [
    ({"grid__batch_size": [10**15]}, "grid.batch_size[0]: input should be less than or equal to "),
    ({"grid__repeats": 10**9}, "grid.repeats: input should be less than or equal to 10000, got 1000000000"),
    ({"train__threads_per_device": 10**6}, "train.threads_per_device: input should be less than or equal to 10000"),
    ({"measure__anchors": 10**18}, "measure.anchors: input should be less than or equal to 1000000000"),
    ({"measure__cooldown_s": 1e300}, "measure.cooldown_s: input should be less than or equal to 100000000"),
    ({"energy__pue": 1e300}, "energy.pue: input should be less than or equal to 100"),
    ({"grid__lr": [1e300]}, "grid.lr[0]: input should be less than or equal to 1000000"),
    ({"sweep": "s" * 300}, "sweep: string should have at most 100 characters"),
    (
        {"models": {"m" * 300: {"source": {"hub": "x"}}}},
        f"models.{'m' * 300}: string should have at most 100 characters",
    ),
    ({"datasets__texts__source": {"local": "d" * 300}}, "datasets.texts.source.local: the path is too long"),
    ({"datasets__texts__source": {"local": "a\nb"}}, "datasets.texts.source.local: must be one line without control"),
    ({**JSONL, "datasets__texts__field": "a\nb"}, "datasets.texts.field: must be one line without control"),
    ({"hardware__name": "a\rb"}, "hardware.name: must be one line without control"),
    ({"datasets__texts__source": {"local": ""}}, "datasets.texts.source.local: must not be empty"),
    ({"datasets__texts__source": {"local": ["a", "./a"]}}, "datasets.texts.source: 'a' is named twice"),
    (
        {**HUB, "datasets__texts__source": {"hub": "x", "splits": ["a", "a"]}},
        "datasets.texts.source.splits: 'a' is nam",
    ),
    ({"exclude": [{"when": {"strategy": []}, "reason": "x"}]}, "exclude[0].when.strategy: must not be empty: it"),
    ({"exclude": [{"when": {"devices": True}, "reason": "x"}]}, "exclude[0].when.devices: unknown devices of the"),
    ({"exclude": [{"when": {"strategy": "single"}, "reason": "a\nb"}]}, "exclude[0].reason: must be one line"),
    ({"a\nb": 1}, "a\\nb: unknown key 'a\\nb'; allowed: "),
    ({"x" * 10_000: 1}, "xxx"),
    ({"exclude": [{"when": {"strategy": "single"}, "reason": f"{i}" * 900} for i in range(100)]}, ""),
]


@pytest.mark.parametrize(("changes", "line"), ABSURD)
def test_what_is_absurd_is_one_line_of_bounded_length(changes, line):
    said = refusal(tiny_run.config(**changes))
    assert said.startswith(f"my.yaml: {line}")
    assert "\n" not in said
    assert len(said) <= 2100


def test_local_files_may_be_one_or_several():
    one, several = config.LocalSource(local="a"), config.LocalSource(local=["a", "b"])
    assert (one.paths, several.paths) == ([Path("a")], [Path("a"), Path("b")])


def test_a_long_list_of_names_is_cut_and_counted():
    names = [f"name{i}" for i in range(MOST_NAMES + 4)]
    line = one_of("run", "name19x", names)
    assert line.endswith(f"name{MOST_NAMES - 1}, … ({len(names)} in all) (did you mean 'name19'?)")
    assert f"name{MOST_NAMES}," not in line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_ready_made_sweep_is_valid_and_names_its_schema(path):
    config.load(path)
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")


def test_the_schema_on_disk_is_the_models():
    path = tiny_run.REPOSITORY / "config" / "schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == config.json_schema(), "stale; run: make schema"


def test_the_schema_names_what_the_axes_allow():
    grid = config.json_schema()["$defs"]["Grid"]["properties"]
    assert grid["strategy"]["items"]["enum"] == list(STRATEGIES)
    assert grid["precision"]["items"]["enum"] == list(PRECISIONS)


def test_the_schema_names_every_reader():
    formats = config.json_schema()["$defs"]["DatasetConfig"]["properties"]["format"]["enum"]
    assert formats == readers.of_texts()


def keys_of(section: type[BaseModel]) -> set[str]:
    """Every key of a section and of the sections inside it."""
    found = set()
    for name, field in section.model_fields.items():
        found |= {name} | set().union(*(keys_of(inner) for inner in sections_in(field.annotation)))
    return found


def sections_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in typing.get_args(annotation) for section in sections_in(inner)]


def test_the_default_config_documents_every_key_and_every_value_of_the_tables():
    text = (tiny_run.REPOSITORY / "config" / "config.yaml").read_text(encoding="utf-8")
    keys = keys_of(config.SweepConfig)
    assert {"sha256", "cpu_watts", "min_w", "subset", "when", "lr_warmup_fraction"} <= keys  # the walk goes deep
    tables = (STRATEGIES, PRECISIONS, ENGINES, OPTIMIZERS)
    named = {*config.TASKS, *config.BATCHINGS, *config.HEADS, *config.SCHEDULES, *methods.names(), *readers.names()}
    choices = named.union(*tables)
    assert {name for name in keys | choices if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)} == set()
