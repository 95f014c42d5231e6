"""Quality is that of the weights alone: not of the batches, the ranks, or the training's layout; it is saved whole."""

from __future__ import annotations

import json
import math

import pytest
import tiers
import tiny_run
import torch
from places import ALONE
from torch.nn import functional

from joulesweep.core.errors import UserError
from joulesweep.core.outcome import Quality, Stopped
from joulesweep.nets.language_model import IGNORED
from joulesweep.train import assembly, scoring, trainer
from joulesweep.train.labels import mask
from joulesweep.train.memory import copy_weights
from joulesweep.train.trainer import RankContext, RunEnded

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

CPU = torch.device("cpu")


@pytest.fixture
def assemble(assets):
    def assemble(place=ALONE, **changes):
        return assembly.assemble(tiny_run.spec(**changes), assets.model_folder, assets.tokens, place)

    return assemble


def loaded(folder):
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)


def other_weights(built):
    """As a training would have left them."""
    weights = copy_weights(built.core, [])
    draw = torch.Generator().manual_seed(0)
    for value in {value.data_ptr(): value for value in weights.values()}.values():
        value.add_(torch.randn(value.shape, generator=draw), alpha=0.05)
    return weights


def state_of(core):
    return {name: value.clone() for name, value in core.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def near(score):
    """The same but for the order of sums."""
    same = {name: None if value is None else pytest.approx(value, rel=1e-6) for name, value in vars(score).items()}
    return Quality(**same)


def test_the_score_is_that_of_the_models_own_forward_on_every_validation_text(assemble, assets):
    built = assemble()
    found = scoring.score(built)
    masked = mask(built.corpus, 0.15, "validation", 0)
    model, loss, num_right, num_masked = loaded(assets.model_folder).eval(), 0.0, 0, 0
    for text in built.validation_texts.tolist():
        at = slice(int(built.corpus.offsets[text]), int(built.corpus.offsets[text + 1]))
        labels = masked.labels[at]
        with torch.no_grad():
            logits = model(input_ids=masked.inputs[at][None]).logits[0]
        loss += functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
        num_right += int((logits.argmax(-1) == labels).sum())
        num_masked += int((labels != IGNORED).sum())
    assert num_masked >= 12
    assert found == Quality(
        validation_loss=pytest.approx(loss / num_masked, rel=1e-5),
        perplexity=pytest.approx(math.exp(loss / num_masked), rel=1e-4),
        masked_accuracy=num_right / num_masked,
        choice_accuracy=None,
        num_masked=num_masked,
        num_validation_texts=len(built.validation_texts),
    )


def test_given_weights_are_scored_and_taken_out_again(assemble):
    built = assemble()
    own = scoring.score(built)
    before, weights = state_of(built.core), other_weights(built)
    given = scoring.score(built, weights)
    assert given.validation_loss != own.validation_loss
    assert equal(state_of(built.core), before)
    assert scoring.score(built) == own
    built.core.load_state_dict(weights)
    assert scoring.score(built) == given


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_the_score_does_not_depend_on_the_size_of_its_batches(assemble, monkeypatch, size):
    built = assemble()
    whole = scoring.score(built)
    monkeypatch.setattr(scoring, "BATCH", size)
    assert scoring.score(built) == near(whole)


@pytest.mark.parametrize(
    "changes",
    tiers.first(
        3,
        [
            {"batching": "packed"},
            {"head": "dense"},
            {"micro_batch_size": 3},
            {"batching": "fixed"},
            {"checkpoint_activations": True},
            {"repeat": 7},
            {"batch_size": 4},
        ],
    ),
)
def test_the_score_of_weights_does_not_depend_on_how_they_are_trained(assemble, changes):
    assert scoring.score(assemble(**changes)) == near(scoring.score(assemble()))


def test_the_masks_are_the_splits_own(assemble):
    source = {"source": {"local": "texts.txt"}, "format": "text"}
    one, same, other = (
        scoring.score(assemble(dataset_source={**source, **more}))
        for more in ({}, {"split_seed": 0}, {"split_seed": 1})
    )
    assert one == same
    assert one.num_masked != other.num_masked


def test_dropout_is_off(tmp_path, assets):
    folder = tiny_run.model(tmp_path / "model", dropout=0.5)
    built = assembly.assemble(tiny_run.spec(), folder, assets.tokens, ALONE)
    built.model.train()
    rng = torch.get_rng_state()
    one, other = scoring.score(built), scoring.score(built)
    assert one == other
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("world", [2, 5, 20])
def test_the_ranks_share_the_texts_and_their_sums_are_the_whole(assemble, monkeypatch, world):
    whole, shares = scoring.score(assemble()), []
    built = assemble()
    monkeypatch.setattr(RankContext, "reduced", lambda self, values: (shares.append(values), values)[1])
    for rank in range(world):
        built.place = RankContext(device=CPU, rank=rank, world=world, local_rank=rank)
        try:
            scoring.score(built)
        except UserError:  # nothing was masked in this share; the sum has what the others have
            assert shares[-1].tolist() == [0.0, 0.0, 0.0]
    loss, num_right, num_masked = sum(shares).tolist()
    assert (num_masked, num_right) == (whole.num_masked, whole.masked_accuracy * num_masked)
    assert loss / num_masked == pytest.approx(whole.validation_loss, rel=1e-6)
    assert sum(1 for share in shares if share[2]) > 1


def test_every_rank_gets_the_score_of_the_whole(assemble, monkeypatch):
    built = assemble()
    built.place = RankContext(device=CPU, rank=1, world=2, local_rank=1)
    monkeypatch.setattr(trainer.dist, "all_reduce", lambda values, op: values.copy_(torch.tensor([10.0, 2.0, 5.0])))
    found = scoring.score(built)
    assert (found.validation_loss, found.masked_accuracy, found.num_masked) == (2.0, 0.4, 5)


def test_scoring_compiles_nothing(assemble, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: None)
    monkeypatch.setattr(trainer.engine.shutil, "which", lambda name: name)
    built, eager = assemble(engine="compile"), scoring.score(assemble())
    built.core._compiled_call_impl = lambda *given, **named: calls.append(1)  # what `compile` sets
    assert scoring.score(built) == near(eager)
    assert calls == []
    with pytest.raises(TypeError):  # the fake would have been seen: it returns nothing
        built.core(None)[0]
    assert calls == [1]


def test_no_gradients_are_kept(assemble):
    built = assemble()
    scoring.score(built, other_weights(built))
    assert all(parameter.grad is None for parameter in built.core.parameters())


def test_nothing_masked_is_the_users_to_mend(assemble):
    with pytest.raises(UserError, match="the validation texts have no token to predict"):
        scoring.score(assemble(mask_probability=1e-9))


def test_a_loss_that_is_not_finite_is_diverged(assemble):
    built = assemble()
    weights = other_weights(built)
    weights["model.cls.predictions.bias"].fill_(math.nan)
    with pytest.raises(RunEnded) as stopped:
        scoring.score(built, weights)
    reason = "the validation loss was not finite"
    assert stopped.value.outcome == Stopped(status="diverged", reason=reason)


def test_a_perplexity_beyond_all_numbers_is_none(assemble):
    built = assemble()
    weights = other_weights(built)
    weights["model.cls.predictions.bias"].copy_(torch.arange(100) * 100.0)
    found = scoring.score(built, weights)
    assert found.validation_loss > 700
    assert found.perplexity is None
    json.dumps(vars(found), allow_nan=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16-true"])
def test_a_saved_model_is_the_given_weights_in_the_hugging_face_form(assemble, assets, tmp_path, precision):
    built = assemble(precision=precision)
    weights = other_weights(built)
    scoring.save(built, weights, assets.model_folder, tmp_path / "model")
    found = loaded(tmp_path / "model")
    assert type(found).__name__ == "BertForMaskedLM"
    expected = {name.removeprefix("model."): value.float() for name, value in weights.items()}
    assert equal({name: value.float() for name, value in found.state_dict().items()}, expected)
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {path.name for path in assets.model_folder.iterdir()}
    for name in files - {"model.safetensors", "config.json"}:
        assert (tmp_path / "model" / name).read_bytes() == (assets.model_folder / name).read_bytes()


def test_tied_weights_are_saved_once(assemble, assets, tmp_path, monkeypatch):
    """Also where each asked for is a new copy, as from a GPU or of what FSDP gathers."""
    from safetensors import safe_open

    built = assemble()
    weights, sizes = other_weights(built), []
    for cpu in (torch.Tensor.cpu, torch.Tensor.clone):
        monkeypatch.setattr(torch.Tensor, "cpu", cpu)
        scoring.save(built, weights, assets.model_folder, tmp_path / cpu.__name__)
        with safe_open(tmp_path / cpu.__name__ / "model.safetensors", "pt") as file:
            sizes.append(sorted(file.keys()))
    assert sizes[0] == sizes[1]
    assert ("cls.predictions.decoder.weight" in sizes[0]) + ("bert.embeddings.word_embeddings.weight" in sizes[0]) == 1


def test_the_logits_of_a_forward_pass_are_bounded(assemble, monkeypatch):
    """A hundred texts times a vocabulary of 250,000 words would take more memory than the training."""
    built = assemble(head="dense")
    whole, sizes = scoring.score(built), []
    monkeypatch.setattr(scoring, "LOGITS", 3 * 24 * 100)
    built.core.model.get_output_embeddings().register_forward_hook(lambda _, given, out: sizes.append(out.numel()))
    assert scoring.score(built) == near(whole)
    assert len(sizes) > 1
    assert max(sizes) <= scoring.LOGITS
    monkeypatch.setattr(scoring, "LOGITS", 1)  # each text alone, whatever it takes
    assert scoring.score(built) == near(whole)


def test_what_fsdp_divides_is_scored_and_saved_whole(assemble, assets, tmp_path):
    """Here among one rank: it has all of each weight, in the form that is divided."""
    expected = scoring.score(assemble())
    place = assembly.prepare_process(tiny_run.spec(strategy="fsdp"))
    built = assemble(place, strategy="fsdp")
    assert all(hasattr(parameter, "full_tensor") for parameter in built.core.parameters())
    assert scoring.score(built) == near(expected)
    weights = other_weights(built)
    assert scoring.score(built, weights).validation_loss != expected.validation_loss
    assert scoring.score(built) == near(expected)
    scoring.save(built, weights, assets.model_folder, tmp_path / "model")
    found = loaded(tmp_path / "model")
    assert type(found).__name__ == "BertForMaskedLM"
    assert equal(found.state_dict(), {name.removeprefix("model."): value for name, value in weights.items()})
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "model", assets.model_folder)]
    assert sizes[0] == sizes[1], "tied weights once"


