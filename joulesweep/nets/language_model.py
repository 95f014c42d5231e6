"""A language model that returns summed losses, as one module that DP, DDP and FSDP can wrap."""

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

#: Forms of the mask for padded rows, best first: "bool" is a whole mask, [rows, 1, queries, keys]; "float" is the same,
#: added to the scores; "padding" is [rows, length]. Every model accepts the last one, but with it transformers waits
#: for the device in every forward pass, to see whether it masks anything.
MASK_FORMS = ("bool", "float", "padding")


class Unfit(ValueError):  # noqa: N818 - says what the model is
    """A model cannot be trained as its spec requires; the message says why, in one line."""


class LanguageModel(torch.nn.Module):
    """A Hugging Face language model whose forward pass returns sums, not means.

    Sums over replicas and ranks add up; means over shares with different numbers of predicted tokens do not.

    Args:
        model: built for the task.
        precision_name: a row of `axes.precision.PRECISIONS`. The module enters its autocast itself, because
            DataParallel's threads do not inherit the dtype of an autocast around them.
        head: "masked" computes the head at predicted positions only: the same loss and gradients for a sixth of its
            work in masked language modelling; "dense" computes it everywhere, as transformers does.
        task: a row of `axes.task.TASKS`.

    Attributes:
        mask_form: one of `MASK_FORMS`; see `fit.mask_form`.
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
        """Return the reason why this model cannot be trained with the head and the batching, or None."""
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
        """Compute the loss of the predicted tokens.

        Args:
            input_ids: int64 [rows, length].
            segments: int64 [rows, length], number of the text; 0 at padding.
            answers: int64 [rows, length] (for an encoder-decoder [rows, target length]), or the shape of `chosen`
                if that is not None; `IGNORED` where nothing is predicted.
            position_ids: int64 [rows, length] if rows contain several texts, which then do not see each other.
            chosen: int64, of any shape, positions in the flattened rows at which to compute the head; None for all.
            target_ids: int64 [rows, target length], targets of an encoder-decoder; None for other models.
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
        """Compute logits at the predicted positions, or at all with a dense head; arguments as in `forward`.

        Returns:
            float32 [positions, vocabulary]; the answers, int64 [positions]; the positions in the flattened rows,
            int64 [positions], or None for all of them in order.
        """
        inputs = self.inputs(input_ids, segments, position_ids, target_ids)
        chosen = None if chosen is None else chosen.flatten()
        head = self.model.get_submodule(self.head_name) if self.head_name is not None else None
        with precision.autocast(self.precision_name, input_ids.device.type):
            if head is not None:
                head.chosen = chosen  # type: ignore[assignment] # each replica has its own module
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
        """Return the keyword arguments of the Hugging Face model; arguments as in `forward`."""
        inputs: dict[str, object] = {"input_ids": input_ids}
        if not TASKS[self.task].hides:
            inputs["use_cache"] = False  # keys and values for the next token are for generation only
        if target_ids is not None:
            config: Any = self.model.config
            start = target_ids.new_full((len(target_ids), 1), config.decoder_start_token_id)
            inputs["decoder_input_ids"] = torch.cat((start, target_ids[:, :-1]), 1)
        causal = TASKS[self.task].causal
        if position_ids is not None:
            # Attention ignores position ids: only this mask, bool [rows, 1, length, length], keeps packed texts apart.
            visible = segments[:, None, :, None] == segments[:, None, None, :]
            visible = visible & torch.ones_like(visible[:1]).tril() if causal else visible
            return {**inputs, "attention_mask": visible, "position_ids": position_ids + self.first_position}
        if self.mask_form == "padding":
            return {**inputs, "attention_mask": (segments > 0).long()}
        # Padding comes after the text, so a causal mask already hides it.
        visible = _earlier(input_ids) if causal else segments[:, None, None, :] > 0
        if causal and self.takes_positions:  # else some models derive them from the mask
            inputs["position_ids"] = torch.arange(visible.shape[-1], device=visible.device)[None] + self.first_position
        if target_ids is not None:
            inputs["decoder_attention_mask"] = self._formed(_earlier(target_ids))
        return {**inputs, "attention_mask": self._formed(visible)}

    def _formed(self, mask: torch.Tensor) -> torch.Tensor:
        """Return a whole mask unchanged, or as numbers to add to the scores, in the dtype of the weights."""
        if self.mask_form == "bool":
            return mask
        dtype = next(self.model.parameters()).dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


@contextlib.contextmanager
def attributes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Restore the attributes of all modules after the block: their mode, and what some note in a forward pass.

    BigBird even replaces its parts permanently when it first sees a short text.
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
    """Reduce the input of the head, [rows, length, width], to the chosen positions, [chosen, width]."""
    chosen = getattr(head, "chosen", None)
    if chosen is None:
        return None
    if not args or not isinstance(args[0], torch.Tensor) or args[0].ndim != 3:
        raise Unfit("head masked: the head of this model takes something else than one vector per position")
    # index_select, because the backward pass of indexing sorts the positions in every step on a GPU.
    return (args[0].flatten(0, -2).index_select(0, chosen), *args[1:])


def _earlier(rows: torch.Tensor) -> torch.Tensor:
    """Return the causal mask, bool [1, 1, length, length]."""
    length = rows.shape[1]
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=rows.device).tril()


IGNORED = -100  # the label of a position that is not predicted
