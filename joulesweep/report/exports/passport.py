"""The energy passport of a kept model: a CycloneDX 1.6 bill of materials with what the training took.

The standard asks for the provider and the source of the energy, which Joulesweep does not know: both are "unknown". It
has no place for how sure a number is, so status, error, scope and doubt are properties named `joulesweep:…`. Joules
that were not read, or that are doubtful, make no entry: an entry would have to be a number. Estimates are properties.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from pathlib import Path
from typing import Any

import joulesweep
from joulesweep.analyse.cells import method_words
from joulesweep.core import files
from joulesweep.core.errors import UserError
from joulesweep.reference.footprint import J_PER_KWH
from joulesweep.report.exports.kept import Kept, hub_id, origin

Json = dict[str, Any]  # an object of the document
SPEC_VERSION = "1.6"
SCHEMA = f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json"
G_PER_TONNE = 1e6
HASH = "SHA-256"
#: How the task is learned, in the standard's words.
APPROACHES = {"mlm": "self-supervised", "clm": "self-supervised", "seq2seq": "supervised"}
UNKNOWN_PROVIDER = "Neither the provider nor the source of the electricity is known to Joulesweep."
#: Columns of the runs table that say how sure the joules are.
CERTAINTY = (
    *("energy_status", "energy_method", "energy_scope", "energy_error_j", "energy_doubt", "energy_reason", "window_s"),
    *("num_passes", "total_energy_j", "flags", "certificate", "certificate_reason"),
)
ESTIMATES = ("estimated_energy_j", "estimated_energy_low_j", "estimated_energy_high_j", "estimated_energy_method")


def passport(model: Kept) -> Json:
    """The bill of materials as JSON. Equal inputs give equal documents."""
    parts = [_base_model(model), _dataset(model)]
    body = {
        "metadata": {
            "timestamp": model.record.finished,
            "tools": {"components": [_tool()]},
            "component": _model(model),
        },
        "components": parts,
        "dependencies": [{"ref": "model", "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    head = {"$schema": SCHEMA, "bomFormat": "CycloneDX", "specVersion": SPEC_VERSION}
    return {**head, "serialNumber": f"urn:uuid:{serial}", "version": 1, **body}


def _tool() -> dict[str, str]:
    return {"type": "application", "name": "joulesweep", "version": joulesweep.__version__}


def _model(model: Kept) -> Json:
    """The adapted model with its card."""
    spec = model.spec
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": model.record.run,
        "description": f"{spec.model}, adapted to {spec.dataset} with the method {method_words(model.run)}",
        "components": [_file(name, checksum) for name, checksum in checksums(model.folder).items()],
        "pedigree": {"ancestors": [{"type": "machine-learning-model", "name": spec.model}]},
        "modelCard": {
            "modelParameters": {
                "approach": {"type": APPROACHES[spec.task]},
                "task": spec.task,
                "datasets": [{"ref": "dataset"}],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [{"type": name, "value": str(value)} for name, value in model.metrics.items()]
            },
            "considerations": {"environmentalConsiderations": _environment(model)},
        },
        "properties": _properties(_training(model)),
    }


def _file(name: str, checksum: str) -> Json:
    return {"type": "file", "bom-ref": f"file-{name}", "name": name, "hashes": [{"alg": HASH, "content": checksum}]}


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights. One that is older than the passport which names it is not read again."""
    present = folder / "passport.json"
    known: dict[str, str] = {}
    with contextlib.suppress(UserError, *files.MALFORMED):
        of_model = files.read_json(present, "passport")["metadata"]["component"]
        known = {file["name"]: file["hashes"][0]["content"] for file in of_model["components"]}
    made_s = present.stat().st_mtime if known else 0.0
    return {
        name: known[name] if name in known and path.stat().st_mtime < made_s else files.sha256_of(path)
        for path in sorted(folder.rglob("*.safetensors"))
        for name in [path.relative_to(folder).as_posix()]
    }


def _training(model: Kept) -> dict[str, object]:
    """What the training was, for a reader without the record."""
    names = ("precision", "strategy", "devices", "batch_size", "batch_size_scope", "lr", "epochs", "max_steps")
    hardware = {"hardware": model.run["gpus"] or model.run["cpu_model"], "torch": model.run["torch_version"]}
    own = {name: getattr(model.spec, name) for name in names}
    return {
        "seed": model.spec.repeat,
        "kept": model.spec.keep_model,
        "kept_epoch": model.epoch.epoch,
        **own,
        **hardware,
    }


def _environment(model: Kept) -> Json:
    """What the training took, if it was read from the machine."""
    if model.energy_j is None:
        why = {**{name: model.run[name] for name in CERTAINTY}, "energy_reason": model.no_energy_reason}
        return {"properties": _properties({**why, **{name: model.run[name] for name in ESTIMATES}})}
    energy = {"value": model.energy_j / J_PER_KWH, "unit": "kWh"}
    consumption: Json = {
        "activity": "fine-tuning",
        "energyProviders": [
            {
                "description": UNKNOWN_PROVIDER,
                "organization": {"name": "unknown"},
                "energySource": "unknown",
                "energyProvided": energy,
            }
        ],
        "activityEnergyCost": energy,
    }
    certainty = {"energy_j": model.energy_j, **{name: model.run[name] for name in CERTAINTY}}
    if model.co2e_g is not None and model.results.factors is not None:
        consumption["co2CostEquivalent"] = {"value": model.co2e_g / G_PER_TONNE, "unit": "tCO2eq"}
        factors = model.results.factors
        certainty |= {"carbon_g_per_kwh": factors.g_per_kwh, "carbon_source": factors.carbon_source, "pue": factors.pue}
    return {"energyConsumptions": [{**consumption, "properties": _properties(certainty)}]}


def _properties(facts: dict[str, object]) -> list[dict[str, str]]:
    """Names and values as the standard has them; what is not known is left out."""
    return [{"name": f"joulesweep:{name}", "value": str(value)} for name, value in facts.items() if value is not None]


def _base_model(model: Kept) -> Json:
    source, manifest = model.spec.model_source, model.record.inputs.model or {}
    component = {
        "type": "machine-learning-model",
        "bom-ref": "base-model",
        "name": hub_id(source) or model.spec.model,
        "description": origin(source),
        "version": manifest.get("revision"),
    }
    return {name: value for name, value in component.items() if value is not None}


def _dataset(model: Kept) -> Json:
    source = model.spec.dataset_source
    return {
        "type": "data",
        "bom-ref": "dataset",
        "name": hub_id(source) or model.spec.dataset,
        "description": origin(source),
        "data": [{"type": "dataset", "name": model.spec.dataset}],
    }
