"""The sampled backward pass is unbiased as a whole, and follows the seed."""

from __future__ import annotations

import sys

import pytest
import tiny_run
import torch

from joulesweep import methods
from joulesweep.core.errors import UserError
from joulesweep.nets import sampled
from joulesweep.nets.language_model import IGNORED, LanguageModel

NUM_DRAWS = 2000


def core_of(keep, kind="bert"):
    model = tiny_run.network(kind)
    methods.load("sampled-backward").apply(model, methods.parameters("sampled-backward", {"keep": keep}))
    return LanguageModel(model, head="dense", task=tiny_run.task_of(kind)).train()


def loss_of(core):
    ids = torch.randint(5, 95, (4, 9), generator=torch.Generator().manual_seed(3))
    answers = ids.masked_fill(torch.arange(9) % 3 > 0, IGNORED)
    return core(ids, torch.ones_like(ids), answers)[0, 0]


def projections(core, loss, num_draws):
    """Of each tensor's gradient on a fixed direction, [draws, tensors]: few numbers, in which any bias shows."""
    draw = torch.Generator().manual_seed(4)
    parameters = list(core.parameters())
    directions = [torch.randn(p.shape, generator=draw) for p in parameters]
    rows = []
    for _ in range(num_draws):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        rows.append(torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]))
    return torch.stack(rows).double()


def standard_errors_off(keep):
    """How far the mean of 2,000 draws is from the exact gradient, in standard errors of the mean, by tensor."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        whole, part = core_of(1.0), core_of(keep)
        (exact,) = projections(whole, loss_of(whole), 1)
        found = projections(part, loss_of(part), NUM_DRAWS)
    errors = found.std(0) / NUM_DRAWS**0.5
    varied = errors > 1e-5 * exact.abs().max()  # an attention's key biases have gradients of rounding alone
    assert int(varied.sum()) > 0.8 * len(exact)
    return ((found.mean(0) - exact) / errors)[varied]


@pytest.mark.slow
def test_the_mean_of_2000_draws_is_the_exact_gradient():
    off = standard_errors_off(0.25)
    assert float(off.abs().max()) < 4
    assert 0.6 < float(off.square().mean().sqrt()) < 1.4  # neither biased nor of an error that is too large to tell


def test_without_weights_the_mean_would_be_another_gradient(monkeypatch):
    """The test above is sharp."""
    drawn = sampled.drawn

    def unweighted(gradient, share):
        chosen, weights = drawn(gradient, share)
        return chosen, torch.ones_like(weights)

    monkeypatch.setattr(sampled, "drawn", lambda *given: unweighted(*given) if given[1] < 1 else drawn(*given))
    monkeypatch.setattr(sys.modules[__name__], "NUM_DRAWS", 200)
    assert float(standard_errors_off(0.25).abs().max()) > 10


def test_draws_follow_the_random_state():
    core = core_of(0.5)

    def gradients(seed):
        torch.manual_seed(seed)
        return torch.autograd.grad(loss_of(core), list(core.parameters()))

    with torch.random.fork_rng():
        first, again, other = (gradients(seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_a_model_whose_layers_have_other_products_is_refused():
    """GPT-2's hold their matrices in modules of transformers'."""
    with pytest.raises(UserError, match=r"^method sampled-backward: the layers of this model have no linear layers"):
        core_of(0.5, "gpt2")


@pytest.mark.parametrize("engine", ["compile", "graph"])
def test_it_is_refused_compiled_and_captured(engine):
    reason = methods.incompatible_reason(tiny_run.spec(method="sampled-backward", engine=engine))
    assert reason.endswith("use engine: [eager]")
