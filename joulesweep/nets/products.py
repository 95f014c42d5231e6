"""Trace the matrix products of a model's forward pass, and the parameters that each operand depends on."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from joulesweep.axes.task import TASKS
from joulesweep.nets import onednn
from joulesweep.nets.language_model import LanguageModel, attributes_kept

#: Tokens of the row that is traced, and of its target for an encoder-decoder: primes, which no model has as a width.
LENGTH, TARGET_LENGTH = 13, 11


#: Unit of a product, by its number of positions and, in attention, of the positions that they are paired with.
UNIT_OF: dict[tuple[int, ...], str] = {
    (LENGTH,): "token",
    (TARGET_LENGTH,): "target_token",
    (LENGTH, LENGTH): "token_pair",
    (TARGET_LENGTH, TARGET_LENGTH): "target_pair",
    (TARGET_LENGTH, LENGTH): "cross_pair",
}


#: Operators on weights that contain no matrix product, besides those that PyTorch marks as pointwise, reductions or
#: views.
HARMLESS = {
    "_fused_rms_norm",
    "_softmax",
    "_to_copy",
    "_unsafe_view",
    "_weight_norm_interface",
    "cat",
    "constant_pad_nd",
    "copy_",
    "embedding",
    "flip",
    "gather",
    "index",
    "index_select",
    "linalg_vector_norm",
    "native_batch_norm",
    "native_layer_norm",
    "repeat",
    "roll",
    "stack",
}


#: Index of the first of the two factors of a product among the arguments.
FACTORS = {
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), 0),
    **dict.fromkeys((torch.bmm, torch.Tensor.bmm, torch.mm, torch.Tensor.mm), 0),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm), 1),
}


#: Answers to questions about masks and ids, which have no data on the meta device: no token is padding or masked.
ASKED = {torch.Tensor.__bool__: True, torch.Tensor.item: True, torch.Tensor.__contains__: False}


#: Names of products of rows with the experts that the rows are sorted by, in PyTorch and transformers.
GROUPED = ("grouped_mm", "grouped_mm_fallback")


#: Names of the factors of a product as keyword arguments.
NAMES = ("other", "mat1", "mat2", "batch1", "batch2")


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product of the forward pass.

    Attributes:
        unit: one of `work.UNITS`.
        flops: of the forward pass, per unit.
        num_gradients: number of its two factors that need a gradient, each with one more product in the backward pass.
        behind: for each such factor that is not a weight, the latest trained parameter that it depends on, as a value
            of `Trace.reached_by`: it needs no gradient if only earlier parameters train.
        weight: name of the parameter that is a factor, or None.
        weight_read_again: whether the backward pass needs that weight, for the gradient of the other factor.
        layer: index of its checkpointed layer, or None.
        share: least share of the weight that is read: of experts, those that one token uses.
    """

    unit: str
    flops: float
    num_gradients: int
    behind: tuple[int, ...]
    weight: str | None
    weight_read_again: bool
    layer: int | None
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Trace of a forward pass.

    Attributes:
        products: in order of execution.
        reached_by: for each used parameter, the number of products before its first use. If it is the first trained
            parameter in this order, operands that depend on it or on a later one need gradients.
        layers: for each used parameter, the index of its checkpointed layer, or None.
        uncounted: why products are missing, or None.
    """

    products: list[Product]
    reached_by: dict[str, int]
    layers: dict[str, int | None]
    uncounted: str | None = None


def traced(core: LanguageModel) -> Trace:
    """Trace one forward pass: its products in order of execution, and the first use of each parameter.

    Raises:
        ValueError: some products cannot be counted.
    """
    trace = followed(core)
    if trace.uncounted is not None:
        raise ValueError(trace.uncounted)
    return trace


def followed(core: LanguageModel) -> Trace:
    """Trace as `traced` does, for the order of the parameters alone: products may be missing."""
    model = core.model
    weights = {
        name: torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=p.requires_grad)
        for name, p in model.named_parameters()
        for shape, dtype in [_decoded(p)]
    }
    buffers = {name: b.to("meta") for name, b in model.named_buffers()}
    executed = _Executed(weights.values())
    trace = _Trace({id(weight): name for name, weight in weights.items()}, executed)
    trace.num_earlier = getattr(model, "num_virtual_tokens", 0)
    if TASKS[core.task].encoder_decoder and trace.num_earlier == LENGTH - TARGET_LENGTH:
        raise ValueError(f"with {trace.num_earlier} virtual tokens a target is as long as a text")
    inputs: dict[str, Any] = {"input_ids": torch.empty((1, LENGTH), dtype=torch.long, device="meta")}
    if TASKS[core.task].encoder_decoder:
        inputs["decoder_input_ids"] = torch.empty((1, TARGET_LENGTH), dtype=torch.long, device="meta")
    for tensor in (*buffers.values(), *inputs.values()):
        tensor.bare = True  # for as long as the tensor lives
    if not TASKS[core.task].hides:
        inputs["use_cache"] = False  # as `LanguageModel.inputs` says
    try:
        with _hooked(core, trace), torch.enable_grad(), executed, trace:
            torch.func.functional_call(model, {**weights, **buffers}, kwargs=inputs)
    except Exception as error:
        if trace.uncounted is None:
            raise
        raise ValueError(trace.uncounted) from error
    return Trace(products=trace.products, reached_by=trace.reached_by, layers=trace.layers, uncounted=trace.uncounted)


def _decoded(parameter: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
    """Return shape and dtype of a parameter; of one that bitsandbytes quantised, those of its matrix."""
    state = getattr(parameter, "quant_state", None)
    return (parameter.shape, parameter.dtype) if state is None else (state.shape, state.dtype)


@contextlib.contextmanager
def _hooked(core: LanguageModel, trace: _Trace) -> Iterator[None]:
    """Notify the trace of each layer and of the head; dropout and checkpointing are off."""
    model = core.model
    layers = [module for module in model.modules() if is_checkpointed(module)]
    handles = []
    if core.head_name is not None:
        handles.append(model.get_submodule(core.head_name).register_forward_pre_hook(lambda *_: trace.enter_head()))
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(lambda *_: trace.enter_layer()))
        handles.append(layer.register_forward_hook(lambda *_: trace.leave_layer()))
    replaced = [
        module
        for module in model.modules()
        if isinstance(module, onednn.Linear) or hasattr(module._parameters.get("weight"), "quant_state")
    ]
    for linear in replaced:
        linear.forward = types.MethodType(torch.nn.Linear.forward, linear)
    try:
        with attributes_kept(model):
            model.eval()
            yield
    finally:
        for linear in replaced:
            del linear.forward
        for handle in handles:
            handle.remove()


def is_checkpointed(module: torch.nn.Module) -> bool:
    """Whether a module in training mode recomputes its forward pass in the backward pass."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing


