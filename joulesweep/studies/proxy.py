"""What it costs to choose a configuration by seconds, FLOPs, watts or an estimate instead of by measured joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from joulesweep.analyse.comparisons import Key, asked, key_of
from joulesweep.analyse.statistics import Ratio, change
from joulesweep.analyse.studies.proxies import Panel, panels
from joulesweep.analyse.studies.standings import ALL, GOOD, Choice, Flip, Standing
from joulesweep.analyse.tables import Tables
from joulesweep.core.quantities import listed, percent
from joulesweep.core.student import Interval
from joulesweep.reference import cpu_estimate
from joulesweep.studies import Answer, Entry, Table

QUESTION = "Do seconds, FLOPs, watts or estimates choose the configuration that joules would choose?"
PROTOCOL = (
    "Precision, batch size, strategy and engine vary, since these change seconds and watts in different ways. Each "
    "proxy is compared with joules that counters measured: rank correlation, error after the best constant factor, and "
    "regret, the joules of the configuration that the proxy would choose over those of the best. Runs are paired by "
    "seed, their noise is pooled, and the intervals hold for the choice that was made here. Counted are undoubted "
    "joules of one kind of device, of three or more configurations with two or more repeats; estimates would stand for "
    "themselves."
)
SOURCE = (
    "Maina et al. 2025 (arXiv 2506.08433) take speed for energy, Huang et al. 2024 (arXiv 2309.13192) FLOPs; ECOpt "
    "(arXiv 2601.08991) finds that proxies fail, from one observation per configuration"
)
NEEDED = (
    "an NVIDIA board from Volta on, or RAPL counters that this user may read (joulesweep doctor tells): there, "
    "joulesweep study proxy --run answers it"
)
MOST_NAMES = 2


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """What each proxy costs, in the panel with most configurations; the others follow as findings."""
    settings = {"estimate": False, "cpu_watts": None, **(config.get("energy") or {})}
    told = panels(tables, cpu_estimate.asked(settings))
    told.sort(key=lambda panel: -len(panel.rows) if panel.standings else 1)
    if not told or not told[0].standings:
        return Answer(sentence=_why_not(told), answered=False)
    first, *others = told
    measure = asked(config)[1]
    findings = [*_findings(first), *(f"{panel.name}: {_other(panel, config)}" for panel in others)]
    answered = [panel for panel in told if panel.standings]
    return Answer(
        sentence=f"{_where(first)}{_sentence(first, asked(config)[0], measure)}",
        answered=True,
        findings=findings,
        tables=[table for panel in answered for table in _tables(panel)],
    )


def _where(panel: Panel) -> str:
    return f"{panel.name}: " if panel.name else ""


def _other(panel: Panel, config: Mapping[str, Any]) -> str:
    return _sentence(panel, *asked(config)) if panel.standings else f"nothing can be told: {panel.why_not}."


def _why_not(told: Sequence[Panel]) -> str:
    """Why nothing can be told, and what it takes."""
    begin = "What choosing by a proxy costs cannot be told"
    if not told:
        return f"{begin} yet: no run has finished."
    why = next((panel.why_not for panel in told if panel.rows), told[0].why_not)
    if told[0].rows or any(panel.rows for panel in told):
        return f"{begin}: {why}."
    return f"{begin}: {why}, and joules estimated from seconds would only stand for themselves; it takes {NEEDED}."


def _sentence(panel: Panel, margin: float, measure: str) -> str:
    """The answer: the loss of each choice, largest first, then the proxies of which no loss is shown."""
    which = GOOD if GOOD in panel.standings[0].choices else ALL
    groups = _by_choice(panel, which)
    lossy = [(names, choice) for names, choice in groups if choice.shown]
    same = [(names, choice) for names, choice in groups if not choice.shown]
    quality = measure.removeprefix("validation_").replace("_", " ")
    side = f" whose {quality} is within {100 * margin:g} % of the best" if which == GOOD else ""
    among = f"among {groups[0][1].among} configurations{side} (measured joules of {panel.scope}, n = {panel.repeats})"
    parts = [f"by {listed(names, 'or')} {_more(choice.regret)}" for names, choice in lossy]
    none = [f"by {listed(names, 'or')} ({_at_most(choice.regret)})" for names, choice in same]
    if not parts:
        return f"No loss is shown from choosing {listed(none)} instead of by joules, {among}."
    names, choice = lossy[0]
    first = f"Choosing by {listed(names, 'or')} instead of joules costs {_more(choice.regret)} more joules here"
    rest = f", {listed(parts[1:])}" if parts[1:] else ""
    no_loss = f"; no loss is shown {listed(none)}" if none else ""
    return f"{first}{rest}, {among}{no_loss}."


def _by_choice(panel: Panel, which: str) -> list[tuple[list[str], Choice]]:
    """Proxies that choose the same, with what that costs; the largest loss first."""
    groups: dict[tuple[Key, ...], tuple[list[str], Choice]] = {}
    for standing in panel.standings:
        choice = standing.choices[which]
        known = groups.get(choice.chosen)
        # Of one choice, the widest interval: how many choices luck could have made depends on the proxy.
        wider = choice if known is None else max(known[1], choice, key=lambda one: one.regret.high or 0.0)
        groups[choice.chosen] = ([*(known[0] if known else []), standing.proxy], wider)
    return sorted(groups.values(), key=lambda group: -group[1].regret.ratio)


def _more(ratio: Ratio) -> str:
    low, high = ratio.low or 1.0, ratio.high or 1.0
    return f"{percent(ratio.ratio - 1)} % [{percent(low - 1)}, {percent(high - 1)}]"


def _at_most(ratio: Ratio) -> str:
    most = percent((ratio.high or 1.0) - 1)
    return f"at most {most} %" if most != "0" else "the same choice"


def _findings(panel: Panel) -> list[str]:
    """What else a panel shows."""
    names = {key_of(row): row["name"] for row in panel.rows}
    best = panel.standings[0].choices[ALL].best
    assert panel.at_random is not None and panel.lacking is not None
    findings = [
        f"The fewest joules are those of {names[best]}; a choice at random would cost "
        f"{_more(panel.at_random[ALL].regret)} more on average."
    ]
    findings += [_flipped(standing, names) for standing in panel.standings if standing.flips]
    findings += [f"Not compared: {name}, since {why}." for name, why in panel.lacking.items()]
    if panel.left_out:
        findings.append(f"Left out: {'; '.join(panel.left_out)}.")
    return findings


def _flipped(standing: Standing, names: Mapping[Key, str]) -> str:
    """How many pairs a proxy puts in the wrong order, and the largest of them."""
    flip = standing.flips[0]
    share = percent(standing.reversed / standing.pairs)
    pairs = f"{standing.pairs} pairs that differ in joules and in {standing.proxy}"
    return (
        f"Of {pairs}, {standing.reversed} ({share} %) do so in opposite directions, most of all {names[flip.less]} "
        f"with {change(flip.joules)} joules and {change(flip.proxy)} in {standing.proxy} against {names[flip.more]}."
    )


def _tables(panel: Panel) -> list[Table]:
    names = {key_of(row): row["name"] for row in panel.rows}
    good = GOOD in panel.standings[0].choices
    headings = {"Proxy": "text", "Its choice of all": "text wrap", "More joules than the best": ""}
    headings |= {"Its choice within the margin": "text wrap", "More joules than the best of these": ""} if good else {}
    headings |= {"Spearman's rank correlation": "", "Kendall's": "", "Error after the best factor": ""}
    rows = [
        [
            standing.proxy,
            *(entry for which in (ALL, GOOD)[: 1 + good] for entry in _choice(standing.choices[which], names)),
            *(_correlation(one) for one in (standing.spearman, standing.kendall)),
            _error(standing.error),
        ]
        for standing in panel.standings
    ]
    costs = Table(title=f"{_where(panel)}What choosing by a proxy costs", headings=headings, rows=rows)
    flips = [_flip_row(standing, flip, names) for standing in panel.standings for flip in standing.flips]
    wrong = Table(
        title=f"{_where(panel)}Pairs that a proxy puts in the wrong order",
        headings={"Proxy": "text", "Fewer joules": "text wrap", "Against": "text wrap", "Joules": "", "The proxy": ""},
        rows=flips,
    )
    return [costs, *([wrong] if flips else [])]


def _choice(choice: Choice, names: Mapping[Key, str]) -> tuple[Entry, Entry]:
    """What is chosen, and what that costs."""
    chosen = [names[key] for key in choice.chosen]
    told = ", ".join(chosen[:MOST_NAMES])
    if len(chosen) > 1:
        told = f"any of {len(chosen)}: {told}{', …' if len(chosen) > MOST_NAMES else ''}"
    number, _, interval = _more(choice.regret).partition(" [")
    return told, (number if number == "0 %" else f"+{number}", f"[{interval}")


def _correlation(interval: Interval | None) -> Entry:
    if interval is None or interval.low is None or interval.high is None:
        return "–", "the same everywhere"
    mean, low, high = (f"{value:.2f}".replace("-", "−") for value in (interval.mean, interval.low, interval.high))
    return mean, f"[{low}, {high}]"


def _error(interval: Interval) -> Entry:
    low, high = interval.low or 0.0, interval.high or 0.0
    return f"{percent(interval.mean)} %", f"[{percent(low)}, {percent(high)}]"


def _flip_row(standing: Standing, flip: Flip, names: Mapping[Key, str]) -> list[Entry]:
    changes = [change(ratio).partition(" [") for ratio in (flip.joules, flip.proxy)]
    return [standing.proxy, names[flip.less], names[flip.more], *((told, f"[{rest}") for told, _, rest in changes)]
