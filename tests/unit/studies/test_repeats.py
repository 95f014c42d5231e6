"""Claims from single runs are confirmed, contradicted or left open, as planted; wrong orders are counted."""

from __future__ import annotations

import pytest
import studied
import synthetic
from planted import planted

from joulesweep.analyse.studies.published import CLAIMS
from joulesweep.studies import repeats

AXES = {"strategy": ["dp", "ddp"], "precision": ["fp32", "fp16-mixed"], "batch_size": [32], "repeats": 4}


def told(folder, speed=3.6, memory=0.79, power=0.5, accuracy=1.0, noise=0.003, axes=None, boards=True, **sections):
    """What the study says where ddp with fp16-mixed over dp with fp32 has these ratios, steps between their root."""

    def changed(row):
        steps = ((row["spec"]["strategy"] == "ddp") + (row["spec"]["precision"] == "fp16-mixed")) / 2
        seconds = 600 / speed**steps
        row = planted(row, 700 * seconds * power**steps, seconds, 2.0, noise, boards)
        bytes_ = int(8 * 2**30 * memory**steps * (1 + 1e-4 * row["spec"]["repeat"]))
        peak = {**row["measurement"]["peak_memory"], "gpu_allocated_bytes": bytes_ if boards else None}
        quality = {**row["quality"], "masked_accuracy": 0.5 * accuracy**steps * row["quality"]["validation_loss"] / 2}
        return {**row, "quality": quality, "measurement": {**row["measurement"], "peak_memory": peak}}

    raw = synthetic.raw_config({**AXES, **(axes or {})}, **{**synthetic.GPU_CONFIG, **sections})
    return studied.answer(folder, "repeats", raw, changed)


def verdicts(answer):
    (table,) = answer.tables
    return {row[0]: row[2] for row in table.rows}


def test_every_claim_of_the_paper_is_judged():
    assert repeats.GAINS.keys() == CLAIMS.keys()


def test_claims_that_are_planted_are_confirmed(tmp_path):
    answer = told(tmp_path)
    assert answer.answered and set(verdicts(answer).values()) == {"confirmed"}
    assert answer.sentence.startswith(
        "Of the paper's 4 claims from single runs, 4 seeds leave 4 confirmed (training speed"
    )
    assert "memory, 20 % less: at best × 0.79" in answer.sentence and "power, about 50 % lower" in answer.sentence


def test_claims_that_are_planted_away_are_contradicted(tmp_path):
    answer = told(tmp_path, speed=2.0, memory=1.0, power=0.9, accuracy=0.9)
    assert answer.answered and set(verdicts(answer).values()) == {"contradicted"}
    assert "validation accuracy, no loss: at worst × 0.9" in answer.sentence


def test_noise_leaves_claims_undecided_and_says_how_many_seeds(tmp_path):
    answer = told(tmp_path, speed=3.0, power=0.54, noise=0.05)
    assert {verdicts(answer)[claim] for claim in ("training speed", "power", "validation accuracy")} == {"not decided"}
    needed = next(text for text in answer.findings if "loss of 1 %" in text)
    assert int(needed.split(" takes ")[1].split()[0]) > 20, needed


def test_without_joules_the_claim_on_power_is_not_judged(tmp_path):
    answer = told(tmp_path, axes={"strategy": ["single"]}, boards=False, hardware={"accelerator": "cpu"})
    assert verdicts(answer)["power"] == "not judged"
    assert "power, about 50 % lower: joules were not measured" in answer.sentence


@pytest.mark.parametrize("axes", [{"repeats": 1}, {"strategy": ["ddp"], "precision": ["fp32"]}])
def test_a_sweep_without_pairs_or_repeats_cannot_answer(tmp_path, axes):
    answer = told(tmp_path, axes=axes)
    assert not answer.answered and "cannot be told" in answer.sentence


def test_steady_runs_tell_no_wrong_order_and_noisy_ones_do(tmp_path):
    axes = {"repeats": 8}
    steady = " ".join([told(tmp_path / "a", axes=axes).sentence, *told(tmp_path / "a", axes=axes).findings])
    assert "wrong order of seconds in 0 % of" in steady
    noisy = told(tmp_path / "b", speed=1.5, noise=0.15, axes=axes)
    (text,) = [one for one in noisy.findings if "order of seconds" in one]
    assert float(text.split(" in ")[1].split(" %")[0]) > 5, text
