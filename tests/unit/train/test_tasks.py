"""Next tokens and targets: read, written and learned as the library's own models do it; choices; what is generated."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import signal

import pytest
import tiers
import tiny_run
import torch
from gradients import assert_near, gradients_of
from outcomes import trained
from places import ALONE
from safetensors.torch import load_file, save_file
from torch.nn import functional

from joulesweep.core.errors import UserError
from joulesweep.core.outcome import Stopped
from joulesweep.launch import launcher, lease
from joulesweep.measure import devices
from joulesweep.nets import flops
from joulesweep.nets.build import build
from joulesweep.nets.language_model import IGNORED, LanguageModel
from joulesweep.prepare.fetched import references
from joulesweep.runs.identity import run_id
from joulesweep.train import assembly, data, generation, scoring
from joulesweep.train.corpus import load
from joulesweep.train.fit import is_causal, layout_refusal
from joulesweep.train.labels import labelled
from joulesweep.train.memory import copy_weights
from joulesweep.train.trainer import RankContext, RunEnded

pytestmark = [
    pytest.mark.usefixtures("torch_as_it_was"),
    pytest.mark.filterwarnings(
        "ignore:Version v4.12.0 introduces a better way:FutureWarning"
    ),  # whenever labels are given
]

CPU = torch.device("cpu")
PACKABLE = ("opt", "llama", "gpt2")
LENGTHS = (24, 8)  # of texts and of targets: both are cut
GENERATE = {"texts": 7, "beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0}


# What is read and written.


@dataclasses.dataclass
class Raw:
    """A token file as plain lists."""

    about: dict
    bodies: list[list[int]]
    targets: list[list[int]] | None
    choices: list[list[int]] | None
    choice_text: list[int] | None
    answer: list[int] | None

    @classmethod
    def of(cls, path):
        tensors = {name: tensor.tolist() for name, tensor in load_file(path).items()}

        def parts(name):
            if f"{name}ids" not in tensors:
                return None
            offsets = tensors[f"{name}offsets"]
            return [tensors[f"{name}ids"][begin:end] for begin, end in itertools.pairwise(offsets)]

        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        answers = {name: tensors.get(name) for name in ("choice_text", "answer")}
        return cls(about=about, bodies=parts(""), targets=parts("target_"), choices=parts("choice_"), **answers)


def written_out(about, body, target, task, max_length, max_target_length, start=None):
    """What the model reads of a text, what it writes, and which of both it learns: in the plainest Python.

    Returns:
        ids, learned; and with task seq2seq the written ids, of which all are learned.
    """
    prefix, suffix = about["prefix"], about["suffix"]
    before, after = about.get("prompt_before", []), about.get("prompt_after", [])
    end = about.get("eos_id")
    ending = list(suffix)
    if end is not None and (not ending or ending[-1] != end):
        ending.append(end)
    if task == "clm" and target is None:
        body = body[: max_length - len(prefix) - len(ending)]
        return prefix + body + ending, [False] * len(prefix) + [True] * len(body + ending)
    if task == "clm":
        target = target[: max_target_length - len(ending)]
        around = len(prefix + before + after + ending)
        target = target[: max_length - around]
        body = body[: max_length - around - len(target)]
        prompt = prefix + before + body + after
        return prompt + target + ending, [False] * len(prompt) + [True] * len(target + ending)
    body = body[: max_length - len(prefix + before + after + suffix)]
    opening = [] if prefix == [start] else prefix
    target = target[: max_target_length - len(opening + ending)]
    return prefix + before + body + after + suffix, opening + target + ending


def shifted(ids, learned):
    """The label of each position: the token after it, where that is learned."""
    return [ids[i + 1] if i + 1 < len(ids) and learned[i + 1] else IGNORED for i in range(len(ids))]


def pieces(values, corpus):
    return [part.tolist() for part in values.tensor_split(corpus.offsets[1:-1])]


#: The ways of tokenizers: what stands around a text, and their tokens.
TOKENIZERS = {
    "bert": {},
    "opt": {"suffix": []},
    "gpt2": {"prefix": [], "suffix": [], "pad_id": None},
    "endless": {"prefix": [], "suffix": [], "eos_id": None, "bos_id": None, "pad_id": None},
    "unlike": {"suffix": [3, 1], "eos_id": 4},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Token files by tokenizer and by what they have beside texts, each written once."""
    folder, made = tmp_path_factory.mktemp("files"), {}

    def files(tokenizer="bert", **parts):
        key = (tokenizer, *sorted(parts))
        if key not in made:
            path = folder / f"{'-'.join(key)}.safetensors"
            made[key] = tiny_run.token_file(path, **parts, **{**tiny_run.PROMPT, **TOKENIZERS[tokenizer]})
        return made[key]

    return files


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("lengths", [(16, 8), (12, 64), (200, 200)])
@pytest.mark.parametrize("parts", [{}, {"targets": True}], ids=["texts", "targets"])
def test_a_decoder_reads_prompts_and_writes_targets_or_whole_texts(files, tokenizer, lengths, parts):
    path = files(tokenizer, **parts)
    raw, corpus = Raw.of(path), load(path, lengths[0], "clm", lengths[1])
    targets = raw.targets or [None] * len(raw.bodies)
    expected = [written_out(raw.about, *both, "clm", *lengths) for both in zip(raw.bodies, targets, strict=True)]
    assert pieces(corpus.ids, corpus) == [ids for ids, _ in expected]
    assert pieces(corpus.learned, corpus) == [learned for _, learned in expected]
    labels = labelled(corpus, "clm", 0.9, "any").labels
    assert pieces(labels, corpus) == [shifted(*both) for both in expected]
    assert corpus.targets is None
    if parts:
        assert corpus.prompts.tolist() == [learned.count(False) for _, learned in expected]
    else:
        assert corpus.prompts is None
    if raw.about["eos_id"] is not None:
        assert all(
            ids.count(raw.about["eos_id"]) == 1 == ids[::-1].index(raw.about["eos_id"]) + 1 for ids, _ in expected
        )
    cut = [len(ids) == lengths[0] for ids, _ in expected]
    assert any(cut) == (lengths[0] < 200)


