"""Where a model of any family keeps its layers, its head and its tables of tokens and positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

#: Where the output layer begins, by the families' names for it: everything from there on is computed position by
#: position. In a model that has none of these it is the matrix of its output embeddings alone.
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


#: Tables of learned positions, by the families' names for them: BERT, RoBERTa, …; OPT, BART; GPT-2.
POSITIONS = ("position_embeddings", "embed_positions", "wpe")


def head_name(model: torch.nn.Module) -> str | None:
    """Name of the module with which the output layer begins, or None if it cannot be told."""
    modules = dict(model.named_modules())
    inside = "base_model." if "base_model" in modules else ""  # of a wrapper of peft
    named = next((inside + name for name in HEADS if inside + name in modules), None)
    if named is None and hasattr(model, "get_output_embeddings"):
        matrix = model.get_output_embeddings()  # type: ignore[operator]
        is_table = isinstance(matrix, torch.nn.Embedding)  # FSMT gives its decoder's, which reads ids
        named = next((name for name, module in modules.items() if module is matrix and not is_table), None)
    return named


def stacks(model: torch.nn.Module) -> list[tuple[torch.nn.Module, list[torch.nn.Module]]]:
    """A model and its layers, or the halves of an encoder-decoder with theirs, in order of execution.

    The layers are the longest of the lists of modules that lie in no other one: a layer may have lists of its parts.
    """
    halves: list[Any] = [model]
    if is_encoder_decoder(model):
        halves = [model.get_encoder(), model.get_decoder()]  # type: ignore[operator]
    found = []
    for half in halves:
        lists = [module for module in half.modules() if isinstance(module, torch.nn.ModuleList)]
        inner = {part for one in lists for layer in one for part in layer.modules()}
        outer = [list(one) for one in lists if one not in inner]
        longest: list[torch.nn.Module] = max(outer, key=len, default=[])
        found.append((half, _flat(longest)))
    return found


def _flat(layers: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """The layers of a list, whose blocks may be lists themselves."""
    return [one for layer in layers for one in (layer if isinstance(layer, torch.nn.ModuleList) else [layer])]


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    """Whether a model reads a text in one half and writes another one in the other."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def takes_positions(model: torch.nn.Module) -> bool:
    """Whether a model can be told the positions of its tokens."""
    return "position_ids" in inspect.signature(getattr(model, "base_model", model).forward).parameters


def has_positions(model: torch.nn.Module) -> bool:
    """Whether a model looks positions up in a table of its embeddings."""
    return hasattr(getattr(model.base_model, "embeddings", None), "position_embeddings")


def first_position(table: Any) -> int:  # noqa: ANN401 - an embedding, or None
    """Where a table of positions begins: RoBERTa counts from behind its padding index."""
    filler = getattr(table, "padding_idx", None)
    return 0 if filler is None else int(filler) + 1


def num_positions(half: torch.nn.Module) -> int | None:
    """How many tokens of a text a model, or a half of it, has learned positions for; None where it looks up none."""
    tables = [
        module
        for name, module in half.named_modules()
        if name.rpartition(".")[2] in POSITIONS and isinstance(module, torch.nn.Embedding)
    ]
    # OPT and BART leave out the first ones.
    return min((t.num_embeddings - int(getattr(t, "offset", first_position(t))) for t in tables), default=None)


def num_embeddings(model: Any) -> int | None:  # noqa: ANN401 - of any family
    """How many tokens a model can read; None if that cannot be told."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):  # it looks its tokens up in some other way
        return getattr(model.config, "vocab_size", None)
