"""Score weights on held-out texts, outside the measured window, and save them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from joulesweep import methods
from joulesweep.axes import strategy
from joulesweep.axes.engine import ENGINES
from joulesweep.axes.task import TASKS
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import Quality
from joulesweep.nets import language_model
from joulesweep.train import data, labels
from joulesweep.train.corpus import Corpus
from joulesweep.train.memory import Weights, copy_weights, load_weights
from joulesweep.train.trainer import RunEnded, Trainer

BATCH = 128  #: texts per forward pass and rank, at most
LOGITS = 2**28  #: largest number of logits in a forward pass: 1 GiB in float32
LARGEST_LOSS = math.log(1e300)  #: beyond it the perplexity is null
ROUNDING = 1e-5  #: relative difference of a loss between batches of different sizes


@torch.no_grad()
def score(trainer: Trainer, weights: Weights | None = None) -> Quality:
    """Compute loss and accuracy on the validation texts, with fixed masks if any; each rank takes its share.

    Args:
        trainer: its module has the same weights afterwards.
        weights: of this rank, from `memory.copy_weights`; None for the current weights of the module.

    Returns:
        The quality, the same on every rank.

    Raises:
        Stop: the loss is not finite.
        UserError: the validation texts have no token to predict.
    """
    core, spec, place = trainer.core, trainer.spec, trainer.place
    before = copy_weights(core, []) if weights is not None else None
    if weights is not None:
        load_weights(core, weights)
    core.eval()
    forward: Callable[..., torch.Tensor] = (
        core.forward if ENGINES[spec.engine].compiles else core
    )  # avoids a second compilation for evaluation
    key = ("validation", spec.dataset_source.get("split_seed", 0))
    shown = labels.labelled(trainer.corpus, spec.task, spec.mask_probability, *key)
    by_length = trainer.validation_texts[trainer.corpus.lengths[trainer.validation_texts].argsort(stable=True)]
    layout = _layout(trainer, trainer.corpus)
    sums = torch.zeros(3, dtype=torch.float64, device=place.device)
    for (batch,), _ in data.steps(trainer.corpus, shown, by_length, layout, place.data_rank, place.data_parallel):
        sums[:2] += forward(*batch.on(place.device), score=True)[0].double()
        sums[2] += batch.counts["num_predicted"]
    choice_accuracy = _choice_accuracy(trainer)
    if before is not None:
        load_weights(core, before)
    loss_sum, num_right, num_masked = place.reduced(sums).tolist()
    if not num_masked:
        remedy = " or a higher mask_probability" if TASKS[spec.task].hides else ""
        raise UserError(f"the validation texts have no token to predict; use more texts{remedy}")
    loss = loss_sum / num_masked
    if not math.isfinite(loss):
        raise RunEnded("diverged", "the validation loss was not finite")
    return Quality(
        validation_loss=loss,
        perplexity=math.exp(loss) if loss < LARGEST_LOSS else None,
        masked_accuracy=num_right / num_masked,
        choice_accuracy=choice_accuracy,
        num_validation_texts=len(trainer.validation_texts),
        num_masked=int(num_masked),
    )


def _layout(trainer: Trainer, corpus: Corpus) -> data.BatchLayout:
    """Return a padded layout whose batches keep the logits of a dense head within `LOGITS`."""
    spec = trainer.spec
    most = LOGITS // (max(1, int(corpus.written.lengths.max())) * corpus.vocab_size)
    return data.BatchLayout(
        batching="dynamic",
        size=max(1, min(BATCH, most)) * trainer.place.data_parallel,
        micro=None,
        max_length=spec.max_length,
        max_target_length=spec.max_target_length,
        head=spec.head,
    )


def _choice_accuracy(trainer: Trainer) -> float | None:
    """Compute the share of validation texts whose right choice has the lowest loss per token of all their choices.

    If several choices share the lowest loss, the text counts as a fraction, so that a model that cannot distinguish
    choices scores at chance.
    """
    corpus = trainer.corpus
    choices, choice_text, answer = corpus.choices, corpus.choice_text, corpus.answer
    if choices is None or choice_text is None or answer is None:
        return None
    indices = torch.nonzero(torch.isin(choice_text, trainer.validation_texts)).flatten()
    shown = labels.labelled(choices, trainer.spec.task, 0.0)
    sums, counts = text_losses(trainer, choices, shown, indices)
    choice_losses = sums / counts.clamp(min=1)
    best = torch.full((len(answer),), math.inf, dtype=torch.float64).scatter_reduce(
        0, choice_text, choice_losses, "amin"
    )
    right = choice_losses[torch.searchsorted(choice_text, torch.arange(len(answer))) + answer]
    most = best * (1 + ROUNDING)
    num_best = torch.zeros_like(best).index_add_(0, choice_text, (choice_losses <= most[choice_text]).double())
    return float(((right <= most) / num_best.clamp(min=1))[trainer.validation_texts].mean())


@torch.no_grad()
def text_losses(
    trainer: Trainer, corpus: Corpus, shown: labels.MaskedInputs, texts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss of each of some texts by the module's present weights; each rank takes its share.

    Args:
        trainer: its module is in the mode of scoring.
        corpus: the texts.
        shown: their inputs and labels.
        texts: indices of those to score, int64 [n].

    Returns:
        The summed loss in nats and the number of predicted tokens of each text of the corpus, float64 [texts] on the
        CPU, the same on every rank; 0 of the others.
    """
    place, layout = trainer.place, _layout(trainer, corpus)
    texts = texts[corpus.lengths[texts].argsort(stable=True)]
    whole_sums = torch.zeros(2, len(corpus.group), dtype=torch.float64, device=place.device)
    steps = data.steps(corpus, shown, texts, layout, place.data_rank, place.data_parallel)
    for whole, ((batch,), _) in zip(torch.split(texts, layout.size), steps, strict=True):
        own_texts = whole[place.data_rank :: place.data_parallel].to(place.device)
        with strategy.gathered(trainer.core):
            logits, answers, places = trainer.core.logits(*batch.on(place.device))
        each = functional.cross_entropy(logits, answers, reduction="none", ignore_index=language_model.IGNORED).double()
        length = (batch.input_ids if batch.target_ids is None else batch.target_ids).shape[1]
        row = (torch.arange(len(each), device=place.device) if places is None else places) // length
        sums = torch.zeros(2, len(batch.input_ids), dtype=torch.float64, device=place.device)
        sums.index_add_(1, row, torch.stack((each, (answers != language_model.IGNORED).double())))
        whole_sums[:, own_texts] = sums[:, : len(own_texts)]
    losses, counts = place.reduced(whole_sums).cpu()
    return losses, counts


def save(trainer: Trainer, weights: Weights, model_folder: Path, folder: Path) -> None:
    """Save the trained model in Hugging Face format, with tokenizer files; all ranks call this, rank 0 writes.

    Parameters that a method added are merged into the model, or saved beside it.
    """
    load_weights(trainer.core, weights)
    method = methods.load(trainer.spec.method)
    if hasattr(method, "merge"):
        method.merge(trainer.core.model)
    state = trainer.core.model.state_dict(keep_vars=True)  # tied weights stay one object, also in the file
    copies = {
        key: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()
        for key, value in {id(value): value for value in state.values()}.items()
    }
    whole = {name: copies[id(value)] for name, value in state.items()}
    if trainer.place.rank != 0:
        return
    if hasattr(method, "save"):
        method.save(trainer.core.model, whole, folder)
    else:
        trainer.core.model.save_pretrained(folder, state_dict=whole)  # type: ignore[operator]
    for path in model_folder.iterdir():
        if path.suffix != ".safetensors" and not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