@pytest.mark.parametrize("tokenizer", ["bert", "unlike"])
@pytest.mark.parametrize("lengths", [LENGTHS, (12, 64), (200, 200)])
@pytest.mark.parametrize("start", [None, tiny_run.CLS, tiny_run.SEP])
def test_an_encoder_decoder_reads_prompts_and_writes_targets(files, tokenizer, lengths, start):
    """What the writing starts with is not written again: the tokenizer's own start, if the model has no other one."""
    path = files(tokenizer, targets=True)
    raw, corpus = Raw.of(path), load(path, lengths[0], "seq2seq", lengths[1], start)
    first = tiny_run.CLS if start is None else start
    expected = [
        written_out(raw.about, *both, "seq2seq", *lengths, first) for both in zip(raw.bodies, raw.targets, strict=True)
    ]
    assert corpus.start_id == first
    assert pieces(corpus.ids, corpus) == [read for read, _ in expected]
    assert not corpus.learned.any()
    assert pieces(corpus.targets.ids, corpus.targets) == [written for _, written in expected]
    assert all((written[0] == tiny_run.CLS) == (start == tiny_run.SEP) for _, written in expected)
    shown = labelled(corpus, "seq2seq", 0.9, "any")
    assert pieces(shown.labels, corpus.targets) == [written for _, written in expected]
    assert torch.equal(shown.inputs, corpus.ids)


def test_writing_starts_with_padding_where_no_other_token_is_known(files):
    """As T5 does."""
    assert load(files("bert", targets=True), 24, "seq2seq").start_id == tiny_run.CLS
    path = files("bert", targets=True).with_name("t5.safetensors")
    shutil.copy(files("bert", targets=True), path)
    about = {**Raw.of(files("bert", targets=True)).about, "bos_id": None, "pad_id": 7}
    path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    assert load(path, 24, "seq2seq").start_id == 7


@pytest.mark.parametrize(("tokenizer", "pad"), [("bert", tiny_run.PAD), ("gpt2", tiny_run.SEP), ("endless", 0)])
def test_rows_are_filled_up_with_what_there_is(files, tokenizer, pad):
    corpus = load(files(tokenizer, targets=True), 24, "clm")
    assert corpus.pad_id == pad
    (batch,), _ = next(data.steps(corpus, labelled(corpus, "clm", 0.0), torch.arange(8), layout()))
    assert (batch.segments == 0).any()
    assert (batch.input_ids[batch.segments == 0] == pad).all()
    assert (batch.answers[batch.segments == 0] == IGNORED).all()


def layout(batching="dynamic", size=60, head="dense", **changes):
    return data.BatchLayout(
        batching=batching, size=size, micro=None, max_length=24, max_target_length=8, head=head, **changes
    )


@pytest.mark.parametrize("parts", [{}, {"targets": True}], ids=["texts", "targets"])
def test_nothing_is_predicted_across_the_texts_of_a_packed_row(files, parts):
    corpus = load(files("opt", **parts), 24, "clm", 8)
    (batch,), num_predicted = next(data.steps(corpus, labelled(corpus, "clm", 0.0), torch.arange(60), layout("packed")))
    assert len(batch.input_ids) < 60
    follows = functional.pad(batch.segments[:, 1:], (0, 1)) == batch.segments
    predicted = batch.answers != IGNORED
    assert int(predicted.sum()) == num_predicted
    assert (batch.segments[predicted] > 0).all()
    assert follows[predicted].all()
    after = functional.pad(batch.input_ids[:, 1:], (0, 1))
    assert torch.equal(batch.answers[predicted], after[predicted])
    assert num_predicted == int(corpus.learned.sum())  # each learned token once: it has one before it


@pytest.mark.parametrize("batching", ["dynamic", "fixed"])
def test_the_counts_of_targets_are_what_the_rows_hold(files, batching):
    corpus = load(files(targets=True), 24, "seq2seq", 8)
    shown = labelled(corpus, "seq2seq", 0.0)
    (batch,), num_predicted = next(data.steps(corpus, shown, torch.arange(60), layout(batching)))
    read, written = corpus.lengths, corpus.targets.lengths
    (rows, width), target_width = batch.input_ids.shape, batch.target_ids.shape[1]
    assert (width, target_width) == (24, 8)  # also the longest are so long
    assert num_predicted == int(written.sum())
    found = {name: batch.counts[name] for name in batch.counts if "target" in name or "cross" in name}
    assert found == {
        "num_target_tokens": int(written.sum()),
        "num_padded_target_tokens": rows * target_width,
        "num_target_pairs": int((written**2).sum()),
        "num_padded_target_pairs": rows * target_width**2,
        "num_cross_pairs": int((written * read).sum()),
        "num_padded_cross_pairs": rows * target_width * width,
    }


