"""Freeze the lowest layers of a model and what is computed before them."""

from __future__ import annotations

import torch

from joulesweep.core.errors import UserError
from joulesweep.nets.anatomy import is_encoder_decoder, stacks
from joulesweep.nets.language_model import LanguageModel


def layers_of(model: torch.nn.Module, method: str) -> list[torch.nn.Module]:
    """Return the layers of a model in order of execution, those of an encoder before those of a decoder.

    Args:
        model: a Hugging Face model.
        method: name of the calling method, for the message.

    Raises:
        UserError: the model has no list of layers, a layer is executed several times, or layers are in several lists.
    """
    layers = [layer for _, stack in stacks(model) for layer in stack]
    if not layers:
        raise UserError(f"method {method}: the model has no list of layers")
    parents = {id(part): parent for parent in model.modules() for part in parent.children()}
    lists = [
        entry for entry in model.modules() if isinstance(entry, torch.nn.ModuleList) and len(entry) == len(layers) > 1
    ]
    homes = [
        id(parents.get(id(entry))) for entry in lists if not isinstance(parents.get(id(entry)), torch.nn.ModuleList)
    ]
    if layers[0] in {part for entry in lists for part in entry} and len(set(homes)) < len(homes):
        raise UserError(f"method {method}: each layer of this model lies in several lists; choose another method")
    most = max(_num_executions(model, layers), default=1)
    if most > 1:
        raise UserError(
            f"method {method}: the layers of this model share their weights: {len(layers)} is executed {most} times"
        )
    return layers


def _num_executions(model: torch.nn.Module, layers: list[torch.nn.Module]) -> list[int]:
    """Return how often each layer is executed in a forward pass; nothing if the model cannot be traced."""
    executed: list[int] = []
    handles = [layer.register_forward_pre_hook(lambda *_, i=i: executed.append(i)) for i, layer in enumerate(layers)]
    try:
        _order(model)
    finally:
        for handle in handles:
            handle.remove()
    return [executed.count(i) for i in range(len(layers)) if i in executed]


def freeze_below(model: torch.nn.Module, layers: list[torch.nn.Module], num_frozen: int) -> None:
    """Freeze the input embeddings and the lowest layers, with what is computed between them.

    Everything after the last frozen layer trains, final normalisation and output layer included. Exceptions are the
    input embeddings of either half, what leads from them to the first layer, and a matrix that the output layer shares
    with them.

    Args:
        model: a Hugging Face model.
        layers: from `layers_of`.
        num_frozen: number of layers to freeze.
    """
    # Below the layers: a module named embeddings, or separate tables of tokens and positions.
    named = [getattr(getattr(model, "base_model", model), "embeddings", None)]
    inside = {module for layer in layers for module in layer.modules()}
    tables = [table for table in model.modules() if isinstance(table, torch.nn.Embedding) and table not in inside]
    for module in filter(None, [*named, *tables, *layers[:num_frozen]]):
        module.requires_grad_(False)
    firsts = [(half, stack[0]) for half, stack in stacks(model) if stack]
    _freeze_before(model, [*firsts, (model, layers[min(num_frozen, len(layers) - 1)])])


def frozen_layers(model: torch.nn.Module) -> dict[str, int]:
    """Return the number of layers of a model, and of those in which no parameter trains."""
    layers = [layer for _, stack in stacks(model) for layer in stack]
    trains = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers]
    return {"num_layers": len(layers), "num_frozen_layers": trains.count(False)}


def _freeze_before(model: torch.nn.Module, places: list[tuple[torch.nn.Module, torch.nn.Module]]) -> None:
    """Freeze what is computed before a layer, such as a projection of the embeddings to the layers' width.

    Args:
        model: a Hugging Face model.
        places: parts of the model, each with the layer before which its parameters are frozen.
    """
    order = _order(model)
    if not order:
        return  # a model that cannot be traced is frozen by the names of its modules only
    use = {name: place for place, name in enumerate(order)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for part, layer in places:
        begin = min((use[names[id(p)]] for p in layer.parameters() if names[id(p)] in use), default=0)
        for parameter in part.parameters():
            if use.get(names[id(parameter)], begin) < begin:
                parameter.requires_grad_(False)


def _order(model: torch.nn.Module) -> list[str]:
    """Return the names of a model's parameters in order of first use; none if it cannot run without data."""
    from joulesweep.nets import products

    try:
        core = LanguageModel(model, task="seq2seq" if is_encoder_decoder(model) else "mlm")
        return list(products.followed(core).reached_by)
    except Exception:  # foreign models raise anything
        return []
