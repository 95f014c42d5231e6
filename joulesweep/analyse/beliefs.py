"""What is believed of a run's seconds and joules before anything finished: from counted work and the machine's rates.

    useful FLOPs = 3 × those of the forward pass, of every text, from the shapes in the model's config.json
    seconds      = FLOPs / (assumed share × peak rate × devices)          GPUs: rates of `resources/gpus.csv`
                 = FLOPs / (assumed rate × threads × devices)             CPUs
    joules       = seconds × assumed share of the boards' power limits    GPUs
                 = estimated from CPU-seconds and watts                   CPUs, if the config asks for it

The assumptions are rough, and their ranges say so: they give way to the first runs that finish. Exact counts come from
running the model, which a plan does not do. No torch.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep.analyse import roofline
from joulesweep.analyse.estimator import Before, Job
from joulesweep.axes.precision import PRECISIONS
from joulesweep.axes.task import TASKS
from joulesweep.core.spec import RunSpec
from joulesweep.plan.grid import dataset_key, model_key
from joulesweep.reference.cpu_estimate import Asked, estimate_cpu

#: Useful FLOPs over those of the peak rate, and FLOP/s of a thread: the middle, and the standard deviation of the log.
GPU_SHARE, GPU_SD = 0.25, 0.85
THREAD_FLOPS_PER_S, CPU_SD = 50e9, 0.85
LAYER_S = 0.002  # a step of an eager GPU starts the kernels of each layer one by one: at least so long
POWER_SHARE, POWER_SD = 0.6, 0.35  # of the limit
AROUND_S, AROUND_SD = {"cpu": 4.0, "cuda": 30.0}, 0.7  # start-up, warm-up and scoring
PADDED = {"packed": 1.05, "dynamic": 1.3}  # positions over tokens; fixed fills up to max_length
GATED = ("llama", "mistral", "qwen", "gemma", "phi3", "modernbert")  # feed-forward layers of three matrices
#: Names of a model's sizes in the configs of transformers.
SIZES = {
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "inner": ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim"),
    "words": ("vocab_size",),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the machine that runs will use.

    Attributes:
        cpu_model: its processor's name.
        cpu_cores: hardware threads.
        board: name and bytes of memory of its boards; None without boards, or where they differ.
        limit_w: power limit of a board; None where unknown.
    """

    cpu_model: str
    cpu_cores: int
    board: tuple[str, int | None] | None = None
    limit_w: float | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one training, to some 20 %.

    Attributes:
        flops: with every weight trained, without padding's attention.
        num_steps: optimizer steps.
        layers: of the model.
    """

    flops: float
    num_steps: float
    layers: float


def fetched(spec: RunSpec, root: Path = Path()) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """A model's config.json and the manifest of its tokens; None for what is not fetched yet.

    Args:
        spec: of a run.
        root: where `resources` lies.
    """
    model, texts = model_key(spec.model, spec.model_source), dataset_key(spec.dataset, spec.dataset_source)
    folder = root.absolute() / "resources"
    random = spec.model_source["source"].get("random")
    shapes = dict(random) if random else _json(folder / "models" / model / "config.json")
    return shapes, _json(folder / "tokens" / texts / f"{model}.json")


@functools.cache
def _json(path: Path) -> Mapping[str, Any] | None:
    """A JSON object, read once; None where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def work(spec: RunSpec, shapes: Mapping[str, Any] | None, tokens: Mapping[str, Any] | None) -> Work | None:
    """The work of one training; None where the sizes of model or texts are not known yet.

    Args:
        spec: of the run.
        shapes: the model's config.json.
        tokens: the manifest of its tokens.
    """
    sizes = {name: _first(shapes or {}, keys) for name, keys in SIZES.items()}
    if not shapes or not tokens or not tokens.get("num_texts") or not (sizes["width"] and sizes["layers"]):
        return None
    width, layers = sizes["width"], sizes["layers"] * (2 if TASKS[spec.task].encoder_decoder else 1)
    inner, words = sizes["inner"] or 4 * width, sizes["words"] or 0.0
    matrices = 3 if str(shapes.get("model_type", "")).startswith(GATED) else 2
    real = min(tokens["num_tokens"] / tokens["num_texts"] + 2, spec.max_length)
    length = min(real * PADDED[spec.batching], spec.max_length) if spec.batching in PADDED else float(spec.max_length)
    share = spec.mask_probability if spec.task == "mlm" and spec.head == "masked" else 1.0
    of_token = layers * (8 * width**2 + 2 * matrices * width * inner + 4 * width * real)
    of_text = length * of_token + real * share * 2 * width * (words + width)
    num_texts = _num_texts(spec, tokens)
    return Work(flops=3 * of_text * num_texts, num_steps=num_texts / spec.global_batch_size, layers=layers)


