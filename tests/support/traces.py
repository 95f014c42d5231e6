"""Traces of models that are alike, followed once: that takes a quarter of the training of a tiny one."""

from __future__ import annotations

from joulesweep.nets import products
from joulesweep.nets.language_model import LanguageModel

_follow = products.followed
_traces: dict[str, products.Trace] = {}


def followed_once(core: LanguageModel) -> products.Trace:
    """What `products.followed` returns, kept for models that are alike in all that a trace depends on."""
    model = core.model
    weights = [(name, weight.shape, weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()]
    again = [name for name, module in model.named_modules() if products.is_checkpointed(module)]
    virtual = getattr(model, "num_virtual_tokens", 0)
    key = f"{core.task} {core.head_name} {virtual} {again} {weights} {model.config} {model}"
    if key not in _traces:
        _traces[key] = _follow(core)
    return _traces[key]
