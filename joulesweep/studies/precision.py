"""Which number format costs the fewest joules without a shown loss of quality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from joulesweep.analyse.cells import LAYOUT, comparable_groups, doubtful, finished, why_not_ranked
from joulesweep.analyse.comparisons import MORE_IS_BETTER, Comparisons, asked, memory_quantity
from joulesweep.analyse.spikes import FACTOR, WINDOW
from joulesweep.analyse.statistics import NO_INTERVAL, Contrast, Ratio, best_of
from joulesweep.analyse.studies.published import rows as published
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.quantities import percent, signed_percent
from joulesweep.studies import Answer, Entry, Table

QUESTION = "Which number format costs the fewest joules without a shown loss of quality?"
PROTOCOL = (
    "Only the precision varies within a comparison: model, texts, method, strategy, batch size and learning rate are "
    "the same, runs are paired by seed, and several such comparisons of one model are averaged on logs. A format is "
    "left out where a run of it diverged, or where its quality is shown to be worse than that of fp32; of the others "
    "the one with the fewest measured joules is the answer, its interval corrected for having been chosen. A loss "
    f"spike is a step whose training loss is above the median of the {WINDOW} steps before it by more than {FACTOR:g} "
    "times their median absolute deviation."
)
SOURCE = "Maina et al. 2025 (arXiv 2506.08433), conclusion, question 2"
BASELINE = "fp32"
NEEDED = "it takes a board with a counter (NVIDIA from Volta on) or readable RAPL: joulesweep doctor tells"
#: Axes on which the cells of a comparison agree.
SHARED = (
    *("panel", "environment", "method", "method_params", "strategy", "devices", "nodes", *LAYOUT),
    *("batch_size", "batch_size_scope", "lr", "max_grad_norm"),
)
Pairs = Sequence[tuple[Row, Row]]  # (a cell in fp32, the same in another format)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of a panel beside fp32.

    Attributes:
        name: of the precision.
        pairs: its cells, each with that in fp32; empty for fp32 itself.
        changes: of joules, seconds, memory and quality against fp32, by column; None where they cannot be told.
        num_diverged: runs of it that diverged.
    """

    name: str
    pairs: Pairs = ()
    changes: Mapping[str, Contrast | None] = field(default_factory=dict)
    num_diverged: int = 0

    def ratio(self, quantity: str) -> Ratio | None:
        """A change as a ratio with its interval."""
        contrast = self.changes.get(quantity)
        return None if contrast is None else contrast.ratio()


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """The cheapest format of each panel, in a sentence; why there is none if no panel has one."""
    comparisons, measure = Comparisons(tables.runs), asked(config)[1]
    told = []
    findings: list[str] = []
    shown: list[Table] = []
    for panel, cells in comparable_groups(finished(tables.cells, "window_s_mean")):
        runs = _runs_of(cells, tables.runs)
        formats = _formats(comparisons, cells, runs, measure)
        if len(formats) < 2:
            continue
        where = f"{panel}: " if panel else ""
        told.append((where, _why_not(cells, formats), formats))
        findings += [f"{where}{finding}" for finding in _findings(formats, runs, measure)]
        shown.append(_table(panel, formats, runs, measure))
    if not told:
        return Answer(sentence=_nothing(tables.cells), answered=False)
    answered = [(where, formats) for where, why, formats in told if why is None]
    if not answered:
        where, why, _ = told[0]
        return Answer(
            sentence=f"{where}Which format costs the fewest joules cannot be told: {why}.",
            answered=False,
            findings=findings,
            tables=shown,
        )
    parts = [f"{where}{_cheapest(formats, measure)}" for where, formats in answered]
    return Answer(sentence=f"{'; '.join(parts)}.", answered=True, findings=[*findings, *_published()], tables=shown)