def test_targets_are_not_read_by_masked_language_modelling(files):
    plain, with_targets = (load(files(**parts), 24) for parts in ({}, {"targets": True, "choices": True}))
    assert torch.equal(plain.ids, with_targets.ids)
    assert with_targets.targets is with_targets.prompts is with_targets.choices is None


@pytest.mark.parametrize("task", ["clm", "seq2seq"])
def test_every_choice_stands_where_the_target_does(files, task):
    path = files(targets=True, choices=True)
    raw, corpus = Raw.of(path), load(path, *LENGTHS[:1], task, LENGTHS[1])
    assert corpus.choice_text.tolist() == raw.choice_text
    assert corpus.answer.tolist() == raw.answer
    for i, (text, choice) in enumerate(zip(raw.choice_text, raw.choices, strict=True)):
        one, other = written_out(raw.about, raw.bodies[text], choice, task, *LENGTHS, tiny_run.CLS)
        assert pieces(corpus.choices.ids, corpus.choices)[i] == one
        if task == "seq2seq":
            assert pieces(corpus.choices.targets.ids, corpus.choices.targets)[i] == other
        else:
            assert pieces(corpus.choices.learned, corpus.choices)[i] == other


@pytest.mark.parametrize(
    ("tokenizer", "parts", "task", "max_length", "said"),
    [
        ("bert", {}, "seq2seq", 24, "the texts have no targets, which task seq2seq needs"),
        ("gpt2", {"targets": True}, "seq2seq", 24, "the tokenizer has no pad token, which task seq2seq needs"),
        ("gpt2", {}, "mlm", 24, "the tokenizer has no pad token, which task mlm needs"),
        ("bert", {"targets": True}, "clm", 4, "prompt and special tokens alone are 5 tokens, not 4; raise max_length"),
        ("bert", {"targets": True}, "seq2seq", 4, "prompt and special tokens alone are 5 tokens, not 4"),
    ],
)
def test_what_cannot_be_learned_is_one_line(files, tokenizer, parts, task, max_length, said):
    with pytest.raises(UserError, match=said) as raised:
        load(files(tokenizer, **parts), max_length, task, 8)
    assert "\n" not in str(raised.value)


def test_a_prompt_that_just_fits_leaves_no_text(files):
    corpus = load(files(targets=True), 5, "clm", 8)
    assert set(map(tuple, pieces(corpus.ids, corpus))) == {(2, 90, 91, 92, 3)}


# Losses and gradients.


@pytest.fixture(scope="module")
def corpora(files):
    return {
        "clm": load(files("opt", targets=True), *LENGTHS[:1], "clm", LENGTHS[1]),
        "texts": load(files("opt"), *LENGTHS[:1], "clm", LENGTHS[1]),
        "seq2seq": load(files(targets=True), *LENGTHS[:1], "seq2seq", LENGTHS[1], tiny_run.CLS),
    }


def right_padded(rows, filler):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, filler)


def library_loss(model, corpus, task, texts):
    """The sum that the Hugging Face model computes itself, of rows padded to the longest, from labels alone."""
    read = [pieces(corpus.ids, corpus)[text] for text in texts]
    given = {
        "input_ids": right_padded(read, tiny_run.PAD),
        "attention_mask": right_padded([[1] * len(row) for row in read], 0),
    }
    if task == "clm":
        learned = [pieces(corpus.learned, corpus)[text] for text in texts]
        labels = [
            [token if wanted else IGNORED for token, wanted in zip(*both, strict=True)]
            for both in zip(read, learned, strict=True)
        ]
        num_predicted = sum(label != IGNORED for row in labels for label in row[1:])
    else:
        labels = [pieces(corpus.targets.ids, corpus.targets)[text] for text in texts]
        num_predicted = sum(map(len, labels))
    loss = model(**given, labels=right_padded(labels, IGNORED)).loss
    return loss * num_predicted


CASES = [
    *itertools.product(PACKABLE, ("clm", "texts"), ("dynamic", "packed")),
    ("opt", "clm", "fixed"),
    ("bloom", "clm", "dynamic"),
    ("bloom", "clm", "fixed"),
    *itertools.product(tiny_run.ENCODER_DECODERS, ("seq2seq",), ("dynamic", "fixed")),
]


