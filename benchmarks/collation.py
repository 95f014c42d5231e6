"""Measure what collating a step costs, and whether a thread for it pays on the CPU: `python -m benchmarks.collation`.

Texts are as short as questions: 1 to 30 tokens, 9 on average, 20,000 of them. Collation: CPU-milliseconds of this
process per step, the least of five epochs. The thread: the same training of a small BERT with its steps laid out in
line and ahead, alternating, in seconds and in CPU-seconds of the process. Ratios of one run on one machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig

from joulesweep.core.spec import from_mapping
from joulesweep.train import ahead, data, labels, loop
from joulesweep.train.assembly import assemble
from joulesweep.train.corpus import Corpus, load
from joulesweep.train.trainer import RankContext, Trainer

NUM_TEXTS, VOCABULARY, LONGEST = 20_000, 8_000, 32
SIZES = (32, 256, 1024)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=4, help="trainings in line and ahead; 0 for collation alone")
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tokens = token_file(Path(folder) / "texts.safetensors")
        corpus = load(tokens, LONGEST)
        print("CPU-ms per step", *(f"{size:>8}" for size in SIZES))
        for batching in ("dynamic", "packed"):
            print(f"{batching:15}", *(f"{1e3 * collation_s(corpus, batching, size):8.3f}" for size in SIZES))
        for size in SIZES[:2] if pairs else ():
            ratios = [compared(Path(folder) / "model", tokens, size) for _ in range(pairs)]
            seconds, cpu = (statistics.median(values) for values in zip(*ratios, strict=True))
            print(f"batch {size}: ahead takes {seconds:.3f} × the seconds and {cpu:.3f} × the CPU-seconds of in line")


def token_file(path: Path) -> Path:
    """Write texts of random tokens that are as long as questions."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.poisson(torch.full((NUM_TEXTS,), 6.5), generator=draw).long().clamp(1, LONGEST - 2)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    ids = torch.randint(5, VOCABULARY, (int(offsets[-1]),), generator=draw, dtype=torch.int32)
    save_file({"ids": ids, "offsets": offsets, "group": torch.arange(NUM_TEXTS, dtype=torch.int32)}, path)
    about = {"prefix": [2], "suffix": [3], "mask_id": 4, "pad_id": 0, "vocab_size": VOCABULARY}
    path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    return path


def collation_s(corpus: Corpus, batching: str, size: int) -> float:
    """CPU-seconds of collating a step, with masks drawn beforehand."""
    layout = data.BatchLayout(batching=batching, size=size, micro=None, max_length=64, head="masked")
    masked, step_times_s = labels.mask(corpus, 0.15, 1, 1), []
    for epoch in range(5):
        texts = labels.order(torch.arange(NUM_TEXTS), 1, epoch)
        began_s = time.process_time()
        num_steps = sum(1 for _ in data.steps(corpus, masked, texts, layout))
        step_times_s.append((time.process_time() - began_s) / num_steps)
    return min(step_times_s)


def compared(folder: Path, tokens: Path, size: int) -> tuple[float, float]:
    """Seconds and CPU-seconds of a training that collates ahead, as shares of one that collates in line."""
    BertConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    ).save_pretrained(folder)
    took = [trained_s(folder, tokens, size, is_ahead) for is_ahead in (False, True)]
    return took[1][0] / took[0][0], took[1][1] / took[0][1]


def trained_s(folder: Path, tokens: Path, size: int, is_ahead: bool) -> tuple[float, float]:
    """Seconds and CPU-seconds of some training steps."""
    fields = {"model": "bert", "model_source": {"source": {"local": "bert"}}, "dataset": "texts", "repeat": 1}
    fields |= {"dataset_source": {"source": {"local": "texts.txt"}, "format": "text"}, "accelerator": "cpu"}
    fields |= {"batch_size": size, "lr": 1e-4, "max_steps": 12_800 // size, "batching": "packed"}
    place = RankContext(device=torch.device("cpu"), rank=0, world=1, local_rank=0)
    trainer = assemble(from_mapping({**fields, "max_length": 64}), folder, tokens, place)
    if is_ahead:
        trainer.steps = lambda: made_ahead(trainer)  # type: ignore[method-assign]
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    for _ in loop._run_epochs(trainer):
        pass
    return time.monotonic() - began_s, time.process_time() - began_cpu_s


def made_ahead(trainer: Trainer) -> Iterator[tuple[list[data.Batch], int]]:
    """Collate steps in a thread, without pinned memory, which only a GPU needs."""
    return ahead.ahead(trainer._steps())


if __name__ == "__main__":
    sys.exit(main())