def _runs_of(cells: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The runs of a panel, with those that did not finish and so have no environment."""
    return runs.filter(**{axis: cells[axis][0] for axis in ("model", "dataset", "task")})


def _nothing(cells: pl.DataFrame) -> str:
    begin = "Which format costs the fewest joules cannot be told"
    if not cells.filter(pl.col("num_ok") > 0).height:
        return f"{begin} yet: no run has finished."
    return f"{begin}: it takes finished runs in {BASELINE} and in another format that are otherwise the same."


def _formats(comparisons: Comparisons, cells: pl.DataFrame, runs: pl.DataFrame, measure: str) -> list[Format]:
    """The formats of a panel that every comparison has, fp32 first; fewer than two if none has fp32 and another."""
    groups = [
        {row["precision"]: row for row in part.to_dicts()} for _, part in cells.group_by(SHARED, maintain_order=True)
    ]
    groups = [group for group in groups if BASELINE in group and len(group) > 1]
    if not groups:
        return []
    names = [name for name in cells["precision"].unique(maintain_order=True) if all(name in group for group in groups)]
    diverged = Counter(runs.filter(status="diverged")["precision"])
    return [
        Format(name=BASELINE, num_diverged=diverged[BASELINE]),
        *(
            _format(comparisons, name, [(group[BASELINE], group[name]) for group in groups], diverged[name], measure)
            for name in names
            if name != BASELINE
        ),
    ]


def _format(comparisons: Comparisons, name: str, pairs: Pairs, num_diverged: int, measure: str) -> Format:
    quantities = ("energy_j", "window_s", memory_quantity(pairs[0][0]), measure)
    changes = {quantity: comparisons.change(pairs, quantity) for quantity in quantities}
    return Format(name=name, pairs=pairs, changes=changes, num_diverged=num_diverged)


def _why_not(cells: pl.DataFrame, formats: Sequence[Format]) -> str | None:
    """Why the joules of a panel's formats cannot be compared; None if they can."""
    reason = why_not_ranked(cells)
    if reason is not None:
        estimates = cells["estimated_energy_j"].is_not_null().any()
        alone = ", and joules estimated from seconds would only stand for themselves" if estimates else ""
        return f"{reason}{alone}; {NEEDED}"
    known = [contrast for one in formats if (contrast := one.changes.get("energy_j")) is not None]
    if not known:
        lines = doubtful(cells)
        return f"the joules of {lines[0]}" if lines else f"no format has a seed in common with {BASELINE}"
    if all(contrast.error is None for contrast in known):
        return f"one repeat tells no noise ({NO_INTERVAL}); it takes grid.repeats of 3 or more"
    return None


def _is_worse(one: Format, measure: str) -> bool:
    """Whether a format's quality is shown to be worse than that of fp32."""
    ratio = one.ratio(measure)
    return ratio is not None and ratio.verdict == ("lower" if measure in MORE_IS_BETTER else "higher")


def _cheapest(formats: Sequence[Format], measure: str) -> str:
    """The answer of one panel, without its full stop."""
    rivals = [one for one in formats[1:] if one.changes["energy_j"] is not None]
    sound = [one for one in rivals if not one.num_diverged and not _is_worse(one, measure)]
    left_out = [one.name for one in rivals if one not in sound]
    without = f" ({' and '.join(left_out)} left out: worse or diverged)" if left_out else ""
    if not sound:
        return f"{BASELINE} it is: every other format diverged or is shown to be worse in {_word(measure)}{without}"
    least = min(sound, key=lambda one: one.changes["energy_j"].log)  # type: ignore[union-attr]
    contrast = least.changes["energy_j"]
    assert contrast is not None
    ratio = (
        contrast.ratio(high=best_of(len(sound), max(1, round(contrast.degrees))))
        if contrast.error
        else contrast.ratio()
    )
    quality = f"its {_word(measure)} {_against(least.ratio(measure))}"
    measured = f"measured joules, n = {ratio.n}"
    if ratio.verdict == "lower":
        less = f"{percent(ratio.ratio - 1)} % fewer joules than {BASELINE} {_ends(ratio, less=True)}"
        return f"{least.name} costs the fewest joules: {less} ({measured}), and {quality}{without}"
    begin = f"{BASELINE} costs the fewest joules"
    if ratio.verdict != "higher":
        begin = f"No format is shown to cost fewer joules than {BASELINE}"
    more = f"takes {signed_percent(ratio.ratio - 1)} % {_ends(ratio)} ({measured})"
    return f"{begin}: the nearest, {least.name}, {more}, and {quality}{without}"


def _ends(ratio: Ratio, less: bool = False) -> str:
    """The interval of a ratio as changes in percent."""
    if ratio.low is None or ratio.high is None:
        return f"({NO_INTERVAL})"
    if less:
        return f"[{percent(ratio.high - 1)}, {percent(ratio.low - 1)}]"
    return f"[{signed_percent(ratio.low - 1)}, {signed_percent(ratio.high - 1)}]"


def _word(measure: str) -> str:
    return measure.replace("_", " ")


def _against(ratio: Ratio | None) -> str:
    """A ratio of quality to fp32's in words."""
    if ratio is None:
        return f"cannot be compared with that of {BASELINE}"
    change = f"{signed_percent(ratio.ratio - 1)} % {_ends(ratio)}"
    if ratio.verdict in ("higher", "lower"):
        return f"is shown to be {ratio.verdict} than that of {BASELINE}: {change}"
    return f"is not shown to differ from that of {BASELINE}: {change}"


def _findings(formats: Sequence[Format], runs: pl.DataFrame, measure: str) -> list[str]:
    """What else the formats show: worse quality, divergence, skipped steps, spikes, and what could not run."""
    findings = [
        f"{one.name}: its {_word(measure)} {_against(one.ratio(measure))}."
        for one in formats[1:]
        if _is_worse(one, measure)
    ]
    for (name,), of_format in runs.group_by("precision", maintain_order=True):
        ok = of_format.filter(status="ok")
        statuses = Counter(of_format["status"])
        if statuses["diverged"]:
            findings.append(f"{name}: {statuses['diverged']} of {of_format.height} runs diverged.")
        if skipped := ok["num_skipped_steps"].sum():
            findings.append(f"{name}: loss scaling skipped {skipped:,} of {ok['num_steps'].sum():,} steps.")
        if spikes := ok["num_loss_spikes"].sum():
            findings.append(f"{name}: {spikes:,} loss spikes in {ok.height} runs of {ok['num_steps'].sum():,} steps.")
        unsupported = of_format.filter(status="unsupported")
        if unsupported.height:
            findings.append(f"{name} could not run: {unsupported['reason'][0]}.")
    return findings


def _published() -> list[str]:
    """What others measured."""
    row = published("formats.csv")[0]
    return [f"Published: {row['figure']} of {row['quantity']} ({row['source']}, {row['status']})."]


def _table(panel: str, formats: Sequence[Format], runs: pl.DataFrame, measure: str) -> Table:
    """A row per format: its changes against fp32, and what befell its runs."""
    headings = {"Format": "text", "Energy": "", "Time": "", "Memory": "", _word(measure).capitalize(): ""}
    headings |= {"Skipped steps": "", "Loss spikes": "", "Diverged": ""}
    entries: list[list[Entry]] = []
    for one in formats:
        of_format = runs.filter(precision=one.name)
        ok = of_format.filter(status="ok")
        spikes = ok["num_loss_spikes"]
        quantities = list(one.changes) or ["energy_j", "window_s", "", measure]
        known = str(spikes.sum()) if spikes.null_count() < len(spikes) else "too few steps"
        changes = [_entry(one.ratio(quantity)) if one.pairs else "1" for quantity in quantities]
        entries.append([one.name, *changes, f"{ok['num_skipped_steps'].sum():,}", known, str(one.num_diverged)])
    title = f"Formats over {BASELINE}" + (f": {panel}" if panel else "")
    return Table(title=title, headings=headings, rows=entries)


def _entry(ratio: Ratio | None) -> Entry:
    """A change in percent, with its interval."""
    return "–" if ratio is None else (f"{signed_percent(ratio.ratio - 1)} %", _ends(ratio))
