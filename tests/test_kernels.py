"""Linear layers by oneDNN are PyTorch's own: the same numbers, the same gradients, the same names of weights."""

from __future__ import annotations

import pytest
import tiny_run
import torch
from torch.nn import functional

from joulesweep import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason="this build of PyTorch has no oneDNN")


@pytest.fixture
def draw():
    """Random tensors of a shape, the same in every test."""
    stream = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=stream)


def assert_equal(found, expected):
    """But for the order of sums."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 12), (2, 3, 5, 12), (1, 12), (0, 12), (2, 0, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_matrix_product(draw, shape, bias):
    left, right, added = draw(*shape), draw(9, 12), draw(9) if bias else None
    found = kernels.product(left, right, added)
    assert (found.shape, found.dtype) == ((*shape[:-1], 9), torch.float32)
    if found.numel():
        assert_equal(found, left @ right.T + (added if bias else 0))


@pytest.mark.parametrize(
    "strided",
    [
        pytest.param(lambda draw, n, k: draw(k, n).t(), id="transposed"),
        pytest.param(lambda draw, n, k: draw(n, 3 * k)[:, k : 2 * k], id="columns"),
        pytest.param(lambda draw, n, k: draw(2 * n, k)[::2], id="every-other-row"),
        pytest.param(lambda draw, n, k: draw(n, 2 * k)[:, ::2], id="every-other-column"),
        pytest.param(lambda draw, n, k: draw(1, k).expand(n, k), id="repeated"),
        pytest.param(lambda draw, n, k: draw(n * k + 3)[3:].view(n, k), id="shifted"),
    ],
)
def test_a_product_takes_tensors_of_any_strides(draw, strided):
    plain = draw(7, 12), draw(9, 12)
    for left, right in ((strided(draw, 7, 12), plain[1]), (plain[0], strided(draw, 9, 12))):
        assert_equal(kernels.product(left, right), left @ right.T)


def pair(draw, bias=True, width=9):
    """PyTorch's layer, and ours with the same weights."""
    theirs, ours = (torch.nn.Linear(12, width, bias=bias) for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    assert kernels.adopt(ours)
    assert (type(theirs), type(ours)) == (torch.nn.Linear, kernels.Linear)
    return theirs, ours


@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 12), (1, 1, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_pytorchs_layer(draw, shape, bias):
    layers, inputs, upstream = pair(draw, bias), draw(*shape), draw(*shape[:-1], 9)
    found = []
    for layer in layers:
        given = inputs.clone().requires_grad_()
        out = layer(given)
        out.backward(upstream)
        found.append([out.detach(), given.grad, *(p.grad for p in layer.parameters())])
    assert len(found[0]) == len(found[1]) == 3 + bias
    for theirs, ours in zip(*found, strict=True):
        assert ours.abs().max() > 0
        assert_equal(ours, theirs)


def test_gradients_that_come_and_go_transposed_are_right(draw):
    """As those of attention: views of another layout."""
    values, found = draw(12, 5, 3), []
    for layer in pair(draw):
        given = values.clone().requires_grad_()
        (layer(given.transpose(0, 2)).transpose(0, 1) * torch.arange(3.0)[:, None]).square().sum().backward()
        found.append([given.grad, layer.weight.grad, layer.bias.grad])
    for theirs, ours in zip(*found, strict=True):
        assert_equal(ours, theirs)


def test_a_gradient_of_one_number_repeated_is_right(draw):
    """`sum` gives a gradient without strides."""
    found = []
    for layer in pair(draw):
        layer(torch.ones(3, 5, 12)).sum().backward()
        found.append(layer.weight.grad)
    assert_equal(found[1], found[0])


@pytest.mark.parametrize(
    ("trains", "num_products"), [((True, True), 3), ((True, False), 2), ((False, True), 2), ((False, False), 1)]
)
def test_what_is_frozen_costs_no_product(draw, monkeypatch, trains, num_products):
    inputs_train, weight_trains = trains
    _, layer = pair(draw)
    layer.weight.requires_grad_(weight_trains)
    given, product, products = draw(3, 12).requires_grad_(inputs_train), kernels.product, []
    monkeypatch.setattr(kernels, "product", lambda *tensors: (products.append(1), product(*tensors))[1])
    layer(given).sum().backward()  # the bias trains in any case
    assert len(products) == num_products
    assert (given.grad is not None, layer.weight.grad is not None) == trains
    assert layer.bias.grad.tolist() == [3.0] * 9


def test_a_frozen_bias_has_no_gradient(draw):
    _, layer = pair(draw)
    layer.bias.requires_grad_(False)
    layer(draw(3, 12)).sum().backward()
    assert layer.bias.grad is None
    assert layer.weight.grad is not None


def test_nothing_is_remembered_where_nothing_trains(draw):
    _, layer = pair(draw)
    with torch.no_grad():
        assert not layer(draw(3, 12)).requires_grad
    assert not layer.requires_grad_(False)(draw(3, 12)).requires_grad


def test_only_plain_linear_layers_are_adopted():
    class Own(torch.nn.Linear):
        """A layer that computes something else."""

        def forward(self, inputs):
            return super().forward(inputs) * 2

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.own = torch.nn.Linear(4, 4), Own(4, 4)
            self.stack = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Embedding(4, 4))
            self.attention = torch.nn.MultiheadAttention(4, 1)  # its out_proj is a subclass, called by its weights

    model = Holder()
    before = {name: type(module) for name, module in model.named_modules()}
    assert kernels.adopt(model)
    changed = {name for name, module in model.named_modules() if type(module) is not before[name]}
    assert changed == {"plain", "stack.0"}
    assert {type(model.get_submodule(name)) for name in changed} == {kernels.Linear}


def test_adopting_changes_neither_weights_nor_their_names_nor_the_saved_model(tmp_path):
    plain, adopted = tiny_run.network(), tiny_run.network()
    optimizer = torch.optim.SGD(adopted.parameters(), lr=1.0)
    assert kernels.adopt(adopted)
    assert kernels.adopt(adopted)  # twice is once
    assert sum(type(module) is kernels.Linear for module in adopted.modules()) >= 12
    assert list(adopted.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in adopted.state_dict().items())
    assert adopted.cls.predictions.decoder.weight is adopted.bert.embeddings.word_embeddings.weight  # still tied
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in adopted.parameters()}
    for name, model in (("plain", plain), ("adopted", adopted)):
        model.save_pretrained(tmp_path / name)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "adopted" / file).read_bytes()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "modernbert", "albert"])
def test_a_whole_model_trains_as_before(kind):
    ids = torch.randint(5, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (tiny_run.network(kind), tiny_run.network(kind)):
        if found:
            kernels.adopt(model)
        loss = functional.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten())
        loss.backward()
        found.append((loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (theirs, expected), (ours, gradients) = found
    assert ours == pytest.approx(theirs, rel=1e-6)
    largest = float(max(gradient.abs().max() for gradient in expected.values()))
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-5 * largest, msg=name)


def test_activations_can_be_computed_again(draw):
    from torch.utils.checkpoint import checkpoint

    found = []
    for again in (False, True):
        torch.manual_seed(0)
        _, layer = pair(draw, width=12)
        given = torch.ones(3, 12, requires_grad=True)
        out = checkpoint(layer, given, use_reentrant=False) if again else layer(given)
        out.square().sum().backward()
        found.append((given.grad, layer.weight.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_build_without_onednn_keeps_pytorchs_layers(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert not kernels.available()
    assert not kernels.adopt(model)
    assert type(model[0]) is torch.nn.Linear
