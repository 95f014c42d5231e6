"""What a model cannot do is found out before a run, said in one line with its true reason, and leaves no trace."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import tiers
import tiny_run
import torch

from joulesweep.core.errors import UserError
from joulesweep.nets import flops, onednn
from joulesweep.nets.language_model import LanguageModel, Unfit
from joulesweep.train import data, fit
from joulesweep.train.corpus import Corpus, load

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

PADDED = "batching dynamic: this model's result depends on how far a text is padded"
PACKABLE = ("bert", "roberta", "distilbert", "electra", "modernbert", "albert")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return load(tiny_run.token_file(tmp_path_factory.mktemp("data") / "tokens.safetensors", num_texts=200), 24)


def layout(batching="dynamic", head="masked", **changes):
    return data.BatchLayout(batching=batching, size=16, micro=None, max_length=24, head=head, **changes)


def packed(core, corpus):
    return fit.layout_refusal(core, corpus, layout("packed"))


@pytest.mark.parametrize("batching", ["dynamic", "fixed", "packed"])
@pytest.mark.parametrize("kind", PACKABLE)
def test_families_that_compute_each_text_as_alone_pass(corpus, kind, batching):
    core = LanguageModel(tiny_run.network(kind))
    assert fit.unsupported_reason(core, corpus, layout(batching)) is None
    assert fit.step_unsupported_reason(core, corpus, layout(batching)) is None


@pytest.mark.parametrize("batching", ["dynamic", "fixed"])
@pytest.mark.parametrize("kind", ["convbert", "fnet", "funnel", "mobilebert"])
def test_families_that_mix_in_what_a_row_is_filled_up_with_are_found_out(corpus, kind, batching):
    """MobileBERT does as soon as its embedding of padding, zero at first, has been trained."""
    reason = fit.layout_refusal(LanguageModel(families.network(f"mlm-{kind}")), corpus, layout(batching))
    assert reason == f"batching {batching}: this model's result depends on how far a text is padded"


FORMS = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "electra", "modernbert", "albert"), "bool"),
    **dict.fromkeys(("opt", "llama", "gpt2", "t5", "bart", "bert2bert"), "bool"),
    "bloom": "padding",  # it counts in the mask how far apart tokens are
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    path = tmp_path_factory.mktemp("targets") / "tokens.safetensors"
    return load(tiny_run.token_file(path, targets=True, prefix=[], eos_id=tiny_run.SEP), 24, "seq2seq", 12)


@pytest.mark.parametrize("batching", ["dynamic", "fixed", "packed"])
@pytest.mark.parametrize("kind", FORMS)
def test_families_take_a_whole_mask_or_are_left_with_theirs(corpus, targets, kind, batching):
    task = tiny_run.task_of(kind)
    texts, network = targets if task == "seq2seq" else corpus, tiny_run.network(kind)
    if task == "seq2seq":
        network.config.decoder_start_token_id = texts.start_id
    core = LanguageModel(network, task=task)
    assert fit.mask_form(core, texts, layout(batching, max_target_length=12)) == FORMS[kind]
    assert core.mask_form == "padding", "a try leaves no trace"


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_mask_that_is_added_to_scores_must_be_numbers(corpus, kind):
    core = LanguageModel(tiny_run.network(kind), task=tiny_run.task_of(kind))
    core.model.set_attn_implementation("eager")
    assert fit.mask_form(core, corpus, layout()) == "float"


def test_an_encoder_is_no_decoder_by_the_mask_that_it_is_given(corpus):
    """BERT would not see what it is to predict, and again would once it is saved."""
    core = LanguageModel(families.network("mlm-bert"), task="clm")
    core.mask_form = fit.mask_form(core, corpus, layout())
    assert core.mask_form == "padding"
    assert fit.unsupported_reason(core, corpus, layout()).startswith("task clm: this model sees the tokens")


def test_a_whole_mask_that_gives_no_numbers_is_none(corpus, monkeypatch):
    core = LanguageModel(tiny_run.network())
    forward = core.model.bert.forward

    def spoiling(input_ids, attention_mask, **more):
        found = forward(input_ids=input_ids, attention_mask=attention_mask, **more)
        if attention_mask.ndim == 4:
            found.last_hidden_state = found.last_hidden_state * float("nan")
        return found

    monkeypatch.setattr(core.model.bert, "forward", spoiling)
    assert fit.mask_form(core, corpus, layout()) == "padding"


def test_texts_of_one_length_need_no_padding(corpus):
    same = int(corpus.lengths.mode().values)
    texts = torch.nonzero(corpus.lengths == same).flatten()
    ids = torch.cat([corpus.ids[corpus.offsets[i] : corpus.offsets[i + 1]] for i in texts])
    offsets = torch.arange(len(texts) + 1) * same
    alike = replace(corpus, ids=ids, offsets=offsets, learned=torch.ones_like(ids, dtype=torch.bool))
    core = LanguageModel(families.network("mlm-fnet"))
    assert fit.layout_refusal(core, alike, layout()) is None
    assert fit.layout_refusal(core, alike, layout("fixed")) is not None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mlm-mpnet", "this model ignores the mask that separates packed texts"),
        ("mlm-deberta-v2", "this model fails: RuntimeError: The size of tensor a"),
        ("clm-gemma3_text", "texts of 22 tokens exceed this model's window of 8, which packed rows do not have"),
        ("clm-jamba", "this model's result depends on the other texts of a row"),
        ("clm-gpt_neo", "this model's result depends on the other texts of a row"),
        ("clm-gpt_oss", "this model ignores the mask that separates packed texts"),
        ("clm-gptj", "this model ignores the mask that separates packed texts"),
    ],
)
def test_a_model_that_cannot_pack_says_why(corpus, kind, reason):
    core = LanguageModel(families.network(kind), task=kind[:3])
    assert core.refusal(packed=True) is None  # they take position_ids
    assert packed(core, corpus).startswith(f"batching packed: {reason}")
    assert packed(core, corpus).endswith("; use batching: [dynamic]")


def test_a_mask_that_lets_packed_texts_see_each_other_is_found_out(corpus, monkeypatch):
    core = LanguageModel(tiny_run.network())
    plain_inputs, before = core.inputs, packed(core, corpus)

    def inputs(input_ids, segments, position_ids, target_ids):
        found = plain_inputs(input_ids, segments, position_ids)
        return {**found, "attention_mask": (segments > 0).long()}

    monkeypatch.setattr(core, "inputs", inputs)
    assert before is None
    assert packed(core, corpus) == (
        "batching packed: this model's result depends on the other texts of a row; use batching: [dynamic]"
    )


def test_positions_that_go_on_over_a_row_are_found_out(corpus, monkeypatch):
    core = LanguageModel(tiny_run.network())
    plain_inputs = core.inputs

    def inputs(input_ids, segments, position_ids, target_ids):
        whole = None if position_ids is None else torch.arange(segments.shape[1]).expand_as(segments)
        return plain_inputs(input_ids, segments, whole)

    monkeypatch.setattr(core, "inputs", inputs)
    assert packed(core, corpus) == (
        "batching packed: this model counts positions over a whole row; use batching: [dynamic]"
    )


def test_positions_that_do_not_begin_anew_are_found_out(corpus):
    core = LanguageModel(tiny_run.network("roberta"))
    assert packed(core, corpus) is None
    core.first_position += 1
    assert "differs in a longer row" in packed(core, corpus)


@pytest.mark.parametrize(("window", "exact"), [(48, True), (36, False)])
def test_a_window_that_only_long_texts_exceed_is_found_out(window, exact):
    """ModernBERT attends to its neighbourhood; the mask of a packed row takes the place of that window."""
    from transformers import AutoModelForMaskedLM

    config = tiny_run.network("modernbert").config
    config.local_attention = window
    lengths = torch.tensor([0] + 30 * [5] + [24])  # only the last text looks further than half the window
    ids = torch.randint(5, 100, (int(lengths.sum()),), generator=torch.Generator().manual_seed(0))
    group, learned = torch.arange(31), torch.ones_like(ids, dtype=torch.bool)
    about = {"mask_id": tiny_run.MASK, "pad_id": tiny_run.PAD, "vocab_size": 100}
    corpus = Corpus(ids=ids, offsets=lengths.cumsum(0), learned=learned, group=group, **about)
    reason = packed(LanguageModel(AutoModelForMaskedLM.from_config(config)), corpus)
    assert (reason is None) == exact
    assert exact or "texts of 24 tokens exceed this model's window" in reason


@pytest.mark.slow
def test_a_packed_row_that_memory_does_not_hold_is_out_of_memory_and_nothing_else(corpus):
    core = LanguageModel(tiny_run.network("modernbert"))
    wide = replace(layout("packed"), max_length=10**7)  # 10^14 pairs
    with pytest.raises(RuntimeError) as raised:
        fit.layout_refusal(core, corpus, wide)
    assert fit.memory.is_lacking(raised.value)


@pytest.mark.parametrize("task", ["mlm", "clm"])
@pytest.mark.parametrize("training", [True, False])
def test_trying_leaves_the_module_as_it_was(corpus, task, training):
    core = LanguageModel(
        tiny_run.network("bert" if task == "mlm" else "opt", dropout=0.5), "bf16-mixed", "masked", task
    )
    core.train(training)
    counter = torch.nn.BatchNorm1d(2)  # a module with a buffer that changes
    counter.kind = "own"
    core.model.register_module("counter", counter)
    core.train(training)

    def count(*_):
        counter.running_mean.add_(1)
        counter.kind, counter.news = "other", True

    core.model.base_model.register_forward_hook(count)
    before = {name: value.clone() for name, value in core.state_dict().items()}
    state = torch.get_rng_state()
    for batching in ("dynamic", "fixed", "packed"):
        assert fit.unsupported_reason(core, corpus, layout(batching)) is None
        assert fit.step_unsupported_reason(core, corpus, layout(batching)) is None
    assert {module.training for module in core.modules()} == {training}
    assert (core.precision_name, core.head) == ("bf16-mixed", "masked")
    assert torch.equal(torch.get_rng_state(), state)
    assert counter.kind == "own" and not hasattr(counter, "news")
    for name, value in core.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in core.parameters())


class Failing(torch.autograd.Function):
    """A function whose gradient cannot be had."""

    @staticmethod
    def forward(ctx, given):
        return given.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no gradient\nof this")


def test_a_model_that_fails_forwards_or_backwards_is_unsupported_in_one_line(corpus):
    core = LanguageModel(tiny_run.network())
    handle = core.model.bert.register_forward_hook(lambda module, args, out: out["no such state"])
    assert (
        fit.step_unsupported_reason(core, corpus, layout())
        == "a training step: this model fails: KeyError: 'no such state'"
    )
    handle.remove()
    core.model.bert.encoder.layer[1].register_forward_hook(lambda module, args, out: Failing.apply(out))
    assert (
        fit.step_unsupported_reason(core, corpus, layout())
        == "a training step: this model fails: RuntimeError: no gradient"
    )
    assert all(parameter.grad is None for parameter in core.parameters())


def test_a_mistake_of_this_package_stays_one(corpus, monkeypatch):
    core = LanguageModel(tiny_run.network())
    monkeypatch.setattr(data, "_collate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit.step_unsupported_reason(core, corpus, layout())
    monkeypatch.undo()
    monkeypatch.setattr(core, "first_position", "0")
    with pytest.raises(TypeError):
        fit.step_unsupported_reason(core, corpus, layout("packed"))
    monkeypatch.undo()
    onednn.adopt(core.modules())
    monkeypatch.setattr(onednn, "product", None)
    with pytest.raises(TypeError):
        fit.step_unsupported_reason(core, corpus, layout())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_is_an_outcome_of_its_own(corpus, error):
    def fail(*_):
        raise error

    core = LanguageModel(tiny_run.network())
    core.model.bert.register_forward_hook(fail)
    with pytest.raises(type(error)):
        fit.step_unsupported_reason(core, corpus, layout())


def test_what_the_user_can_mend_stays_the_users():
    with pytest.raises(UserError), fit.foreign("method lora"):
        raise UserError("mend it")
    with pytest.raises(Unfit, match=r"^method x: this model fails: AssertionError$"), fit.foreign("method x"):
        raise AssertionError  # of a test, which is no part of the package


def test_a_method_whose_parameters_have_no_part_in_the_loss_is_unsupported(corpus):
    core = LanguageModel(tiny_run.network())
    core.requires_grad_(False)
    core.model.unread = torch.nn.Parameter(torch.ones(3))

    def read(module, args, out):
        out.logits = out.logits + module.unread.sum() * 0

    core.model.register_forward_hook(read)
    assert "depends on no parameter that trains" in fit.step_unsupported_reason(core, corpus, layout())


def test_a_head_that_mixes_positions_is_found_out(corpus):
    """Computed at chosen places alone, it would be another loss."""
    core = LanguageModel(tiny_run.network())
    core.model.cls.predictions.transform.register_forward_hook(lambda module, args, out: out - out.mean(-2, True))
    reason = fit.unsupported_reason(core, corpus, layout())
    assert reason == "head masked: this model's output layer depends on other positions; use head: [dense]"
    dense = LanguageModel(core.model, head="dense")
    assert fit._head_refusal(dense, corpus, layout(head="dense")) is None


@pytest.mark.parametrize("kind", ["prophetnet", "fsmt"])
def test_heads_that_do_not_fit_are_refused(tmp_path, kind):
    corpus = load(tiny_run.token_file(tmp_path / "t.safetensors", targets=True, eos_id=3, prefix=[]), 24, "seq2seq", 12)
    model = families.network(f"seq2seq-{kind}")
    core = LanguageModel(model, task="seq2seq")
    reason = core.refusal(packed=False) or fit.unsupported_reason(core, corpus, layout(max_target_length=12))
    assert reason.startswith("head masked: ") and reason.endswith("; use head: [dense]")
    core = LanguageModel(model, head="dense", task="seq2seq")
    assert fit.unsupported_reason(core, corpus, layout(head="dense", max_target_length=12)) is None
    # ProphetNet's logits depend on how far targets are padded, which its hidden states do not show.
    reason = fit.unsupported_reason(core, corpus, layout("fixed", "dense", max_target_length=12))
    assert reason == (PADDED.replace("dynamic", "fixed") if kind == "prophetnet" else None)
    assert fit.step_unsupported_reason(core, corpus, layout(head="dense", max_target_length=12)) is None


@pytest.mark.parametrize("kind", ["mlm-deberta", "mlm-longformer"])
def test_models_that_change_what_a_linear_layer_gives_train_with_onednn(corpus, kind):
    """In place, which a view out of a custom function forbids."""
    core = LanguageModel(families.network(kind))
    if not onednn.available():
        pytest.skip("this build of PyTorch has no oneDNN")
    onednn.adopt(core.modules())
    assert fit.step_unsupported_reason(core, corpus, layout()) is None


def test_a_model_that_keeps_something_of_a_text_for_the_next_is_found_out(tmp_path):
    """Evaluating NLLB-MoE changes how many tokens its experts take in training."""
    files = tiny_run.token_file(tmp_path / "t.safetensors", targets=True, eos_id=3, prefix=[])
    corpus = load(files, 24, "seq2seq", 12)
    core = LanguageModel(families.network("seq2seq-nllb-moe"), task="seq2seq")
    reason = fit.unsupported_reason(core, corpus, layout(max_target_length=12))
    assert reason == "this model stores expert_capacity in a forward pass: its results depend on earlier texts"
    assert {part.expert_capacity for part in core.modules() if hasattr(part, "expert_capacity")} == {64}


def test_trying_does_not_turn_sparse_attention_off(corpus):
    """BigBird's, which short texts do not need, is taken out of the model for good by the first of them."""
    core = LanguageModel(families.network("mlm-big_bird"))
    before = [type(part).__name__ for part in core.modules()]
    assert fit.unsupported_reason(core, corpus, layout()) is None
    assert fit.step_unsupported_reason(core, corpus, layout()) is None
    flops.model_work(core)
    assert [type(part).__name__ for part in core.modules()] == before
    assert any("Sparse" in name for name in before)


