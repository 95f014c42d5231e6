"""Reading what frozen layers made of a text is training as if they computed it again."""

from __future__ import annotations

import pytest
import tiers
import tiny_run
import torch
from places import ALONE

from joulesweep import methods
from joulesweep.nets.anatomy import stacks
from joulesweep.train import assembly, loop, scoring
from joulesweep.train.trainer import RunEnded

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

KINDS = ("opt", "llama", "gpt2", "bloom", "t5", "bart", "bert2bert")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A token file for decoders, and one for encoder-decoders."""
    folder = tmp_path_factory.mktemp("caching")
    about = {"clm": {"suffix": []}, "seq2seq": {"prefix": [], "targets": True, **tiny_run.PROMPT}}
    return {task: tiny_run.token_file(folder / f"{task}.safetensors", **about[task]) for task in about}


@pytest.fixture
def assembled(written, monkeypatch):
    def assembled(kind, method, dropout=0.0, **changes):
        def fresh(*_):
            return tiny_run.network(kind, dropout=dropout, decoder_layers=4)

        monkeypatch.setattr(assembly, "build", fresh)
        monkeypatch.setattr(assembly.onednn, "available", lambda: False)
        task = tiny_run.task_of(kind)
        spec = tiny_run.spec(
            **{"task": task, "method": method, "epochs": 3, "max_target_length": 12, "schedule": "constant", **changes}
        )
        return assembly.assemble(spec, written[task].parent, written[task], ALONE)

    return assembled


def trained(trainer):
    for _ in loop._run_epochs(trainer):
        pass
    return torch.stack(trainer.losses)


def same(kind, assembled, fraction=0.5, **changes):
    given = {"method_params": {"fraction": fraction}, **changes}
    plain, cached = (assembled(kind, method, **given) for method in ("freeze-bottom", "freeze-cache"))
    torch.testing.assert_close(trained(cached), trained(plain), rtol=1e-5, atol=0)
    weights = plain.core.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in cached.core.state_dict().items() if "wte" in name)
    assert scoring.score(cached).validation_loss == pytest.approx(scoring.score(plain).validation_loss, rel=1e-5)
    return cached


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_layers_frozen_in_the_plain_way(kind, assembled):
    trainer = same(kind, assembled)
    layers = methods.load("freeze-cache").cached_layers(trainer.core.model)
    assert len(layers) == (len(stacks(trainer.core.model)[0][1]) if kind in tiny_run.ENCODER_DECODERS else 2)
    assert trainer.facts["num_cached_layers"] == len(layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"batching": "packed"},
        {"batching": "fixed", "head": "dense"},
        {"micro_batch_size": 5},
        {"checkpoint_activations": True},
        {"fraction": 0.25},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_they_are_in_every_layout(changes, assembled):
    same("opt", assembled, **changes)


def test_nothing_below_is_computed_after_the_first_epoch(assembled):
    trainer = assembled("opt", "freeze-cache", method_params={"fraction": 0.5})
    first, layer, calls = trainer.cache.layers.layers[0], trainer.core.model.model.decoder.layers[2], []
    first.self_attn.register_forward_hook(lambda *_: calls.append("frozen"))
    layer.register_forward_hook(lambda *_: calls.append("trained"))
    trained(trainer)
    per_epoch = trainer.steps_per_epoch
    assert calls == ["frozen", "trained"] * per_epoch + ["trained"] * per_epoch * 2
    assert not trainer.cache.layers.ready
    scoring.score(trainer)
    assert calls[-2:] == ["frozen", "trained"]


def test_what_is_kept_has_no_dropout_and_is_the_same_in_every_training(assembled):
    """GPT-2 drops embeddings outside of its layers."""
    trainer = assembled("gpt2", "freeze-cache", dropout=0.5)
    trained(trainer)
    first = trainer.cache.states.clone()
    assert float(first.abs().min(1).values.max()) > 0
    trained(trainer)  # its frozen weights are what they were
    assert torch.equal(trainer.cache.states, first)
    other = assembled("gpt2", "freeze-cache")
    trained(other)
    torch.testing.assert_close(other.cache.states, first)


@pytest.mark.parametrize("precision", tiers.first(1, ["bf16-mixed", "bf16-true"]))
def test_states_are_kept_in_the_format_in_which_they_are_computed(precision, assembled):
    plain, cached = (assembled("llama", m, precision=precision) for m in ("freeze-bottom", "freeze-cache"))
    torch.testing.assert_close(trained(cached), trained(plain), rtol=1e-2, atol=0)
    (tokens,) = {len(cached.cache.states), int(cached.corpus.lengths_of(cached.train_texts).sum())}
    assert cached.facts["cache_bytes"] == tokens * 16 * (2 if precision == "bf16-true" else 4)


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        ("opt", {"max_gib": 1e-6}, r"training texts takes [\d.e-]+ GiB, more than max_gib 1e-06$"),
        ("t5", {"fraction": 0.2}, r"later layers of this model need more than the states of the frozen ones$"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(kind, given, reason, assembled):
    with pytest.raises(RunEnded, match=reason) as caught:
        assembled(kind, "freeze-cache", method_params=given)
    assert caught.value.outcome.status == "unsupported"


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "use task clm or seq2seq"),
        ({"task": "clm", "strategy": "ddp", "devices": 2}, "use strategy: [single]"),
        ({"task": "clm", "engine": "compile"}, "use engine: [eager]"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused(changes, remedy):
    assert methods.incompatible_reason(tiny_run.spec(method="freeze-cache", **changes)).endswith(remedy)
