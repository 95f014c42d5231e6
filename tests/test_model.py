"""The sparse head is the dense head with the work that nobody looks at left out."""

from __future__ import annotations

import threading

import pytest
import tiny_run
import torch
from torch.nn import functional

from joulesweep.data import IGNORED
from joulesweep.model import MaskedLanguageModel, build


@pytest.fixture
def inputs():
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (6, 12), generator=draw)
    attention = (torch.arange(12) < torch.tensor([12, 9, 5, 12, 3, 7])[:, None]).long()
    labels = torch.randint(5, 100, (6, 12), generator=draw)
    hidden = (torch.rand(6, 12, generator=draw) < 0.4) & attention.bool()
    return ids, attention, labels.masked_fill(~hidden, IGNORED)


def reference_loss(model, ids, attention, labels):
    """As Hugging Face computes it, but summed: logits everywhere, the ignored ones left out."""
    logits = model(input_ids=ids, attention_mask=attention).logits
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize(("kind", "head"), [("bert", "cls"), ("roberta", "lm_head"), ("distilbert", None)])
def test_loss_and_gradients_are_those_of_the_dense_head(inputs, kind, head):
    one, other = tiny_run.network(kind), tiny_run.network(kind)
    wrapped = MaskedLanguageModel(one)
    assert wrapped.head_name == head
    loss = wrapped(*inputs)[0, 0]
    expected = reference_loss(other, *inputs)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = dict(other.named_parameters())
    assert sum(p.grad is not None for p in gradients.values()) > 10
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_head_sees_the_masked_positions_only(inputs):
    wrapped = MaskedLanguageModel(tiny_run.network())
    seen = []
    wrapped.model.cls.register_forward_hook(lambda module, given, found: seen.append(given[0].shape))
    wrapped(*inputs)
    assert seen == [(int((inputs[2] != IGNORED).sum()), 16)]


def test_sums_over_shares_add_up_to_the_whole(inputs):
    wrapped = MaskedLanguageModel(tiny_run.network())
    whole = wrapped(*inputs, score=True)
    parts = [wrapped(*(t[rows] for t in inputs), score=True) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), whole)


def test_right_answers_are_counted_when_asked_for(inputs):
    model = tiny_run.network()
    ids, attention, labels = inputs
    best = model(input_ids=ids, attention_mask=attention).logits.argmax(-1)
    half = torch.where((labels != IGNORED) & (torch.arange(12) % 2 == 0), best, labels)  # every other one is right
    expected = int((half == best).sum())
    assert 0 < expected < int((labels != IGNORED).sum())
    wrapped = MaskedLanguageModel(model)
    assert wrapped(ids, attention, half, score=True)[0, 1].item() == expected
    assert wrapped(ids, attention, half)[0, 1].item() == 0


def test_nothing_masked_is_a_loss_of_nothing_that_still_has_gradients(inputs):
    wrapped = MaskedLanguageModel(tiny_run.network())
    ids, attention, labels = inputs
    loss = wrapped(ids, attention, torch.full_like(labels, IGNORED))
    assert loss.tolist() == [[0.0, 0.0]]
    loss.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in wrapped.parameters())


def test_the_sums_are_single_precision_whatever_the_weights_are(inputs):
    wrapped = MaskedLanguageModel(tiny_run.network()).to(torch.bfloat16)
    out = wrapped(*inputs)
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
    model = MaskedLanguageModel(tiny_run.network(), "bf16-mixed")
    model.model.cls.register_forward_hook(lambda module, given, logits: seen.append(logits.dtype))
    thread = threading.Thread(target=model, args=inputs)
    thread.start()
    thread.join()
    assert seen == [torch.bfloat16]
