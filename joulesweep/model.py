"""Backbone and language-model head as one module, so that DP and DDP see every parameter they wrap."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from joulesweep import lazy, precision, weights
from joulesweep.data import IGNORED
from joulesweep.errors import UserError
from joulesweep.weights import Fit

#: Where the output layer begins, by the families' names for it: everything from there on is computed position by
#: position. In a model that has none of these it is the matrix of its output embeddings alone.
HEADS = (
    "cls",  # BERT
    "decoder.cls",  # BERT as the decoder of an encoder-decoder
    "lm_head",  # RoBERTa, XLM-R, MPNet; OPT, LLaMA, GPT-2, BLOOM; T5, BART
    "decoder.lm_head",
    "predictions",  # ALBERT
    "head",  # ModernBERT
    "generator_predictions",  # ELECTRA
    "vocab_transform",  # DistilBERT
)
#: Tables of learned positions, by the families' names for them: BERT, RoBERTa, …; OPT, BART; GPT-2.
POSITIONS = ("position_embeddings", "embed_positions", "wpe")
#: Forms of the mask that padded rows are handed over with, the best first, apart from the last one, which every model
#: takes: "bool" is whole, [rows, 1, queries, keys]; "float" the same, added to the scores; "padding" [rows, length].
#: Of the last transformers asks the device in every forward pass whether it hides anything at all, and waits.
MASK_FORMS = ("bool", "float", "padding")
#: The class of transformers that a task trains.
AUTO_CLASSES = {"mlm": "AutoModelForMaskedLM", "clm": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}


class Unfit(ValueError):  # noqa: N818 - says what is so
    """A model that cannot be trained as a spec wants, and why, in one line."""


class LanguageModel(torch.nn.Module):
    """A Hugging Face language model whose forward returns sums, not means.

    Sums over replicas and ranks add up; means over shares with different numbers of predicted tokens do not.

    Args:
        model: from one of `AUTO_CLASSES`.
        precision_name: a row of `joulesweep.precision.PRECISIONS`. Its autocast is entered here, inside the module:
            DataParallel's threads do not inherit the dtype of an autocast around them.
        head: "masked" computes the head at predicted positions only: the same loss and gradients for a sixth of its
            work in masked language modelling; "dense" computes it everywhere, as the model's own forward does.
        task: one of `AUTO_CLASSES`.

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
        self.takes_positions = _takes_positions(model)
        self.head_name = head_name(model)
        head_module = model.get_submodule(self.head_name) if self.head_name is not None else None
        if head_module is not None and _keep_chosen not in head_module._forward_pre_hooks.values():
            head_module.register_forward_pre_hook(_keep_chosen)
        embedding = model.base_model.embeddings.position_embeddings if _has_positions(model) else None  # type: ignore[union-attr]
        self.first_position = _first_position(embedding)

    def refusal(self, packed: bool) -> str | None:
        """Say why this model cannot be trained so, or None if it can."""
        if self.head == "masked" and self.head_name is None:
            return "head masked: the head of this model cannot be told from the rest; use head: [dense]"
        if packed and self.task == "seq2seq":
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
        if self.task != "mlm":
            found["use_cache"] = False  # of keys and values, for the next token: for generation alone
        if target_ids is not None:
            config: Any = self.model.config
            start = target_ids.new_full((len(target_ids), 1), config.decoder_start_token_id)
            found["decoder_input_ids"] = torch.cat((start, target_ids[:, :-1]), 1)
        causal = self.task == "clm"
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


def head_name(model: torch.nn.Module) -> str | None:
    """Name of the module with which the output layer begins, or None if it cannot be told."""
    modules = dict(model.named_modules())
    inside = "base_model." if "base_model" in modules else ""  # of a wrapper of peft
    named = next((inside + name for name in HEADS if inside + name in modules), None)
    if named is None and hasattr(model, "get_output_embeddings"):
        matrix = model.get_output_embeddings()  # type: ignore[operator]
        is_table = isinstance(matrix, torch.nn.Embedding)  # FSMT gives its decoder's, which reads ids
        named = next((name for name, module in modules.items() if module is matrix and not is_table), None)
    return named


