"""Find the layers, the head and the embedding tables of a model of any family."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

#: Names of the module with which the output layer begins, by family: everything from there on is computed position by
#: position. A model with none of these begins it with the matrix of its output embeddings.
HEADS = (
    "cls",  # BERT
    "decoder.cls",  # BERT as the decoder of an encoder-decoder
    "lm_head",  # RoBERTa, XLM-R, MPNet; OPT, LLaMA, GPT-2, BLOOM; T5, BART
    "decoder.lm_head",
    "predictions",  # ALBERT
    "head",  # ModernBERT
    "generator_predictions",  # ELECTRA
    "vocab_transform",  # DistilBERT
)


#: Names of tables of learned positions, by family: BERT, RoBERTa, …; OPT, BART; GPT-2.
POSITIONS = ("position_embeddings", "embed_positions", "wpe")


def head_name(model: torch.nn.Module) -> str | None:
    """Return the name of the module with which the output layer begins, or None if unknown."""
    modules = dict(model.named_modules())
    inside = "base_model." if "base_model" in modules else ""  # inside peft's wrapper
    named = next((inside + name for name in HEADS if inside + name in modules), None)
    if named is None and hasattr(model, "get_output_embeddings"):
        matrix = model.get_output_embeddings()  # type: ignore[operator]
        is_table = isinstance(matrix, torch.nn.Embedding)  # FSMT returns its decoder's embedding, which reads ids
        named = next((name for name, module in modules.items() if module is matrix and not is_table), None)
    return named


def stacks(model: torch.nn.Module) -> list[tuple[torch.nn.Module, list[torch.nn.Module]]]:
    """Return a model with its layers, or the halves of an encoder-decoder with theirs, in order of execution.

    The layers are the longest outermost list of modules: a layer may contain lists of its parts.
    """
    halves: list[Any] = [model]
    if is_encoder_decoder(model):
        halves = [model.get_encoder(), model.get_decoder()]  # type: ignore[operator]
    pairs = []
    for half in halves:
        lists = [module for module in half.modules() if isinstance(module, torch.nn.ModuleList)]
        inner = {part for module_list in lists for layer in module_list for part in layer.modules()}
        outer = [list(module_list) for module_list in lists if module_list not in inner]
        longest: list[torch.nn.Module] = max(outer, key=len, default=[])
        pairs.append((half, _flat(longest)))
    return pairs


def _flat(layers: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return the layers of a list whose blocks may be lists themselves."""
    return [inner for layer in layers for inner in (layer if isinstance(layer, torch.nn.ModuleList) else [layer])]


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    """Whether a model reads a text with an encoder and writes its target with a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def takes_positions(model: torch.nn.Module) -> bool:
    """Whether a model accepts the positions of its tokens as an argument."""
    return "position_ids" in inspect.signature(getattr(model, "base_model", model).forward).parameters


def has_positions(model: torch.nn.Module) -> bool:
    """Whether the embeddings of a model have a table of positions."""
    return hasattr(getattr(model.base_model, "embeddings", None), "position_embeddings")


def first_position(table: Any) -> int:  # noqa: ANN401 - an embedding, or None
    """Return the first index of a table of positions: RoBERTa counts from after its padding index."""
    filler = getattr(table, "padding_idx", None)
    return 0 if filler is None else int(filler) + 1


def num_positions(half: torch.nn.Module) -> int | None:
    """Return the number of learned positions of a model, or of a half of it; None if it has no table of them."""
    tables = [
        module
        for name, module in half.named_modules()
        if name.rpartition(".")[2] in POSITIONS and isinstance(module, torch.nn.Embedding)
    ]
    # OPT and BART skip the first ones.
    return min((t.num_embeddings - int(getattr(t, "offset", first_position(t))) for t in tables), default=None)


def num_embeddings(model: Any) -> int | None:  # noqa: ANN401 - of any family
    """Return the number of tokens that a model has embeddings for, or None if unknown."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):  # it embeds tokens in some other way
        return getattr(model.config, "vocab_size", None)
