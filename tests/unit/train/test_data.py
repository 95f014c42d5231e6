"""Masks, order and split depend on the seed and the text alone; batches lose and repeat nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import pytest
import tiny_run
import torch
from safetensors.torch import save_file

from joulesweep.core import work
from joulesweep.core.errors import UserError
from joulesweep.nets import language_model
from joulesweep.train import data, labels, packing, seeds
from joulesweep.train.corpus import load, split
from joulesweep.train.labels import mask

SPECIAL = [tiny_run.CLS, tiny_run.SEP]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return load(tiny_run.token_file(tmp_path_factory.mktemp("data") / "tokens.safetensors"), 24)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough tokens to count shares."""
    return load(tiny_run.token_file(tmp_path_factory.mktemp("data") / "large.safetensors", num_texts=4000), 24)


def texts_of(corpus):
    return [text.tolist() for text in corpus.ids.tensor_split(corpus.offsets[1:-1])]


def layout(batching="dynamic", size=8, micro=None, head="dense", parts=1):
    return data.BatchLayout(batching=batching, size=size, micro=micro, max_length=24, head=head, parts=parts)


def all_steps(corpus, masked, texts, layout, world=1):
    """Every step, as its micro-batches of all ranks: a list of (micro-batches, predicted tokens) by rank."""
    ranks = [list(data.steps(corpus, masked, texts, layout, rank, world)) for rank in range(world)]
    return list(zip(*ranks, strict=True))


def batches_of(step):
    return [batch for batches, _ in step for batch in batches]


def labels_of(batch):
    """The labels of every place of a batch, [rows, length], however they were given."""
    if batch.chosen is None:
        return batch.answers
    labels = torch.full_like(batch.input_ids, language_model.IGNORED)
    shares = [(labels, batch.chosen, batch.answers)]
    if batch.chosen.ndim == 2:  # as DataParallel cuts rows into the two parts of the layouts below
        shares = zip(labels.chunk(2), batch.chosen.chunk(2), batch.answers.chunk(2), strict=True)
    for part, chosen, answers in shares:
        real = answers != language_model.IGNORED
        part.view(-1)[chosen[real]] = answers[real]
    return labels


def rows_of(batch):
    """(inputs, labels) of every text that a batch counts, each found whole in one row, without padding."""
    found, labels = [], labels_of(batch)
    for number in range(1, int(batch.segments.max()) + 1):
        rows, columns = torch.nonzero(batch.segments == number, as_tuple=True)
        assert len(rows.unique()) == 1
        assert columns.tolist() == list(range(int(columns[0]), int(columns[0]) + len(columns)))
        if batch.position_ids is not None:
            assert batch.position_ids[rows, columns].tolist() == list(range(len(columns)))
        found.append((tuple(batch.input_ids[rows, columns].tolist()), tuple(labels[rows, columns].tolist())))
    return found if batch.counts["num_texts"] else []


def rows_expected(corpus, masked, texts):
    """The same of texts, read from the corpus itself."""
    spans = [slice(int(corpus.offsets[text]), int(corpus.offsets[text + 1])) for text in texts.tolist()]
    return [(tuple(masked.inputs[at].tolist()), tuple(masked.labels[at].tolist())) for at in spans]


def write(path, bodies, **about):
    offsets = torch.tensor([0, *map(len, bodies)]).cumsum(0)
    ids = torch.tensor([token for body in bodies for token in body], dtype=torch.int32)
    save_file({"ids": ids, "offsets": offsets, "group": torch.arange(len(bodies), dtype=torch.int32)}, path)
    usual = {"prefix": [2], "suffix": [3], "mask_id": 4, "pad_id": 0, "vocab_size": 100}
    path.with_suffix(".json").write_text(json.dumps({**usual, **about}))
    return path


def test_texts_stand_between_their_special_tokens(tmp_path):
    corpus = load(write(tmp_path / "t.safetensors", [[7, 8], [], [9]], prefix=[2, 5], suffix=[3]), 10)
    assert texts_of(corpus) == [[2, 5, 7, 8, 3], [2, 5, 3], [2, 5, 9, 3]]
    assert corpus.learned.int().tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert corpus.lengths.tolist() == [5, 3, 4]
    assert (corpus.mask_id, corpus.pad_id, corpus.vocab_size) == (4, 0, 100)


