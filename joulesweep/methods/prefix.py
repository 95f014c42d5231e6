"""Prefix tuning: freeze the model and train keys and values that each layer of a decoder sees before the text."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulesweep.axes.engine import ENGINES
from joulesweep.axes.layout import BATCHINGS
from joulesweep.axes.task import TASKS
from joulesweep.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from joulesweep.core.spec import RunSpec

NOTHING_EARLIER = "has no keys and values of earlier tokens to put a prefix before; use a decoder or another method"


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes.

    tokens: virtual tokens of the prefix (Li and Liang 2021, arXiv 2101.00190, without its reparametrisation).
    """

    tokens: int = 20

    def __post_init__(self) -> None:
        """Refuse an empty prefix."""
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")


def incompatible_reason(spec: RunSpec) -> str | None:
    """Return the reason why the prefix does not fit the rest of a spec, or None."""
    if TASKS[spec.task].hides:
        return f"method prefix: an encoder {NOTHING_EARLIER}"
    if BATCHINGS[spec.batching].packs:
        return "method prefix: texts of a packed row would share one prefix; use batching: [dynamic]"
    if spec.checkpoint_activations:
        return "method prefix: a checkpointed layer is given no keys and values; use checkpoint_activations: [false]"
    if ENGINES[spec.engine].captures:
        return "method prefix: peft reads host memory in every step, which a CUDA graph cannot; use engine: [eager]"
    return None


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Freeze the model and wrap it with peft's prefix for its decoder.

    Positions of the text are counted from the end of the prefix.

    Raises:
        UserError: the model does not cache keys and values, or their shape differs between layers.
    """
    import torch
    from peft import PrefixTuningConfig

    model.requires_grad_(False)
    layers, heads, width = _shape(model)
    config = PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",  # type: ignore[union-attr]
        num_virtual_tokens=params.tokens,
        num_layers=layers,
        num_attention_heads=heads,
        token_dim=heads * width,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft uses names that transformers deprecates
        prefixed: torch.nn.Module = _wrapper(model.config)(model, config)
    if isinstance(getattr(prefixed, "word_embeddings", None), torch.nn.Module):
        del prefixed.word_embeddings  # not read here; `torch.func.functional_call` cannot swap a module in two places
    prefixed.num_virtual_tokens = params.tokens  # type: ignore[assignment]
    return prefixed


def _shape(model: Any) -> tuple[int, int, int]:  # noqa: ANN401 - of any family
    """Return layers, heads and width of a head of the keys and values that a model caches for the next token."""
    import inspect

    import torch

    kind = model.config.model_type
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UserError(f"method prefix: a {kind} {NOTHING_EARLIER}")
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    more = "decoder_input_ids" if model.config.is_encoder_decoder else "attention_mask"
    inputs: dict[str, Any] = {"input_ids": token, "use_cache": True, more: torch.ones_like(token)}
    training = model.training
    model.eval()
    with torch.no_grad():
        kept = model(**inputs).past_key_values
    model.train(training)
    kept = getattr(kept, "self_attention_cache", kept)
    pairs = [(layer.keys, layer.values) for layer in getattr(kept, "layers", ()) if hasattr(layer, "values")]
    shapes = {tuple(tensor.shape) for pair in pairs for tensor in pair if tensor is not None}
    if not shapes:
        raise UserError(f"method prefix: a {kind} {NOTHING_EARLIER}")
    if len(shapes) > 1 or len(pairs) < len(kept.layers):
        raise UserError(f"method prefix: the layers of a {kind} keep keys and values of several shapes")
    ((_, heads, _, width),) = shapes
    return len(pairs), heads, width


def _wrapper(config: Any) -> type[Any]:  # noqa: ANN401 - of any model
    from peft import PeftModelForCausalLM, PeftModelForSeq2SeqLM

    kind: type[Any] = PeftModelForSeq2SeqLM if config.is_encoder_decoder else PeftModelForCausalLM

    class Prefixed(kind):  # type: ignore[misc]
        """A model whose prefix keeps its dtype: in a replica of DataParallel, peft cannot look up the model's."""

        base_model_torch_dtype = None

    return Prefixed


def save(model: Any, state: dict[str, torch.Tensor], folder: Path) -> None:  # noqa: ANN401 - as `apply` returns it
    """Save the unchanged model, and the trained prefix in `prefix/` in peft's format; they cannot be merged.

    Args:
        model: as `apply` returned it.
        state: its whole weights, in host memory.
        folder: to save it in.
    """
    from safetensors.torch import save_file

    plain = {name.removeprefix("base_model."): value for name, value in state.items() if name.startswith("base_model.")}
    model.get_base_model().save_pretrained(folder, state_dict=plain)
    model.peft_config["default"].save_pretrained(folder / "prefix")
    prefix = state["prompt_encoder.default.embedding.weight"]
    save_file({"prompt_embeddings": prefix.contiguous()}, folder / "prefix" / "adapter_model.safetensors")
