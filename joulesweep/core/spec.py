"""RunSpec: all inputs of one run, its identity, and the JSON from which it starts."""

# changes no number: a run is compared by the spec itself
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from joulesweep.core.errors import UserError, one_of

#: What a field means when a spec leaves it out. FROZEN: an entry never changes its value, or every finished run
#: of every user would silently mean something else. A better recommendation goes into config/config.yaml.
#: A new field gets its entry when it is added, with the value that reproduces all earlier runs.
OMISSION: dict[str, Any] = {
    "task": "mlm",
    "method": "full",
    "method_params": {},
    "strategy": "single",
    "devices": 1,
    "nodes": 1,
    "precision": "fp32",
    "batching": "dynamic",
    "head": "masked",
    "engine": "eager",
    "optimizer": "adamw",
    "batch_size_scope": "global",
    "micro_batch_size": None,
    "checkpoint_activations": False,
    "epochs": None,
    "max_steps": None,
    "schedule": "linear",
    "lr_warmup_fraction": 0.0,
    "weight_decay": 0.01,
    "max_grad_norm": None,
    "mask_probability": 0.15,
    "max_length": 128,
    "max_target_length": 64,
    "generate": None,
    "evaluate": [],
    "threads_per_device": 1,
    "timeout_s": 86400.0,
    "keep_model": "none",
    "warmup_steps": 2,
    "hardware_name": None,
    "gpus": "auto",
    "min_seconds": 0.0,
    "cooldown_s": 0.0,
    "idle_s": 0.0,
}

#: The same for the keys of `model_source` and `dataset_source`, at every level.
SOURCE_OMISSION: dict[str, Any] = {
    "tokenizer": None,
    "like": None,
    "new_weights": [],
    "field": None,
    "header": True,
    "target": None,
    "choices": None,
    "answer": None,
    "prompt": "{source}",
    "split": "random",
    "validation_fraction": 0.2,
    "split_seed": 0,
    "revision": "main",
    "subset": None,
    "splits": ["train"],
}


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """All inputs of a run. Two runs with equal specs are the same run.

    Attributes:
        model: name of the model (part of the slug).
        model_source: where it comes from: `config.ModelConfig` without its omission values.
        dataset: name of the data set.
        dataset_source: where it comes from and how it is split: `config.DatasetConfig` likewise.
        task: what is learned: "mlm" hidden tokens, "clm" the next token, "seq2seq" to write a text's target.
        method: a module of `joulesweep.methods`, which says what parameters train.
        method_params: its parameters.
        strategy: a row of `joulesweep.axes.strategy.STRATEGIES`.
        devices: number of devices (GPUs, or processes on CPU), over all nodes.
        nodes: number of machines, which have equally many of the devices.
        precision: a row of `joulesweep.axes.precision.PRECISIONS`.
        batching: "dynamic" pads to the longest text of a batch, "fixed" to `max_length`; "packed" fills rows of
            `max_length` tokens with several texts that do not see each other.
        head: "masked" computes the output layer at predicted positions only, "dense" everywhere.
        engine: a row of `joulesweep.axes.engine.ENGINES`.
        optimizer: a row of `joulesweep.axes.optimizer.OPTIMIZERS`.
        batch_size: texts per optimizer step, over all devices or on each (`batch_size_scope`).
        batch_size_scope: "global" or "per_device".
        micro_batch_size: texts per forward pass on each device, with gradients accumulated; None for all at once.
        checkpoint_activations: recompute a layer's activations in the backward pass instead of keeping them.
        lr: peak learning rate.
        repeat: 1, 2, …; the seed of everything random in the run.
        epochs: passes over the training texts, or None.
        max_steps: optimizer steps, or None; exactly one of the two is set.
        schedule: learning-rate schedule after the learning rate's warm-up.
        lr_warmup_fraction: share of the steps in which the rate rises linearly.
        weight_decay: of AdamW.
        max_grad_norm: gradients of a step are clipped to this norm, as one vector; None for no clipping.
        mask_probability: share of tokens that are predicted.
        max_length: tokens per text, special tokens included; longer texts are cut.
        max_target_length: tokens per target, end token included; task clm counts them within max_length.
        generate: `config.Generate` as a mapping: how targets are generated after the training; None for no generation.
        evaluate: evaluations before and after the training: `name` (a module of `joulesweep.train.evaluations`), its
            other parameters, and `source`, the data set that it reads, as in `dataset_source`.
        threads_per_device: CPU threads of each process.
        timeout_s: seconds after which the run is stopped and recorded as timeout.
        keep_model: "none", "best" (by validation loss) or "last".
        warmup_steps: steps before the measured window; their effect is undone.
        accelerator: "cpu" or "cuda".
        hardware_name: the user's name for the kind of board, or None.
        gpus: boards that a run on the CPU meters (NVML indices or UUIDs); "auto" otherwise.
        min_seconds: a shorter training is repeated inside its window until the window is this long.
        cooldown_s: longest wait before the run for temperature and power to settle.
        idle_s: length of the idle baseline before the window.
    """

    #: For pydantic, which decodes records: an unknown field is an error, as in `from_mapping`.
    __pydantic_config__: ClassVar[dict[str, object]] = {"strict": True, "allow_inf_nan": False, "extra": "forbid"}

    model: str
    model_source: dict[str, Any]
    dataset: str
    dataset_source: dict[str, Any]
    batch_size: int
    lr: float
    repeat: int
    accelerator: str
    task: str = OMISSION["task"]
    method: str = OMISSION["method"]
    method_params: dict[str, Any] = field(default_factory=dict)
    strategy: str = OMISSION["strategy"]
    devices: int = OMISSION["devices"]
    nodes: int = OMISSION["nodes"]
    precision: str = OMISSION["precision"]
    batching: str = OMISSION["batching"]
    head: str = OMISSION["head"]
    engine: str = OMISSION["engine"]
    optimizer: str = OMISSION["optimizer"]
    batch_size_scope: str = OMISSION["batch_size_scope"]
    micro_batch_size: int | None = OMISSION["micro_batch_size"]
    checkpoint_activations: bool = OMISSION["checkpoint_activations"]
    epochs: int | None = OMISSION["epochs"]
    max_steps: int | None = OMISSION["max_steps"]
    schedule: str = OMISSION["schedule"]
    lr_warmup_fraction: float = OMISSION["lr_warmup_fraction"]
    weight_decay: float = OMISSION["weight_decay"]
    max_grad_norm: float | None = OMISSION["max_grad_norm"]
    mask_probability: float = OMISSION["mask_probability"]
    max_length: int = OMISSION["max_length"]
    max_target_length: int = OMISSION["max_target_length"]
    generate: dict[str, Any] | None = OMISSION["generate"]
    evaluate: list[Mapping[str, object]] = field(default_factory=list)
    threads_per_device: int = OMISSION["threads_per_device"]
    timeout_s: float = OMISSION["timeout_s"]
    keep_model: str = OMISSION["keep_model"]
    warmup_steps: int = OMISSION["warmup_steps"]
    hardware_name: str | None = OMISSION["hardware_name"]
    gpus: str | list[int | str] = OMISSION["gpus"]
    min_seconds: float = OMISSION["min_seconds"]
    cooldown_s: float = OMISSION["cooldown_s"]
    idle_s: float = OMISSION["idle_s"]

    @property
    def global_batch_size(self) -> int:
        """Texts per optimizer step over all devices."""
        return self.batch_size * (self.devices if self.batch_size_scope == "per_device" else 1)

    @property
    def node_devices(self) -> int:
        """Devices of each node."""
        return self.devices // self.nodes

    @property
    def device_batch_size(self) -> int:
        """Texts per optimizer step on each device."""
        return self.global_batch_size // self.devices