@pytest.mark.parametrize("head", ["masked", "dense", "scattered"])
@pytest.mark.parametrize(("kind", "data_of", "batching"), CASES)
def test_loss_and_gradients_are_those_of_the_library(corpora, kind, data_of, batching, head):
    """With "scattered" in three parts, as DataParallel cuts them."""
    corpus, task = corpora[data_of], "seq2seq" if data_of == "seq2seq" else "clm"
    model = tiny_run.network(kind)
    texts = torch.arange(20)
    if task == "seq2seq":
        model.config.decoder_start_token_id = corpus.start_id
    expected = library_loss(model, corpus, task, texts.tolist())
    gradients = gradients_of(expected, model)
    core = LanguageModel(model, head="dense" if head == "dense" else "masked", task=task)
    assert core.refusal(batching == "packed") is None
    parts = 3 if head == "scattered" else 1
    laid = layout(batching, 20, core.head, parts=parts)
    (batch,), num_predicted = next(data.steps(corpus, labelled(corpus, task, 0.0), texts, laid))
    assert (batch.chosen is None) == (head == "dense")
    cut = [[None] * parts if tensor is None else tensor.chunk(parts) for tensor in batch.tensors]
    out = sum(core(*share, score=True) for share in zip(*cut, strict=True))
    assert out.shape == (1, 2)
    assert out[0, 0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert 0 <= out[0, 1].item() < num_predicted
    assert_near(gradients_of(out[0, 0], model), gradients, tolerance=2e-5, negligible=1e-6)


@pytest.mark.parametrize("kind", [*PACKABLE, "bloom", *tiny_run.ENCODER_DECODERS])
def test_the_head_sees_the_predicted_places_only(corpora, kind):
    task = tiny_run.task_of(kind)
    corpus, seen = corpora[task], []
    for head in ("masked", "dense"):
        core = LanguageModel(tiny_run.network(kind), head=head, task=task)
        core.model.config.decoder_start_token_id = tiny_run.CLS
        core.model.get_output_embeddings().register_forward_hook(
            lambda _, given, out: seen.append(out.shape[:-1].numel())
        )
        (batch,), _ = next(
            data.steps(corpus, labelled(corpus, task, 0.0), torch.arange(20), layout(size=20, head=head))
        )
        core(*batch.tensors)
        assert seen[-1] == batch.counts["num_head_positions"]
    assert seen[0] < seen[1]


def test_a_head_that_failed_between_keeps_nothing_of_it(corpora):
    """What is computed of the model itself after a training has logits everywhere."""
    core = LanguageModel(tiny_run.network("opt"), task="clm")
    (batch,), _ = next(
        data.steps(corpora["clm"], labelled(corpora["clm"], "clm", 0.0), torch.arange(4), layout(size=4, head="masked"))
    )
    core(*batch.tensors)
    assert core.model(input_ids=batch.input_ids).logits.shape[:2] == batch.input_ids.shape


@pytest.mark.parametrize("kind", PACKABLE)
def test_packed_texts_of_a_decoder_do_not_see_each_other(corpora, kind, monkeypatch):
    corpus = corpora["texts"]
    core = LanguageModel(tiny_run.network(kind), head="dense", task="clm").eval()
    short = torch.nonzero(corpus.lengths <= 8).flatten()[:3]
    (batch,), _ = next(data.steps(corpus, labelled(corpus, "clm", 0.0), short, layout("packed", 3)))
    assert batch.segments.unique().tolist() == [0, 1, 2, 3]
    last = batch.segments == int(batch.segments[0, :].max())
    answers = batch.answers.masked_fill(~last, IGNORED)
    others = (batch.segments > 0) & ~last
    changed = torch.where(others, (batch.input_ids + 7) % 90 + 5, batch.input_ids)

    @torch.no_grad()
    def difference():
        losses = [core(ids, batch.segments, answers, batch.position_ids)[0, 0] for ids in (batch.input_ids, changed)]
        return abs(losses[0] - losses[1]).item()

    assert difference() == 0
    monkeypatch.setattr(  # else the line above might hold of any mask
        core,
        "inputs",
        lambda ids, segments, positions, _: {
            "input_ids": ids,
            "attention_mask": (segments > 0).long(),
            "position_ids": positions,
        },
    )
    assert difference() > 1e-4


@pytest.mark.parametrize("kind", [*PACKABLE, "bloom"])
def test_decoders_are_known_as_such_and_pack_exactly_where_they_take_positions(corpora, kind):
    core = LanguageModel(tiny_run.network(kind), task="clm")
    assert is_causal(core, corpora["clm"])
    assert (core.refusal(packed=True) is None) == (kind != "bloom")
    if kind != "bloom":
        assert layout_refusal(core, corpora["clm"], layout("packed")) is None


def test_positions_of_packed_texts_that_do_not_begin_anew_are_found_out(corpora):
    core = LanguageModel(tiny_run.network("opt"), task="clm")
    core.first_position += 1
    assert "differs in a longer row" in layout_refusal(core, corpora["clm"], layout("packed"))


@pytest.mark.parametrize("is_decoder", [False, True])
def test_an_encoder_that_sees_what_it_is_to_predict_is_found_out(corpora, is_decoder):
    from transformers import AutoModelForCausalLM

    config = tiny_run.network().config
    config.is_decoder = is_decoder
    model = AutoModelForCausalLM.from_config(config)
    assert is_causal(LanguageModel(model, task="clm"), corpora["clm"]) == is_decoder


@pytest.mark.parametrize("kind", tiny_run.WRITERS)
def test_the_work_of_every_family_is_counted_as_pytorch_counts_it(kind):
    """Attention by its own products, since PyTorch counts none of a CPU's fused attention."""
    from torch.utils.flop_counter import FlopCounterMode

    task = tiny_run.task_of(kind)
    model = tiny_run.network(kind)
    for part in model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = "eager"
    core = LanguageModel(model, head="dense", task=task)
    found = flops.model_work(core)
    assert found.flop_reason is None
    rows, read, written = 3, 10, 6
    given = {"input_ids": torch.full((rows, read), 9)}
    if task == "seq2seq":
        given["decoder_input_ids"] = torch.full((rows, written), 9)
    with FlopCounterMode(display=False) as counter:
        model(**given).logits.sum().backward()
    amounts = {
        "token": rows * read,
        "token_pair": rows * read**2,
        "target_token": rows * written,
        "target_pair": rows * written**2,
        "cross_pair": rows * read * written,
        "head_position": rows * (written if task == "seq2seq" else read),
    }
    total = sum(flops * amounts[unit] for unit, flops in found.flop_coefficients.items())
    assert total == pytest.approx(counter.get_total_flops(), rel=tiny_run.ANGLES)


# Building.


@pytest.mark.parametrize(
    ("kind", "task"), [("opt", "mlm"), ("opt", "seq2seq"), ("t5", "clm"), ("gpt2", "mlm"), ("t5", "mlm")]
)
def test_a_model_of_another_task_is_one_line(tmp_path, kind, task):
    tiny_run.network(kind).config.save_pretrained(tmp_path)
    with pytest.raises(UserError) as raised:
        build(tmp_path, task)
    assert str(raised.value) == f"task {task}: transformers has no {kind} for it; choose another model or task"


@pytest.mark.parametrize("kind", tiny_run.WRITERS)
def test_every_family_is_read_from_its_folder(tmp_path, kind):
    expected = tiny_run.network(kind, seed=3)
    expected.save_pretrained(tmp_path)
    found = build(tmp_path, tiny_run.task_of(kind))
    assert type(found) is type(expected)
    state = found.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_begins_as_both_halves_of_an_encoder_decoder(tmp_path, kind):
    encoder = tiny_run.network(kind, seed=3)
    encoder.save_pretrained(tmp_path)
    model = build(tmp_path, "seq2seq", ["cross_attention"])
    assert model.encoder.pooler is None
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
    own = encoder.base_model.state_dict()
    assert all(torch.equal(model.encoder.state_dict()[name], value) for name, value in own.items())
    second = model.decoder.state_dict()
    assert all(torch.equal(second[name], value) for name, value in encoder.state_dict().items())
    new = second.keys() - encoder.state_dict().keys()
    assert new
    assert all("crossattention" in name for name in new)
    assert model.encoder.get_input_embeddings().weight is not model.decoder.get_input_embeddings().weight


def test_the_attention_between_the_halves_is_fixed_by_the_seed(tmp_path):
    tiny_run.network().save_pretrained(tmp_path)
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(torch.cat([p.flatten() for p in build(tmp_path, "seq2seq", ["cross_attention"]).parameters()]))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


# Whole runs.


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """By kind of model: itself, and texts with targets and choices."""
    folder, made = tmp_path_factory.mktemp("assets"), {}

    def assets(kind, **parts):
        key = (kind, *sorted(parts))
        if key not in made:
            about = (
                tiny_run.PROMPT if kind in ("bert", *tiny_run.ENCODER_DECODERS) else {**tiny_run.PROMPT, "suffix": []}
            )
            made[key] = tiny_run.assets(folder / "-".join(key), kind, **{**about, **(parts or {"targets": True})})
        return made[key]

    return assets


TASK_OF = {"opt": "clm", "gpt2": "clm", "t5": "seq2seq", "bart": "seq2seq", "bert": "seq2seq"}


@pytest.fixture
def assemble(assets):
    def assemble(kind, place=ALONE, parts=(), **changes):
        on = assets(kind, **dict.fromkeys(parts, True))
        spec = tiny_run.spec(**{"task": TASK_OF[kind], "max_target_length": 8, **changes})
        torch.manual_seed(spec.repeat)
        return assembly.assemble(spec, on.model_folder, on.tokens, place)

    return assemble


def loss_of_text(model, corpus, task, text):
    """Loss per predicted token of one text, computed alone, as the library does."""
    with torch.no_grad():
        read = torch.tensor([pieces(corpus.ids, corpus)[text]])
        if task == "seq2seq":
            labels = torch.tensor([pieces(corpus.targets.ids, corpus.targets)[text]])
            return model(input_ids=read, labels=labels).loss.item(), labels.numel()
        learned = torch.tensor([pieces(corpus.learned, corpus)[text]])
        labels = read.masked_fill(~learned, IGNORED)
        return model(input_ids=read, labels=labels).loss.item(), int((labels[:, 1:] != IGNORED).sum())


@pytest.mark.parametrize("kind", TASK_OF)
@pytest.mark.parametrize("head", tiers.first(1, ["masked", "dense"]))
def test_the_validation_loss_is_the_librarys(assemble, kind, head):
    built = assemble(kind, head=head)
    found = scoring.score(built)
    model, task = built.core.model.eval(), TASK_OF[kind]
    losses = [loss_of_text(model, built.corpus, task, text) for text in built.validation_texts.tolist()]
    number = sum(n for _, n in losses)
    assert found.num_masked == number
    assert found.validation_loss == pytest.approx(sum(loss * n for loss, n in losses) / number, rel=1e-5)
    assert found.choice_accuracy is None


def accuracy_by_hand(built, task):
    """Text by text and choice by choice; of n choices that share the lowest loss each counts 1 / n."""
    corpus, total, ties = built.corpus, 0.0, 0
    owners, model = corpus.choice_text.tolist(), built.core.model.eval()
    for text in built.validation_texts.tolist():
        own = [i for i, owner in enumerate(owners) if owner == text]
        losses = [loss_of_text(model, corpus.choices, task, i)[0] for i in own]
        best = [i for i, loss in enumerate(losses) if loss <= min(losses) * (1 + 1e-5)]
        ties += len(best) > 1
        total += (int(corpus.answer[text]) in best) / len(best)
    return total / len(built.validation_texts), ties


CHOICES = {"parts": ("choices", "targets")}


@pytest.mark.parametrize("head", tiers.first(1, ["masked", "dense"]))
@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_choices_are_told_apart_by_their_loss_per_token(assemble, monkeypatch, kind, head):
    source = {"source": {"local": "texts.txt"}, "format": "text", "validation_fraction": 0.6}
    built = assemble(kind, head=head, dataset_source=source, **CHOICES)
    expected, ties = accuracy_by_hand(built, TASK_OF[kind])
    assert ties > 0
    assert 0.1 < expected < 0.9
    found = scoring.score(built)
    assert found.choice_accuracy == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(scoring, "BATCH", 5)
    assert scoring.score(built).choice_accuracy == found.choice_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 200])
