"""Which rule for the learning rate keeps quality at which batch, and what that costs or saves in joules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulesweep.analyse.cells import LAYOUT, texts_per_step
from joulesweep.analyse.comparisons import (
    BEYOND,
    OPEN,
    WITHIN,
    Comparisons,
    against_margin,
    asked,
    chosen_ratio,
    key_of,
    same_joules,
)
from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.tables import Row, Tables
from joulesweep.axes import lr_rule
from joulesweep.core.quantities import digits, listed, percent, signed_percent
from joulesweep.studies import Answer, Entry, Table

QUESTION = "Which rule for the learning rate keeps quality at which batch, and what does that cost in joules?"
PROTOCOL = (
    "Batch size and rule of the peak learning rate (constant, sqrt, linear) are varied; model, texts, epochs and seeds "
    "are held. Each batch under each rule is compared with the base batch, paired by seed. A rule keeps quality where "
    "the 95 % interval ends within answer.margin of the base batch's, and loses it where it begins beyond. Of the "
    "batches that keep it, the one with the fewest measured joules is named; its interval allows for the choice."
)
SOURCE = "Maina et al. 2025 (arXiv 2506.08433), which varies the batch at one rate"
#: What cells that are compared share, besides the rate and the batch.
SHARED = (
    *("panel", "environment", "method", "method_params", "strategy", "devices", "nodes", "precision"),
    *(axis for axis in LAYOUT if axis != "micro_batch_size"),
    *("batch_size_scope", "max_grad_norm"),
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A batch under a rule.

    Attributes:
        rule: its name.
        batch: texts per step over all devices.
        row: of the cells table.
        worse: the quality's ratio to the base batch's, above 1 where it is worse; None without a finished pair.
        verdict: "within", "beyond" or "cannot be told yet".
        joules: ratio of the measured joules to the base batch's; None where they do not compare.
        time: of the seconds.
    """

    rule: str
    batch: int
    row: Row
    worse: Ratio | None
    verdict: str
    joules: Ratio | None
    time: Ratio | None

    @property
    def name(self) -> str:
        """As sentences name it."""
        return f"{self.rule} at batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is compared with one base batch: its panel, rate, row and trials."""

    panel: str
    lr: float
    base: Row
    trials: Sequence[Trial]


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """Compare every batch under every rule with the base batch."""
    grid = config["grid"]
    base = grid.get("lr_base_batch_size")
    if base is None:
        return _none("the grid has no rule but constant: give lr_rule and lr_base_batch_size")
    comparisons = Comparisons(tables.runs)
    groups = [group for group in _groups(tables.cells.to_dicts(), comparisons, config, base) if group.trials]
    if not groups:
        return _none(f"no run at the base batch of {base} has finished, with one at another batch to compare it with")
    answers = [_sentence(group, comparisons, config, base) for group in groups]
    several = len(groups) > 1
    told = [f"{_where(group)}: {text}" if several else text for group, (text, _) in zip(groups, answers, strict=True)]
    first = next((i for i, (_, answered) in enumerate(answers) if answered), 0)
    return Answer(
        sentence=f"{told[first][0].upper()}{told[first][1:]}.",
        answered=answers[first][1],
        findings=[f"{text}." for i, text in enumerate(told) if i != first] + [*_findings(groups)],
        tables=[_table(group, config, several) for group in groups],
    )


def _none(reason: str) -> Answer:
    return Answer(sentence=f"This sweep cannot answer: {reason}.", answered=False)


def _groups(rows: list[Row], comparisons: Comparisons, config: Mapping[str, Any], base: int) -> Iterator[Group]:
    """Each base batch that finished, with what it is compared with."""
    for lr in config["grid"]["lr"]:
        for row in rows:
            if row["num_ok"] and texts_per_step(row) == base and row["lr"] == lr:
                trials = [*_trials(row, rows, lr, comparisons, config)]
                yield Group(panel=row["panel"], lr=lr, base=row, trials=trials)


def _trials(
    base: Row, rows: list[Row], lr: float, comparisons: Comparisons, config: Mapping[str, Any]
) -> Iterator[Trial]:
    margin, quality = asked(config)
    of_base = [base[axis] for axis in SHARED]
    for rule in config["grid"]["lr_rule"]:
        for row in rows:
            alike = [row[axis] for axis in SHARED] == of_base or not row["num_ok"]
            batch = texts_per_step(row)
            rate = lr_rule.peak(rule, lr, batch, config["grid"]["lr_base_batch_size"])
            if not alike or row["lr"] != rate or batch == texts_per_step(base):
                continue
            worse = comparisons.worse(row, base, quality)
            ends = (None, None) if worse is None else (worse.low, worse.high)
            diverged = not row["num_ok"] and "diverged" in row["statuses"]
            yield Trial(
                rule=rule,
                batch=batch,
                row=row,
                worse=worse,
                verdict=BEYOND if diverged else against_margin(*ends, margin),
                joules=comparisons.ratio(row, base, "energy_j"),
                time=comparisons.ratio(row, base, "window_s"),
            )


