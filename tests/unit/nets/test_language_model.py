"""A model computes what its texts need and no more: packed as alone, at predicted places as everywhere."""

from __future__ import annotations

import threading

import pytest
import tiny_run
import torch
from gradients import assert_near, gradients_of
from torch.nn import functional

from joulesweep.nets.anatomy import num_positions, stacks
from joulesweep.nets.build import build
from joulesweep.nets.language_model import IGNORED, LanguageModel
from joulesweep.train import data, labels
from joulesweep.train.corpus import load

#: Families whose heads are found, and whose texts can be packed; the names of the head's modules.
FAMILIES = {
    "bert": "cls",
    "roberta": "lm_head",
    "distilbert": "vocab_transform",
    "electra": "generator_predictions",
    "modernbert": "head",
    "albert": "predictions",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return load(tiny_run.token_file(tmp_path_factory.mktemp("data") / "tokens.safetensors", num_texts=200), 24)


def batch_of(corpus, batching="dynamic", head="masked", texts=range(20), probability=0.3, **changes):
    """The first batch of some texts."""
    given = {"batching": batching, "size": len(texts), "micro": None, "max_length": 24, "head": head, **changes}
    masked = labels.mask(corpus, probability, 1, 1)
    (batch,), _ = next(data.steps(corpus, masked, torch.tensor(texts), data.BatchLayout(**given)))
    return batch


def network_of(config):
    """A random model, always the same one."""
    from transformers import AutoModelForMaskedLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForMaskedLM.from_config(config)


@pytest.fixture
def inputs(corpus):
    """Texts padded to the longest."""
    return batch_of(corpus).tensors


def scattered(batch, parts):
    """The arguments of each replica, as DataParallel makes them."""
    cut = [[None] * parts if tensor is None else tensor.chunk(parts) for tensor in batch.tensors]
    return list(zip(*cut, strict=False))


def reference_loss(model, batch):
    """As Hugging Face computes it, but summed: logits everywhere, the ignored ones left out."""
    logits = model(input_ids=batch.input_ids, attention_mask=(batch.segments > 0).long()).logits
    return functional.cross_entropy(
        logits.flatten(0, 1), batch.answers.flatten(), ignore_index=IGNORED, reduction="sum"
    )


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("head", ["masked", "dense"])
@pytest.mark.parametrize("batching", ["dynamic", "fixed", "packed"])
def test_loss_and_gradients_are_those_of_the_models_own_forward(corpus, kind, head, batching):
    """Of rows with one text each and logits everywhere, whatever the layout."""
    model = tiny_run.network(kind)
    core = LanguageModel(model, head=head)
    assert core.head_name == FAMILIES[kind]
    assert core.refusal(packed=True) is None
    expected = reference_loss(model, batch_of(corpus, "fixed", "dense"))
    gradients = gradients_of(expected, model)
    batch = batch_of(corpus, batching, head)
    assert (batch.chosen is None, batch.position_ids is None) == (head == "dense", batching != "packed")
    loss = core(*batch.tensors)[0, 0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradients_of(loss, model), gradients)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("kind", FAMILIES)
def test_replicas_of_dataparallel_compute_at_the_same_places(corpus, kind, parts):
    core = LanguageModel(tiny_run.network(kind))
    whole, cut = batch_of(corpus, "packed"), scattered(batch_of(corpus, "packed", parts=parts), parts)
    assert len(cut) > 1
    one, other = core(*whole.tensors)[0, 0], sum(core(*share)[0, 0] for share in cut)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    assert_near(gradients_of(one, core), gradients_of(other, core))


def plain(core, monkeypatch):
    """As the inputs would be, did the model keep texts apart by their positions."""

    def inputs(input_ids, segments, position_ids, _target_ids):
        mask = (segments > 0).long()
        return {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids + core.first_position}

    monkeypatch.setattr(core, "inputs", inputs)


@pytest.fixture(params=FAMILIES)
def shared_row(request, corpus):
    """A model, and a row of several texts of which one alone is predicted."""
    core = LanguageModel(tiny_run.network(request.param)).eval()
    with torch.no_grad():  # far from the start of a training, where all texts look the same
        core.model.get_input_embeddings().weight.normal_(generator=torch.Generator().manual_seed(0))
    short = torch.nonzero(corpus.lengths <= 8).flatten()[:3].tolist()
    batch = batch_of(corpus, "packed", "dense", short, probability=0.9)
    assert len(batch.segments) == 1
    assert batch.segments.unique().tolist() == [0, 1, 2, 3]
    own = batch.segments == 2
    return core, batch, own, batch.answers.masked_fill(~own, IGNORED)


def pull(core, batch, answers):
    """Gradient of the loss at the word embeddings of every place, [rows, length, width]."""
    found = []
    hook = core.model.get_input_embeddings().register_forward_hook(lambda module, given, out: found.append(out))
    core.head = "dense"
    loss = core(batch.input_ids, batch.segments, answers, batch.position_ids)[0, 0]
    hook.remove()
    return torch.autograd.grad(loss, found[0])[0]


def test_no_gradient_of_a_text_reaches_another_text_of_its_row(shared_row, monkeypatch):
    core, batch, own, answers = shared_row
    gradient = pull(core, batch, answers)
    assert gradient[own].abs().amax(-1).min() > 0
    assert (gradient[~own] == 0).all()
    plain(core, monkeypatch)  # else the line above might hold of any mask
    gradient = pull(core, batch, answers)
    others = (batch.segments > 0) & ~own
    assert gradient[others].abs().amax(-1).min() > 1e-6 * gradient.abs().max()


def test_the_loss_of_a_text_does_not_change_with_the_other_texts_of_its_row(shared_row, monkeypatch):
    core, batch, own, answers = shared_row
    changed = torch.where((batch.segments > 0) & ~own, (batch.input_ids + 7) % 90 + 5, batch.input_ids)
    assert (changed != batch.input_ids).sum() >= 6

    @torch.no_grad()
    def difference():
        one, other = (core(ids, batch.segments, answers, batch.position_ids) for ids in (batch.input_ids, changed))
        return abs(one[0, 0] - other[0, 0]).item()

    core.head = "dense"
    assert difference() == 0
    plain(core, monkeypatch)
    assert difference() > 1e-4


def test_rows_filled_up_give_no_numbers_that_spoil_the_gradients(corpus):
    """A place that may attend to nothing would give NaN."""
    batch = batch_of(corpus, "packed", texts=[int(corpus.lengths.argmin())], probability=0.9)
    assert (batch.segments == 0).sum() > 12
    core = LanguageModel(tiny_run.network())
    loss = core(*batch.tensors)[0, 0]
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients_of(loss, core).values())