def test_long_texts_are_cut_and_keep_their_special_tokens(tmp_path):
    corpus = load(write(tmp_path / "t.safetensors", [[10, 11, 12, 13, 14], [15]]), 4)
    assert texts_of(corpus) == [[2, 10, 11, 3], [2, 15, 3]]


def test_a_tokenizer_without_special_tokens_around_a_text_works(tmp_path):
    corpus = load(write(tmp_path / "t.safetensors", [[10, 11], [12]], prefix=[], suffix=[]), 4)
    assert texts_of(corpus) == [[10, 11], [12]]
    assert corpus.learned.all()


@pytest.mark.parametrize("kind", ["random", "unique"])
def test_every_text_is_on_one_side_of_the_split(corpus, kind):
    train, validation = split(corpus, kind, 0.25, 0)
    assert sorted(train.tolist() + validation.tolist()) == list(range(tiny_run.NUM_TEXTS))
    assert train.tolist() == sorted(train.tolist())


def test_a_random_split_holds_out_the_share_that_was_asked_for(corpus):
    for share in (0.1, 0.25, 0.5):
        assert len(split(corpus, "random", share, 0)[1]) == round(share * tiny_run.NUM_TEXTS)


def test_a_unique_split_keeps_equal_texts_on_one_side_and_a_random_one_does_not(corpus):
    def leaked(kind):
        train, validation = split(corpus, kind, 0.3, 0)
        texts = texts_of(corpus)
        return {tuple(texts[i]) for i in train} & {tuple(texts[i]) for i in validation}

    assert leaked("unique") == set()
    assert leaked("random") != set()  # else the data have no copies and the line above proves nothing


def test_a_unique_split_holds_out_a_share_of_the_distinct_texts(corpus):
    validation = split(corpus, "unique", 0.4, 0)[1]
    num_distinct = len(set(corpus.group.tolist()))
    assert len(set(corpus.group[validation].tolist())) == round(0.4 * num_distinct)