def _keep_chosen(head: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before the head: of all positions, [rows, length, width], keep the chosen ones, [chosen, width]."""
    chosen = getattr(head, "chosen", None)
    if chosen is None:
        return None
    if not args or not isinstance(args[0], torch.Tensor) or args[0].ndim != 3:
        raise Unfit("head masked: the head of this model takes something else than one vector per position")
    # By index_select: the backward pass of indexing sorts the places, and on a GPU it does that in every step.
    return (args[0].flatten(0, -2).index_select(0, chosen), *args[1:])


def layers_of(model: torch.nn.Module, method: str) -> list[torch.nn.Module]:
    """The layers of a model in order of execution: of an encoder-decoder the encoder's, then the decoder's.

    Args:
        model: of Hugging Face.
        method: that wants them, for the message.

    Raises:
        UserError: it has none, or they cannot be told apart: several places share one, or one lies in several lists.
    """
    layers = [layer for _, stack in stacks(model) for layer in stack]
    if not layers:
        raise UserError(f"method {method}: the model has no list of layers")
    parents = {id(part): parent for parent in model.modules() for part in parent.children()}
    lists = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == len(layers) > 1]
    homes = [id(parents.get(id(one))) for one in lists if not isinstance(parents.get(id(one)), torch.nn.ModuleList)]
    if layers[0] in {part for one in lists for part in one} and len(set(homes)) < len(homes):
        raise UserError(f"method {method}: each layer of this model lies in several lists; choose another method")
    most = max(_num_executions(model, layers), default=1)
    if most > 1:
        raise UserError(
            f"method {method}: the layers of this model share their weights: {len(layers)} is executed {most} times"
        )
    return layers


def _num_executions(model: torch.nn.Module, layers: list[torch.nn.Module]) -> list[int]:
    """How often each layer is executed in a forward pass; nothing where that cannot be found out."""
    executed: list[int] = []
    handles = [layer.register_forward_pre_hook(lambda *_, i=i: executed.append(i)) for i, layer in enumerate(layers)]
    try:
        _order(model)
    finally:
        for handle in handles:
            handle.remove()
    return [executed.count(i) for i in range(len(layers)) if i in executed]


def freeze_below(model: torch.nn.Module, layers: list[torch.nn.Module], num_frozen: int) -> None:
    """Freeze the input embeddings and the lowest layers, with what is computed between them.

    What comes after the last frozen layer trains, final normalisation and output layer too; but for the input
    embeddings of either half, what leads from them to its first layer, and a matrix that the output layer shares with
    them.

    Args:
        model: of Hugging Face.
        layers: see `layers_of`.
        num_frozen: how many of them.
    """
    # What lies below the layers: a module of that name, or tables of tokens and of positions side by side.
    named = [getattr(getattr(model, "base_model", model), "embeddings", None)]
    inside = {module for layer in layers for module in layer.modules()}
    tables = [table for table in model.modules() if isinstance(table, torch.nn.Embedding) and table not in inside]
    for module in filter(None, [*named, *tables, *layers[:num_frozen]]):
        module.requires_grad_(False)
    firsts = [(half, stack[0]) for half, stack in stacks(model) if stack]
    _freeze_before(model, [*firsts, (model, layers[min(num_frozen, len(layers) - 1)])])


def frozen_layers(model: torch.nn.Module) -> dict[str, int]:
    """How many layers a model has, and how many of them do not train at all."""
    layers = [layer for _, stack in stacks(model) for layer in stack]
    trains = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers]
    return {"num_layers": len(layers), "num_frozen_layers": trains.count(False)}


def stacks(model: torch.nn.Module) -> list[tuple[torch.nn.Module, list[torch.nn.Module]]]:
    """A model and its layers, or the halves of an encoder-decoder with theirs, in order of execution.

    The layers are the longest of the lists of modules that lie in no other one: a layer may have lists of its parts.
    """
    halves: list[Any] = [model]
    if _is_encoder_decoder(model):
        halves = [model.get_encoder(), model.get_decoder()]  # type: ignore[operator]
    found = []
    for half in halves:
        lists = [module for module in half.modules() if isinstance(module, torch.nn.ModuleList)]
        inner = {part for one in lists for layer in one for part in layer.modules()}
        outer = [list(one) for one in lists if one not in inner]
        longest: list[torch.nn.Module] = max(outer, key=len, default=[])
        found.append((half, _flat(longest)))
    return found


def _flat(layers: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """The layers of a list, whose blocks may be lists themselves."""
    return [one for layer in layers for one in (layer if isinstance(layer, torch.nn.ModuleList) else [layer])]


def _is_encoder_decoder(model: torch.nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _freeze_before(model: torch.nn.Module, places: list[tuple[torch.nn.Module, torch.nn.Module]]) -> None:
    """Freeze what is computed before a layer, such as a projection of the embeddings to the layers' width.

    Args:
        model: of Hugging Face.
        places: parts of it, each with the layer before which what is computed of that part is frozen.
    """
    order = _order(model)
    if not order:
        return  # a model that cannot be traced has been told apart by its names alone
    use = {name: place for place, name in enumerate(order)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for part, layer in places:
        begin = min((use[names[id(p)]] for p in layer.parameters() if names[id(p)] in use), default=0)
        for parameter in part.parameters():
            if use.get(names[id(parameter)], begin) < begin:
                parameter.requires_grad_(False)


def _order(model: torch.nn.Module) -> list[str]:
    """Names of a model's parameters by their first use; none where it cannot be run without data."""
    from joulesweep import flops

    try:
        core = LanguageModel(model, task="seq2seq" if _is_encoder_decoder(model) else "mlm")
        return list(flops.followed(core).reached_by)
    except Exception:  # whatever a foreign model does
        return []


def _earlier(rows: torch.Tensor) -> torch.Tensor:
    """The mask of tokens that see themselves and those before them, bool [1, 1, length, length]."""
    length = rows.shape[1]
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=rows.device).tril()


