"""What adaptation to a domain gains there and forgets elsewhere, and what is cheapest without forgetting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from joulesweep.analyse.cells import why_not_ranked
from joulesweep.analyse.statistics import Difference, paired_difference
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.quantities import digits, one, signed
from joulesweep.studies import Answer, Entry, Table

QUESTION = "What does adaptation to a domain make a model forget, and what is the cheapest way to forget nothing?"
PROTOCOL = (
    "Models are adapted to texts of several domains by several methods. Before and after each training the loss is "
    "taken on held-out texts of the domain and on held-out general text, with the same masks. Forgetting is the rise "
    "of the loss on general text in nats per token, paired by seed: it is shown where its 95 % interval is above 0. "
    "For each domain the cheapest configuration is told that is shown to learn it and not shown to forget."
)
SOURCE = "Maina et al. 2025 (arXiv 2506.08433) and Huang et al. 2024 (arXiv 2309.13192), neither of which tests it"


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What a configuration gained and forgot.

    Attributes:
        row: of the cells table.
        name: of the configuration, with its panel.
        texts: the evaluation of other texts.
        gain: fall of the loss on the domain, in nats per token.
        forgetting: rise of the loss on the other texts, in nats per token.
    """

    row: Row
    name: str
    texts: str
    gain: Difference
    forgetting: Difference

    @property
    def learns(self) -> bool:
        """Whether the domain is shown to be learned."""
        return self.gain.low is not None and self.gain.low > 0

    @property
    def forgets(self) -> bool:
        """Whether forgetting is shown."""
        return self.forgetting.low is not None and self.forgetting.low > 0


def answer(tables: Tables, config: Mapping[str, object]) -> Answer:
    """Answer over all configurations that were scored on other texts than their own.

    Args:
        tables: of the sweep.
        config: in its manifest.
    """
    every = shifts(tables)
    if not every:
        return Answer(sentence=_why_nothing(tables), answered=False)
    known = [shift for shift in every if shift.forgetting.low is not None]
    if not known:
        first = every[0]
        sentence = (
            f"It cannot be told: one seed has no interval (the loss of {first.name} on {first.texts} changed by "
            f"{signed(first.forgetting.mean, 3)} nats); 3 repeats or more are needed."
        )
        return Answer(sentence=sentence, answered=False, tables=[_table(every)])
    findings = [*_most(known), *_of_each(known)]
    return Answer(sentence=_sentence(known), answered=True, findings=findings, tables=[_table(every)])


def shifts(tables: Tables) -> list[Shift]:
    """What each configuration gained and forgot, for each evaluation of other texts than its own."""
    ok = tables.runs.filter(pl.col("status") == "ok")
    scored = tables.evaluations.filter(pl.col("metric") == "loss").drop_nulls(["before", "after"])
    scored = scored.filter(pl.col("run").is_in(ok["run"].implode()))
    untrained = tables.epochs.filter(pl.col("epoch") == 0).select("run", untrained="validation_loss")
    trained = ok.select("run", "dataset", "validation_loss").join(untrained, on="run")
    joined = scored.join(trained, on="run", maintain_order="left").filter(pl.col("category") != pl.col("dataset"))
    by_key = {(row["cell"], row["environment"]): row for row in tables.cells.iter_rows(named=True)}
    made: list[Shift] = []
    for key, part in joined.group_by("cell", "environment", "category", maintain_order=True):
        cell, environment, texts = key
        if (row := by_key.get((cell, environment))) is None:
            continue
        gain = paired_difference(part["untrained"].to_list(), part["validation_loss"].to_list())
        forgetting = paired_difference(part["after"].to_list(), part["before"].to_list())
        name = " · ".join(filter(None, [row["panel"], row["name"]]))
        made.append(Shift(row=row, name=name, texts=str(texts), gain=gain, forgetting=forgetting))
    return made


def _why_nothing(tables: Tables) -> str:
    if tables.runs.filter(pl.col("status") == "ok").is_empty():
        return "It cannot be told: no run is finished."
    if tables.evaluations.filter(pl.col("metric") == "loss").is_empty():
        return "It cannot be told: no run was scored on other texts; name held-out and a data set under evaluate."
    return "It cannot be told: the runs were scored on no other texts than those that they were adapted to."


