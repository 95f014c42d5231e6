"""What ranks leave, as types: small, and with numbers that tell what was added from what was not."""

from __future__ import annotations

from typing import Any

from joulesweep.core.outcome import Epoch, PeakMemory, PlainPhase, Quality, RankResult, Span, as_json

COUNTS = {
    "num_texts": 40,
    "num_tokens": 400,
    "num_padded_tokens": 600,
    "num_predicted": 60,
    "num_head_positions": 64,
    "num_token_pairs": 4000,
    "num_padded_token_pairs": 9000,
    "num_target_tokens": 200,
    "num_padded_target_tokens": 300,
    "num_target_pairs": 1000,
    "num_padded_target_pairs": 2250,
    "num_cross_pairs": 2000,
    "num_padded_cross_pairs": 4500,
}
QUALITY = Quality(
    validation_loss=2.0,
    perplexity=7.4,
    masked_accuracy=0.1,
    choice_accuracy=None,
    num_validation_texts=5,
    num_masked=9,
)


def phase(**changes: Any) -> PlainPhase:
    """A phase of a training."""
    same: dict[str, Any] = {
        **COUNTS,
        "kind": "training",
        "epoch": 1,
        "elapsed_s": 3.0,
        "num_steps": 4,
        "num_skipped_steps": 0,
        "flop_coefficients": {"token": 2.0},
        "bytes_per_step": 10,
        "flop_reason": None,
    }
    return PlainPhase(**{**same, **changes})


def epoch(number: int, elapsed_s: float, **changes: Any) -> Epoch:
    """The end of an epoch."""
    same: dict[str, Any] = {
        "cpu_s": elapsed_s,
        "num_steps": 4 * number,
        "train_loss": None,
        "validation_loss": 2.0,
        "perplexity": 7.4,
        "masked_accuracy": 0.1,
        "choice_accuracy": None,
        "energy": [],
    }
    return Epoch(epoch=number, elapsed_s=elapsed_s, **{**same, **changes})


def rank(**changes: Any) -> RankResult:
    """What a rank leaves: 4 steps of an epoch in 3 of 4 seconds."""
    same: dict[str, Any] = {
        "total_window_s": 4.0,
        "num_passes": 1,
        "span": Span(begin_s=10.0, end_s=14.0, idle_begin_s=5.0, idle_end_s=8.0, meter_s=0.1, clock_step_s=0.01),
        "energy": [],
        "cpu_s": 3.0,
        "startup_s": 1.0,
        "peak_memory": PeakMemory(host_rss_bytes=100, gpu_allocated_bytes=7, gpu_reserved_bytes=8),
        "phases": [phase()],
        "num_steps": 4,
        "products": {"shapes": [], "reason": "none"},
        "attention": {"implementation": "sdpa", "kernels": ["math"]},
        "num_compilations_in_window": 1,
        "epochs": [epoch(0, 0.0), epoch(1, 3.0, cpu_s=2.5)],
        "quality": QUALITY,
        "losses": [3.0] * 4,
        "summaries": [],
        "num_train_texts": 80,
    }
    return RankResult(**{**same, **changes})


def told(result: RankResult) -> dict[str, Any]:
    """A result as tests read it: its JSON, with the sums of its phases, under `measurement` too."""
    row = as_json(result)
    counts = {name: sum(getattr(one, name) for one in result.training) for name in COUNTS}
    return {**row, "measurement": {**row, **counts, "num_skipped_steps": result.num_skipped_steps}}


def trained(*given: Any) -> dict[str, Any]:
    """A training in this process, as `told`."""
    from joulesweep.train import loop

    return told(loop.train(*given))
