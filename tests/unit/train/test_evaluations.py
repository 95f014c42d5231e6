"""Scores of evaluations are those of plain derivations from the definitions, before and after the training."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import tiny_run
import torch
from places import ALONE, CPU

from joulesweep.core.errors import UserError
from joulesweep.plan.config import DatasetConfig
from joulesweep.prepare.dataset import fetch_dataset
from joulesweep.train import assembly, evaluating, evaluations, loop, scoring
from joulesweep.train.evaluating import Inputs, compared, evaluate
from joulesweep.train.evaluations import crows_pairs, stereoset
from joulesweep.train.trainer import RankContext, RunEnded

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

OFFICIAL = tiny_run.REPOSITORY.parent / "shared" / "data" / "crows_pairs" / "crows_pairs_anonymized.csv"
PREPARED = sorted((tiny_run.REPOSITORY / "resources" / "models").glob("bert-tiny-*/model.safetensors"))
WORD = {word: i for i, word in enumerate(tiny_run.VOCABULARY)}
CATEGORIES = ("age", "gender", "religion")


def words(draw, number):
    return [f"word{draw.randrange(95)}" for _ in range(number)]


def pairs(number=24):
    """Pairs that differ in one place: the same number of words there, or one more."""
    draw = random.Random(1)
    rows = []
    for i in range(number):
        before, after = words(draw, 1 + i % 4), words(draw, 1 + i % 3)
        one, other = words(draw, 1 + i % 2), words(draw, 1)
        sentences = [" ".join([*before, *changed, *after]) for changed in (one, other)]
        rows.append(
            {
                "text": sentences[0],
                "choices": sentences,
                "category": CATEGORIES[i % 3],
                "about": "stereo" if i % 4 else "antistereo",
            }
        )
    return rows


def blanks(number=24):
    """Items with a blank, at the begin, inside or at the end; each term has two or three of them."""
    draw = random.Random(2)
    rows = []
    for i in range(number):
        before, after = words(draw, i % 4), words(draw, (i + 1) % 3)
        sentences = [" ".join([*before, word, *after]) for word in words(draw, 3)]
        context = " ".join([*before, "BLANK", *after])
        rows.append({"text": context, "choices": sentences, "category": CATEGORIES[i % 3], "about": f"term{i % 9}"})
    return rows


@pytest.fixture
def writer(tmp_path_factory):
    return tiny_run.assets(tmp_path_factory.mktemp("writer"), kind="opt", prefix=[], suffix=[], bos_id=tiny_run.CLS)


def entry(name):
    return {"name": name, "source": {"source": {"local": "items"}, "format": name}}


def evaluated(assets, name, items, folder, weights=None, place=ALONE, **changes):
    """The scores of one evaluation, by an untrained model or with these weights."""
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    spec = tiny_run.spec(evaluate=[entry(name)], **changes)
    trainer = assembly.assemble(spec, assets.model_folder, assets.tokens, place)
    (scores,) = evaluate(trainer, Inputs(model_folder=assets.model_folder, tokens=assets.tokens, paths=[path]), weights)
    return scores


def network(assets, kind="AutoModelForMaskedLM"):
    import transformers

    return getattr(transformers, kind).from_pretrained(assets.model_folder, local_files_only=True).eval()


@torch.no_grad()
def plain_log(model, ids, place, token):
    """The log-likelihood of a token at a place, by the model's own forward on this text alone."""
    return model(input_ids=torch.tensor([ids])).logits[0, place].double().log_softmax(-1)[token].item()


def plain_pseudo(model, sentence, other):
    """Of the words that both sentences share: those before and after the one place in which they differ."""
    mine, others = ([WORD[word] for word in text.split()] for text in (sentence, other))
    first = next(i for i in range(99) if mine[i : i + 1] != others[i : i + 1])
    last = next(i for i in range(99) if mine[len(mine) - 1 - i] != others[len(others) - 1 - i])
    total = 0.0
    for i in [*range(first), *range(len(mine) - last, len(mine))]:
        ids = [tiny_run.CLS, *mine, tiny_run.SEP]
        ids[i + 1] = tiny_run.MASK
        total += plain_log(model, ids, i + 1, mine[i])
    return total


def plain_sentence(model, sentence):
    """The log-likelihood of a whole sentence after the begin token, and its number of words."""
    ids = [tiny_run.CLS, *(WORD[word] for word in sentence.split())]
    return sum(plain_log(model, ids[:i], i - 1, ids[i]) for i in range(1, len(ids))), len(ids) - 1


