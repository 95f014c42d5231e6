"""Generate targets of held-out texts with the trained model, outside the measured window; the analysis scores them.

Generation settings in a model's files (minimum length, forced tokens, penalties) are ignored, so that models are
compared by one rule; the record has them in the manifest of the model, under `generation`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from joulesweep.axes import precision, strategy
from joulesweep.axes.task import TASKS
from joulesweep.core import late_imports
from joulesweep.core.outcome import Summary
from joulesweep.core.spec import RunSpec
from joulesweep.train import seeds
from joulesweep.train.corpus import Corpus
from joulesweep.train.memory import Weights, load_weights
from joulesweep.train.trainer import Trainer

BATCH = 16  #: texts per rank and call


@torch.no_grad()
def generate(trainer: Trainer, weights: Weights, model_folder: Path) -> list[Summary]:
    """Generate the targets of some validation texts, each rank for its share.

    Args:
        trainer: its spec has the settings; its module keeps the weights afterwards.
        weights: of this rank, from `memory.copy_weights`.
        model_folder: folder with the tokenizer.

    Returns:
        The targets of this rank; empty if the spec has no generation.
    """
    spec, core, place = trainer.spec, trainer.core, trainer.place
    if spec.generate is None:
        return []
    load_weights(core, weights)
    core.eval()
    draw = seeds.generator("generate", spec.dataset_source.get("split_seed", 0))
    texts = trainer.validation_texts[torch.randperm(len(trainer.validation_texts), generator=draw)]
    texts = texts[: spec.generate["texts"]]
    share, num_shares = place.data_rank, place.data_parallel
    num_own = len(texts[share::num_shares])
    # All ranks gather sharded weights together for each forward pass, so each rank generates equally many.
    indices = torch.cat((texts[share::num_shares], texts[:1]))[: -(-len(texts) // num_shares)]
    tokenizer = late_imports.transformers().AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    written: list[str] = []
    with strategy.gathered(core):
        for part in torch.split(indices, BATCH):
            written += tokenizer.batch_decode(_written(trainer, part), skip_special_tokens=True)
    rows = zip(indices[:num_own].tolist(), written, strict=False)
    return [Summary(text=text, summary=summary.strip()) for text, summary in rows]


def _written(trainer: Trainer, texts: torch.Tensor) -> torch.Tensor:
    """Generate the targets of some texts: token ids, int64 [texts, at most max_target_length and a start]."""
    spec, corpus, core, place = trainer.spec, trainer.corpus, trainer.core, trainer.place
    model: Any = core.model
    ids = [_read(corpus, text) for text in texts.tolist()]
    side = "right" if TASKS[spec.task].encoder_decoder else "left"  # a decoder continues at the end of its prompt
    input_ids, attention_mask = (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filler, padding_side=side).to(
            place.device
        )
        for rows, filler in ((ids, corpus.pad_id), ([torch.ones_like(row) for row in ids], 0))
    )
    start_id = model.config.decoder_start_token_id if TASKS[spec.task].encoder_decoder else None
    with (
        precision.autocast(spec.precision, place.device.type),
        _generating_by(model, _settings(spec, corpus, start_id)),
    ):
        tokens: torch.Tensor = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            synced_gpus=strategy.STRATEGIES[spec.strategy].synced_generation and place.world > 1,
        )
    return tokens if TASKS[spec.task].encoder_decoder else tokens[:, input_ids.shape[1] :]


def _settings(spec: RunSpec, corpus: Corpus, start_id: int | None) -> Any:  # noqa: ANN401 - of transformers
    """Build the generation settings: of the spec, tokens of the tokenizer, and transformers' defaults."""
    options = spec.generate or {}
    return late_imports.transformers().GenerationConfig(
        do_sample=False,
        num_beams=options["beams"],
        length_penalty=options["length_penalty"],
        no_repeat_ngram_size=options["no_repeat_ngram"],
        max_new_tokens=spec.max_target_length,
        bos_token_id=corpus.start_id,
        pad_token_id=corpus.pad_id,
        eos_token_id=corpus.end_id,
        decoder_start_token_id=start_id,
    )


@contextlib.contextmanager
def _generating_by(model: torch.nn.Module, settings: Any) -> Iterator[None]:  # noqa: ANN401 - of transformers
    """Replace a model's generation settings, such as a minimum length or forced tokens, inside the block."""
    owners = [module for module in model.modules() if "generation_config" in vars(module)]
    originals = [module.generation_config for module in owners]
    for module in owners:
        module.generation_config = settings
    try:
        yield
    finally:
        for module, original in zip(owners, originals, strict=True):
            module.generation_config = original


def _read(corpus: Corpus, text: int) -> torch.Tensor:
    """Return the tokens that the model reads before it generates; an empty prompt becomes the start token."""
    length = int(corpus.lengths[text] if corpus.prompts is None else corpus.prompts[text])
    tokens = corpus.ids[corpus.offsets[text] :][:length]
    return tokens if length else tokens.new_tensor([corpus.start_id])
