"""Put a model card, `README.md`, and an energy passport, `passport.json`, into the folder of every kept model.

Both are made from the record, the tables and the config's factors whenever these change; no run is repeated for them.
They are meant to be published with the weights: paths, host names and accounts are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from joulesweep.analyse.cells import method_words
from joulesweep.core import files
from joulesweep.core.quantities import digits, one
from joulesweep.report.exports import passport
from joulesweep.report.exports.kept import METRICS, Kept, hub_id, kept_models, origin
from joulesweep.report.results import Results

#: The hub's word for a task.
PIPELINES = {"mlm": "fill-mask", "clm": "text-generation", "seq2seq": "text2text-generation"}
SENSOR = "The accuracy of the boards' own sensors, about ±5 %, is not in that bound."


def save_all(results: Results, runs_folder: Path) -> None:
    """Write both files into each kept model's folder."""
    for model in kept_models(results, runs_folder):
        files.write_text(model.folder / "README.md", card(model))
        files.write_json(model.folder / "passport.json", passport.passport(model))


def card(model: Kept) -> str:
    """The model card: metadata as the hub reads them, and text."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(**_metadata(model))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(model)}"))


def _metadata(model: Kept) -> dict[str, Any]:
    from huggingface_hub import EvalResult

    spec, base = model.spec, hub_id(model.spec.model_source)
    dataset = hub_id(spec.dataset_source)
    metadata = {
        "model_name": model.record.run,
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[spec.task],
        "base_model": base,
        "datasets": [dataset] if dataset else None,
        "tags": ["joulesweep"],
        "eval_results": [
            EvalResult(
                task_type=PIPELINES[spec.task],
                dataset_type=dataset or spec.dataset,
                dataset_name=spec.dataset,
                dataset_split="validation",
                metric_type=name,
                metric_value=value,
                metric_name=METRICS[name],
            )
            for name, value in model.metrics.items()
        ],
        "co2_eq_emissions": _emissions(model),
    }
    return {name: value for name, value in metadata.items() if value is not None}


def _emissions(model: Kept) -> dict[str, object] | None:
    """The hub's entry for emissions, in grams; None without measured joules and a factor."""
    if model.co2e_g is None or model.results.factors is None:
        return None
    carbon = model.results.manifest["config"]["energy"]["carbon"]
    entry = {
        "emissions": model.co2e_g,
        "source": f"joules {model.run['energy_status']} by Joulesweep, {model.results.factors.carbon_source}",
        "training_type": "fine-tuning",
        "geographical_location": carbon["country"],
        "hardware_used": _hardware(model),
    }
    return {name: value for name, value in entry.items() if value is not None}


def _hardware(model: Kept) -> str:
    if model.spec.accelerator == "cuda":
        return f"{model.spec.devices} × {model.run['gpus']}"
    threads = model.spec.devices * model.spec.threads_per_device
    return f"{model.run['cpu_model']}, {_counted(threads, 'thread')}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number > 1 else ''}"


def _text(model: Kept) -> str:
    parts = {
        f"# {model.record.run}": _summary(model),
        "## Quality": _quality(model),
        "## Energy": _energy(model),
        "## Training": _training(model),
        "## Licence": ["Unknown. The licences of the base model and of the texts apply; ask their authors."],
        "## Reproduce": _reproduce(model),
    }
    return "\n".join("\n".join([head, "", *lines, ""]) for head, lines in parts.items())


def _summary(model: Kept) -> Iterator[str]:
    spec = model.spec
    yield (
        f"{spec.model} ({origin(spec.model_source)}), adapted to {spec.dataset} ({origin(spec.dataset_source)}) "
        f"with the method {method_words(model.run)}, in the sweep {model.results.manifest['sweep']} of "
        "Joulesweep, which measures what a training costs."
    )
    if (model.folder / "prefix").is_dir():
        yield "\nThe weights are those of the base model; the trained prefix is in `prefix/`, in peft's format."