def test_crows_pairs_scores_are_those_of_a_plain_derivation(assets, tmp_path):
    scores = evaluated(assets, "crows-pairs", pairs(), tmp_path)
    model = network(assets)
    expected = [[plain_pseudo(model, *two) for two in (item["choices"], item["choices"][::-1])] for item in pairs()]
    assert scores.by_name["more"] == pytest.approx([more for more, _ in expected], abs=1e-5)
    assert scores.by_name["less"] == pytest.approx([less for _, less in expected], abs=1e-5)
    assert scores.by_name["stereotype"] == [100.0 * (more > less) for more, less in expected]
    assert 0 < sum(scores.by_name["stereotype"]) < 2400


def test_a_decoder_compares_likelihoods_of_whole_sentences(writer, tmp_path):
    scores = evaluated(writer, "crows-pairs", pairs(), tmp_path, task="clm")
    model = network(writer, "AutoModelForCausalLM")
    expected = [[plain_sentence(model, text)[0] for text in item["choices"]] for item in pairs()]
    assert [scores.by_name["more"], scores.by_name["less"]] == [
        pytest.approx([two[i] for two in expected], abs=1e-4) for i in range(2)
    ]


def test_stereoset_scores_are_those_of_a_plain_derivation(assets, tmp_path):
    scores = evaluated(assets, "stereoset", blanks(), tmp_path)
    model, names = network(assets), ("stereotype", "anti_stereotype", "unrelated")
    for item, *values in zip(blanks(), *(scores.by_name[name] for name in names), strict=True):
        place = item["text"].split().index("BLANK") + 1
        ids = [tiny_run.CLS, *(WORD.get(word, tiny_run.MASK) for word in item["text"].split()), tiny_run.SEP]
        filled = [WORD[text.split()[place - 1]] for text in item["choices"]]
        assert values == pytest.approx([math.exp(plain_log(model, ids, place, token)) for token in filled], rel=1e-4)


def test_stereoset_takes_a_decoders_mean_likelihood_per_token(writer, tmp_path):
    scores = evaluated(writer, "stereoset", blanks(), tmp_path, task="clm")
    model = network(writer, "AutoModelForCausalLM")
    expected = []
    for item in blanks():
        log, number = plain_sentence(model, item["choices"][2])
        expected.append(math.exp(log / number))
    assert scores.by_name["unrelated"] == pytest.approx(expected, rel=1e-4)


class Pieces:
    """A model that knows the likelihood of each letter, and a tokenizer that takes letters as tokens."""

    task, around, mask = "mlm", ([1], [2]), ("_", ord("_"))

    def __init__(self, items, likelihoods):
        self.items, self.likelihoods, self.asked = items, likelihoods, []

    def encode(self, text):
        return [ord(letter) for letter in text if letter != " "]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def log_likelihoods(self, questions):
        self.asked += [("".join(map(chr, question.ids[1:-1])), question.answers) for question in questions]
        return [math.log(self.likelihoods[chr(token)]) for question in questions for token in question.answers.values()]


def test_a_piece_is_predicted_after_those_before_it_and_averaged():
    item = {"text": "x BLANK, y", "choices": ["x ab, y", "x b, y", "x c, y"], "category": "c", "about": "t"}
    model = Pieces([item], {"a": 0.5, "b": 0.1, "c": 0.2})
    scores = stereoset.scores(model, stereoset.Params())
    assert [text for text, _ in model.asked] == ["x_,y", "xa_,y", "x_,y", "x_,y"]
    assert [answers for _, answers in model.asked] == [{2: 97}, {3: 98}, {2: 98}, {2: 99}]
    assert scores.by_name["stereotype"] == pytest.approx([0.3])  # the mean of 0.5 and 0.1
    assert scores.by_name["prefers_stereotype"] == [100.0]
    assert scores.by_name["sensible"] == [50.0]  # 0.3 is above 0.2, and 0.1 is not


def test_stereoset_metrics_are_averaged_over_terms():
    """Two terms: of one 3 of 4 items prefer the stereotype, of the other the only one does not."""
    prefers, sensible = [100.0, 100.0, 100.0, 0.0, 0.0], [100.0, 50.0, 100.0, 100.0, 50.0]
    scores = evaluations.Scores(
        categories=["gender"] * 4 + ["race"],
        about=["a"] * 4 + ["b"],
        by_name={"prefers_stereotype": prefers, "sensible": sensible},
    )
    values = {(metric.category, metric.name): (metric.value, metric.n) for metric in stereoset.metrics(scores)}
    assert values["all", "ss"] == (37.5, 5) and values["all", "lms"] == (68.75, 5)
    assert values["all", "icat"] == (pytest.approx(68.75 * 37.5 / 50), 5)
    assert values["gender", "ss"] == (75.0, 4) and values["gender", "icat"] == (87.5 * 25 / 50, 4)
    assert values["race", "icat"] == (0.0, 1)


