"""Score a run's generated summaries with ROUGE, from its `summaries.jsonl`: {text, summary, references} per line.

    rouge1, rouge2   F-measure of shared words and of shared pairs of words, after Porter's stemmer
    rougeL           of the longest common subsequence of words

The library rouge-score (Google Research) computes the scores, 0 to 1. Of several references the best counts, for each
metric separately; scores are means over texts.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from joulesweep.core.errors import Corrupt, UserError
from joulesweep.core.outcome import Summary

FILE = "summaries.jsonl"
METRICS = ("rouge1", "rouge2", "rougeL")


def columns(folder: Path) -> dict[str, float]:
    """A run's columns of the runs table: rouge1, rouge2, rougeL and num_summaries; empty if it has no summaries.

    Args:
        folder: of the run.

    Raises:
        Corrupt: a line is corrupt; the message names file and line.
    """
    summaries = _read(folder / FILE)
    if not summaries:
        return {}
    from rouge_score.rouge_scorer import RougeScorer  # takes a second, which sweeps without summaries save

    scorer = RougeScorer(METRICS, use_stemmer=True)
    scores = [scorer.score_multi(text.references, text.summary) for text in summaries]
    means = {metric: math.fsum(score[metric].fmeasure for score in scores) / len(scores) for metric in METRICS}
    return {**means, "num_summaries": len(scores)}


def _read(path: Path) -> list[Summary]:
    """The rows of the file; empty if it does not exist."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected generated summaries") from None
    return [_row(path, number, line) for number, line in enumerate(lines, 1)]


def _row(path: Path, number: int, line: bytes) -> Summary:
    try:
        match json.loads(line):
            case {"text": int() as text, "summary": str() as summary, "references": [str(), *others] as references}:
                if all(isinstance(other, str) for other in others):
                    return Summary(text=text, summary=summary, references=references)
    except (ValueError, RecursionError) as error:
        raise Corrupt(path, f"line {number}: corrupt summary: {error}") from None
    needed = "text (a number), summary (text) and references (at least one text)"
    raise Corrupt(path, f"line {number}: corrupt summary: needs {needed}")