def test_a_saved_model_scores_what_its_weights_scored(assemble, assets, tmp_path):
    built = assemble()
    weights = other_weights(built)
    expected = scoring.score(built, weights)
    scoring.save(built, weights, assets.model_folder, tmp_path / "model")
    again = assembly.assemble(tiny_run.spec(), tmp_path / "model", assets.tokens, ALONE)
    assert scoring.score(again) == near(expected)


def test_one_rank_writes_what_all_gather(assemble, assets, tmp_path, monkeypatch):
    gathered = []

    class Sharded(torch.Tensor):
        """As a tensor that FSDP divides: whole only if every rank asks."""

        def full_tensor(self):
            gathered.append(1)
            return self.as_subclass(torch.Tensor)

    for rank, writes in ((1, False), (0, True)):
        built = assemble()
        built.place = RankContext(device=CPU, rank=rank, world=2, local_rank=rank)
        weights = copy_weights(built.core, [])
        whole = {name: value.as_subclass(Sharded) for name, value in built.core.model.state_dict().items()}
        monkeypatch.setattr(scoring, "load_weights", lambda core, given: None)
        monkeypatch.setattr(built.core.model, "state_dict", lambda keep_vars, whole=whole: whole)
        scoring.save(built, weights, assets.model_folder, tmp_path / str(rank))
        assert len(gathered) == len(whole)
        gathered.clear()
        assert (tmp_path / str(rank)).exists() == writes
    assert equal(loaded(tmp_path / "0").state_dict(), loaded(assets.model_folder).state_dict())
