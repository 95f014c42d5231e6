"""Quality of weights on held-out texts, outside the measured window, and saving them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from joulesweep import data, methods
from joulesweep.errors import UserError
from joulesweep.memory import Weights, copy_weights, load_weights
from joulesweep.trainer import Stop, Trainer

BATCH = 128  #: texts per forward pass and rank


@torch.no_grad()
def score(trainer: Trainer, weights: Weights | None = None) -> dict[str, Any]:
    """Loss and accuracy on the validation texts under fixed masks, each rank taking its share.

    Args:
        trainer: its module is left as it was.
        weights: of this rank, from `memory.copy_weights`; None for those that the module has.

    Returns:
        train_loss (null), validation_loss (nats per masked token), perplexity, masked_accuracy, num_masked and
        num_validation_texts; the same on every rank.

    Raises:
        Stop: the loss is not finite.
        UserError: nothing was masked.
    """
    core, spec, place = trainer.core, trainer.spec, trainer.place
    before = copy_weights(core, []) if weights is not None else None
    if weights is not None:
        load_weights(core, weights)
    core.eval()
    forward: Callable[..., torch.Tensor] = (
        core.forward if spec.engine == "compile" else core
    )  # no second compilation, for evaluation
    masked = data.mask(trainer.corpus, spec.mask_probability, "validation", spec.dataset_source.get("split_seed", 0))
    by_length = trainer.validation_texts[trainer.corpus.lengths[trainer.validation_texts].argsort(stable=True)]
    layout = data.Layout(
        batching="dynamic", size=BATCH * place.world, micro=None, max_length=spec.max_length, head=spec.head
    )
    sums = torch.zeros(3, dtype=torch.float64, device=place.device)
    for (batch,), _ in data.steps(trainer.corpus, masked, by_length, layout, place.rank, place.world):
        inputs = [None if tensor is None else tensor.to(place.device) for tensor in batch.tensors]
        sums[:2] += forward(*inputs, score=True)[0].double()
        sums[2] += batch.counts["num_predicted"]
    if before is not None:
        load_weights(core, before)
    loss_sum, num_right, num_masked = place.reduced(sums).tolist()
    if not num_masked:
        raise UserError("the validation texts have no masked token; use more texts or a higher mask_probability")
    loss = loss_sum / num_masked
    if not math.isfinite(loss):
        raise Stop("diverged", "the validation loss was not finite")
    return {
        "train_loss": None,
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "masked_accuracy": num_right / num_masked,
        "num_masked": int(num_masked),
        "num_validation_texts": len(trainer.validation_texts),
    }


def save(trainer: Trainer, weights: Weights, model_folder: Path, folder: Path) -> None:
    """Save the adapted model in the Hugging Face form, tokenizer files included; all ranks call this, rank 0 writes."""
    load_weights(trainer.core, weights)
    method = methods.load(trainer.spec.method)
    if hasattr(method, "merge"):
        method.merge(trainer.core.model)
    state = trainer.core.model.state_dict(keep_vars=True)  # tied weights are one object here, and in the file
    copies = {
        key: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()
        for key, value in {id(value): value for value in state.values()}.items()
    }
    whole = {name: copies[id(value)] for name, value in state.items()}
    if trainer.place.rank != 0:
        return
    trainer.core.model.save_pretrained(folder, state_dict=whole)  # type: ignore[operator]
    for path in model_folder.iterdir():
        if path.suffix != ".safetensors" and not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
