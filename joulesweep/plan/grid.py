"""Expand a config into runs: the product of the axes, without excluded and impossible cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from joulesweep.axes import engine, lr_rule, optimizer
from joulesweep.axes.layout import BATCHINGS
from joulesweep.axes.strategy import STRATEGIES, several_nodes_reason
from joulesweep.axes.task import TASKS
from joulesweep.core.errors import UserError, mistaken
from joulesweep.core.spec import FIELDS, OMISSION, RunSpec, micro_batch, short_hash, strip_source
from joulesweep.measure.machine import resolve_accelerator
from joulesweep.plan.config import (
    DatasetConfig,
    ModelConfig,
    SweepConfig,
    TrainedTokenizer,
    evaluation,
    full_method,
    is_method,
)
from joulesweep.plan.strict import Place
from joulesweep.runs.identity import cell_id, label, run_id
from joulesweep.train import evaluations

#: The axes of the grid, slowest first; each names a field of RunSpec.
AXES = (
    "model",
    "dataset",
    "task",
    "method",
    "strategy",
    "devices",
    "precision",
    "batching",
    "head",
    "engine",
    "optimizer",
    "batch_size",
    "batch_size_scope",
    "micro_batch_size",
    "checkpoint_activations",
    "lr",
    "max_grad_norm",
)
#: The axes that `expand` multiplies: a rule is resolved into the rate, and is no field of RunSpec.
EXPANDED = (*AXES, "lr_rule")
MOST_RUNS = 30_000  # of a grid, before exclusions
LONGEST_RUN = 230  # characters of a run's id; file systems take 255 bytes as a name
#: The axes that a label names only where they vary.
UNLABELLED = (
    "model",
    "dataset",
    "task",
    "batching",
    "head",
    "engine",
    "optimizer",
    "micro_batch_size",
    "checkpoint_activations",
    "lr",
    "max_grad_norm",
)


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A cell of the grid that the sweep leaves out."""

    label: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExpandedGrid:
    """The runs of a config, and the cells that are left out.

    Attributes:
        runs: every run by its id, in the order of the axes; repeats vary slowest, so that all cells run early.
        excluded: cells that `exclude:` removes, and cells that no machine can run.
    """

    runs: dict[str, RunSpec]
    excluded: tuple[Excluded, ...]


def expand(config: SweepConfig, where: Place | None = None) -> ExpandedGrid:
    """Expand a config into its runs.

    Args:
        config: the config.
        where: the place of its values, for errors.

    Raises:
        UserError: a meaningless combination (a batch that does not divide, nothing left to run).
    """
    where = where or Place()
    _check_size(config, where)
    _check_nodes(config, where)
    axes = {**config.grid.model_dump(), "method": [full_method(value) for value in config.grid.method]}
    shared = _shared(config, where)
    sources = {name: model_source(model, config.datasets) for name, model in config.models.items()}
    datasets = {name: dataset_source(dataset) for name, dataset in config.datasets.items()}
    cells: dict[str, RunSpec] = {}
    excluded: dict[str, Excluded] = {}
    telling, mistakes = _telling(config), list[UserError]()
    for values in itertools.product(*(axes[axis] for axis in EXPANDED)):
        point = dict(zip(EXPANDED, values, strict=True))
        point["method"], point["method_params"] = point["method"]
        point |= _spread(point["devices"] if STRATEGIES[point["strategy"]].multi_device else 1)
        if point["devices"] == 1:
            point["batch_size_scope"] = "global"  # one device: both scopes are the same run
        point["micro_batch_size"] = micro_batch(point["micro_batch_size"], point)
        cell = RunSpec(
            **_with_rate(point, config.grid.lr_base_batch_size),
            **{**shared, **_meaningless(point["task"])},
            repeat=1,
            model_source=sources[point["model"]],
            dataset_source=datasets[point["dataset"]],
        )
        reason = next((entry.reason for entry in config.exclude if _matches(entry.when, point)), None)
        reason = reason or several_nodes_reason(cell.strategy, cell.nodes) or engine.incompatible_reason(cell)
        reason = reason or optimizer.incompatible_reason(cell)
        reason = reason or _incompatible_reason(cell, config.datasets[cell.dataset]) or _unevaluated(cell, config)
        if reason is not None:
            name = _label(cell, telling)
            excluded[name] = Excluded(label=name, reason=reason)
            continue
        mistakes += _batch_mistakes(cell, where)
        cells.setdefault(_checked_id(cell, where), cell)
    for cell in cells.values() if len(config.grid.lr_rule) > 1 else ():
        excluded.pop(_label(cell, telling), None)  # it runs: another rule leads to it as well
    if mistakes:
        raise mistaken(mistakes)
    if not cells:
        configured = {entry.reason for entry in config.exclude}
        impossible = next((entry.reason for entry in excluded.values() if entry.reason not in configured), None)
        if impossible is not None:
            raise where.refusal(f"nothing is left to run: {impossible}", "grid")
        raise where.refusal("nothing is left to run; every cell of the grid is excluded", "exclude")
    runs = {
        run_id(spec): spec
        for repeat in range(1, config.grid.repeats + 1)
        for spec in (replace(cell, repeat=repeat) for cell in cells.values())
    }
    return ExpandedGrid(runs=runs, excluded=tuple(excluded.values()))