@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_the_ranks_shares_of_the_choices_are_the_whole(assemble, monkeypatch, kind, world):
    built = assemble(kind, **CHOICES)
    whole, shares = scoring._choice_accuracy(built), []
    for rank in range(world):
        built.place = RankContext(device=CPU, rank=rank, world=world, local_rank=rank)
        with monkeypatch.context() as patched:
            patched.setattr(RankContext, "reduced", lambda self, values: (shares.append(values.clone()), values)[1])
            scoring._choice_accuracy(built)
    assert all(bool((share > 0).any()) for share in shares[:2])
    assert ((torch.stack(shares) > 0).sum(0) <= 1).all()  # no choice twice
    monkeypatch.setattr(RankContext, "reduced", lambda self, values: sum(shares))
    assert scoring._choice_accuracy(built) == whole


def test_choices_that_cannot_be_told_apart_are_right_by_chance(assemble, monkeypatch):
    built = assemble("opt", **CHOICES)
    monkeypatch.setattr(
        built.core,
        "logits",
        lambda ids, segments, answers, *rest: (torch.zeros(answers.numel(), 100), answers, rest[1]),
    )
    texts = built.validation_texts.tolist()
    chance = [1 / built.corpus.choice_text.tolist().count(text) for text in texts]
    assert scoring._choice_accuracy(built) == pytest.approx(sum(chance) / len(texts))


