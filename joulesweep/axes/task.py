"""Tasks, which define what a model learns: one table row per task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        auto_class: class of transformers that builds a model for the task.
        special_tokens: tokens that a tokenizer must have: "mask", "pad".
        unused: fields of a spec that the task ignores; they stay at their omission value.
        hides: whether tokens are hidden, newly drawn in each epoch, and predicted; otherwise text is generated.
        causal: whether a position sees only earlier ones and predicts the next one.
        encoder_decoder: whether one stack of layers reads the text and another writes its target.
    """

    about: str
    auto_class: str
    special_tokens: tuple[str, ...] = ()
    unused: tuple[str, ...]
    hides: bool = False
    causal: bool = False
    encoder_decoder: bool = False


TASKS: dict[str, Task] = {
    "mlm": Task(
        about="hidden tokens, by an encoder",
        auto_class="AutoModelForMaskedLM",
        special_tokens=("mask", "pad"),
        unused=("max_target_length", "generate"),
        hides=True,
    ),
    "clm": Task(
        about="the next token, or a text's target behind its prompt, by a decoder",
        auto_class="AutoModelForCausalLM",
        unused=("mask_probability",),
        causal=True,
    ),
    "seq2seq": Task(
        about="a text's target, by an encoder-decoder",
        auto_class="AutoModelForSeq2SeqLM",
        special_tokens=("pad",),
        unused=("mask_probability",),
        encoder_decoder=True,
    ),
}
