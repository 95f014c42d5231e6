"""The smallest card of each cell and the cheapest cell of each card, from planted memory and joules."""

from __future__ import annotations

import pytest
import studied
import synthetic

from joulesweep.studies import small_cards

GIB = 2**30
AXES = {"strategy": ["single"], "precision": ["fp32"], "batch_size": [32], "method": ["full", "lora"]}
RAW = synthetic.raw_config({**AXES, "micro_batch_size": [None, 8]}, **synthetic.GPU_CONFIG)


def planted(watts=300.0, **changes):
    """Full training takes 20 GiB, LoRA 10; micro-batches halve both and cost a tenth more joules."""

    def change(row):
        spec = row["spec"]
        micro, full = spec["micro_batch_size"] is not None, spec["method"] == "full"
        power = watts * (1.1 if micro else 1.0) * (1.0 if full else 0.8)
        made = synthetic.on_gpus(row, power, **changes)
        peak = {**made["measurement"]["peak_memory"], "gpu_reserved_bytes": (20 if full else 10) * GIB // (1 + micro)}
        return {**made, "measurement": {**made["measurement"], "peak_memory": peak}}

    return change


@pytest.mark.parametrize(("gib", "card"), [(1, 8), (8, 8), (8.01, 16), (24, 24), (24.01, None)])
def test_the_smallest_card_holds_the_peak(gib, card):
    assert small_cards.smallest_card(int(gib * GIB)) == card


def test_each_card_has_its_cheapest(tmp_path):
    made = studied.answer(tmp_path, "small-cards", RAW, planted())
    assert made.answered
    _, second, third = made.sentence.split(", in ")
    assert "lora" in made.sentence and "of 1 that fit (6.00 GiB" in made.sentence
    assert "of 3 that fit (11.0 GiB, " in second and "of 4 that fit (11.0 GiB, " in third
    assert [row[3] for row in made.tables[0].rows] == ["8 GB", "16 GB", "16 GB", "24 GB"]


def test_a_card_in_which_nothing_fits_is_told(tmp_path):
    config = synthetic.raw_config({**AXES, "method": ["full"]}, **synthetic.GPU_CONFIG)
    made = studied.answer(tmp_path, "small-cards", config, planted())
    assert made.sentence.startswith("By memory: nothing fits in 8 GB, nothing fits in 16 GB, in 24 GB ")


def test_without_measured_joules_what_fits_is_told_alone(tmp_path):
    made = studied.answer(tmp_path, "small-cards", RAW, planted(status="integrated"))
    assert made.sentence.startswith("By memory: 1 of 4 configurations fit in 8 GB, 3 of 4 configurations fit")
    assert "which costs the fewest joules cannot be told: energy was integrated" in made.sentence


@pytest.mark.parametrize(
    ("change", "why"), [(None, "peak host memory is not a card's"), (lambda row: None, "no run has finished")]
)
def test_without_a_gpus_memory_nothing_is_told(tmp_path, change, why):
    made = studied.answer(tmp_path, "small-cards", synthetic.raw_config(AXES), change)
    assert not made.answered and why in made.sentence