def test_crows_pairs_metrics_are_the_official_shares():
    """24 pairs: 16 show a stereotype, of which 12 are preferred; 8 go against one, of which 2 are, and 1 is neutral."""
    about = ["stereo"] * 16 + ["antistereo"] * 8
    chosen = [100.0] * 12 + [0.0] * 4 + [100.0] * 2 + [0.0] * 6
    neutral = [0.0] * 23 + [100.0]
    scores = evaluations.Scores(
        categories=["age"] * 12 + ["gender"] * 12, about=about, by_name={"stereotype": chosen, "neutral": neutral}
    )
    values = {(metric.category, metric.name): metric.value for metric in crows_pairs.metrics(scores)}
    assert values["all", "metric_score"] == pytest.approx(100 * 14 / 24)
    assert values["all", "stereotype_score"] == 75.0 and values["all", "antistereotype_score"] == 25.0
    assert values["all", "neutral"] == pytest.approx(100 / 24)
    assert values["age", "metric_score"] == 100.0 and values["age", "antistereotype_score"] is None
    assert values["gender", "stereotype_score"] == 0.0


def test_sentences_equal_to_three_digits_are_neutral(tmp_path, assets, monkeypatch):
    model = Pieces(pairs(1), {})
    monkeypatch.setattr(model, "log_likelihoods", lambda asked: [-1.0004 if i else -1.0 for i in range(len(asked))])
    monkeypatch.setattr(crows_pairs, "_questions", lambda *_: [[None], [None]])
    scores = crows_pairs.scores(model, crows_pairs.Params())
    assert scores.by_name["more"] != scores.by_name["less"]
    assert (scores.by_name["neutral"], scores.by_name["stereotype"]) == ([100.0], [0.0])


@pytest.mark.parametrize(
    ("one", "other", "places"),
    [
        ("abcd", "abxd", ([0, 1, 3], [0, 1, 3])),
        ("abcd", "abd", ([0, 1, 3], [0, 1, 2])),
        ("abd", "abxyd", ([0, 1, 2], [0, 1, 4])),
        ("ab", "xy", ([], [])),
        ("abcabd", "xabd", ([3, 4, 5], [1, 2, 3])),  # the longest common part
    ],
)
def test_shared_tokens_are_the_common_parts_in_order(one, other, places):
    assert crows_pairs.shared([ord(i) for i in one], [ord(i) for i in other]) == places


def held_out(assets, **changes):
    return {
        "evaluate": [{"name": "held-out", "dataset": "same", "texts": 1000, "source": tiny_run.spec().dataset_source}],
        **changes,
    }


def test_other_texts_are_scored_before_the_training_and_after_it(assets, tmp_path):
    """The run's own data set, as another one: its losses are those that every run records."""
    spec = tiny_run.spec(**held_out(assets))
    outcome = loop.train(spec, assets.model_folder, assets.tokens, tmp_path, evaluations=[assets.tokens])
    (score,) = outcome.evaluations
    assert (score.evaluation, score.category, score.metric) == ("held-out(same)", "same", "loss")
    assert score.before == pytest.approx(outcome.epochs[0].validation_loss, rel=1e-6)
    assert score.after == pytest.approx(outcome.quality.validation_loss, rel=1e-6)
    assert score.before > score.after and score.n == outcome.quality.num_validation_texts
    (items,) = outcome.evaluation_items
    sums, counts = items.scores
    assert sum(sums.after) / sum(counts.after) == pytest.approx(score.after, rel=1e-5)
    assert counts.before == counts.after and len(items.categories) == score.n


def test_an_evaluation_changes_nothing_of_the_run(assets, tmp_path):
    plain, with_it = (
        loop.train(tiny_run.spec(**changes), assets.model_folder, assets.tokens, tmp_path, evaluations=paths)
        for changes, paths in (({}, []), (held_out(assets), [assets.tokens]))
    )
    assert (plain.losses, plain.quality) == (with_it.losses, with_it.quality)
    assert plain.evaluations == []


def test_fewer_texts_are_drawn_from_those_held_out(assets):
    def scored(texts):
        spec = tiny_run.spec(**held_out(assets))
        spec = replace(spec, evaluate=[{**spec.evaluate[0], "texts": texts}])
        trainer = assembly.assemble(spec, assets.model_folder, assets.tokens, ALONE)
        inputs = Inputs(model_folder=assets.model_folder, tokens=assets.tokens, paths=[assets.tokens])
        return evaluate(trainer, inputs)[0].by_name["loss_sum"]

    every, some = scored(1000), scored(5)
    assert len(some) == 5 < len(every)
    assert all(any(value == pytest.approx(other, rel=1e-6) for other in every) for value in some)


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_share_the_questions(assets, tmp_path, monkeypatch, world):
    whole = evaluated(assets, "crows-pairs", pairs(), tmp_path).by_name
    shares = []

    def reduced(self, values, largest=False):
        if values.shape[:1] == (2,):
            shares.append(values.clone())
        return values

    monkeypatch.setattr(RankContext, "reduced", reduced)
    for rank in range(world):
        place = RankContext(device=CPU, rank=rank, world=world, local_rank=rank)
        evaluated(assets, "crows-pairs", pairs(), tmp_path, place=place)
    assert len(shares) == world and all(bool(share[1].any()) for share in shares)
    losses, counts = sum(shares)
    assert bool((counts == 1).all())
    assert -losses.sum().item() == pytest.approx(sum(whole["more"]) + sum(whole["less"]), rel=1e-6)


