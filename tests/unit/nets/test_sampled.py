"""Rows of a gradient are drawn by their norms, and what is computed of them is unbiased."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from joulesweep.nets import onednn, sampled


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("number", [1, 2, 7, 19, 20])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_chances_add_up_and_follow_the_sizes_up_to_certainty(number, spread):
    sizes = torch.exp(spread * torch.randn(20))
    found = sampled.chances(sizes, number)
    assert float(found.sum()) == pytest.approx(number, rel=1e-9)
    assert float(found.max()) <= 1
    factors = (found / sizes)[found < 1]
    assert bool((factors - factors.mean()).abs().max() <= 1e-6 * factors.mean()) if len(factors) else number == 20
    assert bool((sizes[found == 1].min() >= sizes[found < 1].max()).item()) if 0 < len(factors) < 20 else True


@pytest.mark.slow
def test_a_row_is_drawn_as_often_as_its_chance_says():
    gradient = torch.randn(12, 3) * torch.arange(12.0)[:, None] ** 2
    chances = sampled.chances(gradient.norm(dim=1), 5)
    counts, num_draws = torch.zeros(12), 4000
    for _ in range(num_draws):
        chosen, weights = sampled.drawn(gradient, 5 / 12)
        assert len(chosen.unique()) == len(chosen) == 5
        torch.testing.assert_close(weights.double(), 1 / chances[chosen])
        counts[chosen] += 1
    errors = (chances * (1 - chances) / num_draws).sqrt() + 1e-9
    assert float(((counts / num_draws - chances).abs() / errors).max()) < 4
    assert counts[0] == 0  # a row without a gradient


@pytest.mark.parametrize(("share", "rows", "number"), [(0.5, 8, 4), (0.5, 9, 5), (0.1, 3, 1), (0.3, 10, 3), (1, 7, 7)])
def test_the_number_of_rows_is_the_share_rounded_up(share, rows, number):
    assert sampled.num_rows(share, rows) == number
    assert len(sampled.drawn(torch.randn(rows, 2), share)[0]) == number


def layer(share, **kind):
    module = torch.nn.Linear(6, 4, **kind)
    sampled.adopt(module, share)
    return module


@pytest.mark.parametrize("bias", [True, False])
def test_a_whole_sample_is_the_plain_backward_pass(bias):
    module, inputs = layer(1.0, bias=bias), torch.randn(3, 5, 6, requires_grad=True)
    upstream = torch.randn(3, 5, 4)
    upstream[1, 2] = 0.0
    found = torch.autograd.grad(module(inputs), [inputs, *module.parameters()], upstream)
    plain = torch.autograd.grad(
        functional.linear(inputs, module.weight, module.bias), [inputs, *module.parameters()], upstream
    )
    torch.testing.assert_close(found, plain)


@pytest.mark.skipif(not onednn.available(), reason="this build of PyTorch has no oneDNN")
def test_onednn_computes_the_same_and_can_be_taken_back():
    module, inputs = layer(0.5), torch.randn(9, 6, requires_grad=True)
    found = []
    for is_ours in (False, True, False):
        onednn.assign(module, is_ours)
        assert onednn.computes(module) is is_ours
        torch.manual_seed(5)
        found.append(torch.autograd.grad(module(inputs).square().sum(), [inputs, *module.parameters()]))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0)


def test_a_layer_that_does_not_train_is_the_plain_one():
    module, inputs = layer(0.2), torch.randn(5, 6, requires_grad=True)
    state = torch.get_rng_state()
    (found,) = torch.autograd.grad(module.eval()(inputs).sum(), [inputs])
    torch.testing.assert_close(found, module.weight.sum(0).expand(5, 6))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_gradients_of_zero_stay_zero_and_what_is_not_finite_is_seen(value):
    """Loss scaling skips a step by it."""
    module, inputs = layer(0.5), torch.randn(5, 6, requires_grad=True)
    found = torch.autograd.grad(module(inputs), [inputs, module.weight], torch.full((5, 4), value))
    for gradient in found:
        assert bool((gradient == 0).all()) if value == 0 else not bool(gradient.isfinite().all())


def test_half_precision_is_that_of_autocast_and_gradients_that_of_the_weights():
    module, inputs = layer(0.5), torch.randn(8, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(inputs)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert module.weight.grad.dtype == torch.float32
    assert float(module.weight.grad.abs().sum()) > 0
