"""Backbone and masked-language-model head as one module, so that DP and DDP see every parameter they wrap."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from joulesweep import precision
from joulesweep.data import IGNORED


class MaskedLanguageModel(torch.nn.Module):
    """A Hugging Face masked language model whose forward returns sums, not means.

    Sums over replicas and ranks add up; means over shares with different numbers of masked tokens do not. Where the
    head can be called apart (BERT's `cls`, RoBERTa's `lm_head`), it runs on the masked positions only: the same
    loss and gradients for a sixth of the work.

    Args:
        model: from `AutoModelForMaskedLM`.
        precision_name: a row of `joulesweep.precision.PRECISIONS`. Its autocast is entered here, inside the module:
            DataParallel's threads do not inherit the dtype of an autocast around them.
    """

    def __init__(self, model: torch.nn.Module, precision_name: str = "fp32") -> None:
        super().__init__()
        self.model = model
        self.precision_name = precision_name
        self.head_name = next((name for name in ("cls", "lm_head") if hasattr(model, name)), None)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, score: bool = False
    ) -> torch.Tensor:
        """Loss of the masked tokens.

        Args:
            input_ids: int64 [texts, length].
            attention_mask: int64 [texts, length].
            labels: int64 [texts, length], `IGNORED` where nothing is predicted.
            score: also count the right answers.

        Returns:
            float32 [1, 2]: cross-entropy in nats summed over masked tokens, and right answers (0 unless `score`).
            The leading dimension lets DataParallel gather the replicas.
        """
        with precision.autocast(self.precision_name, input_ids.device.type):
            return self._loss(input_ids, attention_mask, labels, score)

    def _loss(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, score: bool
    ) -> torch.Tensor:
        chosen = labels != IGNORED
        if self.head_name is None:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[chosen]
        else:
            hidden = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask)[0]  # type: ignore[operator]
            logits = getattr(self.model, self.head_name)(hidden[chosen])
        logits, answers = logits.float(), labels[chosen]
        loss_sum = functional.cross_entropy(logits, answers, reduction="sum")
        right = (logits.argmax(-1) == answers).sum() if score else loss_sum.new_zeros(())
        return torch.stack((loss_sum, right.to(loss_sum.dtype))).unsqueeze(0)


def build(folder: Path) -> torch.nn.Module:
    """Build the Hugging Face model that lies in a folder.

    Weights are read from safetensors only. A folder with a config and no weights gives random ones: seed first.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model: torch.nn.Module
    if any(folder.glob("*.safetensors")):
        model = AutoModelForMaskedLM.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    else:
        model = AutoModelForMaskedLM.from_config(config).float()
    return model
