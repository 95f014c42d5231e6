"""Masks, order and split depend on the seed and the text alone; batches lose and repeat nothing."""

from __future__ import annotations

import json

import pytest
import tiny_run
import torch
from safetensors.torch import save_file

from joulesweep import data
from joulesweep.errors import UserError

SPECIAL = [tiny_run.CLS, tiny_run.SEP]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return data.load(tiny_run.token_file(tmp_path_factory.mktemp("data") / "tokens.safetensors"), 24)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough tokens to count shares."""
    return data.load(tiny_run.token_file(tmp_path_factory.mktemp("data") / "large.safetensors", num_texts=4000), 24)


def texts_of(corpus):
    return [text.tolist() for text in corpus.ids.tensor_split(corpus.offsets[1:-1])]


def all_batches(corpus, masked, texts, size, world=1, fixed=None):
    """The batches of every rank: a list of steps, each a list of the ranks' shares."""
    ranks = [list(data.batches(corpus, masked, texts, size, rank, world, fixed)) for rank in range(world)]
    return list(zip(*ranks, strict=True))


def rows_of(batch):
    """(inputs, labels) of every real text of a share, without padding."""
    if batch.num_texts == 0:
        return []
    lengths = batch.attention_mask.sum(1).tolist()
    rows = zip(batch.input_ids.tolist(), batch.labels.tolist(), lengths, strict=True)
    return [(tuple(inputs[:n]), tuple(labels[:n])) for inputs, labels, n in rows]


def write(path, bodies, **about):
    offsets = torch.tensor([0, *map(len, bodies)]).cumsum(0)
    ids = torch.tensor([token for body in bodies for token in body], dtype=torch.int32)
    save_file({"ids": ids, "offsets": offsets, "group": torch.arange(len(bodies), dtype=torch.int32)}, path)
    usual = {"prefix": [2], "suffix": [3], "mask_id": 4, "pad_id": 0, "vocab_size": 100}
    path.with_suffix(".json").write_text(json.dumps({**usual, **about}))
    return path


def test_texts_stand_between_their_special_tokens(tmp_path):
    corpus = data.load(write(tmp_path / "t.safetensors", [[7, 8], [], [9]], prefix=[2, 5], suffix=[3]), 10)
    assert texts_of(corpus) == [[2, 5, 7, 8, 3], [2, 5, 3], [2, 5, 9, 3]]
    assert corpus.maskable.int().tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert corpus.lengths.tolist() == [5, 3, 4]
    assert (corpus.mask_id, corpus.pad_id, corpus.vocab_size) == (4, 0, 100)


def test_long_texts_are_cut_and_keep_their_special_tokens(tmp_path):
    corpus = data.load(write(tmp_path / "t.safetensors", [[10, 11, 12, 13, 14], [15]]), 4)
    assert texts_of(corpus) == [[2, 10, 11, 3], [2, 15, 3]]


def test_a_tokenizer_without_special_tokens_around_a_text_works(tmp_path):
    corpus = data.load(write(tmp_path / "t.safetensors", [[10, 11], [12]], prefix=[], suffix=[]), 4)
    assert texts_of(corpus) == [[10, 11], [12]]
    assert corpus.maskable.all()


@pytest.mark.parametrize("kind", ["random", "unique"])
def test_every_text_is_on_one_side_of_the_split(corpus, kind):
    train, validation = data.split(corpus, kind, 0.25, 0)
    assert sorted(train.tolist() + validation.tolist()) == list(range(tiny_run.NUM_TEXTS))
    assert train.tolist() == sorted(train.tolist())


def test_a_random_split_holds_out_the_share_that_was_asked_for(corpus):
    for share in (0.1, 0.25, 0.5):
        assert len(data.split(corpus, "random", share, 0)[1]) == round(share * tiny_run.NUM_TEXTS)


def test_a_unique_split_keeps_equal_texts_on_one_side_and_a_random_one_does_not(corpus):
    def leaked(kind):
        train, validation = data.split(corpus, kind, 0.3, 0)
        texts = texts_of(corpus)
        return {tuple(texts[i]) for i in train} & {tuple(texts[i]) for i in validation}

    assert leaked("unique") == set()
    assert leaked("random") != set()  # else the data have no copies and the line above proves nothing