def _sentence(known: Sequence[Shift]) -> str:
    """Which configurations forget, and the cheapest that does not."""
    forgetful = [shift for shift in known if shift.forgets]
    kept = [shift for shift in known if not shift.forgets]
    number = f"{len(known)} configurations" if len(known) > 1 else "1 configuration"
    if not kept:
        least = min(known, key=lambda shift: shift.forgetting.mean)
        return f"Adaptation forgets in every one of {number}: least in {least.name}, {_nats(least)}."
    opening = (
        f"Adaptation is shown to forget in {len(forgetful)} of {number}"
        if forgetful
        else f"Adaptation is shown to forget in none of {number}"
    )
    able = [shift for shift in kept if shift.learns]
    if not able:
        return f"{opening}, and none of those that do not forget is shown to learn its domain."
    panels = dict.fromkeys(shift.row["panel"] for shift in able)
    chosen = [_cheapest([shift for shift in able if shift.row["panel"] == panel]) for panel in panels]
    told = "; ".join(f"{best.name}, {cost}, {_nats(best)}" for best, cost, _ in chosen)
    by_time = " and ".join(dict.fromkeys(why for *_, why in chosen if why))
    cheapest = f"the cheapest (by time, not by joules: {by_time})" if by_time else "the cheapest"
    return f"{opening}: {cheapest} that learns its domain without it is {told}."


def _nats(shift: Shift) -> str:
    """Forgetting with its interval and the ratio of perplexities."""
    value = shift.forgetting
    assert value.low is not None and value.high is not None
    return (
        f"whose loss on {shift.texts} changed by {signed(value.mean, 3)} nats per token (95 % interval "
        f"{signed(value.low, 3)} to {signed(value.high, 3)}; perplexity × {_factor(value.mean)}; {value.n} seeds)"
    )


def _factor(nats: float) -> str:
    return digits(math.exp(min(nats, 600.0)))


def _cheapest(able: Sequence[Shift]) -> tuple[Shift, str, str | None]:
    """The cheapest configuration, its cost in measured joules or else in seconds, and why not in joules."""
    why = why_not_ranked(pl.DataFrame([shift.row for shift in able], infer_schema_length=None))
    if why is None:
        undoubted = [shift for shift in able if shift.row["energy_doubt"] is None]
        best = min(undoubted, key=lambda shift: shift.row["energy_j_mean"])
        return best, f"{one(best.row['energy_j_mean'], 'J')} measured", None
    best = min(able, key=lambda shift: shift.row["window_s_mean"])
    return best, one(best.row["window_s_mean"], "s"), why


def _most(known: Sequence[Shift]) -> list[str]:
    """What forgets most, if anything is shown to."""
    forgetful = [shift for shift in known if shift.forgets]
    if not forgetful:
        return []
    most = max(forgetful, key=lambda shift: shift.forgetting.mean)
    return [f"Most is forgotten by {most.name}, {_nats(most)}."]


def _of_each(known: Sequence[Shift]) -> list[str]:
    """For each data set, how many of its configurations learn and forget."""
    sentences = []
    for dataset in dict.fromkeys(shift.row["dataset"] for shift in known):
        of = [shift for shift in known if shift.row["dataset"] == dataset]
        learned, forgot = sum(shift.learns for shift in of), sum(shift.forgets for shift in of)
        gains = [shift.gain.mean for shift in of]
        span = " to ".join(signed(end, 2) for end in dict.fromkeys((min(gains), max(gains))))
        sentences.append(
            f"Adapted to {dataset}, {learned} of {len(of)} are shown to learn it ({span} nats per token gained), and "
            f"{forgot} to forget."
        )
    return sentences


def _table(every: Sequence[Shift]) -> Table:
    headings = {"Configuration": "text", "Other texts": "text", "Gained, nats": "", "Forgotten, nats": ""}
    headings |= {"Perplexity ×": "", "Energy": "", "Time": "", "Seeds": ""}
    rows: list[list[Entry]] = [
        [
            shift.name,
            shift.texts,
            _entry(shift.gain),
            _entry(shift.forgetting),
            _ratio(shift.forgetting),
            _joules(shift.row),
            one(shift.row["window_s_mean"], "s"),
            str(shift.forgetting.n),
        ]
        for shift in every
    ]
    return Table(title="Gained on the domain, forgotten elsewhere", headings=headings, rows=rows)


def _joules(row: Row) -> str:
    """Measured joules alone: any other status is no number here."""
    is_measured = row["energy_j_mean"] is not None and row["energy_status"] == "measured" and not row["energy_doubt"]
    return one(row["energy_j_mean"], "J") if is_measured else "–"


def _entry(value: Difference) -> tuple[str, str]:
    ends = (
        "no interval"
        if value.low is None or value.high is None
        else f"[{signed(value.low, 3)}, {signed(value.high, 3)}]"
    )
    return signed(value.mean, 3), ends


def _ratio(value: Difference) -> tuple[str, str]:
    """The ratio of perplexities, after over before."""
    known = value.low is not None and value.high is not None
    ends = f"[{_factor(value.low)}, {_factor(value.high)}]" if known else "no interval"  # type: ignore[arg-type]
    return _factor(value.mean), ends