def manifest(config: SweepConfig, where: Place | None = None) -> dict[str, Any]:
    """The manifest of a sweep, which the analysis reads: `results/<sweep>/grid.json`.

    `runs` maps each id to its cell's id, its label and its axis values; the report shows the config.
    """
    grid = expand(config, where)
    telling = _telling(config)
    return {
        "format": "joulesweep-grid",
        "version": 1,
        "sweep": config.sweep,
        "config": config.model_dump(mode="json"),
        "excluded": [{"label": e.label, "reason": e.reason} for e in grid.excluded],
        "runs": {
            run: {
                "cell": cell_id(spec),
                "label": _label(spec, telling),
                "repeat": spec.repeat,
                "method_params": spec.method_params,
                **{axis: getattr(spec, axis) for axis in AXES},
                "nodes": spec.nodes,
                "lr_rule": ", ".join(_rules(spec, config)),
            }
            for run, spec in grid.runs.items()
        },
    }


def model_source(model: ModelConfig, datasets: Mapping[str, DatasetConfig] | None = None) -> dict[str, Any]:
    """A model's source, as the spec holds it: of a tokenizer that is trained, with the source of its texts.

    Args:
        model: the model.
        datasets: the config's, by name; None where the model has the texts' own section.
    """
    source = strip_source(model.model_dump(mode="json"))
    if isinstance(model.tokenizer, TrainedTokenizer):
        texts = model.tokenizer.trained_on
        source["tokenizer"]["trained_on"] = dataset_source((datasets or {})[texts] if isinstance(texts, str) else texts)
    return source


def dataset_source(dataset: DatasetConfig) -> dict[str, Any]:
    """A data set's source, as the spec holds it."""
    return strip_source(dataset.model_dump(mode="json"))


def evaluation_sources(config: SweepConfig) -> list[tuple[dict[str, object], DatasetConfig]]:
    """The entries of `evaluate` as a spec has them, but for the source, and the data set that each reads."""
    entries = [evaluation(value, config.datasets) for value in config.evaluate]
    return [(entry, data) for entry in entries if isinstance(data := entry.pop("source"), DatasetConfig)]


def evaluation_key(entry: Mapping[str, object]) -> str:
    """Folder name of what an entry of a spec's `evaluate` reads, as a fetched data set."""
    source = entry["source"]
    assert isinstance(source, dict)
    return dataset_key(str(entry.get("dataset", entry["name"])), source)


def evaluation_paths(spec: RunSpec, model: str) -> list[Path]:
    """What a run's evaluations read, in their order: items, or the tokens of a data set.

    Args:
        spec: of the run.
        model: folder of its model under resources/models.
    """
    return [
        Path("resources/datasets", f"{evaluation_key(entry)}.jsonl")
        if evaluations.load(str(entry["name"])).FORMAT is not None
        else Path("resources/tokens", evaluation_key(entry), f"{model}.safetensors")
        for entry in spec.evaluate
    ]


