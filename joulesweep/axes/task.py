"""What is learned: one table row per task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        auto_class: of transformers, which builds a model for the task.
        special_tokens: what a tokenizer must have: "mask", "pad".
        unused: fields of a spec that mean nothing; a run has them at their omission value.
        hides: whether tokens are hidden, anew in each epoch, and predicted; otherwise a text is written token by token.
        causal: whether a position sees earlier ones alone and predicts the next one.
        encoder_decoder: whether a text is read by one stack of layers and its target written by another.
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