def test_a_unique_split_holds_out_a_share_of_the_distinct_texts(corpus):
    validation = data.split(corpus, "unique", 0.4, 0)[1]
    num_distinct = len(set(corpus.group.tolist()))
    assert len(set(corpus.group[validation].tolist())) == round(0.4 * num_distinct)


def test_the_split_is_fixed_by_its_seed(corpus):
    one, same, other = (data.split(corpus, "random", 0.25, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_neither_side_of_a_split_is_empty(corpus, share):
    train, validation = data.split(corpus, "random", share, 0)
    assert len(train) >= 1
    assert len(validation) >= 1


def test_the_order_of_an_epoch_is_a_permutation_that_seed_and_epoch_fix():
    texts = torch.arange(10, 60)
    orders = {key: tuple(data.order(texts, *key).tolist()) for key in [(1, 1), (1, 2), (2, 1)]}
    assert all(sorted(order) == texts.tolist() for order in orders.values())
    assert len(set(orders.values())) == 3
    assert tuple(data.order(texts, 1, 1).tolist()) == orders[1, 1]


def test_generators_of_different_keys_differ_and_do_not_touch_the_global_one():
    before = torch.get_rng_state()
    draws = {
        tuple(torch.randint(1000, (8,), generator=data.generator(*key)).tolist()) for key in [(1,), ("1",), (1, 1)]
    }
    assert len(draws) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stream_of_a_key_is_the_same_on_every_machine():
    assert torch.randint(1000, (6,), generator=data.generator("mask", 1, 1)).tolist() == [118, 948, 319, 15, 284, 800]


def test_masks_are_fixed_by_seed_and_epoch(corpus):
    one, same, epoch, seed = (data.mask(corpus, 0.15, *key) for key in [(1, 1), (1, 1), (1, 2), (2, 1)])
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.labels, same.labels)
    for other in (epoch, seed):
        assert not torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_the_share_of_hidden_tokens_is_the_probability(large, probability):
    labels = data.mask(large, probability, 1, 1).labels
    num_maskable = int(large.maskable.sum())
    assert num_maskable > 30_000
    assert int((labels != data.IGNORED).sum()) / num_maskable == pytest.approx(probability, abs=0.01)


def test_of_the_hidden_tokens_four_fifths_are_masks_and_a_tenth_are_themselves(large):
    masked = data.mask(large, 0.5, 1, 1)
    hidden = masked.labels != data.IGNORED
    inputs, answers = masked.inputs[hidden], masked.labels[hidden]
    chance = 0.1 / large.vocab_size  # of a random token to be the right one or the mask
    assert (inputs == large.mask_id).double().mean().item() == pytest.approx(0.8 + chance, abs=0.01)
    assert (inputs == answers).double().mean().item() == pytest.approx(0.1 + chance, abs=0.01)
    swapped = inputs[(inputs != large.mask_id) & (inputs != answers)]
    assert len(swapped) / len(inputs) == pytest.approx(0.1, abs=0.01)
    assert len(swapped.unique()) > 0.9 * large.vocab_size


def test_special_tokens_are_never_hidden_and_the_rest_is_untouched(large):
    masked = data.mask(large, 0.9, 1, 1)
    assert torch.isin(large.ids, torch.tensor(SPECIAL)).any()
    assert (masked.labels[~large.maskable] == data.IGNORED).all()
    visible = masked.labels == data.IGNORED
    assert torch.equal(masked.inputs[visible], large.ids[visible])


def test_the_label_of_a_hidden_token_is_the_token(corpus):
    labels = data.mask(corpus, 0.5, 1, 1).labels
    hidden = labels != data.IGNORED
    assert torch.equal(labels[hidden], corpus.ids[hidden])


@pytest.mark.parametrize(
    ("size", "world", "fixed"), [(8, 1, 24), (7, 1, None), (16, 2, None), (60, 4, 24), (100, 1, None)]
)
def test_the_words_that_are_masked_depend_on_neither_batching_nor_devices(corpus, size, world, fixed):
    masked = data.mask(corpus, 0.15, 1, 1)
    texts = data.order(torch.arange(tiny_run.NUM_TEXTS), 1, 1)

    def seen(size, world, fixed):
        steps = all_batches(corpus, masked, texts, size, world, fixed)
        return sorted(row for step in steps for share in step for row in rows_of(share))

    assert seen(size, world, fixed) == seen(4, 1, None)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 12, 13])
