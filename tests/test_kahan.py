"""AdamW with Kahan summation takes the steps of AdamW in full precision, however small, on weights in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch

from joulesweep.kahan import KahanAdamW

GROUP = {"lr": 2e-5, "weight_decay": 0.01}


def draws(num_steps, size=500):
    """Weights near 1 and gradients that agree with each other in part, all of them numbers of bfloat16."""
    stream = torch.Generator().manual_seed(0)
    weight = 0.5 + torch.rand(size, generator=stream)
    lean = torch.randn(size, generator=stream)
    gradients = [lean + torch.randn(size, generator=stream) for _ in range(num_steps)]
    return weight.bfloat16(), [gradient.bfloat16() for gradient in gradients]


def taken(kind, dtype, num_steps, size=500, **options):
    """The weight after so many steps, and its optimizer."""
    weight, gradients = draws(num_steps, size)
    weight = torch.nn.Parameter(weight.to(dtype))
    optimizer = kind([weight], **{**GROUP, **options})
    for gradient in gradients:
        weight.grad = gradient.to(dtype)
        optimizer.step()
    return weight.detach(), optimizer


def whole(weight, optimizer):
    (state,) = optimizer.state.values()
    return weight.double() + state["compensation"].double()


def test_small_steps_add_up_to_those_of_double_precision():
    """Where bfloat16 alone loses every one of them. Moments are in bfloat16 here and there."""
    start, _ = draws(0)
    exact, _ = taken(torch.optim.AdamW, torch.float64, 300)
    rounded, _ = taken(torch.optim.AdamW, torch.bfloat16, 300, fused=True)
    found = whole(*taken(KahanAdamW, torch.bfloat16, 300))
    way = exact - start.double()
    assert way.abs().mean() > 1e-3
    assert (found - exact).abs().mean() < 0.05 * way.abs().mean()
    assert (rounded.double() - exact).abs().mean() > 0.8 * way.abs().mean()


def test_a_step_is_adamws_own():
    exact, _ = taken(torch.optim.AdamW, torch.float64, 1, lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3)
    weight, optimizer = taken(KahanAdamW, torch.bfloat16, 1, lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3)
    torch.testing.assert_close(whole(weight, optimizer), exact, rtol=2**-16, atol=0)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, exact.bfloat16())  # the weight is the nearest number to what is meant


def test_what_is_kept_is_what_rounding_took():
    weight, optimizer = taken(KahanAdamW, torch.bfloat16, 50)
    (state,) = optimizer.state.values()
    assert {name: value.dtype for name, value in state.items()} == {
        "step": torch.float32,
        "exp_avg": torch.bfloat16,
        "exp_avg_sq": torch.bfloat16,
        "compensation": torch.bfloat16,
    }
    assert (state["compensation"].abs() <= weight.abs() * 2**-8).all()
    assert state["compensation"].abs().max() > 0
    assert state["step"].item() == 50


def test_a_weight_without_gradient_stays_and_has_no_state():
    weights = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = KahanAdamW(weights, lr=1.0)
    weights[0].grad = torch.ones(3, dtype=torch.bfloat16)
    optimizer.step()
    assert list(optimizer.state) == [weights[0]]
    assert weights[1].tolist() == [1.0] * 3 and weights[0].tolist() != [1.0] * 3


def test_groups_have_rates_and_decays_of_their_own():
    still, decaying, moving = (torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16)) for _ in range(3))
    groups = [
        {"params": [still], "lr": 0.0, "weight_decay": 0.5},
        {"params": [decaying], "lr": 0.5, "weight_decay": 0.5},
        {"params": [moving], "lr": torch.tensor(0.5), "weight_decay": 0.0},
    ]
    optimizer = KahanAdamW(groups)
    for weight, gradient in ((still, 1.0), (decaying, 0.0), (moving, 1.0)):
        weight.grad = torch.full_like(weight, gradient)
    optimizer.step()
    assert [one.item() for one in (still, decaying, moving)] == [1.0, 0.75, 0.5]
    assert optimizer.param_groups[2]["lr"].item() == 0.5


def test_a_state_of_zeros_is_a_fresh_start():
    """As `trainer.Start` restores it, in place."""
    weight, gradients = draws(5)
    found = []
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = KahanAdamW([parameter], lr=1e-2)
    for _ in range(2):
        with torch.no_grad():
            parameter.copy_(weight)
        for value in (optimizer.state[parameter] if found else {}).values():
            value.zero_()
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        found.append((parameter.detach().clone(), copy.deepcopy(optimizer.state[parameter])))
    (one, state), (other, same) = found
    assert torch.equal(one, other)
    assert all(torch.equal(state[name], same[name]) for name in state)


def test_a_step_waits_for_nothing_on_the_device():
    """On the meta device a value that is asked for is an error."""
    weight = torch.nn.Parameter(torch.empty(3, 4, dtype=torch.bfloat16, device="meta"))
    optimizer = KahanAdamW([weight], capturable=True)
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    for _ in range(2):
        weight.grad = torch.empty_like(weight)
        optimizer.step()
    assert {value.device.type for value in optimizer.state[weight].values()} == {"meta"}


def test_a_closure_is_refused():
    optimizer = KahanAdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 1.0)