def test_choices_are_of_no_use_to_masked_language_modelling(assets):
    on = assets("bert", choices=True, targets=True)
    built = assembly.assemble(tiny_run.spec(), on.model_folder, on.tokens, ALONE)
    assert scoring.score(built).choice_accuracy is None


@pytest.mark.parametrize("kind", TASK_OF)
def test_it_learns_and_counts(assets, tmp_path, kind):
    on = assets(kind)
    changes = {"task": TASK_OF[kind], "epochs": 3, "max_target_length": 8, "lr": 2e-2}
    outcome = trained(tiny_run.spec(**changes), on.model_folder, on.tokens, tmp_path)
    losses = [row["validation_loss"] for row in outcome["epochs"]]
    assert losses[-1] < losses[0] - 0.2
    assert outcome["summaries"] == []
    measured = outcome["measurement"]
    assert measured["phases"][0]["flop_reason"] is None
    assert (measured["num_target_tokens"] > 0) == (TASK_OF[kind] == "seq2seq")
    assert measured["num_target_tokens"] in (0, measured["num_predicted"])


def test_a_model_that_sees_what_it_predicts_is_refused(assets):
    on = assets("bert")
    with pytest.raises(RunEnded) as stopped:
        assembly.assemble(tiny_run.spec(task="clm"), on.model_folder, on.tokens, ALONE)
    reason = "task clm: this model sees the tokens that it is to predict; choose a decoder, or task mlm"
    assert stopped.value.outcome == Stopped(status="unsupported", reason=reason)


@pytest.mark.parametrize("kind", tiers.first(2, ["opt", "t5", "bart", "bert"]))
def test_a_saved_model_scores_what_its_weights_scored(assemble, assets, tmp_path, kind):
    built = assemble(kind)
    weights = copy_weights(built.core, [])
    draw = torch.Generator().manual_seed(0)
    for value in {value.data_ptr(): value for value in weights.values()}.values():
        value.add_(torch.randn(value.shape, generator=draw), alpha=0.05)
    expected, on = scoring.score(built, weights), assets(kind)
    scoring.save(built, weights, on.model_folder, tmp_path / "model")
    again = assembly.assemble(built.spec, tmp_path / "model", on.tokens, ALONE)
    assert scoring.score(again).validation_loss == pytest.approx(expected.validation_loss, rel=1e-6)
    names = [[name for name, _ in one.core.named_parameters()] for one in (built, again)]
    assert names[0] == names[1]
    read = torch.tensor([[tiny_run.CLS, 7, 8]])  # to other programs it is a model like any other
    built = build(tmp_path / "model", TASK_OF[kind])
    assert torch.isfinite(built(input_ids=read, labels=read).loss)
    assert built.generate(input_ids=read, max_new_tokens=3).shape[0] == 1


# Generation.