def test_the_ranks_shares_partition_each_batch(corpus, size, world):
    masked = data.mask(corpus, 0.15, 1, 1)
    texts = data.order(torch.arange(tiny_run.NUM_TEXTS), 1, 1)
    whole = all_batches(corpus, masked, texts, size)
    for (batch,), shares in zip(whole, all_batches(corpus, masked, texts, size, world), strict=True):
        assert sorted(rows_of(batch)) == sorted(row for share in shares for row in rows_of(share))
        assert batch.num_texts == sum(share.num_texts for share in shares)
        assert batch.num_tokens == sum(share.num_tokens for share in shares)


def test_the_number_of_predicted_tokens_is_that_of_the_whole_batch_on_every_rank(corpus):
    masked = data.mask(corpus, 0.3, 1, 1)
    texts = torch.arange(tiny_run.NUM_TEXTS)
    for shares in all_batches(corpus, masked, texts, 13, world=3):
        counted = sum(int((share.labels != data.IGNORED).sum()) for share in shares)
        assert {share.num_predicted for share in shares} == {counted}


def test_a_batch_without_a_hidden_token_divides_by_one(corpus):
    nothing = data.mask(corpus, 0.0, 1, 1)
    batch = next(data.batches(corpus, nothing, torch.arange(4), 4, 0, 1, None))
    assert batch.num_predicted == 1


def test_a_rank_without_a_text_computes_on_one_that_does_not_count(corpus):
    masked = data.mask(corpus, 0.9, 1, 1)
    (shares,) = all_batches(corpus, masked, torch.tensor([5]), 8, world=2)
    idle = shares[1]
    assert (idle.num_texts, idle.num_tokens, idle.num_predicted) == (0, 0, shares[0].num_predicted)
    assert idle.input_ids.shape == shares[0].input_ids.shape
    assert (idle.labels == data.IGNORED).all()
    assert (shares[0].labels != data.IGNORED).any()


def test_dynamic_batches_are_as_long_as_their_longest_text_and_fixed_ones_as_told(corpus):
    masked = data.mask(corpus, 0.15, 1, 1)
    texts = torch.arange(tiny_run.NUM_TEXTS)
    dynamic = [batch for (batch,) in all_batches(corpus, masked, texts, 8)]
    fixed = [batch for (batch,) in all_batches(corpus, masked, texts, 8, fixed=24)]
    assert [b.input_ids.shape[1] for b in dynamic] == [int(corpus.lengths[t].max()) for t in texts.split(8)]
    assert {b.input_ids.shape[1] for b in fixed} == {24}
    assert [rows_of(b) for b in dynamic] == [rows_of(b) for b in fixed]
    assert [b.num_tokens for b in dynamic] == [b.num_tokens for b in fixed]


def test_padding_is_the_pad_token_unattended_and_unpredicted(corpus):
    masked = data.mask(corpus, 0.9, 1, 1)
    batch = next(data.batches(corpus, masked, torch.arange(8), 8, 0, 1, 24))
    padding = batch.attention_mask == 0
    assert padding.any()
    assert (batch.input_ids[padding] == corpus.pad_id).all()
    assert (batch.labels[padding] == data.IGNORED).all()
    assert batch.attention_mask.sum(1).tolist() == corpus.lengths[:8].tolist()
    assert batch.num_tokens == int(corpus.lengths[:8].sum())


def test_the_last_batch_is_smaller(corpus):
    masked = data.mask(corpus, 0.15, 1, 1)
    assert [b.num_texts for (b,) in all_batches(corpus, masked, torch.arange(20), 8)] == [8, 8, 4]


@pytest.mark.parametrize("name", ["mask", "pad"])
def test_a_tokenizer_without_the_tokens_that_the_task_needs_is_refused(tmp_path, name):
    path = write(tmp_path / "t.safetensors", [[7, 8]], **{f"{name}_id": None})
    with pytest.raises(UserError, match=rf"t\.safetensors: the tokenizer has no {name} token, which task mlm needs"):
        data.load(path, 10)
