"""Shared by the processes of the GPU day: the packed folder, its models and texts, specs, jobs, and the results' file.

Standard library and `joulesweep.core.spec` only: the parent imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joulesweep.core.spec import RunSpec, from_mapping

REPOSITORY = Path(__file__).parent.parent
MANIFEST = "gpu-pack.json"
RESULTS, LOG, POWER = "results.jsonl", "log.txt", "power.jsonl"
CERTIFICATE = {".json": "certificate.json", ".html": "certificate.html", ".gz": "certificate.readings.jsonl.gz"}
PAD, UNK, CLS, SEP, MASK = range(5)
OK, NOT_TRIED, FAILED = "ok", "not tried", "failed"
NO_TIME = "no time was left"
AFTER_FAILURE = 83  # exit code of a process that ends since a piece failed, which it has answered


class NotTried(Exception):  # noqa: N818 - an answer
    """A piece that cannot be tried here; the message is the reason in one line."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the pack.

    Attributes:
        kind: of transformers.
        task: that it learns.
        texts: that it learns from, a key of `TEXTS`.
        shape: of its config, as far as it is not the kind's own.
        weights: whether they are carried, so that losses can be compared with those of another machine.
        tokenizer: whether one goes along, for the peers.
    """

    kind: str
    task: str
    texts: str
    shape: Mapping[str, Any]
    weights: bool = True
    tokenizer: bool = False


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Generated texts of the pack: lengths of VizWiz questions, half of the words predictable from the previous one.

    Attributes:
        number: of them.
        vocab_size: how many words there are, `MASK` and the like included.
        targets: whether each has one.
    """

    number: int
    vocab_size: int
    targets: bool = False


SMALL = {"vocab_size": 1000, "initializer_range": 0.1, "pad_token_id": PAD, "max_position_embeddings": 64}
SMALL_BERT = {
    **SMALL,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
ENDS = {"bos_token_id": CLS, "eos_token_id": SEP}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "bert": Model(kind="bert", task="mlm", texts="tiny", shape={**SMALL_BERT, **NO_DROPOUT}, tokenizer=True),
    "llama": Model(kind="llama", task="clm", texts="tiny", shape={**SMALL_BERT, **ENDS, "num_key_value_heads": 1}),
    "t5": Model(
        kind="t5",
        task="seq2seq",
        texts="tiny-pairs",
        shape={
            "vocab_size": 1000,
            "d_model": 64,
            "d_kv": 32,
            "d_ff": 128,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 2,
            "dropout_rate": 0.0,
            "pad_token_id": PAD,
            "eos_token_id": SEP,
            "decoder_start_token_id": PAD,
        },
    ),
    "gpt2-dropout": Model(
        kind="gpt2",
        task="clm",
        texts="tiny",
        shape={**ENDS, "vocab_size": 1000, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2},
    ),
    "bert-base": Model(kind="bert", task="mlm", texts="vizwiz-like", shape={}, weights=False, tokenizer=True),
    "gpt2": Model(kind="gpt2", task="clm", texts="vizwiz-like", shape={}, weights=False),
}
#: The number of pooled questions of Maina et al. 2025 (arXiv 2506.08433), and BERT's vocabulary.
TEXTS = {
    "tiny": Texts(number=96, vocab_size=1000),
    "tiny-pairs": Texts(number=96, vocab_size=1000, targets=True),
    "vizwiz-like": Texts(number=32_842, vocab_size=30_522),
}
#: The models whose losses are compared with those of the CPU.
COMPARED = ("bert", "llama", "t5")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of the work.

    Attributes:
        encoder: the model that is measured.
        decoder: the same for task clm.
        batches: texts per step, the ones of the goals.
        least_steps: of a pass of a measured training, which goes over the texts more than once for them: going back to
            its start takes as long as some steps.
        most_steps: of a pass of plain training, which would take long for all texts.
        window_s: shortest window.
        contest_s: the same of the contest.
        run_s: shortest window of a run through the launching parent.
        num_steps: of partial training, of each kind.
        certify_s: what the certificate may take.
        rounds: of the contest.
    """

    encoder: str
    decoder: str
    batches: tuple[int, ...]
    least_steps: int
    most_steps: int
    window_s: float
    contest_s: float
    run_s: float
    num_steps: int
    certify_s: float
    rounds: int


SCALES = {
    "cuda": Scale(
        encoder="bert-base",
        decoder="gpt2",
        batches=(32, 256, 1024),
        least_steps=90,
        most_steps=150,
        window_s=3.0,
        contest_s=2.0,
        run_s=10.0,
        num_steps=20,
        certify_s=150.0,
        rounds=3,
    ),
    "cpu": Scale(
        encoder="bert",
        decoder="llama",
        batches=(8, 16),
        least_steps=1,
        most_steps=3,
        window_s=0.1,
        contest_s=0.1,
        run_s=0.2,
        num_steps=3,
        certify_s=3.0,
        rounds=2,
    ),
}


@dataclass(frozen=True)
class Pack:
    """The folder that is copied to the GPU machine."""

    root: Path

    def model(self, name: str) -> Path:
        """Folder of a model."""
        return self.root / "assets" / "models" / name

    def tokens(self, texts: str) -> Path:
        """Token file of texts."""
        return self.root / "assets" / "tokens" / f"{texts}.safetensors"

    @property
    def references(self) -> Path:
        """Losses on the CPU in fp32, by model and batching."""
        return self.root / "assets" / "references.json"


def default_pack() -> Path:
    """This module's own folder if it was packed; else the folder where `make gpu-pack` puts the pack."""
    return REPOSITORY if (REPOSITORY / MANIFEST).exists() else REPOSITORY / ".cache" / "gpu-pack"