def test_the_split_is_fixed_by_its_seed(corpus):
    one, same, other = (split(corpus, "random", 0.25, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_neither_side_of_a_split_is_empty(corpus, share):
    train, validation = split(corpus, "random", share, 0)
    assert len(train) >= 1
    assert len(validation) >= 1


def test_the_order_of_an_epoch_is_a_permutation_that_seed_and_epoch_fix():
    texts = torch.arange(10, 60)
    orders = {key: tuple(labels.order(texts, *key).tolist()) for key in [(1, 1), (1, 2), (2, 1)]}
    assert all(sorted(order) == texts.tolist() for order in orders.values())
    assert len(set(orders.values())) == 3
    assert tuple(labels.order(texts, 1, 1).tolist()) == orders[1, 1]


def test_generators_of_different_keys_differ_and_do_not_touch_the_global_one():
    before = torch.get_rng_state()
    draws = {
        tuple(torch.randint(1000, (8,), generator=seeds.generator(*key)).tolist()) for key in [(1,), ("1",), (1, 1)]
    }
    assert len(draws) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stream_of_a_key_is_the_same_on_every_machine():
    assert torch.randint(1000, (6,), generator=seeds.generator("mask", 1, 1)).tolist() == [118, 948, 319, 15, 284, 800]


def test_masks_are_fixed_by_seed_and_epoch(corpus):
    one, same, epoch, seed = (mask(corpus, 0.15, *key) for key in [(1, 1), (1, 1), (1, 2), (2, 1)])
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.labels, same.labels)
    for other in (epoch, seed):
        assert not torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_the_share_of_hidden_tokens_is_the_probability(large, probability):
    labels = mask(large, probability, 1, 1).labels
    num_learned = int(large.learned.sum())
    assert num_learned > 30_000
    assert int((labels != language_model.IGNORED).sum()) / num_learned == pytest.approx(probability, abs=0.01)


def test_of_the_hidden_tokens_four_fifths_are_masks_and_a_tenth_are_themselves(large):
    masked = mask(large, 0.5, 1, 1)
    hidden = masked.labels != language_model.IGNORED
    inputs, answers = masked.inputs[hidden], masked.labels[hidden]
    chance = 0.1 / large.vocab_size  # of a random token to be the right one or the mask
    assert (inputs == large.mask_id).double().mean().item() == pytest.approx(0.8 + chance, abs=0.01)
    assert (inputs == answers).double().mean().item() == pytest.approx(0.1 + chance, abs=0.01)
    swapped = inputs[(inputs != large.mask_id) & (inputs != answers)]
    assert len(swapped) / len(inputs) == pytest.approx(0.1, abs=0.01)
    assert len(swapped.unique()) > 0.9 * large.vocab_size


def test_special_tokens_inside_a_text_are_not_hidden(tmp_path):
    """As by transformers' collator: one that stands for an unknown word is no word to be learned."""
    bodies = [[1 + (i * j) % 97 for j in range(1, 30)] for i in range(1, 60)]
    special, plain = (
        load(write(tmp_path / f"{len(ids)}.safetensors", bodies, special_ids=ids), 40) for ids in ([1, 2, 3, 17], [])
    )
    unknown = torch.isin(plain.ids, torch.tensor([1, 2, 3, 17])) & plain.learned
    assert unknown.sum() > 20
    assert torch.equal(special.learned, plain.learned & ~unknown)
    one, other = (mask(corpus, 0.5, 1, 1) for corpus in (special, plain))
    assert (other.labels[unknown] != language_model.IGNORED).any()
    assert torch.equal(one.labels, other.labels.masked_fill(unknown, language_model.IGNORED))
    assert torch.equal(one.inputs, torch.where(unknown, plain.ids, other.inputs)), "all other tokens are as they were"


def test_what_is_generated_may_be_a_special_token(tmp_path):
    path = write(tmp_path / "t.safetensors", [[10, 11, 12]], special_ids=[11], eos_id=3)
    assert load(path, 24, "clm").learned.tolist() == [False, True, True, True, True]


def test_no_token_is_hidden_as_padding(large):
    """Within a text it would shift the positions that RoBERTa counts itself, and packed texts have none shifted."""
    assert not (large.ids == large.pad_id).any()
    assert not (mask(large, 0.9, 1, 1).inputs == large.pad_id).any()


def test_special_tokens_are_never_hidden_and_the_rest_is_untouched(large):
    masked = mask(large, 0.9, 1, 1)
    assert torch.isin(large.ids, torch.tensor(SPECIAL)).any()
    assert (masked.labels[~large.learned] == language_model.IGNORED).all()
    visible = masked.labels == language_model.IGNORED
    assert torch.equal(masked.inputs[visible], large.ids[visible])


def test_the_label_of_a_hidden_token_is_the_token(corpus):
    labels = mask(corpus, 0.5, 1, 1).labels
    hidden = labels != language_model.IGNORED
    assert torch.equal(labels[hidden], corpus.ids[hidden])


LAYOUTS = [
    (layout("fixed"), 1),
    (layout(size=7), 1),
    (layout(size=16), 2),
    (layout("fixed", size=60, micro=4), 4),
    (layout(size=100), 1),
    (layout("packed"), 1),
    (layout("packed", size=60), 3),
    (layout("packed", size=21, micro=3, head="masked"), 2),
    (layout(size=13, micro=5, head="masked"), 3),
    (layout("fixed", size=16, micro=16, head="masked"), 2),
    (layout("packed", size=60, head="masked", parts=2), 1),
    (layout("dynamic", size=13, head="masked", parts=2), 1),
]


@pytest.mark.parametrize(("layout", "world"), LAYOUTS)
def test_every_token_of_every_text_comes_once_with_its_label_however_it_is_laid_out(corpus, layout, world):
    masked = mask(corpus, 0.15, 1, 1)
    texts = labels.order(torch.arange(tiny_run.NUM_TEXTS), 1, 1)
    steps = all_steps(corpus, masked, texts, layout, world)
    assert len(steps) == math.ceil(len(texts) / layout.size)
    for step, whole in zip(steps, texts.split(layout.size), strict=True):
        found = [row for batch in batches_of(step) for row in rows_of(batch)]
        assert sorted(found) == sorted(rows_expected(corpus, masked, whole))


@pytest.mark.parametrize(("layout", "world"), LAYOUTS)
def test_what_a_batch_counts_is_what_it_holds(corpus, layout, world):
    masked = mask(corpus, 0.15, 1, 1)
    steps = all_steps(corpus, masked, torch.arange(tiny_run.NUM_TEXTS), layout, world)
    num_empty = 0
    for batch in (batch for step in steps for batch in batches_of(step)):
        rows, length = batch.input_ids.shape
        texts = [len(inputs) for inputs, _ in rows_of(batch)]
        num_predicted = int((labels_of(batch) != language_model.IGNORED).sum())
        num_chosen = rows * length if layout.head == "dense" else math.ceil(max(1, num_predicted) / 16) * 16
        if batch.chosen is not None and batch.chosen.ndim == 2:
            num_chosen = batch.chosen.numel()  # one more for each row at most than the fullest part has
            assert num_predicted <= num_chosen
            most = max(int((part != language_model.IGNORED).sum()) for part in labels_of(batch).chunk(2))
            assert num_chosen <= rows * max(1, math.ceil(most / (rows // 2)))
        others = {name: 0 for name in work.COUNTED if "target" in name or "cross" in name}
        assert batch.counts == {
            **others,
            "num_texts": len(texts),
            "num_tokens": sum(texts),
            "num_padded_tokens": rows * length,
            "num_predicted": num_predicted,
            "num_head_positions": num_chosen,
            "num_token_pairs": sum(length * length for length in texts),
            "num_padded_token_pairs": rows * length * length,
        }
        assert set(batch.counts) == set(work.COUNTED)
        assert batch.answers.numel() == num_chosen
        num_empty += not texts
    assert sum(batch.counts["num_texts"] for step in steps for batch in batches_of(step)) == tiny_run.NUM_TEXTS
    if world == 1:
        assert num_empty == 0


@pytest.mark.parametrize("batching", ["fixed", "dynamic", "packed"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 12, 13])
def test_the_ranks_shares_partition_each_batch(corpus, size, world, batching):
    masked = mask(corpus, 0.15, 1, 1)
    texts = labels.order(torch.arange(tiny_run.NUM_TEXTS), 1, 1)
    whole = all_steps(corpus, masked, texts, layout(batching, size))
    shared = all_steps(corpus, masked, texts, layout(batching, size), world)
    for one, step in zip(whole, shared, strict=True):
        (batch,), shares = batches_of(one), batches_of(step)
        assert len(shares) == world
        assert sorted(rows_of(batch)) == sorted(row for share in shares for row in rows_of(share))
        for name in ("num_texts", "num_tokens", "num_predicted", "num_token_pairs"):
            assert batch.counts[name] == sum(share.counts[name] for share in shares)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 3, 4, 20])
@pytest.mark.parametrize("size", [7, 12, 16])
def test_micro_batches_are_as_many_on_every_rank_and_nearly_as_large(corpus, size, micro, world):
    masked = mask(corpus, 0.15, 1, 1)
    texts = labels.order(torch.arange(tiny_run.NUM_TEXTS), 1, 1)
    steps = all_steps(corpus, masked, texts, layout(size=size, micro=micro), world)
    for step, whole in zip(steps, texts.split(size), strict=True):
        assert {len(batches) for batches, _ in step} == {math.ceil(math.ceil(len(whole) / world) / micro)}
        for rank, (batches, _) in enumerate(step):
            sizes = [batch.counts["num_texts"] for batch in batches]
            assert max(sizes) <= micro
            assert max(sizes) - min(sizes) <= 1
            found = [row for batch in batches for row in rows_of(batch)]
            assert found == rows_expected(corpus, masked, whole[rank::world])


def test_the_number_of_predicted_tokens_is_that_of_the_whole_batch_on_every_rank(corpus):
    masked = mask(corpus, 0.3, 1, 1)
    texts = torch.arange(tiny_run.NUM_TEXTS)
    for micro in (None, 2):
        for step in all_steps(corpus, masked, texts, layout(size=13, micro=micro), world=3):
            counted = sum(int((labels_of(batch) != language_model.IGNORED).sum()) for batch in batches_of(step))
            assert counted > 1
            assert {num_predicted for _, num_predicted in step} == {counted}


@pytest.mark.parametrize("head", ["dense", "masked"])
def test_a_batch_without_a_hidden_token_divides_by_one(corpus, head):
    nothing = mask(corpus, 0.0, 1, 1)
    (batch,), num_predicted = next(data.steps(corpus, nothing, torch.arange(4), layout(size=4, head=head)))
    assert num_predicted == 1
    assert batch.counts["num_predicted"] == 0
    assert (batch.answers == language_model.IGNORED).all()
    assert batch.answers.numel() > 0  # an empty head has no gradients to exchange


@pytest.mark.parametrize("batching", ["dynamic", "packed"])
@pytest.mark.parametrize("head", ["dense", "masked"])
def test_a_rank_without_a_text_computes_on_one_that_does_not_count(corpus, head, batching):
    masked = mask(corpus, 0.9, 1, 1)
    (step,) = all_steps(corpus, masked, torch.tensor([5]), layout(batching, head=head), world=2)
    (busy, num_predicted), (idle, same) = [(batches[0], number) for batches, number in step]
    assert num_predicted == same == busy.counts["num_predicted"]
    assert [idle.counts[name] for name in ("num_texts", "num_tokens", "num_predicted", "num_token_pairs")] == [0] * 4
    assert idle.counts["num_padded_tokens"] == busy.counts["num_padded_tokens"] > 0  # computed all the same
    assert torch.equal(idle.input_ids, busy.input_ids)
    assert (idle.answers == language_model.IGNORED).all()
    assert (busy.answers != language_model.IGNORED).any()


def test_a_micro_batch_without_a_text_computes_on_one_that_does_not_count(corpus):
    """Of five texts, three ranks have two, two and one: the last one has nothing for its second micro-batch."""
    masked = mask(corpus, 0.9, 1, 1)
    (step,) = all_steps(corpus, masked, torch.arange(5), layout(micro=1), world=3)
    assert [[batch.counts["num_texts"] for batch in batches] for batches, _ in step] == [[1, 1], [1, 1], [1, 0]]
    idle = step[2][0][1]
    assert (idle.answers == language_model.IGNORED).all()
    assert tuple(idle.input_ids[0].tolist()) == rows_expected(corpus, masked, torch.tensor([0]))[0][0]


def test_dynamic_batches_are_as_long_as_their_longest_text_and_fixed_ones_as_told(corpus):
    masked = mask(corpus, 0.15, 1, 1)
    texts = torch.arange(tiny_run.NUM_TEXTS)
    dynamic, fixed, packed = (
        [batch for step in all_steps(corpus, masked, texts, layout(batching)) for batch in batches_of(step)]
        for batching in ("dynamic", "fixed", "packed")
    )
    assert [b.input_ids.shape[1] for b in dynamic] == [int(corpus.lengths[t].max()) for t in texts.split(8)]
    assert {b.input_ids.shape[1] for b in fixed} == {b.input_ids.shape[1] for b in packed} == {24}
    assert [rows_of(b) for b in dynamic] == [rows_of(b) for b in fixed] == [rows_of(b) for b in packed]
    for name in ("num_texts", "num_tokens", "num_predicted", "num_token_pairs"):
        assert [b.counts[name] for b in dynamic] == [b.counts[name] for b in fixed] == [b.counts[name] for b in packed]


def test_only_packed_rows_hold_several_texts_and_tell_their_positions(corpus):
    masked = mask(corpus, 0.15, 1, 1)
    for batching in ("fixed", "dynamic"):
        (batch,), _ = next(data.steps(corpus, masked, torch.arange(30), layout(batching, size=30)))
        assert batch.position_ids is None
        assert batch.input_ids.shape[0] == 30
        assert batch.segments.amax(1).tolist() == list(range(1, 31))
    (batch,), _ = next(data.steps(corpus, masked, torch.arange(30), layout("packed", size=30)))
    needed = math.ceil(int(corpus.lengths[:30].sum()) / 24)
    assert needed <= batch.input_ids.shape[0] < 0.8 * 30
    assert max(len(row.unique()) for row in batch.segments) > 2


@pytest.mark.parametrize("batching", ["fixed", "packed"])
def test_padding_is_the_pad_token_unattended_and_unpredicted(corpus, batching):
    masked = mask(corpus, 0.9, 1, 1)
    (batch,), _ = next(data.steps(corpus, masked, torch.arange(8), layout(batching)))
    padding = batch.segments == 0
    assert padding.any()
    assert (batch.input_ids[padding] == corpus.pad_id).all()
    assert (batch.answers[padding] == language_model.IGNORED).all()
    assert batch.segments.flatten().bincount()[1:].tolist() == corpus.lengths[:8].tolist()
    assert batch.position_ids is None or not batch.position_ids[padding].any()


def test_the_last_batch_is_smaller(corpus):
    masked = mask(corpus, 0.15, 1, 1)
    steps = all_steps(corpus, masked, torch.arange(20), layout())
    assert [batch.counts["num_texts"] for step in steps for batch in batches_of(step)] == [8, 8, 4]


@pytest.mark.parametrize("probability", [0.0, 0.15, 0.9])
@pytest.mark.parametrize("batching", ["fixed", "dynamic", "packed"])
def test_chosen_places_are_the_predicted_ones_filled_up_to_few_lengths(corpus, batching, probability):
    masked = mask(corpus, probability, 1, 1)
    texts, sizes = torch.arange(tiny_run.NUM_TEXTS), set()
    dense, chosen = (
        [batch for step in all_steps(corpus, masked, texts, layout(batching, head=head)) for batch in batches_of(step)]
        for head in ("dense", "masked")
    )
    for one, other in zip(dense, chosen, strict=True):
        assert one.chosen is None
        assert torch.equal(one.input_ids, other.input_ids)
        predicted = other.answers != language_model.IGNORED
        places = torch.nonzero(one.answers.flatten() != language_model.IGNORED).flatten()
        assert other.chosen[predicted].tolist() == places.tolist()
        assert torch.equal(other.answers[predicted], one.answers.flatten()[places])
        assert other.chosen.shape == other.answers.shape
        assert len(other.chosen) - len(places) < data.CHOSEN_MULTIPLE or not len(places)
        sizes.add(len(other.chosen))
    assert 0 not in sizes
    assert all(size % data.CHOSEN_MULTIPLE == 0 for size in sizes)
    assert (probability == 0) == (sizes == {data.CHOSEN_MULTIPLE})


@pytest.mark.parametrize("batching", ["dynamic", "packed"])
@pytest.mark.parametrize(("parts", "size"), [(2, 8), (2, 7), (3, 2), (4, 5), (8, 12)])
def test_rows_that_will_be_scattered_have_the_places_of_each_part(corpus, parts, size, batching):
    """Places in the whole would mean nothing in a part of it. Four GPUs get three parts of five rows."""
    masked = mask(corpus, 0.3, 1, 1)
    given = layout(batching, size, head="masked", parts=parts)
    (dense,), _ = next(data.steps(corpus, masked, torch.arange(size), layout(batching, size)))
    (batch,), _ = next(data.steps(corpus, masked, torch.arange(size), given))
    assert {tensor.shape[0] for tensor in batch.tensors if tensor is not None} == {len(batch.input_ids)}
    cut = [tensor.chunk(parts) for tensor in (batch.chosen, batch.answers, dense.answers)]
    for chosen, answers, targets in zip(*cut, strict=True):
        real = answers != language_model.IGNORED
        assert chosen[real].tolist() == torch.nonzero(targets.flatten() != language_model.IGNORED).flatten().tolist()
        assert torch.equal(targets.flatten()[chosen[real]], answers[real])
        assert chosen.max() < targets.numel()


def packed(lengths, capacity):
    row, column = packing.pack(torch.tensor(lengths), capacity)
    return row.tolist(), column.tolist()


def packed_one_by_one(lengths, capacity):
    """Best fit decreasing as books have it; of rows as full as each other the one that became so last."""
    rows, places = [], {}
    for text in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        fitting = [row for row in rows if capacity - row[1] >= lengths[text] and row[1] > 0]
        fullest = max((row[1] for row in fitting), default=None)
        chosen = max((row for row in fitting if row[1] == fullest), key=lambda row: row[2], default=None)
        if chosen is None:
            chosen = [len(rows), 0, 0]
            rows.append(chosen)
        places[text] = (chosen[0], chosen[1])
        chosen[1] += lengths[text]
        chosen[2] = len(places)
    return [list(column) for column in zip(*(places[text] for text in range(len(lengths))), strict=True)]


@pytest.mark.parametrize("capacity", [1, 2, 24, 64])
@pytest.mark.parametrize("longest", [0.2, 0.5, 1.0])
def test_texts_of_one_size_are_packed_at_once_as_one_by_one(capacity, longest):
    draw = random.Random(repr((capacity, longest)))
    for num_texts in (1, 2, 7, 60, 500):
        lengths = [draw.randint(1, max(1, round(longest * capacity))) for _ in range(num_texts)]
        assert list(packed(lengths, capacity)) == packed_one_by_one(lengths, capacity)


@pytest.mark.parametrize("capacity", [1, 2, 24, 64])
@pytest.mark.parametrize("shortest", [0, 1])
@pytest.mark.parametrize("longest", [0.3, 0.6, 1.0])
def test_packed_texts_are_whole_apart_and_within_their_row(capacity, shortest, longest):
    draw = random.Random(repr((capacity, shortest, longest)))
    for num_texts in (1, 2, 5, 40, 300):
        most = max(1, round(longest * capacity))
        lengths = [draw.randint(shortest, most) for _ in range(num_texts)]
        rows, columns = packed(lengths, capacity)
        num_rows = max(rows) + 1
        assert set(rows) == set(range(num_rows))
        assert num_rows <= num_texts
        taken = [(row, place) for row, column, n in zip(rows, columns, lengths, strict=True)
                 for place in range(column, column + n)]  # fmt: skip
        assert len(taken) == len(set(taken)) == sum(lengths)
        assert all(0 <= place < capacity for _, place in taken)
        filled = [0] * num_rows
        for row, n in zip(rows, lengths, strict=True):
            filled[row] += n
        for row in range(num_rows):  # a row is only begun by a text that fitted into none before
            assert all(filled[row] + filled[other] > capacity for other in range(row) if shortest)
        assert (rows, columns) == packed(lengths, capacity)


def test_the_longest_texts_are_packed_first_each_into_the_fullest_row_with_room():
    """The last text would fit into both rows; the first one that has room, row 0, is not the fullest."""
    assert packed([1, 20, 12, 17], 30) == ([1, 0, 1, 1], [29, 0, 17, 0])


def test_texts_that_fill_a_row_are_alone_in_it():
    assert packed([4, 4, 4], 4) == ([0, 1, 2], [0, 0, 0])


def test_texts_of_one_length_are_packed_in_their_order():
    assert packed([2, 2, 2, 2], 4) == ([0, 0, 1, 1], [0, 2, 0, 2])


@pytest.mark.parametrize("name", ["mask", "pad"])
def test_a_tokenizer_without_the_tokens_that_the_task_needs_is_refused(tmp_path, name):
    path = write(tmp_path / "t.safetensors", [[7, 8]], **{f"{name}_id": None})
    with pytest.raises(UserError, match=rf"t\.safetensors: the tokenizer has no {name} token, which task mlm needs"):
        load(path, 10)


@pytest.mark.parametrize("multiple", [1, 16])
def test_sizes_are_rounded_up_to_few(multiple):
    rounded = [packing.round_up(number, multiple) for number in range(2000)]
    assert all(found % multiple == 0 and found >= max(number, 1) for number, found in enumerate(rounded))
    assert all(found <= max(number, 1) * 9 / 8 + multiple for number, found in enumerate(rounded))
    assert rounded == sorted(rounded)
    assert len({found for found in rounded if found > 1024}) == 8
    assert [packing.round_up(number, multiple) for number in set(rounded)] == list(set(rounded))


def test_rows_are_filled_up_where_few_shapes_are_wanted(corpus):
    layout = data.BatchLayout(batching="packed", size=30, micro=None, max_length=24, head="masked")
    masked = mask(corpus, 0.15, "test")
    texts = torch.arange(30)
    (((plain,), _),) = data.steps(corpus, masked, texts, layout)
    (((filled,), _),) = data.steps(corpus, masked, texts, dataclasses.replace(layout, few_shapes=True))
    num_rows = len(plain.input_ids)
    assert len(filled.input_ids) == packing.round_up(num_rows)
    assert torch.equal(filled.segments[:num_rows], plain.segments)
    assert not filled.segments[num_rows:].any()


@pytest.mark.parametrize("few_shapes", [False, True])
@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("batching", ["dynamic", "fixed", "packed"])
def test_outlines_are_the_sizes_of_batches_that_are_not_laid_out(corpus, monkeypatch, batching, micro, few_shapes):
    both = dataclasses.replace(corpus, targets=None if batching == "packed" else corpus)  # packed, nobody has targets
    masked, texts, world = mask(corpus, 0.5, 1, 1), torch.arange(60).flip(0), 2
    given = dataclasses.replace(layout(batching, 17, micro, head="masked"), few_shapes=few_shapes, max_target_length=30)

    def sizes(batch):
        width = 0 if batch.target_ids is None else batch.target_ids.shape[1]
        return (*batch.input_ids.shape, width, len(batch.chosen))

    for rank in range(world):
        expected = [tuple(map(sizes, step)) for step, _ in data.steps(both, masked, texts, given, rank, world)]
        with monkeypatch.context() as patched:
            patched.setattr(data, "_Rows", None)
            assert list(data.outlines(both, masked, texts, given, rank, world)) == expected
            without = [tuple((*outline[:3], 0) for outline in step) for step in expected]
            assert list(data.outlines(both, None, texts, given, rank, world)) == without


@pytest.mark.parametrize("batching", ["fixed", "packed"])
def test_steps_of_micro_batches_have_few_shapes_where_these_are_wanted(large, batching):
    """Of each combination of sizes a graph would be captured."""
    masked, texts = mask(large, 0.15, 1, 1), torch.arange(4000)
    given = layout(batching, 128, 8, head="masked")
    many, few = (
        list(data.outlines(large, masked, texts, dataclasses.replace(given, few_shapes=few))) for few in (False, True)
    )
    assert len(set(many)) > 0.8 * len(many)
    assert len(set(few)) < 0.25 * len(few)
    rows = {len({outline[0] for outline in step}) for step in few[:-1]}
    places = {len({outline[3] for outline in step}) for step in few}
    assert rows == places == {1}


@pytest.mark.parametrize("batching", ["fixed", "packed"])
def test_what_micro_batches_are_filled_up_with_counts_nothing(corpus, batching):
    masked, texts = mask(corpus, 0.3, 1, 1), torch.arange(60)
    given = layout(batching, 20, 3, head="masked")
    plain, filled = (
        [batch for step, _ in data.steps(corpus, masked, texts, one) for batch in step]
        for one in (given, dataclasses.replace(given, few_shapes=True))
    )
    grown = 0
    for one, other in zip(plain, filled, strict=True):
        assert rows_of(one) == rows_of(other)
        useful = ("num_texts", "num_tokens", "num_predicted", "num_token_pairs")
        assert [one.counts[name] for name in useful] == [other.counts[name] for name in useful]
        assert other.counts["num_padded_tokens"] == other.input_ids.numel()
        assert other.counts["num_head_positions"] == len(other.chosen)
        grown += other.input_ids.numel() > one.input_ids.numel() or len(other.chosen) > len(one.chosen)
    assert grown > 0
