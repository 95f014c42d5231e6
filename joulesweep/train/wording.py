"""Count the words and characters that a training reads and writes, which depend on no tokenizer."""

# changes no number: counted beside the numbers, after the window
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from joulesweep.axes.task import TASKS
from joulesweep.core.outcome import TextCounts
from joulesweep.train import labels
from joulesweep.train.corpus import Corpus, offsets_of
from joulesweep.train.trainer import Trainer


def count(trainer: Trainer, tokens: Path, num_predicted: int) -> TextCounts | None:
    """Count the texts of one pass of the training, and of the validation.

    A text that was cut counts by the share of its pieces that was kept: half of its words where half of its pieces
    are trained on. Special tokens and the prompt's own words count nowhere.

    Args:
        trainer: after its training.
        tokens: the token file.
        num_predicted: pieces predicted in the validation.

    Returns:
        None where the token file is older than these counts.
    """
    with safe_open(tokens, framework="pt") as file:
        if "words" not in file.keys():  # noqa: SIM118 - no mapping
            return None
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.endswith("ids")}  # noqa: SIM118
    corpus, hides = trainer.corpus, TASKS[trainer.spec.task].hides
    about = json.loads(tokens.with_suffix(".json").read_text(encoding="utf-8"))
    kept, kept_target = _kept(corpus, about, hides)
    share = _share(kept, tensors["offsets"].diff())
    words, characters = tensors["words"] * share, tensors["characters"] * share
    written = characters
    if kept_target is not None:
        target_share = _share(kept_target, tensors["target_offsets"].diff())
        written = tensors["target_characters"] * target_share
        words, characters = words + tensors["target_words"] * target_share, characters + written
        kept = kept + kept_target
    times = _times(trainer)
    learned = offsets_of(corpus.learned.long())[corpus.offsets].diff()
    held_out = trainer.validation_texts
    return TextCounts(
        num_words=round(float((words * times).sum())),
        num_characters=round(float((characters * times).sum())),
        num_pieces=int((kept * times).sum()),
        num_validation_characters=round(float(written[held_out].sum())),
        num_validation_pieces=int(learned[held_out].sum()) if hides else num_predicted,
    )


def _kept(corpus: Corpus, about: dict[str, Any], hides: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pieces of each text, and of each target if the task reads them, that are left after cutting: int64 [texts]."""
    around, prompt = len(about["prefix"]), len(about.get("prompt_before", [])) + len(about.get("prompt_after", []))
    suffix, end = about["suffix"], about.get("eos_id")
    ending = len(suffix) + (end is not None and suffix[-1:] != [end])
    if corpus.targets is not None:
        opening = 0 if about["prefix"] == [corpus.start_id] else around
        return corpus.lengths - around - prompt - len(suffix), corpus.targets.lengths - opening - ending
    if corpus.prompts is not None:
        return corpus.prompts - around - prompt, corpus.lengths - corpus.prompts - ending
    return corpus.lengths - around - (len(suffix) if hides else ending), None


def _share(kept: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Share of each text's pieces that is kept, float64 [texts]; 1 of a text without any."""
    return torch.where(whole > 0, kept / whole.clamp(min=1), torch.ones(len(whole))).double()


def _times(trainer: Trainer) -> torch.Tensor:
    """How often each text is trained on in one pass, int64 [texts]."""
    times = torch.zeros(len(trainer.corpus.group), dtype=torch.int64)
    epochs, rest = divmod(trainer.num_steps, trainer.steps_per_epoch)
    times[trainer.train_texts] = epochs
    last = labels.order(trainer.train_texts, trainer.spec.repeat, epochs + 1)
    times[last[: rest * trainer.spec.global_batch_size]] += 1
    return times
