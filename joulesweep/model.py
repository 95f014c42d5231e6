"""Backbone and masked-language-model head as one module, so that DP and DDP see every parameter they wrap."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from torch.nn import functional

from joulesweep import data, lazy, precision
from joulesweep.data import IGNORED

#: Modules that lead from the last hidden state to the logits, by the families' names for them, applied in turn.
HEADS = (
    ("cls",),  # BERT
    ("lm_head",),  # RoBERTa, XLM-R, MPNet
    ("predictions",),  # ALBERT
    ("head", "decoder"),  # ModernBERT
    ("generator_predictions", "generator_lm_head"),  # ELECTRA
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),  # DistilBERT
)


class MaskedLanguageModel(torch.nn.Module):
    """A Hugging Face masked language model whose forward returns sums, not means.

    Sums over replicas and ranks add up; means over shares with different numbers of masked tokens do not.

    Args:
        model: from `AutoModelForMaskedLM`.
        precision_name: a row of `joulesweep.precision.PRECISIONS`. Its autocast is entered here, inside the module:
            DataParallel's threads do not inherit the dtype of an autocast around them.
        head: "masked" computes the head at predicted positions only: the same loss and gradients for a sixth of its
            work; "dense" computes it everywhere, as the model's own forward does.
    """

    def __init__(self, model: torch.nn.Module, precision_name: str = "fp32", head: str = "masked") -> None:
        super().__init__()
        self.model = model
        self.precision_name = precision_name
        self.head = head
        self.head_names = next((names for names in HEADS if all(hasattr(model, name) for name in names)), None)
        embedding = model.base_model.embeddings.position_embeddings if _has_positions(model) else None  # type: ignore[union-attr]
        filler = getattr(embedding, "padding_idx", None)
        self.first_position = 0 if filler is None else int(filler) + 1  # RoBERTa counts from behind its padding index

    def refusal(self, packed: bool) -> str | None:
        """Say why this model cannot be trained so, or None if it can."""
        if self.head == "masked" and self.head_names is None:
            return "head masked: the head of this model cannot be called apart from it; use head: [dense]"
        if packed and "position_ids" not in inspect.signature(self.model.base_model.forward).parameters:  # type: ignore[union-attr]
            return "batching packed: this model takes no position_ids; use batching: [dynamic]"
        return None

    def forward(
        self,
        input_ids: torch.Tensor,
        segments: torch.Tensor,
        answers: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        chosen: torch.Tensor | None = None,
        score: bool = False,
    ) -> torch.Tensor:
        """Loss of the masked tokens.

        Args:
            input_ids: int64 [rows, length].
            segments: int64 [rows, length], which text; 0 where a row is filled up.
            answers: int64 [rows, length], or [chosen] if positions are given; `IGNORED` where nothing is predicted.
            position_ids: int64 [rows, length] where rows hold several texts, which then do not see each other.
            chosen: int64 [chosen], predicted places in the flattened rows; None to find them in `answers`.
            score: also count the right answers.

        Returns:
            float32 [1, 2]: cross-entropy in nats summed over masked tokens, and right answers (0 unless `score`).
            The leading dimension lets DataParallel gather the replicas.
        """
        with precision.autocast(self.precision_name, input_ids.device.type):
            return self._loss(input_ids, segments, answers, position_ids, chosen, score)

    def inputs(
        self, input_ids: torch.Tensor, segments: torch.Tensor, position_ids: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """What the Hugging Face model is called with; arguments as of `forward`."""
        if position_ids is None:
            return {"input_ids": input_ids, "attention_mask": (segments > 0).long()}
        # Encoders ignore position ids when they attend: only this mask, bool [rows, 1, length, length], keeps packed
        # texts apart.
        same_text = segments[:, None, :, None] == segments[:, None, None, :]
        return {
            "input_ids": input_ids,
            "attention_mask": same_text,
            "position_ids": position_ids + self.first_position,
        }

    def _loss(
        self,
        input_ids: torch.Tensor,
        segments: torch.Tensor,
        answers: torch.Tensor,
        position_ids: torch.Tensor | None,
        chosen: torch.Tensor | None,
        score: bool,
    ) -> torch.Tensor:
        inputs = self.inputs(input_ids, segments, position_ids)
        if self.head == "dense":
            logits = self.model(**inputs).logits.flatten(0, 1)
        else:
            hidden = self.model.base_model(**inputs)[0].flatten(0, 1)  # type: ignore[operator]
            if chosen is None:
                chosen = torch.nonzero(answers.flatten() != IGNORED).flatten()
                answers = answers.flatten()[chosen]
            logits = hidden[chosen]
            for name in self.head_names or ():
                logits = getattr(self.model, name)(logits)
        logits, answers = logits.float(), answers.flatten()
        loss_sum = functional.cross_entropy(logits, answers, reduction="sum", ignore_index=IGNORED)
        right = (logits.argmax(-1) == answers).sum() if score else loss_sum.new_zeros(())
        return torch.stack((loss_sum.unsqueeze(0), right.to(loss_sum.dtype).unsqueeze(0)), dim=1)


@torch.no_grad()
def packs_exactly(core: MaskedLanguageModel, corpus: data.Corpus, max_length: int) -> bool:
    """Whether texts of a packed row come out as they do alone: no attention across texts, the same positions.

    Some models add what packing cannot tell them (relative positions counted over the row), so it is tried, in float32,
    before the first step: with the shortest texts of the corpus, of which many share a row, and the longest, which a
    sliding window of attention does not see whole.
    """
    by_length = corpus.lengths.argsort(stable=True)
    texts = torch.cat((by_length[:8], by_length[8:][-8:]))
    masked = data.Masked(inputs=corpus.ids, labels=corpus.ids)
    found = []
    training = core.training
    core.eval()
    try:
        for batching in ("dynamic", "packed"):
            layout = data.Layout(batching=batching, size=len(texts), micro=None, max_length=max_length, head="dense")
            (batch,), _ = next(data.steps(corpus, masked, texts, layout))
            inputs = core.inputs(batch.input_ids, batch.segments, batch.position_ids)
            hidden = core.model.base_model(**inputs)[0]  # type: ignore[operator]
            text = batch.segments.flatten()
            order = text.argsort(stable=True)[int((text == 0).sum()) :]  # within a row, a text's tokens stand in order
            found.append(hidden.flatten(0, 1)[order])
    except RuntimeError:  # DeBERTa multiplies its embeddings by the mask, which must then have one number per token
        return False
    finally:
        core.train(training)
    return bool((found[0] - found[1]).abs().max() <= 1e-4 * found[0].abs().max())


def freeze_below(model: torch.nn.Module, num_trained: int | None = None, fraction: float | None = None) -> int:
    """Freeze the input embeddings and the lowest layers of the longest list of layers.

    What comes after the layers trains: final normalisation and output layer; but for a matrix that the output layer
    shares with the embeddings.

    Args:
        model: of Hugging Face.
        num_trained: how many layers are left to train; or
        fraction: which share of them is frozen, rounded to whole layers.

    Returns:
        How many layers the model has; it is left alone if these are none, or fewer than are to be trained.
    """
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = max(stacks, key=len, default=())
    num_frozen = round((fraction or 0) * len(layers)) if num_trained is None else len(layers) - num_trained
    if len(layers) and num_frozen >= 0:
        # What lies below the layers: a module of that name, or tables of tokens and of positions side by side.
        named = [getattr(getattr(model, "base_model", model), "embeddings", None)]
        inside = {module for layer in layers for module in layer.modules()}
        tables = [table for table in model.modules() if isinstance(table, torch.nn.Embedding) and table not in inside]
        for module in filter(None, [*named, *tables, *layers[:num_frozen]]):
            module.requires_grad_(False)
        _freeze_before(model, next(iter(layers)))
    return len(layers)


def _freeze_before(model: torch.nn.Module, first: torch.nn.Module) -> None:
    """Freeze what is computed before the first layer, such as a projection of the embeddings to the layers' width."""
    from joulesweep import flops

    try:
        reached_by = flops.traced(MaskedLanguageModel(model)).reached_by
    except Exception:  # a model that cannot be traced has been told apart by its names alone
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    begins = min((reached_by[names[id(p)]] for p in first.parameters() if names[id(p)] in reached_by), default=0)
    for name, parameter in model.named_parameters():
        if reached_by.get(name, begins) < begins:
            parameter.requires_grad_(False)


def _has_positions(model: torch.nn.Module) -> bool:
    return hasattr(getattr(model.base_model, "embeddings", None), "position_embeddings")


def build(folder: Path) -> torch.nn.Module:
    """Build the Hugging Face model that lies in a folder.

    Weights are read from safetensors only. A folder with a config and no weights gives random ones: seed first.
    """
    library = lazy.transformers()
    library.logging.disable_progress_bar()
    config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
    auto = library.AutoModelForMaskedLM
    model: torch.nn.Module
    if any(folder.glob("*.safetensors")):
        model = auto.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    else:
        model = auto.from_config(config).float()
    return model