def small_spec(model: str, accelerator: str, **changes: Any) -> RunSpec:  # noqa: ANN401 - fields
    """Spec of four steps of a small model, whose losses are compared with packed references."""
    return _spec(model, accelerator, {"batch_size": 16, "lr": 1e-3, "max_steps": 4, "max_length": 32, **changes})


def measured_spec(model: str, accelerator: str, **changes: Any) -> RunSpec:  # noqa: ANN401 - fields
    """Spec of a measured run with few validation texts, as only its window matters."""
    length = {} if "max_steps" in changes else pass_length(model, accelerator, **changes)
    fields = {"lr": 1e-4, "max_length": 64, "min_seconds": SCALES[accelerator].window_s, **length, **changes}
    return _spec(model, accelerator, fields)


def pass_length(
    model: str,
    accelerator: str,
    *,
    batch_size: int,
    engine: str = "eager",
    **_: Any,  # noqa: ANN401 - fields
) -> dict[str, int]:
    """Length of a measured training, as a field of its spec: whole passes over the texts unless that takes too long.

    Eager steps wait for the host at any batch size: a thousand of 32 texts would take a whole item's time.
    """
    scale = SCALES[accelerator]
    num_steps = math.ceil(TEXTS[MODELS[model].texts].number / batch_size)
    if engine == "eager" and num_steps > scale.most_steps:
        return {"max_steps": scale.most_steps}
    return {"epochs": math.ceil(scale.least_steps / num_steps)}


def _spec(name: str, accelerator: str, changes: Mapping[str, Any]) -> RunSpec:
    model = MODELS[name]
    return from_mapping(
        {
            "model": name,
            "model_source": {"source": {"random": {"model_type": model.kind}}},
            "dataset": model.texts,
            "dataset_source": {
                "source": {"local": model.texts},
                "format": "text",
                "validation_fraction": 0.02 if TEXTS[model.texts].number > 1000 else 0.2,
            },
            "task": model.task,
            "repeat": 1,
            "accelerator": accelerator,
            **changes,
        }
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """The task of a child process.

    Attributes:
        item: a letter.
        pieces: what of it, each with its name under "piece".
        pack: the packed folder.
        out: where results go.
        scratch: where anything else goes.
        accelerator: "cpu" or "cuda".
        until_s: on the monotonic clock, which all processes share, when it is ended.
        boards: as `devices.Board.described` gives them.
    """

    item: str
    pieces: list[dict[str, Any]]
    pack: Pack
    out: Path
    scratch: Path
    accelerator: str
    until_s: float
    boards: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job file."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        folders = {name: Path(fields[name]) for name in ("out", "scratch")}
        return cls(**{**fields, **folders, "pack": Pack(Path(fields["pack"]))})

    def write(self, path: Path) -> None:
        """Write a job file."""
        fields = {**vars(self), "pack": str(self.pack.root), "out": str(self.out), "scratch": str(self.scratch)}
        path.write_text(json.dumps(fields), encoding="utf-8")

    @property
    def scale(self) -> Scale:
        """Size of the work."""
        return SCALES[self.accelerator]

    @property
    def left_s(self) -> float:
        """Seconds until the process is ended."""
        return self.until_s - time.monotonic()

    def answer(self, piece: str, status: str, **numbers: Any) -> None:  # noqa: ANN401 - numbers
        """Write a result to the results' file."""
        append(self.out / RESULTS, {"item": self.item, "piece": piece, "status": status, **numbers})


def finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A value with null for every number that JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line of JSON atomically, even if other processes append to the same file."""
    line = (json.dumps(finite({"at_s": round(time.monotonic(), 3), **row}), allow_nan=False) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, without a truncated last one."""
    if path.exists():
        yield from whole(path.read_bytes())


def whole(content: bytes) -> Iterator[dict[str, Any]]:
    """The complete lines of JSON in some text; a process may have been killed while writing one."""
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            yield json.loads(line)
