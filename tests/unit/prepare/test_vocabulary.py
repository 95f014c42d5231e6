"""A tokenizer is trained on training texts alone, always alike, and its embeddings begin as means of the old ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import BERT_CONFIG, WORDS, bert_model, bert_tokenizer, bert_weights

from joulesweep.core.errors import UserError
from joulesweep.plan.config import DatasetConfig, ModelConfig
from joulesweep.prepare import vocabulary
from joulesweep.prepare.fetched import Text
from joulesweep.prepare.model import fetch_model
from joulesweep.prepare.tokens import load_tokenizer

DATASET = {"source": {"local": "texts.txt"}, "format": "text", "split": "unique", "split_seed": 3}
TEXTS = [f"what is {word} this {'ab' * (i % 5 + 1)}" for i, word in enumerate(["isthis", "thisis", "bab"] * 40)]
TRAINED = {"trained_on": DATASET, "vocab_size": 100}


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("texts.jsonl")
    path.write_text("".join(json.dumps({"text": text, "targets": [f"to {text}"]}) + "\n" for text in TEXTS))
    return path


def pretrained():
    folder = bert_model(Path("given"))
    weights = bert_weights()
    rows = np.arange(len(WORDS) * 8, dtype=np.float32).reshape(len(WORDS), 8)
    weights["bert.embeddings.word_embeddings.weight"] = rows
    weights["cls.predictions.bias"] = np.arange(len(WORDS), dtype=np.float32)
    save_file(weights, folder / "model.safetensors")
    return rows, {"source": {"local": "given"}}


def fetched(texts, model, folder="m", **tokenizer):
    section = ModelConfig.model_validate({**model, "tokenizer": {**TRAINED, **tokenizer}})
    return fetch_model(section, Path(folder), ["mlm"], texts), load_tokenizer(Path(folder))


def test_new_rows_are_means_of_the_old_pieces_and_known_ones_stay(texts):
    rows, model = pretrained()
    manifest, new = fetched(texts, model)
    weights, ids = load_file("m/model.safetensors"), new.get_vocab()
    embeddings, bias = weights["bert.embeddings.word_embeddings.weight"], weights["cls.predictions.bias"]
    config = json.loads(Path("m/config.json").read_text())
    assert config["vocab_size"] == len(embeddings) == len(bias) == len(new) == manifest["tokenizer"]["vocab_size"]
    for token in ("[PAD]", "[MASK]", "what", "is"):
        np.testing.assert_array_equal(embeddings[ids[token]], rows[WORDS.index(token)])
    assert "ab" in ids and "ab" not in WORDS  # no piece of the old vocabulary: the mean of its symbols
    np.testing.assert_allclose(embeddings[ids["ab"]], rows[[WORDS.index("a"), WORDS.index("b")]].mean(0))
    np.testing.assert_allclose(bias[ids["ab"]], (WORDS.index("a") + WORDS.index("b")) / 2)
    about = manifest["tokenizer"]
    assert about["num_kept"] + about["num_averaged"] == len(new)
    assert manifest["tasks"]["mlm"] == {"reason": None, "new_weights": about["tensors"]}
    assert about["tensors"] == ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"]


def test_a_piece_inside_a_word_begins_as_one():
    class Old:
        unk_token_id = 1

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [{"what": 5, "s": 2}[word] for word in ([text] if text != "ss" else ["s", "s"])]}

        def convert_ids_to_tokens(self, i):
            return {2: "s", 5: "what"}[i]

    assert vocabulary._cut("##ss", Old(), None, {"##s": 10, "s": 2}) == [10, 2]
    assert vocabulary._cut("##what", Old(), None, {"##s": 10}) == [5]


def test_random_weights_get_the_number_of_tokens_and_no_rows(texts):
    bert_tokenizer(Path("kind"), mask_token="[MASK]")
    random = {"source": {"random": {**BERT_CONFIG, "pad_token_id": 0}}}
    manifest, new = fetched(texts, random, like={"local": "kind"})
    assert json.loads(Path("m/config.json").read_text())["vocab_size"] == len(new)
    assert not list(Path("m").glob("*.safetensors"))
    assert manifest["tokenizer"]["tensors"] == [] and manifest["tokenizer"]["num_kept"] == 0


def test_the_same_texts_give_the_same_files(texts):
    _, model = pretrained()
    first, *others = (fetched(texts, model, f"m{i}")[0] for i in range(4))
    assert others == [first] * 3


def test_no_validation_text_is_read(texts):
    rows = [Text(text=text, targets=[], choices=[], answer=None) for text in TEXTS]
    dataset = DatasetConfig.model_validate(DATASET)
    kept = vocabulary.training_texts(rows, dataset)
    assert 0 < len(kept) < len(rows)
    held_out = {row.text for row in rows} - {row.text for row in kept}
    assert held_out and kept == [row for row in rows if row.text not in held_out]
    _, model = pretrained()
    manifest, _ = fetched(texts, model)
    assert manifest["tokenizer"]["num_texts"] == len(kept) and manifest["tokenizer"]["split"] == ["unique", 0.2, 3]
    changed = [json.loads(line) for line in texts.read_text().splitlines()]
    for row in changed:
        row["targets"] = ["zzz zzz zzz"] if row["text"] in held_out else row["targets"]
    texts.write_text("".join(json.dumps(row) + "\n" for row in changed))
    again, new = fetched(texts, model, "again")
    assert "z" not in new.get_vocab() and again["files"] == manifest["files"]


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"vocab_size": 8}, "config.json: vocab_size equals hidden_size: cannot tell which weights are embeddings"),
        ({"vocab_size": None}, "config.json: no vocab_size"),
    ],
)
def test_embeddings_that_cannot_be_told_are_one_line(texts, config, line):
    _, model = pretrained()
    keys = {key: value for key, value in {**BERT_CONFIG, **config}.items() if value is not None}
    Path("given/config.json").write_text(json.dumps(keys))
    with pytest.raises(UserError, match=line) as caught:
        fetched(texts, model)
    assert "\n" not in str(caught.value) and not Path("m").exists()


def test_byte_pieces_begin_as_the_mean_of_their_bytes(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    old = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    old.pre_tokenizer, old.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    base = PreTrainedTokenizerFast(tokenizer_object=old)
    new = base.train_new_from_iterator([["al año al año del niño al ñandú ñ"] * 9], 280, show_progress=False)
    ids = base.get_vocab()
    pieces = dict(zip(sorted(new.get_vocab(), key=new.get_vocab().get), vocabulary._pieces(base, new), strict=True))
    assert pieces["a"] == ([ids["a"]], True)
    assert pieces["Ã±"] == ([ids["Ã"], ids["±"]], False)  # ñ in UTF-8, by the symbols of its two bytes
    assert pieces["Ġal"] == ([ids["Ġ"], ids["a"], ids["l"]], False)