@pytest.mark.parametrize(
    ("kind", "pad", "first"), [("bert", 0, 0), ("roberta", 0, 1), ("roberta", 1, 2), ("mpnet", 0, 2)]
)
def test_the_first_position_is_the_families_own(kind, pad, first):
    config = tiny_run.network(kind).config
    config.pad_token_id = pad
    assert LanguageModel(network_of(config)).first_position == first


@pytest.mark.parametrize(
    ("kind", "positions"),
    [
        *{"bert": 40, "roberta": 39, "mpnet": 38, "distilbert": 40, "electra": 40, "modernbert": None}.items(),
        *{"opt": 64, "gpt2": 64, "llama": None, "bloom": None}.items(),
        *{"bart": 64, "t5": None, "bert2bert": 64}.items(),
    ],
)
def test_a_model_takes_as_many_tokens_as_it_has_positions(kind, positions):
    for half, _ in stacks(tiny_run.network(kind).eval()):
        assert num_positions(half) == positions
        more = {"encoder_hidden_states": torch.zeros(1, 1, 16)} if getattr(half.config, "is_decoder", False) else {}
        half(input_ids=torch.full((1, positions or 100), 9), **more)
        if positions is not None:
            with pytest.raises((IndexError, RuntimeError)):
                half(input_ids=torch.full((1, positions + 1), 9), **more)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_packed_texts_have_the_positions_that_they_have_alone(corpus, kind):
    core, seen = LanguageModel(tiny_run.network(kind)), []
    core.model.base_model.embeddings.position_embeddings.register_forward_hook(
        lambda module, given, out: seen.append(given[0])
    )
    alone, packed = (batch_of(corpus, batching) for batching in ("dynamic", "packed"))
    core(*alone.tensors)
    core(*packed.tensors)
    own = seen[0].expand_as(alone.segments)
    for number in range(1, 21):
        assert seen[1][packed.segments == number].tolist() == own[alone.segments == number].tolist()


class Unknown(torch.nn.Module):
    """A model that has these heads, and positions that cannot be given."""

    def __init__(self, **heads):
        super().__init__()
        for name, head in heads.items():
            setattr(self, name, head)

    @property
    def base_model(self):
        return self

    def forward(self, input_ids, attention_mask):
        return (input_ids,)


NO_HEAD = "head masked: the head of this model cannot be told from the rest; use head: [dense]"
NO_POSITIONS = "batching packed: this model takes no position_ids; use batching: [dynamic]"


@pytest.mark.parametrize(
    ("heads", "head", "packed", "reason"),
    [
        ((), "dense", False, None),
        (("cls",), "masked", False, None),
        (("projector",), "masked", False, NO_HEAD),
        ((), "masked", True, NO_HEAD),
        ((), "dense", True, NO_POSITIONS),
        (("cls",), "masked", True, NO_POSITIONS),
    ],
)
def test_a_model_that_cannot_be_trained_so_says_why(heads, head, packed, reason):
    model = Unknown(**{name: torch.nn.Identity() for name in heads})
    assert LanguageModel(model, head=head).refusal(packed) == reason