def _takes_positions(model: torch.nn.Module) -> bool:
    """Whether a model can be told the positions of its tokens."""
    return "position_ids" in inspect.signature(getattr(model, "base_model", model).forward).parameters


def _has_positions(model: torch.nn.Module) -> bool:
    return hasattr(getattr(model.base_model, "embeddings", None), "position_embeddings")


def _first_position(table: Any) -> int:  # noqa: ANN401 - an embedding, or None
    """Where a table of positions begins: RoBERTa counts from behind its padding index."""
    filler = getattr(table, "padding_idx", None)
    return 0 if filler is None else int(filler) + 1


def num_positions(half: torch.nn.Module) -> int | None:
    """How many tokens of a text a model, or a half of it, has learned positions for; None where it looks up none."""
    tables = [
        module
        for name, module in half.named_modules()
        if name.rpartition(".")[2] in POSITIONS and isinstance(module, torch.nn.Embedding)
    ]
    # OPT and BART leave out the first ones.
    return min((t.num_embeddings - int(getattr(t, "offset", _first_position(t))) for t in tables), default=None)


class NoModel(UserError):  # noqa: N818 - says what there is not
    """transformers has no model of a config's family for a task."""


#: Loads a model of an automatic class of the library, and says how its files fit it.
Load = Callable[[Any, Any], tuple[Any, Fit]]