class _Executed(TorchDispatchMode):
    """Counts what PyTorch executes while active: FLOPs by its own table, and operators that may hide some."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.unknown: str | None = None
        self.kept = list(
            weights
        )  # and tensors computed from them alone; kept alive, so that their storages stay unique
        self.storages = {_storage(weight) for weight in self.kept}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
            return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        from_weights = [leaf for leaf in tensors if _storage(leaf) in self.storages]
        if (
            (not _is_harmless(func) and any(leaf.ndim > 1 for leaf in from_weights))
            or func.namespace != "aten"
            or func._overloadpacket.__name__.startswith("_fft")
        ):
            self.unknown = func._overloadpacket.__name__
        if from_weights and len(from_weights) == len(tensors):
            results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.kept += results
            self.storages |= set(map(_storage, results))
        return result


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_harmless(func: Any) -> bool:  # noqa: ANN401 - an operator of PyTorch
    marks = {torch.Tag.pointwise, getattr(torch.Tag, "reduction", torch.Tag.pointwise)}
    is_view = any(value.alias_info is not None for value in func._schema.returns)
    return is_view or not marks.isdisjoint(func.tags) or func._overloadpacket.__name__ in HARMLESS


class _Trace(TorchFunctionMode):
    """Records every matrix product while active."""

    def __init__(self, names: dict[int, str], executed: _Executed) -> None:
        super().__init__()
        self.names = names  # of the parameters, by identity
        self.executed = executed
        self.noted = 0.0  # FLOPs, in all
        self.uncounted: str | None = None
        self.products: list[Product] = []
        self.reached_by: dict[str, int] = {}
        self.layers: dict[str, int | None] = {}
        self.num_earlier = 0  # virtual tokens, whose keys and values precede those of the text
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
        if func in ASKED:
            return ASKED[func]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        is_bare = all(
            getattr(leaf, "bare", False) for leaf in tensors
        )  # masks, angles of positions: not part of the model
        noted, executed = self.noted, self.executed.flops
        if not is_bare:
            self._note_products(func, args, kwargs)
        if getattr(func, "__name__", "").endswith(GROUPED):
            result = (
                args[0].to(args[1].dtype) @ args[1][0]
            )  # the same product; the meta device supports few dtypes for the grouped one
        else:
            result = func(*args, **kwargs)
        differ = not is_bare and self.noted - noted != self.executed.flops - executed
        if self.executed.unknown is not None or differ:
            self._miss(f"{self.executed.unknown or getattr(func, '__name__', func)} is not counted")
        is_view = isinstance(result, torch.Tensor) and id(result._base) in self.names
        if not is_view:  # a view of a weight does not use it yet
            self._follow(tensors, result)
            for leaf in tree_leaves(result) if is_bare else ():
                if isinstance(leaf, torch.Tensor):
                    leaf.bare = True  # type: ignore[attr-defined]
        return result

    def _miss(self, why: str) -> None:
        """Note that a product is missing, and continue for the order of the parameters alone."""
        self.uncounted = self.uncounted or why

    def _note_products(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        """Add the products of a function that is known to have some."""
        if func is functional.linear:
            arguments = {**dict(zip(("input", "weight"), args, strict=False)), **kwargs}
            self._add(arguments["input"], arguments["weight"], arguments["weight"].shape[0])
        elif func is functional.scaled_dot_product_attention:
            self._add_attention(
                *(args[i] if len(args) > i else kwargs[n] for i, n in enumerate(("query", "key", "value")))
            )
        elif func in FACTORS:
            named = [tensor for name, tensor in kwargs.items() if name in NAMES]
            left, right = [*args[FACTORS[func] :], *named][:2]
            self._add(left, right, right.shape[-1])
        elif getattr(func, "__name__", "").endswith(GROUPED):
            self._add(args[0], args[1], args[1].shape[-1])

    def _follow(self, tensors: list[torch.Tensor], result: Any) -> None:  # noqa: ANN401 - of any function
        """Note the parameters that are used, and what the results depend on."""
        for tensor in tensors:
            name = self._name(tensor)
            if name is not None:
                self.reached_by.setdefault(name, len(self.products))
                self.layers.setdefault(name, self.layer)
        latest = max(map(self._behind, tensors), default=-1)
        for output in tree_leaves(result) if result is not None else tensors[:1]:  # item assignment returns None
            if isinstance(output, torch.Tensor) and output.requires_grad:
                output.behind = latest  # type: ignore[attr-defined] # for as long as the tensor lives

    def _name(self, tensor: torch.Tensor) -> str | None:
        return self.names.get(id(tensor)) or self.names.get(id(tensor._base))

    def _behind(self, tensor: torch.Tensor) -> int:
        """Return the latest trained parameter that a tensor is or depends on; -1 if there is none.

        For the result of a function that PyTorch does not report, it could be any.
        """
        name = self._name(tensor)
        if not tensor.requires_grad:
            return -1
        if name is not None:
            return self.reached_by.get(name, len(self.products))
        return int(getattr(tensor, "behind", max(self.reached_by.values(), default=-1)))

    def _add(self, left: torch.Tensor, right: torch.Tensor, width: int) -> None:
        """Add the product of [..., m, k] and a matrix of this width: in attention, scores or weighted values."""
        lengths, inner = (LENGTH, TARGET_LENGTH), left.shape[-1]
        behind_earlier = self.num_earlier > 0 and inner not in lengths and width == left.shape[-2] + self.num_earlier
        paired = width if width in lengths or behind_earlier else inner
        self._note(2.0 * left.numel() * width, [left.requires_grad, right.requires_grad], (left, right), paired)

    def _add_attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Add the products of attention, scores and weighted values; query [..., length, width]."""
        length = key.shape[-2]
        self._note(2.0 * query.numel() * length, [query.requires_grad, key.requires_grad], (query, key), length)
        values = 2.0 * query.numel() // query.shape[-1] * length * value.shape[-1]
        scores = max(query, key, key=self._behind)
        self._note(values, [scores.requires_grad, value.requires_grad], (scores, value), length, query)

    def _note(
        self,
        flops: float,
        needs: list[bool],
        factors: tuple[torch.Tensor, torch.Tensor],
        paired: int,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Add a product.

        Args:
            flops: of the whole product.
            needs: whether each factor needs a gradient.
            factors: the tensors that receive these gradients.
            paired: in a product without weight, the number of positions with which each one is paired.
            rows: a tensor with the product's positions; None for the left factor.
        """
        left, right = rows if rows is not None else factors[0], factors[1]
        name = self._name(right)
        positions = left.numel() // left.shape[-1] if name else left.shape[-2]
        self.noted += flops
        if not torch.is_grad_enabled():
            self._miss("what is computed without gradients, or with a backward pass of its own, is not counted")
        if not name and self.num_earlier and paired == positions + self.num_earlier:
            # Pairs within the text, and pairs with virtual tokens, which are equally many for each position.
            earlier = flops * self.num_earlier / paired
            self._add_product(flops - earlier, (positions, positions), needs, factors, None)
            self._add_product(earlier, (positions,), needs, factors, None)
            return
        share = 1.0
        if name and right.ndim == 3:  # experts: each position takes several of them
            length = next((size for size in (LENGTH, TARGET_LENGTH) if positions % size == 0), positions)
            share, positions = min(1.0, positions / length / len(right)), length
        size = (positions,) if name else (positions, paired)
        if size not in UNIT_OF:
            self._miss(f"a product of {tuple(left.shape)} and {tuple(right.shape)} is not per position or pair")
        else:
            self._add_product(flops, size, needs, factors, name, share)

    def _add_product(
        self,
        flops: float,
        size: tuple[int, ...],
        needs: list[bool],
        factors: tuple[torch.Tensor, torch.Tensor],
        name: str | None,
        share: float = 1.0,
    ) -> None:
        unit = UNIT_OF[size]
        if self.in_head:
            unit, size = "head_position", size[:1]
        factor_needs = zip(factors, needs, strict=True)
        product = Product(
            unit=unit,
            flops=flops / math.prod(size),
            num_gradients=sum(needs),
            behind=tuple(self._behind(factor) for factor, need in factor_needs if need and self._name(factor) is None),
            weight=name,
            weight_read_again=name is not None and needs[0],
            layer=self.layer,
            share=share,
        )
        self.products.append(product)
