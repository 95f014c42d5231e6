"""Backbone and language-model head as one module, so that DP and DDP see every parameter they wrap."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from joulesweep.axes import precision
from joulesweep.axes.layout import HEADS
from joulesweep.axes.task import TASKS
from joulesweep.nets.anatomy import first_position, has_positions, head_name, takes_positions

#: Forms of the mask that padded rows are handed over with, the best first, apart from the last one, which every model
#: takes: "bool" is whole, [rows, 1, queries, keys]; "float" the same, added to the scores; "padding" [rows, length].
#: Of the last transformers asks the device in every forward pass whether it hides anything at all, and waits.
MASK_FORMS = ("bool", "float", "padding")


class Unfit(ValueError):  # noqa: N818 - says what is so
    """A model that cannot be trained as a spec wants, and why, in one line."""


class LanguageModel(torch.nn.Module):
    """A Hugging Face language model whose forward returns sums, not means.

    Sums over replicas and ranks add up; means over shares with different numbers of predicted tokens do not.

    Args:
        model: built for the task.
        precision_name: a row of `axes.precision.PRECISIONS`. Its autocast is entered here, inside the module:
            DataParallel's threads do not inherit the dtype of an autocast around them.
        head: "masked" computes the head at predicted positions only: the same loss and gradients for a sixth of its
            work in masked language modelling; "dense" computes it everywhere, as the model's own forward does.
        task: a row of `axes.task.TASKS`.

    Attributes:
        mask_form: of `MASK_FORMS`; see `fit.mask_form`.
    """

    def __init__(
        self, model: torch.nn.Module, precision_name: str = "fp32", head: str = "masked", task: str = "mlm"
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.precision_name = precision_name
        self.head = head
        self.mask_form = "padding"
        self.takes_positions = takes_positions(model)
        self.head_name = head_name(model)
        head_module = model.get_submodule(self.head_name) if self.head_name is not None else None
        if head_module is not None and _keep_chosen not in head_module._forward_pre_hooks.values():
            head_module.register_forward_pre_hook(_keep_chosen)
        embedding = model.base_model.embeddings.position_embeddings if has_positions(model) else None  # type: ignore[union-attr]
        self.first_position = first_position(embedding)

    def refusal(self, packed: bool) -> str | None:
        """Say why this model cannot be trained so, or None if it can."""
        if not HEADS[self.head].everywhere and self.head_name is None:
            return "head masked: the head of this model cannot be told from the rest; use head: [dense]"
        if packed and TASKS[self.task].encoder_decoder:
            return "batching packed: texts and targets of an encoder-decoder are padded; use batching: [dynamic]"
        if packed and not self.takes_positions:
            return "batching packed: this model takes no position_ids; use batching: [dynamic]"
        return None

    def forward(
        self,
        input_ids: torch.Tensor,
        segments: torch.Tensor,
        answers: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        chosen: torch.Tensor | None = None,
        target_ids: torch.Tensor | None = None,
        score: bool = False,
    ) -> torch.Tensor:
        """Loss of the predicted tokens.

        Args:
            input_ids: int64 [rows, length].
            segments: int64 [rows, length], which text; 0 where a row is filled up.
            answers: int64 [rows, length] (of an encoder-decoder [rows, target length]), or as `chosen` if positions
                are given; `IGNORED` where nothing is predicted.
            position_ids: int64 [rows, length] where rows hold several texts, which then do not see each other.
            chosen: int64, of any shape, places in the flattened rows that the head computes; None for all of them.
            target_ids: int64 [rows, target length], what an encoder-decoder writes; None for other models.
            score: also count the right answers.

        Returns:
            float32 [1, 2]: cross-entropy in nats summed over predicted tokens, and right answers (0 unless `score`).
            The leading dimension lets DataParallel gather the replicas.
        """
        logits, answers, _ = self.logits(input_ids, segments, answers, position_ids, chosen, target_ids)
        loss_sum = functional.cross_entropy(logits, answers, reduction="sum", ignore_index=IGNORED)
        right = (logits.argmax(-1) == answers).sum() if score else loss_sum.new_zeros(())
        return torch.stack((loss_sum.unsqueeze(0), right.to(loss_sum.dtype).unsqueeze(0)), dim=1)

    def logits(
        self,
        input_ids: torch.Tensor,
        segments: torch.Tensor,
        answers: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        chosen: torch.Tensor | None = None,
        target_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Logits at the predicted positions, with a dense head at all; arguments as of `forward`.

        Returns:
            float32 [positions, vocabulary]; the answers, int64 [positions]; the positions' places in the flattened
            rows, int64 [positions], or None for all of them in order.
        """
        inputs = self.inputs(input_ids, segments, position_ids, target_ids)
        chosen = None if chosen is None else chosen.flatten()
        head = self.model.get_submodule(self.head_name) if self.head_name is not None else None
        with precision.autocast(self.precision_name, input_ids.device.type):
            if head is not None:
                head.chosen = chosen  # type: ignore[assignment] # of this replica's own module: threads share none
            logits: torch.Tensor = self.model(**inputs).logits
            if head is not None:
                head.chosen = None  # type: ignore[assignment]
        return logits.flatten(0, -2).float(), answers.flatten(), chosen

    def inputs(
        self,
        input_ids: torch.Tensor,
        segments: torch.Tensor,
        position_ids: torch.Tensor | None,
        target_ids: torch.Tensor | None = None,
    ) -> dict[str, object]:
        """What the Hugging Face model is called with; arguments as of `forward`."""
        found: dict[str, object] = {"input_ids": input_ids}
        if not TASKS[self.task].hides:
            found["use_cache"] = False  # of keys and values, for the next token: for generation alone
        if target_ids is not None:
            config: Any = self.model.config
            start = target_ids.new_full((len(target_ids), 1), config.decoder_start_token_id)
            found["decoder_input_ids"] = torch.cat((start, target_ids[:, :-1]), 1)
        causal = TASKS[self.task].causal
        if position_ids is not None:
            # Models ignore position ids when they attend: only this mask, bool [rows, 1, length, length], keeps packed
            # texts apart.
            seen = segments[:, None, :, None] == segments[:, None, None, :]
            seen = seen & torch.ones_like(seen[:1]).tril() if causal else seen
            return {**found, "attention_mask": seen, "position_ids": position_ids + self.first_position}
        if self.mask_form == "padding":
            return {**found, "attention_mask": (segments > 0).long()}
        # What a row is filled up with stands behind its text, which does not look there if it looks back alone.
        seen = _earlier(input_ids) if causal else segments[:, None, None, :] > 0
        if causal and self.takes_positions:  # some count them in the mask
            found["position_ids"] = torch.arange(seen.shape[-1], device=seen.device)[None] + self.first_position
        if target_ids is not None:
            found["decoder_attention_mask"] = self._formed(_earlier(target_ids))
        return {**found, "attention_mask": self._formed(seen)}

    def _formed(self, seen: torch.Tensor) -> torch.Tensor:
        """A whole mask as it is, or to be added to scores: then in the dtype of the weights, as transformers has it."""
        if self.mask_form == "bool":
            return seen
        dtype = next(self.model.parameters()).dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


@contextlib.contextmanager
def attributes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Leave what modules keep in attributes as it was: whether they train, what some note in a forward pass.

    BigBird even replaces its parts, for good, when it first sees a short text.
    """
    before = [(module, _attributes(module), dict(module._modules)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, parts in before:
            module._modules.update(parts)
            for added in _attributes(module).keys() - attributes.keys():
                delattr(module, added)
            vars(module).update(attributes)


def _attributes(module: torch.nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _keep_chosen(head: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before the head: of all positions, [rows, length, width], keep the chosen ones, [chosen, width]."""
    chosen = getattr(head, "chosen", None)
    if chosen is None:
        return None
    if not args or not isinstance(args[0], torch.Tensor) or args[0].ndim != 3:
        raise Unfit("head masked: the head of this model takes something else than one vector per position")
    # By index_select: the backward pass of indexing sorts the places, and on a GPU it does that in every step.
    return (args[0].flatten(0, -2).index_select(0, chosen), *args[1:])


def _earlier(rows: torch.Tensor) -> torch.Tensor:
    """The mask of tokens that see themselves and those before them, bool [1, 1, length, length]."""
    length = rows.shape[1]
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=rows.device).tril()


IGNORED = -100  # the label of a position that is not predicted
