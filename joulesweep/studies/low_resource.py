"""Whether a tokenizer trained on a low-resource language's texts lowers joules per word, at what quality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from joulesweep.analyse.cells import BUT_METHOD
from joulesweep.analyse.statistics import Ratio, paired_ratio
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.quantities import digits
from joulesweep.studies import Answer, Table

QUESTION = "Does a tokenizer trained on a low-resource language's texts lower joules per word, and at what quality?"
PROTOCOL = (
    "The same model is trained on the same texts with its own tokenizer and with one of its kind that was trained on "
    "these training texts; runs are paired by seed. Joules per word and per character do not depend on what a "
    "tokenizer calls a token. Losses per token of two tokenizers do not compare, so quality is held-out bits per "
    "character. An answer takes measured joules and two seeds or more; intervals are 95 % t intervals of log-ratios."
)
SOURCE = "Maina et al. 2025 (arXiv 2506.08433), its motive: languages whose speakers have small budgets"
#: What runs that are compared share, besides data set and task: not the panel, which names the model.
SHARED = ("dataset", "task", "method", "method_params", *(axis for axis in BUT_METHOD if axis != "panel"))
QUANTITIES = {
    "energy_per_word_j": "Joules per word",
    "energy_per_character_j": "Joules per character",
    "bits_per_character": "Bits per character",
    "pieces_per_word": "Pieces per word",
    "window_s": "Time",
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A model with a trained tokenizer against itself with its own: what is compared, and ratios by quantity."""

    own: str
    trained: str
    dataset: str
    task: str
    ratios: Mapping[str, Ratio | None]
    status: str

    @property
    def name(self) -> str:
        """As sentences name it."""
        return f"{self.dataset}, {self.task}"


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """Compare each trained tokenizer with the model's own."""
    pairs = [*_pairs(tables.runs, config)]
    if not pairs:
        why = "no model has finished with its own tokenizer and with one trained on the texts, for a common seed"
        return Answer(sentence=f"This sweep cannot answer: {why}.", answered=False)
    known = [pair for pair in pairs if _is_told(pair)]
    told = [_sentence(pair) for pair in known or pairs]
    return Answer(
        sentence=told[0],
        answered=bool(known),
        findings=told[1:],
        tables=[_table(pairs)],
    )


def _is_told(pair: Pair) -> bool:
    ratios = [pair.ratios[name] for name in ("energy_per_word_j", "bits_per_character")]
    return all(ratio is not None and ratio.low is not None for ratio in ratios)


def _pairs(runs: pl.DataFrame, config: Mapping[str, Any]) -> Iterator[Pair]:
    """Every pair of models that differ in the tokenizer alone, on each data set and task."""
    models: Mapping[str, Mapping[str, Any]] = config["models"]
    groups: dict[tuple[object, ...], dict[str, dict[int, Row]]] = {}
    for row in runs.filter(pl.col("status") == "ok").iter_rows(named=True):
        by_model = groups.setdefault(tuple(row[axis] for axis in SHARED), {})
        by_model.setdefault(row["model"], {})[row["repeat"]] = row
    for group in groups.values():
        for trained in group:
            for own in group:
                both = [group[trained][seed] for seed in group[trained] if seed in group[own]]
                if _are_pair(models, own, trained) and both:
                    yield _pair(own, trained, both, [group[own][row["repeat"]] for row in both])


def _are_pair(models: Mapping[str, Mapping[str, Any]], own: str, trained: str) -> bool:
    """Whether two models have the same weights, and only the second a tokenizer that was trained."""
    (is_own, source), (is_trained, other) = (_kind(models[name]) for name in (own, trained))
    return not is_own and is_trained and source == other


def _kind(model: Mapping[str, Any]) -> tuple[bool, object]:
    return "trained_on" in (model.get("tokenizer") or {}), model["source"]


def _pair(own: str, trained: str, a: list[Row], b: list[Row]) -> Pair:
    statuses = {(row["energy_status"], row["energy_scope"], row["energy_doubt"]) for row in [*a, *b]}
    measured = len(statuses) == 1 and next(iter(statuses))[0] == "measured" and next(iter(statuses))[2] is None
    doubted = next((row["energy_doubt"] for row in [*a, *b] if row["energy_doubt"]), None)
    estimated = any(row["estimated_energy_j"] is not None for row in [*a, *b])
    status = "measured" if measured else f"doubtful ({doubted})" if doubted else "estimated" if estimated else "unknown"
    ratios = {name: _ratio(name, a, b) if measured or not name.startswith("energy_") else None for name in QUANTITIES}
    return Pair(own=own, trained=trained, dataset=a[0]["dataset"], task=a[0]["task"], ratios=ratios, status=status)


def _ratio(name: str, a: list[Row], b: list[Row]) -> Ratio | None:
    values = [(row[name], other[name]) for row, other in zip(a, b, strict=True) if row[name] and other[name]]
    return paired_ratio([one for one, _ in values], [other for _, other in values]) if values else None


def _sentence(pair: Pair) -> str:
    joules, bits = pair.ratios["energy_per_word_j"], pair.ratios["bits_per_character"]
    quality = f"{_times(bits)} the held-out bits per character" if bits else "bits per character that are unknown"
    before = f"On {pair.name}, {pair.trained} has {quality} of {pair.own}"
    if _is_told(pair) and joules:
        word = {"lower": "lowers", "higher": "raises"}.get(joules.verdict, "is not shown to change")
        return (
            f"On {pair.name}, a tokenizer trained on the texts {word} joules per word: {pair.trained} takes "
            f"{_times(joules)} the measured joules per word of {pair.own}, with {quality}."
        )
    if pair.status != "measured":
        return f"{before}; joules per word cannot be told: it takes measured joules, and these are {pair.status}."
    return f"{before}; it takes two seeds or more, and runs that count words."


def _times(ratio: Ratio | None) -> str:
    """A ratio with its interval."""
    if ratio is None:
        return "–"
    if ratio.low is None or ratio.high is None:
        return f"{digits(ratio.ratio)} times (n = {ratio.n}, no interval)"
    return f"{digits(ratio.ratio)} times (95 % {digits(ratio.low)} to {digits(ratio.high)}, n = {ratio.n})"


def _table(pairs: list[Pair]) -> Table:
    headings = {"Texts": "text", "Model": "text", "Against": "text", **dict.fromkeys(QUANTITIES.values(), "")}
    rows = [[pair.name, pair.trained, pair.own, *(_times(pair.ratios[name]) for name in QUANTITIES)] for pair in pairs]
    return Table(title="A trained tokenizer against the model's own", headings=headings, rows=rows)