def model_key(name: str, source: dict[str, Any]) -> str:
    """Folder name of a fetched model: its name and a hash of its source."""
    return f"{name}-{short_hash(source)}"


def text_source(source: dict[str, Any]) -> dict[str, Any]:
    """The part of a data set's source that determines its texts, without the split."""
    keys = ("source", "format", "header", "field", "target", "choices", "answer", "prompt")
    return {key: source[key] for key in keys if key in source}


def dataset_key(name: str, source: dict[str, Any]) -> str:
    """Folder name of a fetched data set."""
    return f"{name}-{short_hash(text_source(source))}"


def _shared(config: SweepConfig, where: Place) -> dict[str, Any]:
    """The fields of the spec that all runs of the sweep share."""
    accelerator = resolve_accelerator(config.hardware.accelerator)
    measure = config.measure.resolved(accelerator)
    least_s = (measure.min_seconds or 0.0) + (measure.idle_s or 0.0)
    if config.train.timeout_s <= least_s:
        took = f"measure.min_seconds and idle_s take {least_s:g} s"
        raise where.refusal(f"{config.train.timeout_s:g} is too short: {took}", "train", "timeout_s")
    sections = {**config.train.model_dump(), **measure.model_dump()}
    if accelerator == "cuda":
        sections["gpus"] = OMISSION["gpus"]  # the boards that a run gets do not change its id
    return {
        **{name: value for name, value in sections.items() if name in FIELDS},
        "evaluate": [{**entry, "source": dataset_source(data)} for entry, data in evaluation_sources(config)],
        "accelerator": accelerator,
        "hardware_name": config.hardware.name,
    }


def _meaningless(task: str) -> dict[str, Any]:
    """Fields that the task ignores, at their omission values, so that equal runs have equal ids."""
    return {name: OMISSION[name] for name in TASKS[task].unused}


def _incompatible_reason(spec: RunSpec, dataset: DatasetConfig) -> str | None:
    if not TASKS[spec.task].encoder_decoder:
        return None
    if not dataset.has_targets:
        return f"task {spec.task}: data set {spec.dataset} has no targets; name their field, or choose another task"
    if BATCHINGS[spec.batching].packs:
        return f"batching {spec.batching}: texts and targets of an encoder-decoder are padded; use batching: [dynamic]"
    return None


def _unevaluated(spec: RunSpec, config: SweepConfig) -> str | None:
    """Why an evaluation does not apply to a run, or None."""
    for entry in spec.evaluate:
        name, tasks = evaluations.label(entry), evaluations.load(str(entry["name"])).TASKS
        if spec.task not in tasks:
            return f"evaluation {name}: not for task {spec.task}, only for {' and '.join(tasks)}"
        data = config.datasets.get(str(entry.get("dataset")))
        if data is not None and TASKS[spec.task].encoder_decoder and not data.has_targets:
            return f"evaluation {name}: the data set has no targets, which task {spec.task} needs"
    return None


def _spread(devices: int | Mapping[str, int]) -> dict[str, int]:
    """The fields of the spec that a value of the axis `devices` sets."""
    if isinstance(devices, int):
        return {"devices": devices, "nodes": 1}
    return {"devices": devices["nodes"] * devices["per_node"], "nodes": devices["nodes"]}


def _check_nodes(config: SweepConfig, where: Place) -> None:
    """Refuse several nodes where no strategy of the grid can use them."""
    several = [i for i, value in enumerate(config.grid.devices) if not isinstance(value, int)]
    able = [name for name, row in STRATEGIES.items() if row.multi_process]
    if several and not set(able) & set(config.grid.strategy):
        given = ", ".join(config.grid.strategy)
        raise where.refusal(
            f"several nodes need strategy {' or '.join(able)}; the grid has {given}", "grid", "devices", several[0]
        )