#: Families of which every layer is tried: each is of its own kind (BigBird's seeds, MiniMax's slopes), they lie in
#: lists of lists (Funnel), are one that is executed again (ALBERT), or are found by their number (XLM); or the last
#: of six is the first of its kind (Gemma 3).
TRIED_WHOLE = {"mlm-albert", "mlm-big_bird", "mlm-flaubert", "mlm-funnel", "mlm-xlm", "clm-minimax", "clm-gemma3_text"}


@pytest.fixture(scope="module")
def corpora(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    clm = tiny_run.token_file(folder / "clm.safetensors", eos_id=tiny_run.SEP, suffix=[])
    seq2seq = tiny_run.token_file(folder / "seq2seq.safetensors", targets=True, eos_id=tiny_run.SEP, prefix=[])
    return {"mlm": corpus, "clm": load(clm, 24, "clm"), "seq2seq": load(seq2seq, 24, "seq2seq", 12)}


@pytest.mark.parametrize("family", tiers.among(families.CHOSEN, families.FAMILIES))
def test_the_first_layers_refuse_what_the_whole_model_refuses(family, corpora):
    task = family.partition("-")[0]
    model = families.network(family, 6)
    if task == "seq2seq":
        model.config.decoder_start_token_id = tiny_run.SEP
    core = LanguageModel(model, task=task)
    if core.head_name is None:
        core.head = "dense"
    for batching in ("dynamic", "packed"):
        if core.refusal(batching == "packed") is None:
            way = layout(batching, core.head, max_target_length=12)
            with fit._shortened(core) as is_shorter:
                passes = fit._passes(fit._refusal, core, corpora[task], way)
            try:
                reason = fit._refusal(core, corpora[task], way)
            except Unfit as unfit:
                reason = str(unfit)
            assert reason is None or not passes, f"{batching}: {reason}"
            assert (is_shorter and (passes or reason is not None)) or family in TRIED_WHOLE, batching


class Mixing(torch.nn.Module):
    """A layer's output in which each position has something of the others: texts of one row see each other."""

    def __init__(self, share=0.5):
        super().__init__()
        self.share = share

    def forward(self, hidden):
        return hidden + self.share * hidden.mean(1, keepdim=True)


def deep(num_layers=6):
    return LanguageModel(tiny_run.network(num_hidden_layers=num_layers))


def kept(core):
    with fit._shortened(core) as is_shorter:
        return is_shorter, len(core.model.bert.encoder.layer)


def test_two_of_equal_layers_are_tried_and_all_are_back_afterwards(corpus, monkeypatch):
    core, seen, states = deep(), set(), fit._states
    layers = list(core.model.bert.encoder.layer)
    before = {name: id(value) for name, value in core.state_dict(keep_vars=True).items()}
    monkeypatch.setattr(
        fit, "_states", lambda *given: (seen.add(len(core.model.bert.encoder.layer)), states(*given))[1]
    )
    assert kept(core) == (True, 2)
    assert fit.unsupported_reason(core, corpus, layout("packed")) is None
    assert seen == {2}
    assert list(core.model.bert.encoder.layer) == layers
    assert {name: id(value) for name, value in core.state_dict(keep_vars=True).items()} == before
    assert kept(deep(2)) == (False, 2)


@pytest.mark.parametrize("place", [0, 3, 5])
def test_a_layer_of_another_kind_is_among_those_that_are_tried(corpus, place):
    core = deep()
    output = core.model.bert.encoder.layer[place].output
    output.dropout = torch.nn.Sequential(output.dropout, Mixing())
    assert kept(core) == (place < 5, max(2, place + 1))
    reason = fit.unsupported_reason(core, corpus, layout("packed"))
    assert reason == fit._refusal(core, corpus, layout("packed")) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.output, "window", 3),
        lambda layer: setattr(layer.output, "kinds", ["sliding"]),
        lambda layer: setattr(layer.output, "dense", torch.nn.Linear(32, 16, bias=False)),
        lambda layer: layer.output.register_buffer("mask", torch.ones(3)),
        lambda layer: layer.output.register_forward_hook(lambda *_: None),
        lambda layer: setattr(layer.output, "forward", layer.output.forward),
    ],
)
def test_layers_of_a_kind_have_like_parts(change):
    core = deep()
    assert kept(core) == (True, 2)
    change(core.model.bert.encoder.layer[3])
    assert kept(core) == (True, 4)