def _sentence(group: Group, comparisons: Comparisons, config: Mapping[str, Any], base: int) -> tuple[str, bool]:
    """The answer of one group, without a stop, and whether it is one."""
    margin, quality = asked(config)
    of_what = f"the {quality.replace('_', ' ')} within {percent(margin)} % of batch {base}'s"
    kept = [trial for trial in group.trials if trial.verdict == WITHIN]
    if not kept:
        nearest = min(group.trials, key=lambda trial: trial.worse.ratio if trial.worse else float("inf"))
        told = (
            f"the nearest is {nearest.name}, {_apart(nearest.worse)}" if nearest.worse else "none has a finished pair"
        )
        if all(trial.verdict == BEYOND for trial in group.trials):
            return f"no rule keeps {of_what} at any other batch, so none saves joules at equal quality; {told}", True
        return f"no rule is shown yet to keep {of_what} at another batch: {told}; more repeats would tell", False
    by_rule = {trial.rule: [one.batch for one in kept if one.rule == trial.rule] for trial in group.trials}
    keeps = [f"{rule} at {_listed(batches)}" for rule, batches in by_rule.items() if batches]
    lose = [rule for rule, batches in by_rule.items() if not batches]
    kept_words = f"{', '.join(keeps)} {'keep' if len(keeps) > 1 else 'keeps'} {of_what}" + (
        f", {' and '.join(lose)} at no other batch" if lose else ""
    )
    cheapest = _cheapest(group.base, kept, comparisons)
    if cheapest is None:
        return f"{kept_words}; what that costs or saves cannot be told: {_why_no_joules(group.base)}", False
    trial, ratio = cheapest
    return f"{kept_words}; {trial.name} takes {_times(ratio)} the measured joules of batch {base}", True


def _cheapest(base: Row, kept: Sequence[Trial], comparisons: Comparisons) -> tuple[Trial, Ratio] | None:
    """The trial with the fewest joules, and their ratio to the base's, its interval corrected for the choice."""
    trials = [trial for trial in kept if trial.joules is not None]
    fit = comparisons.fit(base["panel"], "energy_j")
    if not trials or fit is None:
        return None
    first = min(trials, key=lambda trial: trial.joules.ratio if trial.joules else 0.0)
    ratio = chosen_ratio(fit, key_of(first.row), key_of(base), [key_of(trial.row) for trial in trials])
    return None if ratio is None or ratio.low is None else (first, ratio)


def _why_no_joules(row: Row) -> str:
    if row["energy_doubt"] is not None:
        return f"the joules are doubtful ({row['energy_doubt']})"
    if same_joules(row, row):
        return "nothing tells the noise of the joules, which takes two repeats or more"
    if row["energy_j_mean"] is not None:
        return f"the joules are {row['energy_status']}, not counted, or of different devices"
    estimated = "they are only estimated here" if row["estimated_energy_j"] is not None else "nothing measured them"
    return f"it takes measured joules, and {estimated}"


def _findings(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        for trial in group.trials:
            if trial.worse is None:
                yield f"{trial.name} has no finished pair: {trial.row['statuses']}."
        undecided = [one.name for one in group.trials if one.verdict == OPEN and one.worse]
        if undecided:
            yield f"Cannot be told yet, since the interval spans the margin: {', '.join(undecided)}."


def _where(group: Group) -> str:
    return " · ".join(filter(None, [group.panel, str(group.base["setup"])]))


def _listed(batches: Sequence[int]) -> str:
    return f"batch {listed([str(batch) for batch in sorted(batches)])}"


def _apart(ratio: Ratio | None) -> str:
    """How much worse a quality is, with its interval."""
    if ratio is None:
        return "–"
    ends = "" if ratio.low is None or ratio.high is None else _interval(ratio.low - 1, ratio.high - 1)
    return f"{signed_percent(ratio.ratio - 1)} %{ends and f' (95 % {ends}, n = {ratio.n})'}"


def _interval(low: float, high: float) -> str:
    return f"{signed_percent(low)} to {signed_percent(high)} %"


def _times(ratio: Ratio | None) -> str:
    """A ratio with its interval."""
    if ratio is None:
        return "–"
    known = ratio.low is not None and ratio.high is not None
    ends = f" (95 % {digits(ratio.low or 0)} to {digits(ratio.high or 0)}, n = {ratio.n})" if known else ""
    return f"{digits(ratio.ratio)} times{ends}"


def _table(group: Group, config: Mapping[str, Any], several: bool) -> Table:
    _, quality = asked(config)
    rows: list[list[Entry]] = [
        [
            trial.rule,
            str(trial.batch),
            digits(trial.row["lr"]),
            _apart(trial.worse),
            trial.verdict,
            _times(trial.joules),
            _times(trial.time),
        ]
        for trial in group.trials
    ]
    return Table(
        title=f"Against batch {texts_per_step(group.base)}" + (f", {_where(group)}" if several else ""),
        headings={
            "Rule": "text",
            "Batch": "",
            "Peak rate": "",
            f"{quality.replace('_', ' ').capitalize()} worse by": "",
            "Within the margin": "text",
            "Measured joules": "",
            "Time": "",
        },
        rows=rows,
    )