def build(folder: Path, task: str = "mlm", new_weights: Collection[str] = ()) -> torch.nn.Module:
    """Build the Hugging Face model that lies in a folder.

    Weights are read from safetensors only. A folder with a config and no weights gives random ones: seed first.
    An encoder alone is trained for seq2seq as both halves of an encoder-decoder, both beginning with its weights
    (Rothe et al. 2020, arXiv 1907.12461); the attention between them begins at random.

    Args:
        folder: of the model.
        task: one of `AUTO_CLASSES`.
        new_weights: parts that may begin at random, of `weights.PARTS`.

    Raises:
        UserError: transformers has no such model for the task, or the folder has not all of its weights.
    """
    model: torch.nn.Module
    model, fit = _assembled(folder, task, functools.partial(_loaded, folder))
    reason = fit.refusal(new_weights)
    if reason is not None:
        raise UserError(f"task {task}: {reason}")
    return model


def tried(folder: Path, task: str) -> tuple[Fit, int | None]:
    """Try `build` without reading weights: how the files fit the model, and how many tokens it has embeddings for.

    Raises:
        UserError: it cannot be built.
    """
    try:
        model, fit = _assembled(folder, task, functools.partial(_imagined, folder))
    except UserError:
        raise
    except Exception as error:  # whatever a family's classes make of a config that does not suit them
        raise UserError(f"task {task}: the model cannot be built: {' '.join(str(error).split())}") from None
    return fit, num_embeddings(model)


def num_embeddings(model: Any) -> int | None:  # noqa: ANN401 - of any family
    """How many tokens a model can read; None if that cannot be told."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):  # it looks its tokens up in some other way
        return getattr(model.config, "vocab_size", None)


def _assembled(folder: Path, task: str, load: Load) -> tuple[Any, Fit]:
    library = lazy.transformers()
    library.logging.disable_progress_bar()
    config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
    auto = getattr(library, AUTO_CLASSES[task])
    both = (library.AutoModelForMaskedLM, library.AutoModelForCausalLM)  # what an encoder has that can be a decoder
    if type(config) in auto._model_mapping:
        model, fit = load(auto, config)
    elif task == "seq2seq" and all(type(config) in one._model_mapping for one in both):
        model, fit = _warm_started(config, load)
    else:
        raise NoModel(f"task {task}: transformers has no {config.model_type} for it; choose another model or task")
    if model.config.model_type == "encoder-decoder" and hasattr(model.encoder, "pooler"):
        model.encoder.pooler = None  # nothing reads it
    return model, fit


def _loaded(folder: Path, auto: Any, config: Any) -> tuple[Any, Fit]:  # noqa: ANN401 - of any family
    """A model of one of the library's automatic classes, in float32, with the folder's weights or random ones."""
    if not any(folder.glob("*.safetensors")):
        return auto.from_config(config).float(), Fit(missing={})
    model, info = auto.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are named in `info`, and refused
    )
    return model, Fit.of(model, info)


def _imagined(folder: Path, auto: Any, config: Any) -> tuple[Any, Fit]:  # noqa: ANN401 - of any family
    """The same without content: it takes neither memory nor time."""
    if not any(folder.glob("*.safetensors")):
        with torch.device("meta"):
            return auto.from_config(config), Fit(missing={})
    lazy.transformers().logging.set_verbosity_error()  # what it says of its loading, `Fit` says
    known = importlib.import_module("transformers.models.auto.auto_factory")._get_model_class(
        config, auto._model_mapping
    )
    return weights.load_imagined(folder, known, config)


def _warm_started(config: Any, load: Load) -> tuple[Any, Fit]:  # noqa: ANN401 - a config of any family
    library = lazy.transformers()
    decoder_config = copy.deepcopy(config)
    decoder_config.is_decoder = decoder_config.add_cross_attention = True
    encoder, encoder_fit = load(library.AutoModel, config)
    decoder, decoder_fit = load(library.AutoModelForCausalLM, decoder_config)
    try:
        return library.EncoderDecoderModel(encoder=encoder, decoder=decoder), Fit.both(encoder_fit, decoder_fit)
    except ValueError as error:
        raise UserError(f"task seq2seq: no encoder-decoder can be made of {config.model_type}: {error}") from None
