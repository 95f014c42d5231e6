"""AdamW with Kahan summation takes the steps of AdamW in full precision, however small, on weights in bfloat16."""

from __future__ import annotations

import copy

import pytest
import tiny_run
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from joulesweep.train import kahan, loop
from joulesweep.train.kahan import KahanAdamW

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
    """Where bfloat16 alone loses every one of them."""
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
        "exp_avg_sq": torch.float32,
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
    """As `trainer.InitialState` restores it, in place."""
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


def test_the_second_moment_decays():
    """A step takes a thousandth of it, less than bfloat16 can take: what large gradients left would stay."""
    stream = torch.Generator().manual_seed(0)
    gradients = [torch.randn(200, generator=stream) * (1 if i < 50 else 0.1) for i in range(1500)]

    def left(kind, dtype, **options):
        weight = torch.nn.Parameter(torch.ones(200, dtype=dtype))
        optimizer = kind([weight], **GROUP, **options)
        for gradient in gradients:
            weight.grad = gradient.bfloat16().to(dtype)
            optimizer.step()
        return optimizer.state[weight]["exp_avg_sq"].mean().item()

    exact = left(torch.optim.AdamW, torch.float64)
    assert left(KahanAdamW, torch.bfloat16) == pytest.approx(exact, rel=1e-3)
    assert left(torch.optim.AdamW, torch.bfloat16, fused=True) > 1.5 * exact


def several(number, num_steps, absent=(), size=7):
    """Weights after steps in which some have no gradient, each also as AdamW computes it in double precision."""
    stream = torch.Generator().manual_seed(1)
    starts = [(0.5 + torch.rand(size, generator=stream)).bfloat16() for _ in range(number)]
    kinds = {torch.bfloat16: KahanAdamW, torch.float64: torch.optim.AdamW}
    weights = {dtype: [torch.nn.Parameter(start.to(dtype)) for start in starts] for dtype in kinds}
    optimizers = {dtype: kind(weights[dtype], lr=1e-2) for dtype, kind in kinds.items()}
    for step in range(num_steps):
        for i in range(number):
            gradient = torch.randn(size, generator=stream).bfloat16()
            for dtype in kinds:
                weights[dtype][i].grad = None if (step, i) in absent else gradient.to(dtype)
        for optimizer in optimizers.values():
            optimizer.step()
    states = optimizers[torch.bfloat16].state
    found = [weight.double() + states[weight]["compensation"].double() for weight in weights[torch.bfloat16]]
    return found, weights[torch.float64], [states[weight]["step"] for weight in weights[torch.bfloat16]]


def test_weights_that_took_the_same_steps_share_their_counter_and_others_do_not():
    absent = {(0, 3), (2, 1), (2, 2), (4, 2), (4, 3)}
    found, exact, counters = several(5, 6, absent)
    assert [int(counter) for counter in counters] == [6, 5, 4, 4, 6]
    assert counters[0] is counters[4]
    assert len({id(counter) for counter in counters}) == 4
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-3, atol=0)


def test_no_more_is_computed_at_once_than_memory_is_meant_for(monkeypatch):
    whole, *_ = several(6, 4)
    monkeypatch.setattr(kahan, "MOST", 14)
    weights = [torch.empty(size) for size in (7, 7, 1, 20, 20, 3, 4)]
    assert [[len(one) for one in some] for some in kahan._portions(weights)] == [[7, 7], [1], [20], [20], [3, 4]]
    divided, *_ = several(6, 4)
    assert all(torch.equal(one, other) for one, other in zip(whole, divided, strict=True))


@pytest.mark.usefixtures("torch_as_it_was")
def test_weights_that_fsdp_divides_are_updated_as_whole_ones(tmp_path):
    assets = tiny_run.assets(tmp_path)
    whole, divided = (
        loop.train(
            tiny_run.spec(precision="bf16-kahan", strategy=strategy), assets.model_folder, assets.tokens, tmp_path
        ).losses
        for strategy in ("single", "fsdp")
    )
    assert divided == whole


class Launched(TorchDispatchMode):
    """Counts the operators that would start kernels on a GPU."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func._overloadpacket.__name__ not in ("detach", "empty_like", "zeros_like")
        return func(*args, **(kwargs or {}))


def test_a_step_of_many_weights_takes_as_many_operators_as_one_of_few():
    """Each starts a kernel or a few on a GPU, and the host would not keep up with 30 for every weight."""
    numbers = []
    for number in (2, 100):
        weights = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(number)]
        optimizer = KahanAdamW(weights, lr=1e-3)
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            with Launched() as launched:
                optimizer.step()
        numbers.append(launched.number)
    assert numbers[0] == numbers[1] < 40


def test_a_closure_is_refused():
    optimizer = KahanAdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 1.0)