def _quality(model: Kept) -> Iterator[str]:
    quality, cell = model.record.quality, model.cell
    which = "that of least validation loss" if model.spec.keep_model == "best" else "the last"
    texts = f", on {quality.num_validation_texts:,} held-out texts" if quality else ""
    yield f"After epoch {model.epoch.epoch}, {which}{texts}:"
    yield ""
    yield "| | this model |"
    yield "|---|---:|"
    for name, value in model.metrics.items():
        yield f"| {METRICS[name]} | {value:.4g} |"
    loss, low, high = (cell[f"validation_loss_{end}"] for end in ("mean", "low", "high"))
    if cell["num_ok"] > 1 and loss is not None and low is not None:
        yield ""
        yield (
            f"Over the {cell['num_ok']} seeds of this configuration, after the last epoch: validation loss {loss:.4g}, "
            f"95 % interval [{low:.4g}, {high:.4g}]."
        )


def _energy(model: Kept) -> Iterator[str]:
    run = model.run
    if model.energy_j is None:
        yield f"The energy of this training is not known: {model.no_energy_reason}."
    else:
        yield " ".join(_measured(model, model.energy_j))
    if run["estimated_energy_j"] is not None:
        low, high = run["estimated_energy_low_j"], run["estimated_energy_high_j"]
        yield ""
        yield (
            f"An estimate, not a measurement: {one(run['estimated_energy_j'], 'J')}, between {one(low, 'J')} and "
            f"{one(high, 'J')}; {run['estimated_energy_method']}."
        )
    if run["flags"]:
        yield ""
        yield f"What weakens these numbers: {run['flags']}."


def _measured(model: Kept, energy_j: float) -> Iterator[str]:
    """Sentences on joules that were read."""
    run, error_j = model.run, model.run["energy_error_j"]
    bound = "an unknown error" if error_j is None else f"an error of at most {one(error_j, 'J')}"
    yield (
        f"The training took **{one(energy_j, 'J')}** ({run['energy_status']}, {run['energy_method']}) in "
        f"{one(run['window_s'], 's')}, with {bound}. Devices: {run['energy_scope']}."
    )
    if "gpu" in run["energy_scope"].split("+"):
        yield SENSOR
    if run["num_passes"] > 1:
        yield f"Its window held {run['num_passes']} such trainings, so as to be measured well; this is their mean."
    yield from _grams(model)


def _grams(model: Kept) -> Iterator[str]:
    factors = model.results.factors
    if model.co2e_g is None or factors is None:
        yield "Emissions are not known: no carbon factor was given."
        return
    yield (
        f"That is {one(model.co2e_g, 'g')} CO2e at {factors.g_per_kwh:.4g} g/kWh ({factors.carbon_source}), "
        f"times a PUE of {factors.pue:g}."
    )


def _training(model: Kept) -> Iterator[str]:
    spec, run = model.spec, model.run
    length = "" if spec.epochs is None else f"{_counted(spec.epochs, 'epoch')}, "
    facts = {
        "hardware": _hardware(model),
        "strategy": f"{spec.strategy}, {_counted(spec.devices, 'device')}",
        "precision": spec.precision,
        "batch size": f"{run['batch']}, {spec.batching} rows of up to {spec.max_length} tokens",
        "length": f"{length}{_counted(run['num_steps'], 'step')}, {run['num_texts']:,} texts",
        "learning rate": f"{spec.lr:g}, {spec.schedule}",
        "seed": str(spec.repeat),
        "kept": f"{spec.keep_model} epoch",
        "peak memory": one(run["peak_gpu_allocated_bytes"] or run["peak_host_rss_bytes"], "B"),
        "speed": f"{digits(run['samples_per_s'])} texts/s",
        "date": run["finished"],
    }
    yield "| | |"
    yield "|---|---|"
    for name, value in facts.items():
        yield f"| {name} | {value} |"


def _reproduce(model: Kept) -> Iterator[str]:
    run, inputs = model.run, model.record.inputs
    versions = {"Python": run["python"], "torch": run["torch_version"], "transformers": run["transformers_version"]}
    commit = run["git_commit"] or "unknown"
    yield "With the sweep's config:"
    yield ""
    yield f"    joulesweep run {model.record.run}"
    yield ""
    yield f"Joulesweep at commit {commit}{' with local changes' if run['git_dirty'] else ''}, {_listed(versions)}."
    for file, checksum in sorted((inputs.model or {}).get("files", {}).items()):  # type: ignore[attr-defined]
        if file.endswith(".safetensors"):
            yield f"SHA-256 of the base model's {file}: `{checksum}`."
    if inputs.tokens and "sha256" in inputs.tokens:
        yield f"SHA-256 of the tokens: `{inputs.tokens['sha256']}`."


def _listed(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items() if value)
