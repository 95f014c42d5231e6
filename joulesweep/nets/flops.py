"""Count the least work of a training from the model: arithmetic per token and memory traffic per step.

One multiply-add is 2 FLOPs. Only matrix products count: embeddings, normalisation, activations, softmax and the
optimizer count 0. The backward pass of a product is one more product for each operand that needs a gradient. A frozen
weight therefore has no gradient, and its input has one only if something below still trains. Autograd reports which
operands need one: the model runs once on the meta device, where nothing is computed. A layer whose backward pass is
sampled (`sampled.Linear`) counts the share of it that is computed.
`torch.utils.flop_counter` counts the same (tests/unit/nets/test_flops.py), but without units, and counts 0 for a CPU's
fused attention.
A count is complete or absent: what PyTorch executes in each call is compared with what was noted of it, and nothing is
counted if a weight enters an operator that is not known to contain no product.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch

from joulesweep.axes import precision
from joulesweep.axes.optimizer import LEAST_8BIT
from joulesweep.core.outcome import Work
from joulesweep.nets import sampled
from joulesweep.nets.language_model import LanguageModel
from joulesweep.nets.products import Product, traced


def model_work(core: LanguageModel, shards: int = 1, moment_bytes: float | None = None) -> Work:
    """Return the work of a training for the record; nulls with a reason where unknown.

    Call it before the strategy wraps the model (FSDP's hooks would run). It draws no random number.

    Args:
        core: the module after its method was applied, its weights in the dtype of the training.
        shards: number of devices over which gradients and optimizer state are sharded.
        moment_bytes: see `bytes_per_step`.
    """
    try:
        trace = traced(core)
        products = trace.products
        trained = {name for name, parameter in core.model.named_parameters() if parameter.requires_grad}
        layers = {trace.layers[name] for name in trained & trace.layers.keys()}
        return Work(
            flop_coefficients=coefficients(products, layers, _shares(core)),
            bytes_per_step=bytes_per_step(core, products, shards, moment_bytes),
            flop_reason=None,
        )
    except Exception as error:  # foreign models raise anything; a missing count must not stop a training
        return Work(flop_coefficients=None, bytes_per_step=None, flop_reason=uncounted(error))


def uncounted(error: Exception) -> str:
    """Return why `traced` failed, in one line."""
    if "nonzero" in str(error) or "data-dependent" in str(error):
        return "the model's products cannot be counted: which ones there are depends on the texts"
    return f"the model's products cannot be counted: {type(error).__name__}: {str(error).splitlines()[0][:200]}"


def _shares(core: LanguageModel) -> dict[str, float]:
    """Return the share of its backward pass that is computed, for each weight of which it is not the whole."""
    names = {id(parameter): name for name, parameter in core.model.named_parameters()}
    return {names[id(weight)]: share for weight, share in sampled.shares(core.model)}


NO_SHARES: Mapping[str, float] = {}


def coefficients(
    products: list[Product], trained: Set[int | None] = frozenset(), shares: Mapping[str, float] = NO_SHARES
) -> dict[str, float]:
    """Sum FLOPs of forward and backward pass per unit.

    Args:
        products: of the forward pass.
        trained: checkpointed layers with a parameter that trains: recomputed even if no product needs it.
        shares: of the backward pass that is computed, for weights of which it is not the whole.

    Returns:
        FLOPs per unit, for each of `work.UNITS` that has any; of a pair, over all layers and heads. Under the name
        prefixed with `recomputed_`: FLOPs that checkpointing repeats, which are executed but never useful.
    """
    # A layer is recomputed if its backward pass is computed at all.
    needed = ({product.layer for product in products if product.num_gradients} | trained) - {None}
    per_unit = dict.fromkeys((product.unit for product in products), 0.0)
    recomputed = {f"recomputed_{unit}": 0.0 for unit in per_unit}
    for product in products:
        per_unit[product.unit] += product.flops * (1 + product.num_gradients * shares.get(product.weight or "", 1.0))
        if product.layer in needed:
            recomputed[f"recomputed_{product.unit}"] += product.flops
    return {**per_unit, **{name: flops for name, flops in recomputed.items() if flops}}


def bytes_per_step(
    core: LanguageModel, products: list[Product], shards: int = 1, moment_bytes: float | None = None
) -> int:
    """Count the least memory traffic of one device for weights, gradients and AdamW's states in an optimizer step.

    With s the bytes of a stored weight and c those of the number that is multiplied (the copy that autocast makes):

        weight of a product   c for the forward pass; c again if the backward pass needs it
        trained weight        s for writing its gradient; 7 s for AdamW: it reads weight, gradient and two moments and
                              writes weight and moments; with Kahan summation 8 bytes more: 2 s for the
                              compensation, and 8 instead of 2 s for the second moment, which is in fp32; c for
                              writing the copy, if there is one

    Full training takes 40 bytes per weight in fp32 and tf32, 38 in 16-bit autocast, 20 in bf16-true, 28 in bf16-kahan.
    Quantised moments take 4 times their own bytes instead of 4 s; of a quantised matrix its codes and scales are read.
    It is a floor: it leaves out activations, rows of embeddings, biases and normalisation, assumes that a copy is made
    while the weight is in cache (PyTorch reads it once more), and counts several micro-batches as one.

    Args:
        core: the module.
        products: its matrix products.
        shards: number of devices over which gradients and optimizer state are sharded.
        moment_bytes: bytes of each of AdamW's moments per weight, if they are quantised; else None.
    """
    row = precision.PRECISIONS[core.precision_name]
    autocast = row.autocast
    read, read_again = (
        {product.weight: product.share for product in products if product.weight_read_again or not again}
        for again in (False, True)
    )
    total = 0
    for name, parameter in core.model.named_parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            total += (parameter.nbytes + state.absmax.nbytes) * int(read.get(name, 0) + read_again.get(name, 0))
            continue
        stored = parameter.element_size()
        multiplied = getattr(torch, autocast).itemsize if autocast else stored
        size = multiplied * (read.get(name, 0) + read_again.get(name, 0))
        if parameter.requires_grad:
            few = parameter.numel() < LEAST_8BIT
            moments = stored if moment_bytes is None else 4 if few else moment_bytes
            state = 4 * stored + 4 * moments + 8 * row.kahan
            size += (state + multiplied * (name in read and autocast is not None)) / shards
        total += round(parameter.numel() * size)
    return total