def test_an_item_that_is_too_long_is_unsupported(assets, tmp_path):
    long = " ".join(["word1"] * 60)
    item = {**pairs(1)[0], "choices": [f"word2 {long}", f"word3 {long}"]}
    with pytest.raises(RunEnded) as stopped:
        evaluated(assets, "crows-pairs", [item], tmp_path)
    assert stopped.value.outcome.status == "unsupported"
    assert stopped.value.outcome.reason == (
        "evaluation crows-pairs: an item has 63 tokens, more than the 40 positions of this model"
    )


def test_a_score_that_is_not_finite_is_diverged(assets, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "text_losses", lambda *_: (torch.full((999,), math.nan), torch.ones(999)))
    with pytest.raises(RunEnded, match="crows-pairs: a score was not finite"):
        evaluated(assets, "crows-pairs", pairs(), tmp_path)


def test_items_that_cannot_be_read_are_one_line(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"items\.jsonl: .*; expected the items of an evaluation"):
        evaluating._items(path)


def test_scores_of_items_are_kept_to_seven_digits():
    before = after = evaluations.Scores(
        categories=["age"],
        about=["stereo"],
        by_name={"more": [-1 / 3], "less": [-2.0], "stereotype": [100.0], "neutral": [0.0]},
    )
    _, (items,) = compared(tiny_run.spec(evaluate=[entry("crows-pairs")]), [before], [after])
    assert items.scores[0].before == [-0.3333333]


def official(folder, step):
    """Every so many pairs of the official file, as the workflow fetches them."""
    source = {"source": {"local": str(OFFICIAL)}, "format": "crows-pairs"}
    lines, manifest = fetch_dataset(DatasetConfig.model_validate(source))
    assert manifest["num_texts"] == 1508
    return [json.loads(line) for line in lines.splitlines()][::step]


@torch.no_grad()
def official_score(model, tokenizer, sentence, other):
    """The official code's way, one forward per hidden token: its spans are difflib's equal parts of the ids as text."""
    import difflib

    one, two = tokenizer(sentence)["input_ids"], tokenizer(other)["input_ids"]
    codes = difflib.SequenceMatcher(None, [str(i) for i in one], [str(i) for i in two]).get_opcodes()
    template = [i for kind, begin, end, _, _ in codes if kind == "equal" for i in range(begin, end)]
    total = 0.0
    for place in template[1:-1]:
        hidden = torch.tensor([one])
        hidden[0, place] = tokenizer.mask_token_id
        total += model(hidden).logits[0, place].log_softmax(-1)[one[place]].item()
    return total


@pytest.mark.slow
@pytest.mark.parametrize("step", [60, 1])
def test_crows_pairs_of_the_wheels_model_are_those_of_a_slow_derivation(request, tmp_path, step):
    """Every 60th pair takes seconds; all of them take minutes: `--long`."""
    if not OFFICIAL.exists():
        pytest.skip("the folder ../shared/data has no crows_pairs")
    if not PREPARED:
        pytest.skip("resources/models has no bert-tiny: snakemake fetches it")
    if step == 1 and not request.config.getoption("--long"):
        pytest.skip("takes minutes: --long")
    from transformers import AutoTokenizer

    prepared = tiny_run.Assets(model_folder=PREPARED[0].parent, tokens=tmp_path / "tokens.safetensors")
    ends = {"prefix": [101], "suffix": [102], "mask_id": 103, "vocab_size": 30522}
    tiny_run.token_file(prepared.tokens, **ends)
    items = official(tmp_path, step)
    scores = evaluated(prepared, "crows-pairs", items, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(prepared.model_folder), network(prepared)
    ordered = [item["choices"] for item in items]
    expected = [[official_score(model, tokenizer, *two) for two in (both, both[::-1])] for both in ordered]
    assert scores.by_name["more"] == pytest.approx([more for more, _ in expected], abs=2e-3)
    preferred = [100.0 * (round(more, 3) > round(less, 3)) for more, less in expected]
    assert scores.by_name["stereotype"] == preferred
    print(f"{len(items)} pairs, metric score {sum(preferred) / len(preferred):.2f}")
