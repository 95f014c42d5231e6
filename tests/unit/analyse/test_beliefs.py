"""What is believed before anything ran follows from the shapes of model and texts, and from the machine's rates."""

from __future__ import annotations

import math

import pytest
import tiny_run

from joulesweep.analyse import beliefs
from joulesweep.analyse.beliefs import Facts
from joulesweep.core import files
from joulesweep.plan.grid import dataset_key, model_key
from joulesweep.reference.cpu_estimate import Asked

SHAPES = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 512, "vocab_size": 30522}
TOKENS = {"num_texts": 3173, "num_tokens": 29670}
FACTS = Facts(cpu_model="AMD EPYC 7763", cpu_cores=2)
H200 = Facts(cpu_model="AMD EPYC 7763", cpu_cores=2, board=("NVIDIA H200", 141 * 2**30), limit_w=700.0)


def spec(**changes):
    return tiny_run.spec(**{"batching": "packed", "max_length": 64, **changes})


def flops(**changes):
    return beliefs.work(spec(**changes), SHAPES, TOKENS).flops


def test_work_is_near_what_runs_counted():
    # BERT-tiny on these texts, batch 64: 151 GFLOP useful; the estimate is of computed positions of one more token.
    assert flops() == pytest.approx(1.51e11, rel=0.35)


def test_work_grows_with_epochs_steps_and_padding():
    assert flops(epochs=3) == pytest.approx(3 * flops())
    assert flops(max_steps=10, batch_size=32) == pytest.approx(2 * flops(max_steps=10, batch_size=16))
    assert flops() < flops(batching="dynamic") < flops(batching="fixed")
    assert flops(head="dense") > 2 * flops()


def test_a_decoder_of_its_own_doubles_the_layers():
    assert beliefs.work(spec(task="seq2seq", batching="dynamic"), SHAPES, TOKENS).layers == 4


@pytest.mark.parametrize(
    ("shapes", "tokens"), [(None, TOKENS), (SHAPES, None), ({}, TOKENS), (SHAPES, {}), ({"vocab_size": 9}, TOKENS)]
)
def test_unknown_sizes_are_unknown_work(shapes, tokens):
    assert beliefs.work(spec(), shapes, tokens) is None


def believed(facts=FACTS, estimate=False, counted=True, **changes):
    a_spec = spec(**changes)
    return beliefs.believed(a_spec, beliefs.work(a_spec, SHAPES, TOKENS) if counted else None, facts, Asked(estimate))


def test_a_cpu_has_an_assumed_rate_per_thread():
    one, two = (believed(threads_per_device=threads)["window_s"] for threads in (1, 2))
    assert math.exp(one.log) == pytest.approx(flops() / 50e9)
    assert math.exp(one.log - two.log) == pytest.approx(2)
    assert "50 GFLOP/s per thread" in one.basis


def test_a_cpus_joules_are_believed_only_where_the_config_asks():
    assert "energy_j" not in believed()
    assert math.exp(believed(estimate=True)["energy_j"].log) > 0


def test_boards_have_a_share_of_their_peak_rate_and_limit():
    beliefs_of = believed(H200, accelerator="cuda")
    assert "H200" in beliefs_of["window_s"].basis
    assert "700 W" in beliefs_of["energy_j"].basis
    watts = math.exp(beliefs_of["energy_j"].log - beliefs_of["window_s"].log)
    assert watts == pytest.approx(0.6 * 700)


def test_a_faster_format_is_believed_to_be_faster():
    slow, fast = (
        believed(H200, accelerator="cuda", precision=precision, max_steps=1, batch_size=10**9)["window_s"].log
        for precision in ("fp32", "bf16-mixed")
    )
    assert slow > fast + 1


@pytest.mark.parametrize("facts", [FACTS, Facts(cpu_model="x", cpu_cores=2, board=("Unknown", 2**34))])
def test_boards_without_rates_are_not_guessed(facts):
    assert set(believed(facts, accelerator="cuda")) == {"around_s"}


def test_unknown_work_leaves_only_what_is_around():
    assert set(believed(counted=False, estimate=True)) == {"around_s"}
    assert math.exp(believed(counted=False, idle_s=5.0, cooldown_s=60.0)["around_s"].log) == pytest.approx(4 + 5 + 30)


def test_what_was_fetched_tells_the_sizes(tmp_path):
    a_spec = spec()
    model = model_key(a_spec.model, a_spec.model_source)
    texts = dataset_key(a_spec.dataset, a_spec.dataset_source)
    assert beliefs.fetched(a_spec, tmp_path / "nowhere") == (None, None)
    files.write_json(tmp_path / "resources" / "models" / model / "config.json", SHAPES)
    files.write_json(tmp_path / "resources" / "tokens" / texts / f"{model}.json", TOKENS)
    assert beliefs.fetched(a_spec, tmp_path) == (SHAPES, TOKENS)


def test_a_model_of_random_weights_has_its_sizes_in_the_config(tmp_path):
    source = {"source": {"random": SHAPES}, "tokenizer": {"local": "model"}}
    assert beliefs.fetched(spec(model_source=source), tmp_path) == (SHAPES, None)