def test_the_head_sees_the_predicted_places_only(corpus):
    seen = []
    for head, parts in (("masked", 1), ("masked", 2), ("dense", 1)):
        core = LanguageModel(tiny_run.network(), head=head)
        core.model.cls.register_forward_hook(lambda module, given, found: seen.append(given[0].shape[:-1].numel()))
        batch = batch_of(corpus, "packed", head, parts=parts)
        core(*batch.tensors)
        assert seen[-1] == batch.counts["num_head_positions"]
    num_predicted = batch.counts["num_predicted"]
    assert num_predicted <= seen[0] < num_predicted + data.CHOSEN_MULTIPLE
    assert num_predicted <= seen[1] < batch.input_ids.numel() / 2
    assert seen[2] == batch.input_ids.numel() > 2 * seen[0]


def test_sums_over_shares_add_up_to_the_whole(corpus):
    wrapped, whole = LanguageModel(tiny_run.network()), batch_of(corpus)
    shares = scattered(batch_of(corpus, parts=3), 3)
    whole = wrapped(*whole.tensors, score=True)
    parts = [wrapped(*share, score=True) for share in shares]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("head", ["masked", "dense"])
@pytest.mark.parametrize("batching", ["dynamic", "packed"])
def test_right_answers_are_counted_when_asked_for(corpus, head, batching):
    model = tiny_run.network()
    batch = batch_of(corpus, batching, "dense")
    wrapped = LanguageModel(model, head=head)
    best = model(**wrapped.inputs(batch.input_ids, batch.segments, batch.position_ids)).logits.argmax(-1)
    every_other = torch.arange(batch.answers.shape[1]) % 2 == 0
    half = torch.where((batch.answers != IGNORED) & every_other, best, batch.answers)
    expected = int((half == best).sum())
    assert 0 < expected < int((half != IGNORED).sum())
    if head == "dense":
        given = (batch.input_ids, batch.segments, half, batch.position_ids, None)
    else:
        told = batch_of(corpus, batching)
        answers = torch.where(told.answers == IGNORED, IGNORED, half.flatten()[told.chosen])
        given = (batch.input_ids, batch.segments, answers, batch.position_ids, told.chosen)
    assert wrapped(*given, score=True)[0, 1].item() == expected
    assert wrapped(*given)[0, 1].item() == 0


@pytest.mark.parametrize("parts", [1, 20])
@pytest.mark.parametrize("head", ["masked", "dense"])
def test_nothing_masked_is_a_loss_of_nothing_that_still_has_gradients(corpus, head, parts):
    wrapped = LanguageModel(tiny_run.network(), head=head)
    loss = wrapped(*scattered(batch_of(corpus, head=head, probability=0.0, parts=parts), parts)[0])
    assert loss.tolist() == [[0.0, 0.0]]
    loss.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in wrapped.parameters())


@pytest.mark.parametrize("head", ["masked", "dense"])
def test_the_sums_are_single_precision_whatever_the_weights_are(corpus, head):
    wrapped = LanguageModel(tiny_run.network(), head=head).to(torch.bfloat16)
    out = wrapped(*batch_of(corpus, head=head).tensors)
    assert (out.dtype, out.shape) == (torch.float32, (1, 2))


def test_a_model_is_read_from_its_folder_in_single_precision(tmp_path):
    folder = tiny_run.model(tmp_path / "model", seed=3)
    expected = tiny_run.network(seed=3).state_dict()
    found = build(folder).state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == torch.float32 for name in found)


def test_weights_of_another_precision_are_read_as_single(tmp_path):
    tiny_run.network().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    assert {p.dtype for p in build(tmp_path / "model").parameters()} == {torch.float32}


def test_a_folder_without_weights_gives_random_ones_that_the_seed_fixes(tmp_path):
    tiny_run.network().config.save_pretrained(tmp_path)
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(torch.cat([p.flatten() for p in build(tmp_path).parameters()]))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_pickles_are_not_read(tmp_path):
    model = tiny_run.network(seed=3)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    torch.manual_seed(0)
    found = torch.cat([p.detach().flatten() for p in build(tmp_path).parameters()])
    assert not torch.equal(found, torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_a_thread_computes_in_the_precision_of_the_run(inputs):
    """As under DataParallel, whose threads do not inherit the dtype of an autocast around them."""
    seen = []
    model = LanguageModel(tiny_run.network(), "bf16-mixed")
    model.model.cls.register_forward_hook(lambda module, given, logits: seen.append(logits.dtype))
    thread = threading.Thread(target=model, args=inputs)
    thread.start()
    thread.join()
    assert seen == [torch.bfloat16]