FIELDS = tuple(item.name for item in fields(RunSpec))


def micro_batch(requested: int | None, axes: Mapping[str, Any]) -> int | None:
    """Return the micro-batch size that a run uses: None if a device's whole batch fits into one micro-batch.

    Args:
        requested: a value of the axis.
        axes: with the run's batch_size, batch_size_scope and devices.
    """
    texts = axes["batch_size"] / (axes["devices"] if axes["batch_size_scope"] == "global" else 1)
    return requested if requested is not None and requested < texts else None


def strip(spec: RunSpec) -> dict[str, Any]:
    """Return the spec as a mapping without fields at their omission value: this is hashed and given to the run."""
    kept = {}
    for name in FIELDS:
        value = getattr(spec, name)
        if name not in OMISSION or value != OMISSION[name]:
            kept[name] = value
    return kept


def full(spec: RunSpec) -> dict[str, Any]:
    """Return the spec as a mapping with every field, as records contain it."""
    return {name: getattr(spec, name) for name in FIELDS}


def from_mapping(values: dict[str, Any]) -> RunSpec:
    """Build a spec from a stripped or a full mapping.

    Raises:
        UserError: a field is unknown or missing.
    """
    for key in values:
        if key not in FIELDS:
            raise UserError(f"spec: {one_of('field', key, FIELDS)}")
    missing = [name for name in FIELDS if name not in values and name not in OMISSION]
    if missing:
        raise UserError(f"spec: missing {', '.join(missing)}")
    return RunSpec(**values)


def strip_source(section: dict[str, Any]) -> dict[str, Any]:
    """Return a source mapping without the keys at their omission value, at every level."""
    return {
        key: strip_source(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if key not in SOURCE_OMISSION or value != SOURCE_OMISSION[key]
    }


def canonical(value: object) -> str:
    """Encode a value as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def short_hash(value: object) -> str:
    """Return the first ten hexadecimal digits (40 bits) of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:10]