def _first(shapes: Mapping[str, Any], keys: tuple[str, ...]) -> float:
    return next((float(shapes[key]) for key in keys if isinstance(shapes.get(key), int)), 0.0)


def _num_texts(spec: RunSpec, tokens: Mapping[str, Any]) -> float:
    """Texts that one training takes, each as often as there are epochs."""
    if spec.max_steps:
        return float(spec.max_steps * spec.global_batch_size)
    held_out = spec.dataset_source.get("validation_fraction", 0.2)
    return float((spec.epochs or 1) * tokens["num_texts"] * (1 - held_out))


def believed(spec: RunSpec, counted: Work | None, facts: Facts, asked: Asked) -> dict[str, Before]:
    """What is believed of a run's quantities, by their names in `Past`; those of which nothing is lack.

    Args:
        spec: of the run.
        counted: its work.
        facts: of the machine.
        asked: the config's settings for estimates.
    """
    around_s = AROUND_S[spec.accelerator] + spec.idle_s + spec.cooldown_s / 2
    beliefs = {"around_s": Before(log=math.log(around_s), sd=AROUND_SD, basis="assumed")}
    if counted is None:
        return beliefs
    if spec.accelerator == "cpu":
        return beliefs | _of_cpu(spec, counted, facts, asked)
    return beliefs | _of_boards(spec, counted, around_s, facts)


def job(
    run: str,
    entry: Mapping[str, Any],
    spec: RunSpec,
    counted: Work | None,
    facts: Facts,
    asked: Asked,
    unknown: str = Job.unknown,
) -> Job:
    """A run of the grid with what is believed of it.

    Args:
        run: its id.
        entry: of the manifest.
        spec: of the run.
        counted: its work.
        facts: of the machine.
        asked: the config's settings for estimates.
        unknown: why nothing is believed of it, in words.
    """
    return Job(
        run=run,
        cell=entry["cell"],
        label=entry["label"],
        axes=entry,
        work_flop=counted.flops if counted else None,
        before=believed(spec, counted, facts, asked),
        min_s=spec.min_seconds,
        unknown=unknown,
    )


def _of_cpu(spec: RunSpec, counted: Work, facts: Facts, asked: Asked) -> dict[str, Before]:
    threads = spec.devices * spec.threads_per_device
    seconds = counted.flops / (THREAD_FLOPS_PER_S * threads)
    basis = f"work counted from the model's shapes, at an assumed {THREAD_FLOPS_PER_S / 1e9:.0f} GFLOP/s per thread"
    beliefs = {"window_s": Before(log=math.log(seconds), sd=CPU_SD, basis=basis)}
    if asked.estimate:
        guess = estimate_cpu(seconds * threads, spec.nodes * seconds, facts.cpu_model, facts.cpu_cores, asked.cpu_watts)
        sd = math.hypot(CPU_SD, (math.log(guess.high_j) - math.log(guess.low_j)) / 4)
        beliefs["energy_j"] = Before(log=math.log(guess.mid_j), sd=sd, basis=f"{basis}; {guess.method}")
    return beliefs


def _of_boards(spec: RunSpec, counted: Work, around_s: float, facts: Facts) -> dict[str, Before]:
    gpu = roofline.find(*facts.board) if facts.board else None
    peak = gpu and gpu.flops_per_s.get(PRECISIONS[spec.precision].peak_rate)
    if not gpu or not peak:
        return {}
    least_s = counted.num_steps * counted.layers * LAYER_S
    seconds = counted.flops / (GPU_SHARE * peak * spec.devices) + least_s
    basis = f"work counted from the model's shapes, at an assumed {GPU_SHARE:.0%} of the peak rate of {gpu.name}"
    beliefs = {"window_s": Before(log=math.log(seconds), sd=GPU_SD, basis=basis)}
    if facts.limit_w:
        watts = POWER_SHARE * facts.limit_w * spec.devices
        sd = math.hypot(GPU_SD, POWER_SD)
        words = f"{basis} and {POWER_SHARE:.0%} of its power limit, {facts.limit_w:.0f} W"
        beliefs["energy_j"] = Before(log=math.log(seconds * watts), sd=sd, basis=words)
        beliefs["around_j"] = Before(log=math.log(around_s * watts / 3), sd=1.0, basis=words)
    return beliefs
