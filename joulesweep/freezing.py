"""Layers that do not train: which they are, and what is computed before them."""

from __future__ import annotations

import torch

from joulesweep.anatomy import (
    is_encoder_decoder,
    stacks,
)
from joulesweep.errors import UserError
from joulesweep.model import LanguageModel


def layers_of(model: torch.nn.Module, method: str) -> list[torch.nn.Module]:
    """The layers of a model in order of execution: of an encoder-decoder the encoder's, then the decoder's.

    Args:
        model: of Hugging Face.
        method: that wants them, for the message.

    Raises:
        UserError: it has none, or they cannot be told apart: several places share one, or one lies in several lists.
    """
    layers = [layer for _, stack in stacks(model) for layer in stack]
    if not layers:
        raise UserError(f"method {method}: the model has no list of layers")
    parents = {id(part): parent for parent in model.modules() for part in parent.children()}
    lists = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == len(layers) > 1]
    homes = [id(parents.get(id(one))) for one in lists if not isinstance(parents.get(id(one)), torch.nn.ModuleList)]
    if layers[0] in {part for one in lists for part in one} and len(set(homes)) < len(homes):
        raise UserError(f"method {method}: each layer of this model lies in several lists; choose another method")
    most = max(_num_executions(model, layers), default=1)
    if most > 1:
        raise UserError(
            f"method {method}: the layers of this model share their weights: {len(layers)} is executed {most} times"
        )
    return layers


def _num_executions(model: torch.nn.Module, layers: list[torch.nn.Module]) -> list[int]:
    """How often each layer is executed in a forward pass; nothing where that cannot be found out."""
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

    What comes after the last frozen layer trains, final normalisation and output layer too; but for the input
    embeddings of either half, what leads from them to its first layer, and a matrix that the output layer shares with
    them.

    Args:
        model: of Hugging Face.
        layers: see `layers_of`.
        num_frozen: how many of them.
    """
    # What lies below the layers: a module of that name, or tables of tokens and of positions side by side.
    named = [getattr(getattr(model, "base_model", model), "embeddings", None)]
    inside = {module for layer in layers for module in layer.modules()}
    tables = [table for table in model.modules() if isinstance(table, torch.nn.Embedding) and table not in inside]
    for module in filter(None, [*named, *tables, *layers[:num_frozen]]):
        module.requires_grad_(False)
    firsts = [(half, stack[0]) for half, stack in stacks(model) if stack]
    _freeze_before(model, [*firsts, (model, layers[min(num_frozen, len(layers) - 1)])])


def frozen_layers(model: torch.nn.Module) -> dict[str, int]:
    """How many layers a model has, and how many of them do not train at all."""
    layers = [layer for _, stack in stacks(model) for layer in stack]
    trains = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers]
    return {"num_layers": len(layers), "num_frozen_layers": trains.count(False)}


def _freeze_before(model: torch.nn.Module, places: list[tuple[torch.nn.Module, torch.nn.Module]]) -> None:
    """Freeze what is computed before a layer, such as a projection of the embeddings to the layers' width.

    Args:
        model: of Hugging Face.
        places: parts of it, each with the layer before which what is computed of that part is frozen.
    """
    order = _order(model)
    if not order:
        return  # a model that cannot be traced has been told apart by its names alone
    use = {name: place for place, name in enumerate(order)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for part, layer in places:
        begin = min((use[names[id(p)]] for p in layer.parameters() if names[id(p)] in use), default=0)
        for parameter in part.parameters():
            if use.get(names[id(parameter)], begin) < begin:
                parameter.requires_grad_(False)


def _order(model: torch.nn.Module) -> list[str]:
    """Names of a model's parameters by their first use; none where it cannot be run without data."""
    from joulesweep import flops

    try:
        core = LanguageModel(model, task="seq2seq" if is_encoder_decoder(model) else "mlm")
        return list(flops.followed(core).reached_by)
    except Exception:  # whatever a foreign model does
        return []
