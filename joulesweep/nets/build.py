"""Build models of transformers from a folder: with its weights, with random ones, or with shapes only."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from joulesweep.axes.task import TASKS
from joulesweep.core import late_imports
from joulesweep.core.errors import UserError
from joulesweep.nets import weights
from joulesweep.nets.anatomy import num_embeddings
from joulesweep.nets.weights import Fit


class NoModel(UserError):  # noqa: N818 - says what is missing
    """transformers has no model of a config's family for a task."""


#: Loads a model by an auto class of the library; also returns how its files fit it.
Load = Callable[[Any, Any], tuple[Any, Fit]]


def build(folder: Path, task: str = "mlm", new_weights: Collection[str] = ()) -> torch.nn.Module:
    """Build the Hugging Face model in a folder.

    Weights are read from safetensors only. A folder with a config and no weights gives random weights: seed first.
    For seq2seq, an encoder becomes both halves of an encoder-decoder, both initialised with its weights (Rothe et al.
    2020, arXiv 1907.12461); the attention between them is initialised at random.

    Args:
        folder: of the model.
        task: a row of `axes.task.TASKS`.
        new_weights: parts that may be initialised at random, of `weights.PARTS`.

    Raises:
        UserError: transformers has no such model for the task, or the folder lacks some of its weights.
    """
    model: torch.nn.Module
    model, fit = _assembled(folder, task, functools.partial(_loaded, folder))
    reason = fit.refusal(new_weights)
    if reason is not None:
        raise UserError(f"task {task}: {reason}")
    return model


def tried(folder: Path, task: str) -> tuple[Fit, int | None]:
    """Try `build` without reading weights; return how the files fit the model, and its number of token embeddings.

    Raises:
        UserError: the model cannot be built.
    """
    try:
        model, fit = _assembled(folder, task, functools.partial(_imagined, folder))
    except UserError:
        raise
    except Exception as error:  # a family's classes raise anything for a config that does not suit them
        raise UserError(f"task {task}: the model cannot be built: {' '.join(str(error).split())}") from None
    return fit, num_embeddings(model)


def _assembled(folder: Path, task: str, load: Load) -> tuple[Any, Fit]:
    library = late_imports.transformers()
    library.logging.disable_progress_bar()
    config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
    auto = getattr(library, TASKS[task].auto_class)
    both = (library.AutoModelForMaskedLM, library.AutoModelForCausalLM)  # an encoder that can be a decoder has both
    if type(config) in auto._model_mapping:
        model, fit = load(auto, config)
    elif TASKS[task].encoder_decoder and all(type(config) in other._model_mapping for other in both):
        model, fit = _warm_started(config, load)
    else:
        raise NoModel(f"task {task}: transformers has no {config.model_type} for it; choose another model or task")
    if model.config.model_type == "encoder-decoder" and hasattr(model.encoder, "pooler"):
        model.encoder.pooler = None  # nothing reads it
    return model, fit


def _loaded(folder: Path, auto: Any, config: Any) -> tuple[Any, Fit]:  # noqa: ANN401 - of any family
    """Load a model by an auto class of the library, in float32, with the folder's weights or random ones."""
    if not any(folder.glob("*.safetensors")):
        return auto.from_config(config).float(), Fit(missing={})
    model, info = auto.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are named in `info`, and refused
    )
    return model, Fit.of(model, info)


def _imagined(folder: Path, auto: Any, config: Any) -> tuple[Any, Fit]:  # noqa: ANN401 - of any family
    """Build the same model without data, which takes neither memory nor time."""
    if not any(folder.glob("*.safetensors")):
        with torch.device("meta"):
            return auto.from_config(config), Fit(missing={})
    late_imports.transformers().logging.set_verbosity_error()  # `Fit` reports how the loading went
    known = importlib.import_module("transformers.models.auto.auto_factory")._get_model_class(
        config, auto._model_mapping
    )
    return weights.load_imagined(folder, known, config)


def _warm_started(config: Any, load: Load) -> tuple[Any, Fit]:  # noqa: ANN401 - a config of any family
    library = late_imports.transformers()
    decoder_config = copy.deepcopy(config)
    decoder_config.is_decoder = decoder_config.add_cross_attention = True
    encoder, encoder_fit = load(library.AutoModel, config)
    decoder, decoder_fit = load(library.AutoModelForCausalLM, decoder_config)
    try:
        return library.EncoderDecoderModel(encoder=encoder, decoder=decoder), Fit.both(encoder_fit, decoder_fit)
    except ValueError as error:
        raise UserError(f"task seq2seq: no encoder-decoder can be made of {config.model_type}: {error}") from None
