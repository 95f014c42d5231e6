"""A kept model's folder says what the model is and what it took, for people and for machines."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import synthetic
import yaml

from joulesweep.analyse.collect import aggregate
from joulesweep.core import files
from joulesweep.report.exports import cards
from joulesweep.report.exports.kept import kept_models
from joulesweep.report.results import Results

FACTORS = {"carbon": {"country": "DEU"}, "pue": 1.2}
SMALL = {"strategy": ["single"], "precision": ["bf16-mixed"], "batch_size": [32]}


def models(folder, change=synthetic.on_gpus, kept="best", **sections):
    """The models of a sweep that keeps one per run."""
    sections = {"hardware": {"accelerator": "cuda"}, "energy": FACTORS, **sections}
    raw = synthetic.raw_config(SMALL, **sections, train={"epochs": 3, "keep_model": kept})
    manifest, runs = synthetic.write_sweep(folder, raw, change)
    for run in manifest["runs"]:
        (runs / run / "model").mkdir()
    return list(kept_models(Results(manifest, aggregate(manifest, runs)), runs))


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def worse_in_the_end(row):
    """The same run, whose last epoch makes it worse."""
    *earlier, last = row["epochs"]
    last = {**last, "validation_loss": 9.0}
    quality = {**row["quality"], "validation_loss": 9.0}
    return synthetic.on_gpus({**row, "epochs": [*earlier, last], "quality": quality})


def properties(rows):
    return {row["name"].removeprefix("joulesweep:"): row["value"] for row in rows}


def environment(document):
    return document["metadata"]["component"]["modelCard"]["considerations"]["environmentalConsiderations"]


def test_the_card_has_the_energy_with_status_and_error(tmp_path):
    model = models(tmp_path)[0]
    text = cards.card(model)
    assert "kJ** (measured, Zeus: NVML energy counter)" in text
    assert "an error of at most" in text and "±5 %" in text
    assert metadata(text)["co2_eq_emissions"]["emissions"] == pytest.approx(
        1.2 * model.run["energy_j"] / 3.6e6 * model.results.factors.g_per_kwh
    )


@pytest.mark.parametrize(("kept", "epoch"), [("best", 2), ("last", 3)])
def test_the_quality_is_that_of_the_weights_that_were_kept(tmp_path, kept, epoch):
    model = models(tmp_path, worse_in_the_end, kept)[0]
    assert model.epoch.epoch == epoch
    (results,) = metadata(cards.card(model))["model-index"]
    metrics = {row["type"]: row["value"] for row in results["results"][0]["metrics"]}
    assert metrics["validation_loss"] == model.epoch.validation_loss
    assert (metrics["validation_loss"] == 9.0) == (kept == "last")


def test_without_a_factor_there_are_no_emissions(tmp_path):
    model = models(tmp_path, energy={})[0]
    text = cards.card(model)
    assert "co2_eq_emissions" not in metadata(text)
    assert "no carbon factor was given" in text
    (entry,) = environment(cards.passport.passport(model))["energyConsumptions"]
    assert "co2CostEquivalent" not in entry


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row, "not known"),
        (lambda row: synthetic.on_gpus(row, doubt="idle is twice the run"), "doubtful: gpu:0: idle is twice the run"),
    ],
)
def test_energy_that_is_not_known_is_no_number(tmp_path, change, words):
    model = models(tmp_path, change)[0]
    text = cards.card(model)
    assert words in text and "co2_eq_emissions" not in metadata(text)
    about = environment(cards.passport.passport(model))
    assert "energyConsumptions" not in about
    assert properties(about["properties"])["energy_reason"]


def test_an_estimate_is_called_one_and_makes_no_entry(tmp_path):
    sections = {"hardware": {"accelerator": "cpu"}, "energy": {**FACTORS, "estimate": True}}
    model = models(tmp_path, lambda row: row, **sections)[0]
    text = cards.card(model)
    assert "An estimate, not a measurement: " in text and "co2_eq_emissions" not in metadata(text)
    about = environment(cards.passport.passport(model))
    assert float(properties(about["properties"])["estimated_energy_j"]) == model.run["estimated_energy_j"]
    assert "energyConsumptions" not in about


def test_what_identifies_machine_or_person_is_left_out(tmp_path):
    def change(row):
        row = synthetic.on_gpus(row)
        batch = {
            "system": "slurm",
            "job": "4711",
            "node": "node-secret",
            "account": "account-secret",
            "partition": None,
        }
        changed = {**row["environment"], "hostname": "host-secret", "batch": batch}
        return {**row, "environment": changed}

    source = {"local": "/home/secret/model"}
    model = models(tmp_path, change, models={"tiny": {"source": source}, "other": {"source": source}})[0]
    both = cards.card(model) + json.dumps(cards.passport.passport(model))
    assert "secret" not in both and "local files" in both


def test_a_model_of_the_hub_is_named_with_its_revision(tmp_path):
    source = {"hub": "prajjwal1/bert-tiny", "revision": "6f75de8b"}
    model = models(tmp_path, models={"tiny": {"source": source}, "other": {"source": source}})[0]
    text = cards.card(model)
    assert metadata(text)["base_model"] == "prajjwal1/bert-tiny"
    assert "revision 6f75de8b" in text
    base, _ = cards.passport.passport(model)["components"]
    assert base["name"] == "prajjwal1/bert-tiny"


def test_the_licence_is_unknown_and_the_run_can_be_repeated(tmp_path):
    model = models(tmp_path)[1]
    text = cards.card(model)
    assert metadata(text)["license"] == "unknown"
    assert f"    joulesweep run {model.record.run}\n" in text
    assert "| seed | 2 |" in text and "| precision | bf16-mixed |" in text


def test_the_passport_has_kilowatt_hours_of_fine_tuning_from_an_unknown_source(tmp_path):
    model = models(tmp_path)[0]
    (entry,) = environment(cards.passport.passport(model))["energyConsumptions"]
    assert entry["activity"] == "fine-tuning"
    assert entry["activityEnergyCost"] == {"value": model.run["energy_j"] / 3.6e6, "unit": "kWh"}
    (provider,) = entry["energyProviders"]
    assert (provider["energySource"], provider["organization"]) == ("unknown", {"name": "unknown"})
    assert entry["co2CostEquivalent"]["value"] == pytest.approx(model.co2e_g / 1e6)
    known = properties(entry["properties"])
    assert (known["energy_status"], known["energy_scope"]) == ("measured", "gpu")
    assert float(known["energy_error_j"]) == model.run["energy_error_j"]


def test_equal_runs_give_equal_passports(tmp_path):
    first, second, _ = models(tmp_path)
    assert cards.passport.passport(first) == cards.passport.passport(first)
    assert cards.passport.passport(first)["serialNumber"] != cards.passport.passport(second)["serialNumber"]


def test_the_passport_names_the_weights_by_their_checksum(tmp_path):
    model = models(tmp_path)[0]
    (model.folder / "model.safetensors").write_bytes(b"weights")
    (file,) = cards.passport.passport(model)["metadata"]["component"]["components"]
    assert (file["name"], file["hashes"][0]["content"]) == ("model.safetensors", hashlib.sha256(b"weights").hexdigest())


@pytest.mark.parametrize(("apart_s", "is_read"), [(60, True), (-60, False)])
def test_weights_are_read_again_only_if_they_are_newer(tmp_path, monkeypatch, apart_s, is_read):
    model = models(tmp_path)[0]
    weights = model.folder / "model.safetensors"
    weights.write_bytes(b"weights")
    cards.save_all(model.results, tmp_path / "runs")
    made_s = (model.folder / "passport.json").stat().st_mtime
    os.utime(weights, (made_s + apart_s, made_s + apart_s))
    read = []
    monkeypatch.setattr(cards.passport.files, "sha256_of", lambda path: read.append(path) or "c0ffee" * 10 + "abcd")
    cards.passport.passport(model)
    assert read == ([weights] if is_read else [])


def test_a_corrupt_passport_is_made_anew(tmp_path):
    model = models(tmp_path)[0]
    (model.folder / "model.safetensors").write_bytes(b"weights")
    (model.folder / "passport.json").write_text('{"metadata": 1}')
    assert list(cards.passport.checksums(model.folder)) == ["model.safetensors"]


CHANGES = {
    "measured": synthetic.on_gpus,
    "doubtful": lambda row: synthetic.on_gpus(row, doubt="idle is twice the run"),
    "unmeasured": lambda row: row,
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_passport_is_valid_by_the_official_schema(tmp_path, name):
    pytest.importorskip("cyclonedx", reason="the schema comes with the dev extra")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    model = models(tmp_path, CHANGES[name])[0]
    (model.folder / "model.safetensors").write_bytes(b"weights")
    document = cards.passport.passport(model)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(document)) is None
    document["metadata"]["component"]["modelCard"]["considerations"]["energy"] = 1
    assert validator.validate_str(json.dumps(document)) is not None, "an unknown key is refused"


def test_only_finished_runs_with_a_kept_model_get_cards(tmp_path):
    def change(row):
        row = synthetic.on_gpus(row)
        return synthetic.failed(row, "oom", "asked for 2 GiB") if row["spec"]["repeat"] == 3 else row

    first, second = models(tmp_path, change)
    shutil.rmtree(second.folder)
    cards.save_all(first.results, tmp_path / "runs")
    written = {path.relative_to(tmp_path / "runs").parts[0] for path in (tmp_path / "runs").rglob("README.md")}
    assert written == {first.record.run}
    assert files.read_json(first.folder / "passport.json", "passport")["bomFormat"] == "CycloneDX"


def test_another_factor_makes_another_card_of_the_same_run(tmp_path):
    model = models(tmp_path)[0]
    manifest = model.results.manifest
    energy = {**manifest["config"]["energy"], "carbon": {"country": None, "g_per_kwh": 20.0, "source": "a contract"}}
    results = Results({**manifest, "config": {**manifest["config"], "energy": energy}}, model.results.tables)
    first, *_ = kept_models(results, tmp_path / "runs")
    assert "a contract" in cards.card(first) and "a contract" not in cards.card(model)
    assert first.co2e_g < model.co2e_g