def test_what_a_config_says_of_each_layer_is_a_kind(monkeypatch):
    core = deep()
    core.model.config.layer_types = ["local", "local", "full", "local", "local", "local"]
    assert kept(core) == (True, 3)


def test_a_number_of_the_layer_is_no_kind():
    core = deep()
    for i, layer in enumerate(core.model.bert.encoder.layer):
        layer.layer_idx = layer.attention.layer_number = i
    assert kept(core) == (True, 2)


def test_both_halves_of_an_encoder_decoder_are_shortened():
    core = LanguageModel(families.network("seq2seq-t5", 6), task="seq2seq")
    with fit._shortened(core):
        # The first layer of a half alone has a table of positions.
        assert (len(core.model.encoder.block), len(core.model.decoder.block)) == (2, 2)
    assert (len(core.model.encoder.block), len(core.model.decoder.block)) == (6, 6)


def test_where_the_first_layers_fail_the_whole_model_is_asked(corpus, monkeypatch):
    """A model that goes through its layers by their number cannot be shortened."""
    core = deep()
    forward = core.model.bert.encoder.forward

    def numbered(*given, **named):
        core.model.bert.encoder.layer[5]
        return forward(*given, **named)

    monkeypatch.setattr(core.model.bert.encoder, "forward", numbered)
    assert fit.unsupported_reason(core, corpus, layout("packed")) is None
    core.first_position += 1
    assert "packed" in fit.unsupported_reason(core, corpus, layout("packed"))


def test_a_step_is_tried_on_the_first_layers_unless_none_of_them_trains(corpus):
    core, seen = deep(), []
    core.model.bert.encoder.register_forward_hook(lambda module, *_: seen.append(len(module.layer)))
    assert fit.step_unsupported_reason(core, corpus, layout()) is None
    assert seen == [2]
    core.requires_grad_(False)
    core.model.bert.encoder.layer[5].requires_grad_(True)
    assert fit.step_unsupported_reason(core, corpus, layout()) is None
    assert seen == [2, 2, 6]
    assert all(parameter.grad is None for parameter in core.parameters())


def test_a_layer_of_its_own_kind_that_has_no_gradient_is_found_out(corpus):
    core = deep()
    core.model.bert.encoder.layer[4].register_forward_hook(lambda module, args, out: Failing.apply(out))
    assert (
        fit.step_unsupported_reason(core, corpus, layout())
        == "a training step: this model fails: RuntimeError: no gradient"
    )
