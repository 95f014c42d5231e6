"""Whether the gain of the grid's last strategy and precision over its first holds in each architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from joulesweep.analyse.comparisons import BEYOND, OPEN, WITHIN, against_margin, asked
from joulesweep.analyse.statistics import Contrast, heterogeneity, times
from joulesweep.analyse.studies.gains import Gain, Way, gains, ways
from joulesweep.analyse.tables import Tables
from joulesweep.core.quantities import percent
from joulesweep.studies import Answer, Entry, Table

QUESTION = "Does the gain of DDP with mixed precision over DP with fp32 hold in each architecture?"
PROTOCOL = (
    "The architecture varies, encoders, decoders and encoder-decoders each on its own task, and in each the strategy "
    "and the precision; texts, batch size and learning rate are held. Compared are the grid's last strategy with its "
    "last precision and the first with the first: joules by counters, seconds and loss, as ratios paired by seed, with "
    "the noise pooled within an architecture. The gain holds where the 95 % interval of joules is below 1; it is free "
    "where the loss is shown to be within the margin. Whether it differs between architectures is Welch's test of the "
    "log ratios, which lets their noise differ."
)
SOURCE = "Maina et al. 2025 (arXiv 2506.08433), conclusion, question 1: they measured BERT alone"
DIFFERS = 0.05  # chance below which a difference between architectures is told
NAMES = 3  # at most, in a list of the sentence


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """In how many architectures the gain holds, on the machine with most of them; other machines follow as findings."""
    first, last = ways(config)
    if first == last:
        return _unanswered("the grid has one strategy and one precision, so there is nothing to gain")
    told = gains(tables, config, first, last)
    machines = _by_machine(told)
    if not machines:
        return _unanswered("no two configurations differ in strategy and precision alone")
    here, *others = machines
    joules = [gain for gain in here if _known(gain.energy)]
    findings = [_interaction(here, "seconds", lambda gain: gain.time)] if len(joules) > 1 else []
    findings += [_interaction(here, _quality(config), lambda gain: gain.worse)] if len(joules) > 1 else []
    findings += [f"On another machine: {_sentence(more, first, last, config)}" for more in others]
    findings += _alone(tables, config, here[0].environment) if here[0].environment else []
    return Answer(
        sentence=_sentence(here, first, last, config),
        answered=len(joules) > 1,
        findings=[text for text in findings if text],
        tables=[_table(part, first, last, config) for part in machines],
    )


def _unanswered(why: str) -> Answer:
    return Answer(sentence=f"Whether the gain holds in each architecture cannot be told: {why}.", answered=False)


def _by_machine(told: Sequence[Gain]) -> list[list[Gain]]:
    """The gains on each machine, most of them first; what did not finish anywhere is on each."""
    machines = dict.fromkeys(gain.environment for gain in told if gain.environment)
    groups = [[gain for gain in told if gain.environment in (machine, None)] for machine in machines or [None]]
    return sorted([group for group in groups if group], key=lambda group: -sum(_known(gain.energy) for gain in group))


def _known(contrast: Contrast | None) -> bool:
    return contrast is not None and contrast.error is not None


def _way(way: Way) -> str:
    return f"{way[0]} with {way[1]}"


def _name(gain: Gain, among: Sequence[Gain]) -> str:
    """A model, with its texts or its task where it has several."""
    same = [other for other in among if other.model == gain.model]
    axes = [axis for axis in ("dataset", "task") if len({getattr(other, axis) for other in same}) > 1]
    return " · ".join([gain.model, *(getattr(gain, axis) for axis in axes)])


def _sentence(here: Sequence[Gain], first: Way, last: Way, config: Mapping[str, Any]) -> str:
    """The answer by joules; by seconds where joules are of fewer than two architectures, after saying why."""
    compared = f"{_way(last)} takes fewer {{}} than {_way(first)}"
    if sum(_known(gain.energy) for gain in here) > 1:
        parts = [_held(here, compared.format("measured joules"), lambda gain: gain.energy)]
        parts += [_loss(here, config), _interaction(here, "joules", lambda gain: gain.energy)]
        return f"{'; '.join(part.removesuffix('.') for part in parts if part)}."
    begin = "Whether the gain in joules holds in each architecture cannot be told"
    why = _why_none(here)
    if sum(_known(gain.time) for gain in here) < 2:
        return f"{begin}: {why}."
    return f"{begin}: {why}; {_held(here, compared.format('seconds'), lambda gain: gain.time)}."


def _why_none(here: Sequence[Gain]) -> str:
    if len(here) < 2:
        return "the sweep has one architecture, and it takes two"
    why = next((gain.why for gain in here if gain.why), None)
    return why or "one seed has no interval; it takes two or more of each configuration"


def _held(here: Sequence[Gain], compared: str, of: Callable[[Gain], Contrast | None]) -> str:
    """In which architectures a quantity is lower, and what becomes of the others."""
    groups: dict[str, list[tuple[Gain, str]]] = {"lower": [], "higher": [], "open": [], "unknown": []}
    for gain in here:
        contrast = of(gain)
        ratio = None if contrast is None else contrast.ratio()
        kind = "unknown" if ratio is None or ratio.low is None else ratio.verdict
        words = gain.why or "no interval" if ratio is None or ratio.low is None else times(ratio)
        groups[kind if kind in groups else "open"].append((gain, words))
    held = groups["lower"]
    number = "each" if len(held) == len(here) else "none" if not held else str(len(held))
    parts = [f"{compared} in {number} of {len(here)} architectures"]
    if held:
        span = sorted(held, key=lambda one: of(one[0]).log)  # type: ignore[union-attr]
        parts[0] += f" ({_listed([span[0], span[-1]] if len(span) > NAMES else span, here)})"
    kinds = {
        "higher": "it takes more in {0} ({1})",
        "open": "no difference is shown in {0} ({1})",
        "unknown": "not compared: {1}",
    }
    parts += [
        words.format(len(groups[kind]), _listed(groups[kind], here)) for kind, words in kinds.items() if groups[kind]
    ]
    return "; ".join(parts)


def _listed(named: Sequence[tuple[Gain, str]], here: Sequence[Gain]) -> str:
    return "; ".join(f"{_name(gain, here)} {words}" for gain, words in named)


def _quality(config: Mapping[str, Any]) -> str:
    return asked(config)[1].replace("_", " ")


def _verdict(gain: Gain, margin: float) -> str:
    """Whether the last way's quality is worse than the first's by no more than the margin."""
    bounds = None if gain.worse is None else gain.worse.bounds()
    low, high = bounds or (None, None)
    return against_margin(low, high, margin)


def _loss(here: Sequence[Gain], config: Mapping[str, Any]) -> str:
    """In which architectures the quality stays within the margin."""
    margin, quality = asked(config)[0], _quality(config)
    compared = [gain for gain in here if gain.worse is not None]
    groups = {
        verdict: [_name(gain, here) for gain in compared if _verdict(gain, margin) == verdict]
        for verdict in (WITHIN, BEYOND, OPEN)
    }
    words = {
        WITHIN: f"no worse by more than {percent(margin)} %",
        BEYOND: "worse by more",
        OPEN: "not told with these seeds",
    }
    parts = [
        f"{words[verdict]} in {'all' if len(names) == len(compared) else ', '.join(names)}"
        for verdict, names in groups.items()
        if names
    ]
    return f"{quality} is {', '.join(parts)}" if parts else ""


def _interaction(here: Sequence[Gain], what: str, of: Callable[[Gain], Contrast | None]) -> str:
    """Whether the gain differs between architectures, as a sentence; empty where that cannot be tested."""
    contrasts = [contrast for gain in here if (contrast := of(gain)) is not None]
    chance = heterogeneity(contrasts)
    if chance is None:
        return ""
    p = "p < 0.001" if chance < 0.001 else f"p = {chance:.2g}"
    ratios = [contrast.ratio().ratio for contrast in contrasts]
    told = "differs between architectures" if chance < DIFFERS else "is not shown to differ between architectures"
    span = f", × {min(ratios):.3g} to × {max(ratios):.3g}"
    return f"the ratio of {what} {told} ({p}, Welch's test of {len(contrasts)}{span})."


def _alone(tables: Tables, config: Mapping[str, Any], machine: str) -> list[str]:
    """What strategy and precision do alone, as far as the grid has the cells between both ways."""
    (strategy, precision), (other, narrow) = ways(config)
    steps = [((strategy, precision), (other, precision)), ((strategy, precision), (strategy, narrow))]
    told = []
    for before, after in steps if strategy != other and precision != narrow else ():
        alone = [gain for gain in gains(tables, config, before, after) if gain.environment == machine]
        ratios = [gain.energy.ratio() for gain in alone if gain.energy is not None]
        if ratios:
            low, high = (pick(ratios, key=lambda ratio: ratio.ratio) for pick in (min, max))
            told.append(f"Alone, {_way(after)} takes {times(low)} to {times(high)} of the joules of {_way(before)}.")
    return told


def _table(here: Sequence[Gain], first: Way, last: Way, config: Mapping[str, Any]) -> Table:
    quality, margin = _quality(config), asked(config)[0]
    return Table(
        title=f"{_way(last)} over {_way(first)}, by architecture",
        headings={
            "Architecture": "text",
            "Task": "text",
            "Joules": "",
            "Seconds": "",
            quality.capitalize(): "",
            "Verdict": "text",
        },
        rows=[
            [
                _name(gain, here),
                gain.task,
                *(_entry(one) for one in (gain.energy, gain.time, gain.worse)),
                _verdict(gain, margin) if gain.worse is not None else gain.why or "",
            ]
            for gain in here
        ],
    )


def _entry(contrast: Contrast | None) -> Entry:
    if contrast is None:
        return "–"
    number, _, rest = times(contrast.ratio()).partition(", ")
    return number, rest
