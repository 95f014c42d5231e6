"""What a training costs at least, counted from the model: arithmetic per token and memory traffic per step.

One multiply-add is 2 FLOPs. Only matrix products count: embeddings, normalisation, activations, softmax and the
optimizer count 0. The backward pass of a product is one more product for each operand that needs a gradient, so frozen
weights cost what they should: no gradient of their own, and none for their input unless something below still trains.
Which operands do is asked of autograd: the model is run once on the meta device, where nothing is computed.
`torch.utils.flop_counter` counts the same (tests/test_flops.py); it knows no units, and 0 for a CPU's fused attention.
A count is whole or there is none: what PyTorch executes of each call is compared with what was noted of it, and where a
weight goes into an operator that is not known to be harmless, nothing is counted.
"""

from __future__ import annotations

from collections.abc import Set

import torch

from joulesweep.axes import precision
from joulesweep.core.outcome import Work
from joulesweep.nets.language_model import LanguageModel
from joulesweep.nets.products import Product, traced


def described(core: LanguageModel, shards: int = 1) -> Work:
    """What a record says of the work of a training; nulls with a reason where unknown.

    Call it before the strategy wraps the model (FSDP's hooks would run). It draws no random number.

    Args:
        core: the module, its method applied and its weights in the dtype that trains.
        shards: over how many devices gradients and optimizer state are divided.
    """
    try:
        trace = traced(core)
        products = trace.products
        trained = {name for name, parameter in core.model.named_parameters() if parameter.requires_grad}
        return Work(
            flop_coefficients=coefficients(products, {trace.layers[name] for name in trained & trace.layers.keys()}),
            bytes_per_step=bytes_per_step(core, products, shards),
            flop_reason=None,
        )
    except Exception as error:  # whatever a foreign model does: a count is not worth a training
        return Work(flop_coefficients=None, bytes_per_step=None, flop_reason=uncounted(error))


def uncounted(error: Exception) -> str:
    """Why `traced` failed, in one line."""
    if "nonzero" in str(error) or "data-dependent" in str(error):
        return "the model's products cannot be counted: which ones there are depends on the texts"
    return f"the model's products cannot be counted: {type(error).__name__}: {str(error).splitlines()[0][:200]}"


def coefficients(products: list[Product], trained: Set[int | None] = frozenset()) -> dict[str, float]:
    """FLOPs of forward and backward pass per unit.

    Args:
        products: of the forward pass.
        trained: checkpointed layers with a parameter that trains: computed again even if no product needs it.

    Returns:
        For each of `work.UNITS` that has any: FLOPs of one; of a pair, over all layers and heads. By the name with
        `recomputed_` before it, what checkpointing computes a second time: executed, and never useful.
    """
    # A layer is computed again if its backward pass is computed at all.
    needed = ({product.layer for product in products if product.num_gradients} | trained) - {None}
    found = dict.fromkeys((product.unit for product in products), 0.0)
    again = {f"recomputed_{unit}": 0.0 for unit in found}
    for product in products:
        found[product.unit] += product.flops * (1 + product.num_gradients)
        if product.layer in needed:
            again[f"recomputed_{product.unit}"] += product.flops
    return {**found, **{name: flops for name, flops in again.items() if flops}}


def bytes_per_step(core: LanguageModel, products: list[Product], shards: int = 1) -> int:
    """Least traffic between memory and one device for weights, gradients and AdamW's states in an optimizer step.

    With s the bytes of a stored weight and c those of the number that is multiplied (the copy that autocast makes):

        weight of a product   c for the forward pass; c again where the backward pass needs it
        that trains           s for writing its gradient; 7 s for AdamW: it reads weight, gradient and two moments and
                              writes weight and moments; with Kahan summation 8 bytes more: 2 s for the
                              compensation, and 8 instead of 2 s for the second moment, which is in fp32; c for
                              writing the copy, if there is one

    Full training takes 40 bytes per weight in fp32 and tf32, 38 in 16-bit autocast, 20 in bf16-true, 28 in bf16-kahan.
    It is a floor: activations, the rows read of embeddings, biases and normalisation count nothing, a copy is made
    while the weight is at hand (PyTorch reads it once more), and several micro-batches count as one.

    Args:
        core: the module.
        products: of it.
        shards: over how many devices gradients and optimizer state are divided.
    """
    row = precision.PRECISIONS[core.precision_name]
    autocast = row.autocast
    read, read_again = (
        {product.weight: product.share for product in products if product.weight_read_again or not again}
        for again in (False, True)
    )
    total = 0
    for name, parameter in core.model.named_parameters():
        stored = parameter.element_size()
        multiplied = getattr(torch, autocast).itemsize if autocast else stored
        size = multiplied * (read.get(name, 0) + read_again.get(name, 0))
        if parameter.requires_grad:
            size += (8 * stored + 8 * row.kahan + multiplied * (name in read and autocast is not None)) / shards
        total += round(parameter.numel() * size)
    return total
