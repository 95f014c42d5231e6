"""The FLOPs of published tables, from the model's shapes alone."""

from __future__ import annotations

import csv

import pytest
import tiny_run
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from joulesweep import methods
from joulesweep.nets import flops, products
from joulesweep.nets.language_model import LanguageModel

FILE = tiny_run.REPOSITORY / "resources" / "published" / "greentrainer.csv"
#: Width, layers, heads and inner width, from Zhang et al. 2022 (arXiv 2205.01068), table 1.
OPT = {"OPT-1.3B": (2048, 24, 32, 8192), "OPT-2.7B": (2560, 32, 32, 10240), "OPT-6.7B": (4096, 32, 32, 16384)}
STEPS = {"SciTLDR": 498 * 5, "DialogSum": 3125 * 5}  # five epochs of batches of four
BATCH, LENGTH = 4, 512


def published():
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def pmacs(model_name, dataset, method):
    width, layers, heads, inner = OPT[model_name]
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": inner}
    config = AutoConfig.for_model("opt", word_embed_proj_dim=width, **shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model = methods.load(method).apply(model, methods.parameters(method, {}))
    found = flops.coefficients(products.traced(LanguageModel(model)).products)
    per_row = (found["token"] + found["head_position"]) * LENGTH + found["token_pair"] * LENGTH**2
    return per_row / 2 * BATCH * STEPS[dataset] / 1e15


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [row for row in published() if row["model"] in OPT and row["method"] == "full"],
    ids=lambda row: f"{row['model']} {row['dataset']}",
)
def test_full_training_of_opt(row):
    assert pmacs(row["model"], row["dataset"], "full") == pytest.approx(float(row["pmacs"]), rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", STEPS)
def test_lora_on_opt_costs_what_the_table_says_and_what_it_left_out(dataset):
    """The paper has two thirds of full training: no weight's own gradient.

    Attention's products have no weights, so both their gradients remain, and the adapters compute too: 1 % more.
    """
    cells = {(row["model"], row["dataset"], row["method"]): row["pmacs"] for row in published()}
    expected = float(cells["OPT-2.7B", dataset, "lora"])
    assert expected == pytest.approx(float(cells["OPT-2.7B", dataset, "full"]) * 2 / 3, rel=2e-3)
    assert expected < pmacs("OPT-2.7B", dataset, "lora") < 1.015 * expected


def test_the_table_has_each_cell_once_and_its_source():
    rows = published()
    assert "arXiv 2309.13192" in FILE.read_text(encoding="utf-8")
    keys = [(row["model"], row["dataset"], row["method"], row["rho"]) for row in rows]
    assert len(set(keys)) == len(keys) > 40
    for row in rows:
        assert (row["rho"] != "") == (row["method"] == "greentrainer")
        assert all(float(value) > 0 for name, value in row.items() if name[0] in "ph" and value)
