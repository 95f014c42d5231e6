"""What a training costs at least, counted from the model: arithmetic per token and memory traffic per step.

One multiply-add is 2 FLOPs. Only matrix products count: embeddings, normalisation, activations, softmax and the
optimizer count 0. The backward pass of a product is one more product for each operand that needs a gradient, so frozen
weights cost what they should: no gradient of their own, and none for their input unless something below still trains.
Which operands do is asked of autograd: the model is run once on the meta device, where nothing is computed.
`torch.utils.flop_counter` counts the same (tests/test_flops.py); it knows no units, and 0 for a CPU's fused attention.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from joulesweep import kernels, precision
from joulesweep.model import MaskedLanguageModel

LENGTH = 13  # of the one row that is traced; a prime that is no model's width
#: Functions with products that are not taken apart here: a model that calls one has no count, rather than a wrong one.
UNCOUNTED = {
    torch.einsum,
    torch.conv1d,
    torch.conv2d,
    torch.addbmm,
    torch.addmv,
    torch.mv,
    torch.bilinear,
    functional.multi_head_attention_forward,
}
#: Where the two factors stand among the arguments.
FACTORS = {
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), 0),
    **dict.fromkeys((torch.bmm, torch.Tensor.bmm, torch.mm, torch.Tensor.mm), 0),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm), 1),
}


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product of the forward pass.

    Attributes:
        unit: what it is computed for: each "token", "head_position" or "token_pair".
        flops: of the forward pass, per unit.
        num_gradients: how many of its two factors need a gradient: so many products more in the backward pass.
        weight: name of the parameter that is a factor, or None.
        weight_read_again: whether the backward pass needs that weight, for the gradient of the other factor.
        layer: which checkpointed layer it is in, or None.
    """

    unit: str
    flops: float
    num_gradients: int
    weight: str | None
    weight_read_again: bool
    layer: int | None

    @property
    def own_flops(self) -> float:
        """Of the gradient of its weight, per unit."""
        return self.flops if self.weight is not None else 0.0


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A forward pass.

    Attributes:
        products: in order of execution.
        reached_by: for each parameter that is used, how many of the products come before the backward pass stops
            needing their gradients, if it is the deepest that trains: those from this index on are needed.
        layers: for each of them, the checkpointed layer that it is in, or None.
    """

    products: list[Product]
    reached_by: dict[str, int]
    layers: dict[str, int | None]


def described(core: MaskedLanguageModel, shards: int = 1) -> dict[str, Any]:
    """What a record says of the work of a training, as entries of its measurement; nulls with a reason where unknown.

    Call it before the strategy wraps the model (FSDP's hooks would run). It draws no random number.

    Args:
        core: the module, its method applied and its weights in the dtype that trains.
        shards: over how many devices gradients and optimizer state are divided.

    Returns:
        flop_coefficients: see `coefficients`; bytes_per_step: see `bytes_per_step`; flop_reason: null, or why not.
    """
    try:
        trace = traced(core)
        products = trace.products
        trained = {name for name, parameter in core.model.named_parameters() if parameter.requires_grad}
        return {
            "flop_coefficients": coefficients(products, {trace.layers[name] for name in trained & trace.layers.keys()}),
            "bytes_per_step": bytes_per_step(core, products, shards),
            "flop_reason": None,
        }
    except Exception as error:  # whatever a foreign model does: a count is not worth a training
        return {"flop_coefficients": None, "bytes_per_step": None, "flop_reason": uncounted(error)}


def uncounted(error: Exception) -> str:
    """Why `traced` failed, in one line."""
    return f"the model's products cannot be counted: {type(error).__name__}: {str(error).splitlines()[0][:200]}"


def coefficients(products: list[Product], trained: Set[int | None] = frozenset()) -> dict[str, float]:
    """FLOPs of forward and backward pass per unit.

    Args:
        products: of the forward pass.
        trained: checkpointed layers with a parameter that trains: computed again even if no product needs it.

    Returns:
        token: per position of the encoder. head_position: per position at which the head is computed. token_pair: per
        ordered pair of positions of one row, over all layers and heads. recomputed_token, recomputed_token_pair: what
        checkpointing computes a second time: executed, and never useful.
    """
    found = dict.fromkeys(("token", "head_position", "token_pair", "recomputed_token", "recomputed_token_pair"), 0.0)
    # A layer is computed again if its backward pass is computed at all.
    needed = ({product.layer for product in products if product.num_gradients} | trained) - {None}
    for product in products:
        found[product.unit] += product.flops * (1 + product.num_gradients)
        if product.layer in needed:
            found[f"recomputed_{product.unit}"] += product.flops
    return found


def bytes_per_step(core: MaskedLanguageModel, products: list[Product], shards: int = 1) -> int:
    """Least traffic between memory and one device for weights, gradients and AdamW's states in an optimizer step.

    With s the bytes of a stored weight and c those of the number that is multiplied (the copy that autocast makes):

        weight of a product   c for the forward pass; c again where the backward pass needs it
        that trains           s for writing its gradient; 7 s for AdamW: it reads weight, gradient and two moments and
                              writes weight and moments; c for writing the copy, if there is one

    Full training takes 40 bytes per weight in fp32 and tf32, 38 in 16-bit autocast, 20 in bf16-true. It is a floor:
    activations, the rows read of embeddings, biases and normalisation count nothing, a copy is made while the weight
    is at hand (PyTorch reads it once more), and several micro-batches count as one.

    Args:
        core: the module.
        products: of it.
        shards: over how many devices gradients and optimizer state are divided.
    """
    autocast = precision.PRECISIONS[core.precision_name].autocast
    read, read_again = (
        {product.weight for product in products if product.weight_read_again or not again} for again in (False, True)
    )
    total = 0
    for name, parameter in core.model.named_parameters():
        stored = parameter.element_size()
        multiplied = getattr(torch, autocast).itemsize if autocast else stored
        size = multiplied * ((name in read) + (name in read_again))
        if parameter.requires_grad:
            size += (8 * stored + multiplied * (name in read and autocast is not None)) / shards
        total += round(parameter.numel() * size)
    return total


def traced(core: MaskedLanguageModel) -> Trace:
    """The products of one forward pass, in order of execution, and where parameters first come in.

    Raises:
        ValueError: a product is neither per position nor per pair of positions.
    """
    model = core.model
    weights = {
        name: torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), requires_grad=p.requires_grad)
        for name, p in model.named_parameters()
    }
    state = {**weights, **{name: b.to("meta") for name, b in model.named_buffers()}}
    trace = _Trace({id(weight): name for name, weight in weights.items()})
    input_ids = torch.empty((1, LENGTH), dtype=torch.long, device="meta")
    with _hooked(model, trace), torch.enable_grad(), trace:
        torch.func.functional_call(model, state, kwargs={"input_ids": input_ids})
    return Trace(products=trace.products, reached_by=trace.reached_by, layers=trace.layers)


@contextlib.contextmanager
def _hooked(model: torch.nn.Module, trace: _Trace) -> Iterator[None]:
    """Tell the trace which layer is being computed and when the head begins; nothing is dropped or checkpointed."""
    training = [module for module in model.modules() if module.training]
    layers = [module for module in model.modules() if is_checkpointed(module)]
    handles = [model.base_model.register_forward_hook(lambda *_: trace.enter_head())]  # type: ignore[union-attr]
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(lambda *_: trace.enter_layer()))
        handles.append(layer.register_forward_hook(lambda *_: trace.leave_layer()))
    replaced = [module for module in model.modules() if isinstance(module, kernels.Linear)]
    for linear in replaced:
        linear.forward = types.MethodType(torch.nn.Linear.forward, linear)  # type: ignore[method-assign]
    model.eval()
    try:
        yield
    finally:
        for linear in replaced:
            del linear.forward
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()


def is_checkpointed(module: torch.nn.Module) -> bool:
    """Whether a module computes its forward pass again in the backward pass, while it trains."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing


class _Trace(TorchFunctionMode):
    """Takes note of every matrix product while it is active."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names  # of the parameters, by identity
        self.products: list[Product] = []
        self.reached_by: dict[str, int] = {}
        self.layers: dict[str, int | None] = {}
        self.in_head = False
        self.layer: int | None = None
        self.num_layers = 0

    def enter_head(self) -> None:
        self.in_head = True

    def enter_layer(self) -> None:
        self.layer = self.num_layers
        self.num_layers += 1

    def leave_layer(self) -> None:
        self.layer = None

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        kinds: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in UNCOUNTED:
            raise ValueError(f"{func.__name__} is not counted")
        if func is functional.linear:
            given = {**dict(zip(("input", "weight"), args, strict=False)), **kwargs}
            self._add(given["input"], given["weight"], given["weight"].shape[0])
        elif func is functional.scaled_dot_product_attention:
            self._add_attention(
                *(args[i] if len(args) > i else kwargs[n] for i, n in enumerate(("query", "key", "value")))
            )
        elif func in FACTORS:
            left, right = args[FACTORS[func] : FACTORS[func] + 2]
            self._add(left, right, right.shape[-1])
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and id(result._base) not in self.names:  # a view of a weight is no use yet
            for tensor in (*args, *kwargs.values()):
                name = isinstance(tensor, torch.Tensor) and (
                    self.names.get(id(tensor)) or self.names.get(id(tensor._base))
                )
                if name:
                    self.reached_by.setdefault(name, len(self.products))
                    self.layers.setdefault(name, self.layer)
        return result

    def _add(self, left: torch.Tensor, right: torch.Tensor, width: int) -> None:
        """[…, m, k] times a matrix of this width."""
        needs = (left.requires_grad, right.requires_grad)
        self._note(2.0 * left.numel() * width, needs, (left, right), LENGTH in (width, left.shape[-1]))

    def _add_attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Scores and weighted values, softmax between them; query [..., length, width]."""
        scores = query.requires_grad or key.requires_grad
        length = key.shape[-2]
        pairs = length == LENGTH
        self._note(2.0 * query.numel() * length, (query.requires_grad, key.requires_grad), (query, key), pairs)
        values = 2.0 * query.numel() // query.shape[-1] * length * value.shape[-1]
        self._note(values, (scores, value.requires_grad), (query, value), pairs)

    def _note(
        self, flops: float, needs: tuple[bool, bool], factors: tuple[torch.Tensor, torch.Tensor], pairs: bool
    ) -> None:
        left, right = factors
        name = self.names.get(id(right)) or self.names.get(id(right._base))
        unit = "head_position" if self.in_head else "token_pair" if name is None else "token"
        per_position = left.numel() // left.shape[-1] == LENGTH if name else left.shape[-2] == LENGTH and pairs
        if not per_position:
            raise ValueError(f"a product of {tuple(left.shape)} and {tuple(right.shape)} is not per position or pair")
        product = Product(
            unit=unit,
            flops=flops / (LENGTH**2 if unit == "token_pair" else LENGTH),
            num_gradients=sum(needs),
            weight=name,
            weight_read_again=name is not None and needs[0],
            layer=self.layer,
        )
        self.products.append(product)
