"""Linear layers by oneDNN are PyTorch's own: the same numbers, the same gradients, the same names of weights."""

from __future__ import annotations

import pytest
import tiny_run
import torch
from torch.nn import functional

from joulesweep.nets import onednn

pytestmark = pytest.mark.skipif(not onednn.available(), reason="this build of PyTorch has no oneDNN")


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
    found = onednn.product(left, right, added)
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
        assert_equal(onednn.product(left, right), left @ right.T)


def pair(draw, bias=True, width=9):
    """PyTorch's layer, and ours with the same weights."""
    theirs, ours = (torch.nn.Linear(12, width, bias=bias) for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    onednn.adopt([ours])
    assert (type(theirs), type(ours)) == (torch.nn.Linear, onednn.Linear)
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
    given, product, products = draw(3, 12).requires_grad_(inputs_train), onednn.product, []
    monkeypatch.setattr(onednn, "product", lambda *tensors: (products.append(1), product(*tensors))[1])
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
    onednn.adopt(model.modules())
    changed = {name for name, module in model.named_modules() if type(module) is not before[name]}
    assert changed == {"plain", "stack.0"}
    assert {type(model.get_submodule(name)) for name in changed} == {onednn.Linear}


def test_adopting_changes_neither_weights_nor_their_names_nor_the_saved_model(tmp_path):
    plain, adopted = tiny_run.network(), tiny_run.network()
    optimizer = torch.optim.SGD(adopted.parameters(), lr=1.0)
    onednn.adopt(adopted.modules())
    onednn.adopt(adopted.modules())  # twice is once
    assert sum(type(module) is onednn.Linear for module in adopted.modules()) >= 12
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
            onednn.adopt(model.modules())
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


def plant(monkeypatch, seconds):
    """Give every shape its seconds by PyTorch and by oneDNN, one per round, beginning with what warms up."""
    clock, rounds = [0.0], {}

    def taken(one):
        kind, rows = type(one.layer), len(one.inputs)
        number = rounds[kind, rows] = rounds.get((kind, rows), -1) + 1
        of_round = seconds[rows][kind is onednn.Linear]
        found = of_round[number % len(of_round)] if isinstance(of_round, list) else of_round
        clock[0] += found
        return found

    monkeypatch.setattr(onednn._Try, "seconds", taken)
    monkeypatch.setattr(onednn, "clock", lambda: clock[0])
    return rounds


def mixed():
    """Two layers that are given 8 rows, one that is given 64, and one that is no plain layer."""
    layers = {"first": torch.nn.Linear(16, 16), "second": torch.nn.Linear(16, 16), "wide": torch.nn.Linear(16, 16)}
    return torch.nn.ModuleDict({**layers, "norm": torch.nn.LayerNorm(16)})


def chosen(model=None, agreed=lambda seconds: seconds):
    model = mixed() if model is None else model
    found = onednn.choose(model, lambda name: 64 if name == "wide" else 8, agreed)
    return found, {name: type(layer) for name, layer in model.items() if name != "norm"}


def test_each_shape_is_computed_by_the_library_that_is_faster_on_it(monkeypatch):
    plant(monkeypatch, {8: (2e-3, 1e-3), 64: (1e-3, 2e-3)})
    found, kinds = chosen()
    assert kinds == {"first": onednn.Linear, "second": onednn.Linear, "wide": torch.nn.Linear}
    told = [
        (row["rows"], row["num_layers"], row["library"], row["pytorch_s"], row["onednn_s"]) for row in found["shapes"]
    ]
    assert told == [(8, 2, "onednn", 2e-3, 1e-3), (64, 1, "pytorch", 1e-3, 2e-3)]
    assert found["reason"] is None and found["num_rounds"] == onednn.MOST_ROUNDS
    assert found["spent_s"] == pytest.approx(10 * 6e-3)  # a round to warm up


@pytest.mark.parametrize(("onednn_s", "library"), [(0.98e-3, "pytorch"), (1e-3, "pytorch"), (0.96e-3, "onednn")])
def test_a_tie_is_pytorchs_own(monkeypatch, onednn_s, library):
    plant(monkeypatch, {8: (1e-3, onednn_s), 64: (1e-3, onednn_s)})
    assert [row["library"] for row in chosen()[0]["shapes"]] == [library, library]


def test_rounds_that_something_disturbed_change_nothing(monkeypatch):
    """Four of nine, and what warms up, which takes longest of all."""
    disturbed = [1.0, 1e-3, 5e-3, 1e-3, 5e-3, 1e-3, 5e-3, 1e-3, 5e-3, 1e-3]
    monkeypatch.setattr(onednn, "BUDGET_S", 10.0)
    plant(monkeypatch, {8: (2e-3, disturbed), 64: (disturbed, 2e-3)})
    found, _ = chosen()
    assert [(row["library"], row["pytorch_s"], row["onednn_s"]) for row in found["shapes"]] == [
        ("onednn", 2e-3, 1e-3),
        ("pytorch", 1e-3, 2e-3),
    ]


@pytest.mark.parametrize(("seconds", "num_rounds"), [(1e-3, 9), (6e-3, 8), (11e-3, 4), (20e-3, 3), (200e-3, 1)])
def test_the_comparison_keeps_to_its_budget(monkeypatch, seconds, num_rounds):
    """A round takes three of these seconds, and so does what warms up; too few rounds decide nothing."""
    plant(monkeypatch, {8: (seconds, seconds / 2), 64: (seconds, seconds / 2)})
    found, kinds = chosen()
    assert found["num_rounds"] == num_rounds
    decided = num_rounds >= onednn.LEAST_ROUNDS
    assert set(kinds.values()) == {onednn.Linear if decided else torch.nn.Linear}
    assert {row["onednn_s"] for row in found["shapes"]} == {seconds / 2 if decided else None}


def test_all_ranks_choose_by_the_slowest_one(monkeypatch):
    """Whatever each has timed itself."""
    slowest = torch.tensor([[1e-3, 3e-3], [3e-3, 1e-3]], dtype=torch.float64)
    seen = []
    for seconds in ((2e-3, 1e-3), (1e-3, 2e-3)):
        plant(monkeypatch, {8: seconds, 64: seconds})
        own = []
        found, kinds = chosen(agreed=lambda given, own=own: (own.append(given), slowest)[1])
        assert own[0].tolist() == [list(seconds)] * 2 and own[0].dtype == torch.float64
        seen.append((found["shapes"], kinds))
    assert seen[0] == seen[1]
    assert seen[0][1] == {"first": torch.nn.Linear, "second": torch.nn.Linear, "wide": onednn.Linear}


def test_a_rank_that_had_too_little_time_decides_for_pytorch(monkeypatch):
    plant(monkeypatch, {8: (2e-3, 1e-3), 64: (2e-3, 1e-3)})
    found, kinds = chosen(agreed=lambda seconds: torch.full_like(seconds, float("inf")))
    assert set(kinds.values()) == {torch.nn.Linear}
    assert {(row["library"], row["pytorch_s"], row["onednn_s"]) for row in found["shapes"]} == {("pytorch", None, None)}


@pytest.mark.parametrize(
    ("sizes", "rows", "expected"),
    [
        ((128, 512), 352, (256, 128, 512)),
        ((768, 768), 352, (256, 256, 512)),  # 2^28 multiply-adds, halved
        ((768, 30522), 47, (64, 512, 1024)),
        ((16, 16), 0, (1, 16, 16)),
    ],
)
def test_shapes_are_of_few_sizes_and_none_is_large(sizes, rows, expected):
    with torch.device("meta"):
        found = onednn.Shape.of(torch.nn.Linear(*sizes), rows)
    assert (found.rows, found.inputs, found.outputs) == expected
    assert found.rows * found.inputs * found.outputs <= onednn.MOST_MACS


def test_layers_that_differ_in_their_products_are_timed_apart(monkeypatch):
    rounds = plant(monkeypatch, {8: (1.0, 1.0)})
    model = torch.nn.ModuleDict({"plain": torch.nn.Linear(4, 4), "bare": torch.nn.Linear(4, 4, bias=False)})
    model["frozen"] = torch.nn.Linear(4, 4)
    model["frozen"].weight.requires_grad_(False)
    found = onednn.choose(model, lambda name: 8, lambda seconds: seconds)
    assert sorted((row["bias"], row["trains"]) for row in found["shapes"]) == [
        (False, True),
        (True, False),
        (True, True),
    ]
    assert len(rounds) == 2


def test_choosing_draws_no_random_number_and_leaves_no_gradient(monkeypatch):
    model, state = mixed(), torch.get_rng_state()
    plant(monkeypatch, {8: (2.0, 1.0), 64: (2.0, 1.0)})
    chosen(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [torch.nn.Linear, onednn.Linear])
@pytest.mark.parametrize("trains", [True, False])
def test_what_is_timed_is_a_forward_and_a_backward_pass_of_the_library(planted_times, monkeypatch, kind, trains):
    monkeypatch.undo()  # the planted seconds
    products, product = [], onednn.product
    monkeypatch.setattr(onednn, "product", lambda *tensors: (products.append(1), product(*tensors))[1])
    one = onednn._Try(onednn.Shape(rows=4, inputs=8, outputs=2, bias=True, trains=trains), kind)
    for _ in range(2):
        assert one.seconds() >= 0
        assert len(products) == (kind is onednn.Linear) * (2 + trains)
        assert one.inputs.grad.shape == (4, 8) and (one.layer.weight.grad is not None) == trains
        products.clear()


def test_a_build_without_onednn_keeps_pytorchs_layers(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not onednn.available()
    found, kinds = chosen()
    assert set(kinds.values()) == {torch.nn.Linear}
    assert found == onednn.unchosen("this build of PyTorch has no oneDNN")