def decisive(built):
    """Far from the start of a training, where many tokens are as likely: rounding must not choose between them."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.core.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.3)
    return copy_weights(built.core, [])


def by_itself(built, text):
    """What the library writes to one text, alone and without padding."""
    corpus, model, wanted = built.corpus, built.core.model, built.spec.generate
    ids = pieces(corpus.ids, corpus)[text]
    ids = ids if corpus.prompts is None else ids[: int(corpus.prompts[text])]
    more = {} if corpus.targets is None else {"decoder_start_token_id": model.config.decoder_start_token_id}
    found = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        num_beams=wanted["beams"],
        length_penalty=wanted["length_penalty"],
        no_repeat_ngram_size=wanted["no_repeat_ngram"],
        max_new_tokens=built.spec.max_target_length,
        pad_token_id=tiny_run.PAD,
        eos_token_id=tiny_run.SEP,
        **more,
    )[0].tolist()
    words = [tiny_run.VOCABULARY[i] for i in (found if more else found[len(ids) :]) if i >= len(tiny_run.SPECIAL)]
    return " ".join(words)


@pytest.mark.parametrize(
    "how",
    [{}, {"beams": 3}, {"beams": 3, "length_penalty": -2.0, "no_repeat_ngram": 1}],
    ids=["greedy", "beams", "more"],
)
@pytest.mark.parametrize("kind", tiers.first(2, ["opt", "t5", "gpt2", "bert"]))
def test_what_is_written_is_what_the_library_writes_text_by_text(assemble, assets, kind, how):
    built = assemble(kind, generate={**GENERATE, **how})
    weights, folder = decisive(built), assets(kind).model_folder
    rows = generation.generate(built, weights, folder)
    assert len({row.text for row in rows}) == len(rows) == 7
    assert {row.text for row in rows} <= set(built.validation_texts.tolist())
    built.core.eval()
    expected = {row.text: by_itself(built, row.text) for row in rows}
    assert {row.text: row.summary for row in rows} == expected
    assert len(set(expected.values())) > 1


@pytest.mark.parametrize("kind", ["opt", "t5"])
@pytest.mark.parametrize(("world", "wanted"), tiers.first(1, [(3, 2), (2, 7), (2, 100)]))
def test_the_ranks_write_together_what_one_writes(assemble, assets, kind, world, wanted):
    built = assemble(kind, generate={**GENERATE, "texts": wanted})
    weights, folder, shares = decisive(built), assets(kind).model_folder, []
    whole = generation.generate(built, weights, folder)
    assert len(whole) == min(wanted, len(built.validation_texts))
    for rank in range(world):
        built.place = RankContext(device=CPU, rank=rank, world=world, local_rank=rank)
        shares.append(generation.generate(built, weights, folder))
    rows = [row for share in shares for row in share]
    assert sorted(rows, key=lambda row: row.text) == sorted(whole, key=lambda row: row.text)


def test_all_runs_write_to_the_same_texts(assemble, assets):
    """Whatever the seed, the model and the way of training; another split is another choice."""
    found = []
    source = {"source": {"local": "texts.txt"}, "format": "text"}
    for kind, changes in (
        ("opt", {}),
        ("opt", {"repeat": 2, "head": "dense"}),
        ("t5", {}),
        ("opt", {"dataset_source": {**source, "split_seed": 1}}),
    ):
        built = assemble(kind, generate={**GENERATE, "texts": 4}, **changes)
        rows = generation.generate(built, copy_weights(built.core, []), assets(kind).model_folder)
        found.append([row.text for row in rows])
    assert found[0] == found[1] == found[2] != found[3]
    assert found[0] != sorted(built.validation_texts.tolist())[:4]  # a draw, not the first ones


def test_what_is_not_wanted_is_not_written(assemble, assets):
    built = assemble("opt")
    assert generation.generate(built, {}, assets("opt").model_folder) == []


def test_a_text_of_nothing_has_something_to_begin_with(assemble, assets, tmp_path):
    """As of GPT-2, whose tokenizer puts nothing before a text."""
    path = tmp_path / "tokens.safetensors"
    tensors = {
        "ids": torch.tensor([7, 8, 9], dtype=torch.int32),
        "offsets": torch.tensor([0, 0, 0, 3]),
        "group": torch.arange(3, dtype=torch.int32),
        "target_ids": torch.tensor([10, 11, 12], dtype=torch.int32),
        "target_offsets": torch.tensor([0, 1, 2, 3]),
    }
    save_file(tensors, path)
    about = {"prefix": [], "suffix": [], "mask_id": None, "pad_id": None, "bos_id": 3, "eos_id": 3, "vocab_size": 100}
    path.with_suffix(".json").write_text(json.dumps(about))
    source = {"source": {"local": "texts.txt"}, "format": "text", "validation_fraction": 0.6}
    spec = tiny_run.spec(task="clm", generate=GENERATE, dataset_source=source, max_target_length=4)
    folder = assets("gpt2").model_folder
    built = assembly.assemble(spec, folder, path, ALONE)
    rows = generation.generate(built, copy_weights(built.core, []), folder)
    assert len(rows) == 2


#: What files of models say of generation, each of which changes what is written.
OWN_WAYS = {
    "min_length": 11,
    "min_new_tokens": 7,
    "early_stopping": True,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "length_penalty": 4.0,
    "num_beams": 3,
    "forced_bos_token_id": 50,
    "forced_eos_token_id": 51,
    "suppress_tokens": list(range(5, 50)),
    "bad_words_ids": [[60], [61]],
    "encoder_no_repeat_ngram_size": 1,
    "exponential_decay_length_penalty": [1, 2.0],
    "max_length": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["opt", "t5", "bart", "bert"])
def test_what_a_model_says_of_generation_changes_nothing_that_is_written(assets, tmp_path, kind, method):
    on, written = assets(kind), []
    for own in ({}, OWN_WAYS):
        folder = tmp_path / f"own{len(own)}"
        shutil.copytree(on.model_folder, folder)
        path = folder / "generation_config.json"
        said = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**said, **own}))
        spec = tiny_run.spec(task=TASK_OF[kind], generate=GENERATE, max_target_length=12, method=method)
        torch.manual_seed(0)
        built = assembly.assemble(spec, folder, on.tokens, ALONE)
        before = [m.generation_config for m in built.core.modules() if "generation_config" in vars(m)]
        written.append(generation.generate(built, decisive(built), folder))
        after = [m.generation_config for m in built.core.modules() if "generation_config" in vars(m)]
        assert all(one is other for one, other in zip(before, after, strict=True)), "it is saved along with the model"
        assert any(getattr(one, "min_length", None) == 11 for one in before) is bool(own) or kind == "bert"
    assert written[0] == written[1]
    assert any(row.summary for row in written[0])


@pytest.mark.parametrize(
    ("kind", "parts", "changes", "refusal", "said"),
    [
        (
            "opt",
            {"num_texts": 40},
            {},
            UserError,
            "generate: data set texts has no targets; name their field, or leave generate out",
        ),
        (
            "opt",
            {},
            {"max_target_length": 60},
            RunEnded,
            r"^8\d tokens of a text are more than the 64 positions of this model; use a smaller max_length or ",
        ),
        (
            "bert",
            {},
            {"max_target_length": 41},
            RunEnded,
            r"^41 tokens of a text are more than the 40 positions of this model; use a smaller max_target_length$",
        ),
    ],
)
def test_generation_that_would_fail_after_the_training_fails_before_it(assets, kind, parts, changes, refusal, said):
    on = assets(kind, **parts)
    spec = tiny_run.spec(task=TASK_OF[kind], generate=GENERATE, **changes)
    with pytest.raises(refusal, match=said):
        assembly.assemble(spec, on.model_folder, on.tokens, ALONE)
    if refusal is RunEnded:  # less will do, and without anything to write the texts alone count
        for more in ({"max_target_length": 8}, {"generate": None}):
            assembly.assemble(dataclasses.replace(spec, **more), on.model_folder, on.tokens, ALONE)


@pytest.mark.parametrize("kind", tiers.first(1, ["t5", "opt", "bert"]))
def test_what_fsdp_divides_chooses_and_writes_as_the_whole(assemble, assets, kind):
    """Here among one rank: it has all of each weight, in the form that is divided."""
    changes = {"generate": {**GENERATE, "beams": 2}, **CHOICES}
    whole = assemble(kind, **changes)
    weights, folder = decisive(whole), assets(kind).model_folder
    expected = scoring.score(whole, weights), generation.generate(whole, weights, folder)
    place = assembly.prepare_process(tiny_run.spec(strategy="fsdp"))
    built = assemble(kind, place, strategy="fsdp", **changes)
    assert all(hasattr(parameter, "full_tensor") for parameter in built.core.parameters())
    for _ in range(2):  # what is gathered between is divided again: other weights come in
        scoring.score(built)
        found = scoring.score(built, weights), generation.generate(built, weights, folder)
        assert found[0].validation_loss == pytest.approx(expected[0].validation_loss, rel=1e-6)
        assert found[0].choice_accuracy == expected[0].choice_accuracy
        assert found[1] == expected[1]
        assert all(hasattr(parameter, "full_tensor") for parameter in built.core.parameters())


# Through the launching parent.


@pytest.fixture
def launched(assets, tmp_path, monkeypatch):
    """Carry out a run as Snakemake's job does; its rows of summaries.jsonl."""
    monkeypatch.setattr(lease, "folder", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(devices, "boards", list)
    before = signal.getsignal(signal.SIGTERM)
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": f"text {i}", "targets": [f"target {i}", f"other {i}"]} for i in range(tiny_run.NUM_TEXTS)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def launched(kind, **changes):
        spec = tiny_run.spec(**{"task": TASK_OF[kind], "max_target_length": 8, "lr": 2e-2, **changes})
        folder, on = tmp_path / run_id(spec), assets(kind)
        paths = {"model_folder": on.model_folder, "tokens": on.tokens, "folder": folder, "log": None}
        found = launcher.launch(spec, "c0de", references=references(spec, texts), with_snakemake=False, **paths)
        assert found.status == "ok", found.reason
        return [json.loads(line) for line in (folder / "summaries.jsonl").read_text(encoding="utf-8").splitlines()]

    yield launched
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_summaries_lie_beside_the_record_with_their_references(launched):
    rows = launched("opt", generate=GENERATE)
    assert len(rows) == 7
    assert [row["text"] for row in rows] == sorted(row["text"] for row in rows)
    assert all(row["references"] == [f"target {row['text']}", f"other {row['text']}"] for row in rows)
    assert all(isinstance(row["summary"], str) for row in rows)
    assert any(row["summary"].startswith("word") for row in rows)


@pytest.mark.slow
def test_a_run_that_generates_nothing_leaves_an_empty_file(launched):
    assert launched("opt") == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("opt", marks=pytest.mark.long), "t5"])
def test_two_ranks_write_what_one_writes(launched, kind):
    """Under FSDP each forward pass needs both, though the one has written its targets before the other."""
    generate = {**GENERATE, "beams": 2}
    alone, divided = (launched(kind, generate=generate, **more) for more in ({}, {"strategy": "fsdp", "devices": 2}))
    assert len(alone) == 7
    assert len({len(row["summary"].split()) for row in alone}) > 1
    assert divided == alone