def _matches(when: dict[str, Any], point: dict[str, Any]) -> bool:
    def matches(axis: str, value: Any) -> bool:  # noqa: ANN401 - any axis value
        if axis == "devices":
            return all(point[name] == number for name, number in _spread(value).items())
        return is_method(value, point["method"], point["method_params"]) if axis == "method" else point[axis] == value

    return all(
        any(matches(axis, choice) for choice in (value if isinstance(value, list) else [value]))
        for axis, value in when.items()
    )


def _with_rate(point: Mapping[str, Any], base: int | None) -> dict[str, Any]:
    """The fields of the spec: a point of the grid, with the rate that its rule gives at its batch."""
    fields = dict(point)
    rule, devices = fields.pop("lr_rule"), point["devices"] if point["batch_size_scope"] == "per_device" else 1
    return {**fields, "lr": lr_rule.peak(rule, point["lr"], point["batch_size"] * devices, base)}


def _rules(spec: RunSpec, config: SweepConfig) -> list[str]:
    """The rules of the grid that give a run its rate."""
    grid = config.grid
    return lr_rule.leading_to(
        spec.lr, spec.global_batch_size, grid.lr_base_batch_size, rules=grid.lr_rule, rates=grid.lr
    )


def _telling(config: SweepConfig) -> list[str]:
    """The axes of `UNLABELLED` that vary, so that a label must name them."""
    grows = config.grid.lr_base_batch_size is not None
    return [axis for axis in UNLABELLED if len(set(getattr(config.grid, axis))) > 1 or (axis == "lr" and grows)]


def _label(spec: RunSpec, telling: list[str]) -> str:
    """A label that tells a cell from the others of its sweep."""
    return " ".join([*(_word(axis, getattr(spec, axis)) for axis in telling), label(spec)])


def _word(axis: str, value: Any) -> str:  # noqa: ANN401 - any axis value
    """A value of an axis, as a label shows it."""
    if axis == "head":
        return f"{value}-head"
    if axis == "micro_batch_size":
        return f"micro{value}" if value else "whole"
    if axis == "checkpoint_activations":
        return "checkpointed" if value else "stored"
    if axis == "max_grad_norm":
        return f"clip{value:g}" if value else "unclipped"
    return f"{value}"


def _check_size(config: SweepConfig, where: Place) -> None:
    """Refuse a grid that is too large, before it is expanded."""
    num_cells = math.prod(len(getattr(config.grid, axis)) for axis in EXPANDED)
    num_runs = num_cells * config.grid.repeats
    if num_runs > MOST_RUNS:
        cells = f"{num_cells:,} cells of {config.grid.repeats:,} repeats, excluded ones counted"
        raise where.refusal(f"{cells}, are {num_runs:,} runs; at most {MOST_RUNS:,}", "grid")
    if num_cells * len(config.exclude) > 30 * MOST_RUNS:
        raise where.refusal(f"{len(config.exclude):,} entries are too many for a grid of that size", "exclude")


def _checked_id(cell: RunSpec, where: Place) -> str:
    """The id of a cell's first run; refused if it is too long for the name of a folder."""
    run = run_id(cell)
    if len(run) > LONGEST_RUN:
        problem = f"a run's name would have {len(run)} characters, at most {LONGEST_RUN}: shorten what it is made of"
        raise where.refusal(f"{problem}, {run[:40]}…", "grid")
    return run


def _batch_mistakes(spec: RunSpec, where: Place) -> list[UserError]:
    """The mistake of a batch that does not divide, if it is made."""
    if spec.batch_size_scope == "global" and spec.batch_size % spec.devices:
        below = spec.batch_size - spec.batch_size % spec.devices
        near = [str(size) for size in (below, below + spec.devices) if size]
        problem = f"{spec.batch_size} does not divide over {spec.devices} devices ({spec.strategy})"
        remedy = f"nearest: {' or '.join(near)}; or give batch_size_scope: [per_device]"
        return [where.refusal(f"{problem}; {remedy}", "grid", "batch_size")]
    return []
