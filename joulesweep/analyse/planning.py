"""Predict what the runs of a sweep take, in seconds and joules, from those that finished: ranges, each with its basis.

A run is its window, in which a training is repeated until `measure.min_seconds` are over, and what is around it:
cooling down, start-up, idling, scoring. Each of the four quantities (seconds and joules, within and around) has an
`Estimator`. Before anything finished, what is believed of a machine stands in (`Job.before`). What has no basis is
None, with the reason. Pure functions; no torch, no tables.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from joulesweep.analyse.estimator import SPREAD, UNKNOWN_SD, Estimator, Job, Range, words_of

LATEST = 4  # finished runs that tell how the next ones differ from earlier ones
DRIFT_SD = 0.03  # of the log of how a day, or a seed, differs from others
BUSY_SD = 0.35  # of the log of how much longer the next run takes on a machine that others use
MOST_WAITED = 0.95  # beyond that, next to nothing is known of how long a run takes alone
STOPPED_SD = 0.3  # a run that stops early may stop earlier or later


@dataclass(frozen=True, kw_only=True)
class Past:
    """A run that ended, with what it took.

    Attributes:
        job: what it ran.
        status: as in its record.
        window_s: seconds of one training; None unless ok.
        around_s: seconds of the run outside its window: cooling down, start-up, idling, scoring.
        energy_j: joules of one training; None where there are none.
        around_j: joules of the run outside its window; None where unknown.
        energy_status: "measured", "integrated" or "estimated"; None where there are no joules.
        energy_scope: kinds of device whose joules these are; "" of estimates.
        spread: of estimated joules: lower and upper end of the estimate over its middle.
        waited: share of its time in which it waited for a core that others used; 0 where unknown.
        waited_j: share of its joules that this took.
    """

    job: Job
    status: str
    window_s: float | None = None
    around_s: float | None = None
    energy_j: float | None = None
    around_j: float | None = None
    energy_status: str | None = None
    energy_scope: str = ""
    spread: tuple[float, float] = (1.0, 1.0)
    waited: float = 0.0
    waited_j: float = 0.0

    @property
    def kind(self) -> tuple[str, str] | None:
        """Status and scope of its joules, which only those of one kind predict; None where it has none."""
        return None if self.energy_j is None or self.energy_status is None else (self.energy_status, self.energy_scope)

    def alone(self, name: str) -> float:
        """The share of one of its quantities that it would have taken with the machine to itself."""
        if name == "around_j":
            return 1.0
        return 1 - (self.waited if name.endswith("_s") else self.waited_j)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run will take.

    Attributes:
        job: the run.
        window_s: seconds of one training; None where nothing tells, as `energy_j`.
        seconds: seconds of the whole run.
        energy_j: joules of one training.
        joules: joules of the whole run, or of its windows alone where nothing else was read.
        energy_status: "measured", "integrated" or "estimated"; None without joules.
        num_own: finished runs of the cell that it rests on.
        basis: of the seconds, in words.
        energy_basis: of the joules; or why there are none.
    """

    job: Job
    window_s: Range | None
    seconds: Range | None
    energy_j: Range | None
    joules: Range | None
    energy_status: str | None
    num_own: int
    basis: str
    energy_basis: str


@dataclass(frozen=True)
class Plan:
    """The predictions of some runs, and their totals.

    Attributes:
        predictions: in the order of the runs.
        seconds: of all runs whose seconds are known, one after the other; None if there are none.
        joules: of all runs whose joules are known, by status.
        num_timeless: runs whose seconds are unknown.
        num_powerless: runs whose joules are unknown.
    """

    predictions: list[Prediction]
    seconds: Range | None
    joules: dict[str, Range]
    num_timeless: int
    num_powerless: int


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Which joules runs will have where none finished yet: their status, or None and why there will be none."""

    status: str | None
    reason: str = ""


def predict(past: Sequence[Past], jobs: Sequence[Job], expected: Expected) -> Plan:
    """Predict what runs will take.

    Runs that waited for cores are taken as long as they would have been without; the machine is then expected to be as
    busy as in the latest runs.

    Args:
        past: runs of the sweep that ended, the latest last, all on machines like the one that will run the others.
        jobs: the runs to predict.
        expected: which joules they will have, before any finished.
    """
    ok = [row for row in past if row.status == "ok"]
    kind = _kind(ok)
    with_joules = [row for row in ok if kind and row.kind == kind]
    stopped = _stopped(past)
    alive = [job for job in jobs if job.cell not in stopped]
    window, around = _quantity("window_s", ok, alive), _quantity("around_s", ok, alive)
    energy, around_j = (_quantity(name, with_joules, alive) for name in ("energy_j", "around_j"))
    status = kind[0] if kind else expected.status
    spread = _spread(with_joules)
    bases = _Bases(ok, alive, "window_s"), _Bases(with_joules, alive, "energy_j")
    predictions = []
    for job in jobs:
        if job.cell in stopped:
            predictions.append(_of_stopped(job, stopped[job.cell]))
            continue
        window_s, energy_j = window.ranges.get(job.run), energy.ranges.get(job.run)
        total_s = window_s and _repeated(window_s, job.min_s)
        passes = total_s.mid / window_s.mid if window_s and total_s else 1.0
        joules = energy_j and _sum(energy_j.times(passes), around_j.ranges.get(job.run))
        predictions.append(
            Prediction(
                job=job,
                window_s=window_s,
                seconds=total_s and _sum(total_s, around.ranges.get(job.run)),
                energy_j=energy_j,
                joules=joules and Range(joules.mid, joules.low * spread[0], joules.high * spread[1]),
                energy_status=status if joules else None,
                num_own=bases[0].own.get(job.cell, 0),
                basis=bases[0].words(job),
                energy_basis=bases[1].words(job) if joules else expected.reason or bases[1].words(job),
            )
        )
    return Plan(
        predictions=predictions,
        seconds=_total([one.seconds for one in predictions], max(window.sd, around.sd)),
        joules=_joules(predictions, max(energy.sd, around_j.sd)),
        num_timeless=sum(one.seconds is None for one in predictions),
        num_powerless=sum(one.joules is None for one in predictions),
    )


@dataclass(frozen=True)
class Replayed:
    """A run that ended, and what was to be expected of it before it began."""

    past: Past
    prediction: Prediction


def replay(past: Sequence[Past], growth: float = 1.0) -> list[Replayed]:
    """Predict each finished run from those that ended before it, as if it had been planned then.

    Args:
        past: the runs that ended, the latest last.
        growth: 1: each run is predicted from all before it. More: the model is fitted again when so many times as many
            runs have ended, and not in between.

    Returns:
        The finished runs that anything told of, in the same order.
    """
    replayed: list[Replayed] = []
    begin = 1
    while begin < len(past):
        end = min(max(begin + 1, math.floor(begin * growth)), len(past))
        asked = [row for row in past[begin:end] if row.status == "ok"]
        plan = predict(past[:begin], [row.job for row in asked], Expected(status=None))
        pairs = zip(asked, plan.predictions, strict=True)
        replayed += [Replayed(row, one) for row, one in pairs if one.window_s is not None]
        begin = end
    return replayed


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How near predictions were.

    Attributes:
        num: of runs.
        median: of the relative errors: 0.1 is 10 % too long or too short.
        covered: share of the runs within their range.
    """

    num: int
    median: float
    covered: float


def accuracy(replayed: Iterable[Replayed], name: str, seen: bool) -> Accuracy | None:
    """How near the predictions of a quantity were; None without any.

    Args:
        replayed: the runs.
        name: "window_s" or "energy_j".
        seen: of the runs whose cell had a finished run then, or of the others.
    """
    pairs = [
        (predicted, value)
        for row in replayed
        if (row.prediction.num_own > 0) == seen
        and (predicted := getattr(row.prediction, name)) is not None
        and (value := getattr(row.past, name))
        and (name != "energy_j" or row.prediction.energy_status == row.past.energy_status)
    ]
    if not pairs:
        return None
    return Accuracy(
        num=len(pairs),
        median=statistics.median(abs(predicted.mid / value - 1) for predicted, value in pairs),
        covered=sum(predicted.low <= value <= predicted.high for predicted, value in pairs) / len(pairs),
    )


@dataclass(frozen=True)
class _Predicted:
    """A quantity of some runs: its range by run, and the standard deviation of the log of the sum."""

    ranges: Mapping[str, Range]
    sd: float


@dataclass(frozen=True)
class _Shift:
    """How the next runs differ from the earlier ones of their cells: mean and standard deviation of the log."""

    mean: float
    sd: float

    @classmethod
    def of(cls, known: Sequence[tuple[Job, float]]) -> _Shift:
        """As the latest runs differ from the earlier ones of their cells: days differ, and so do seeds."""
        earlier: dict[str, list[float]] = defaultdict(list)
        apart: list[float] = []
        for job, value in known:
            logs = earlier[job.cell]
            apart += [math.log(value) - math.fsum(logs) / len(logs)] if logs else []
            logs.append(math.log(value))
        latest = apart[-LATEST:]
        if not latest:
            return cls(0.0, DRIFT_SD)
        # One run alone may be off by itself: its distance counts as noise, that of many that agree does not.
        noise = (float(np.var(apart)) + float(np.mean(apart)) ** 2 / len(apart) + DRIFT_SD**2) / len(latest)
        weight = DRIFT_SD**2 / (DRIFT_SD**2 + noise)
        return cls(weight * float(np.mean(latest)), DRIFT_SD * math.sqrt(1 - weight))

    @classmethod
    def by_others(cls, latest: Sequence[Past], name: str) -> _Shift:
        """As much more as the latest runs took for waiting: who uses the cores may stop, or use more, any time."""
        logs = [-math.log(row.alone(name)) for row in latest]
        if not any(logs):
            return cls(0.0, 0.0)
        return cls(float(np.mean(logs)), max(BUSY_SD, float(np.std(logs))))

    def moved(self, predicted: _Predicted) -> _Predicted:
        """A quantity of the next runs, all of which are shifted alike."""
        ranges = {
            run: Range.of_log(math.log(one.mid) + self.mean, math.hypot(one.sd, self.sd))
            for run, one in predicted.ranges.items()
        }
        return _Predicted(ranges, math.hypot(predicted.sd, self.sd))


def _quantity(name: str, past: Sequence[Past], jobs: Sequence[Job]) -> _Predicted:
    """A quantity of runs; no ranges where nothing is known and not all runs have something that is believed."""
    known = [
        (row.job, value * row.alone(name)) for row in past if (value := getattr(row, name)) is not None and value > 0
    ]
    if not jobs or not (known or all(name in job.before for job in jobs)):
        return _Predicted({}, 0.0)
    ranges, sd = Estimator(name, known, jobs).predict(jobs)
    predicted = _Predicted(dict(zip((job.run for job in jobs), ranges, strict=True)), sd)
    return _Shift.by_others(past[-LATEST:], name).moved(_Shift.of(known).moved(predicted))


def _kind(ok: Sequence[Past]) -> tuple[str, str] | None:
    """The status and scope of joules that most runs have, read ones before estimates."""
    kinds = Counter(row.kind for row in ok if row.kind is not None)
    return max(kinds, key=lambda kind: (kind[0] != "estimated", kinds[kind]), default=None)


def _stopped(past: Sequence[Past]) -> dict[str, list[Past]]:
    """Cells whose runs all ended without a measurement, with these."""
    cells: dict[str, list[Past]] = defaultdict(list)
    for row in past:
        cells[row.job.cell].append(row)
    return {cell: rows for cell, rows in cells.items() if all(row.status != "ok" for row in rows)}


def _of_stopped(job: Job, rows: Sequence[Past]) -> Prediction:
    """A run of a cell that stopped early so far takes as long, and so many joules as nobody knows."""
    known = [row.around_s for row in rows if row.around_s]
    statuses = " and ".join(sorted({row.status for row in rows}))
    words = f"{len(rows)} run{'s' if len(rows) > 1 else ''} of the cell ended {statuses}"
    return Prediction(
        job=job,
        window_s=None,
        seconds=Range.of_log(math.log(math.fsum(known) / len(known)), STOPPED_SD) if known else None,
        energy_j=None,
        joules=None,
        energy_status=None,
        num_own=0,
        basis=words,
        energy_basis=f"{words}: such runs have no joules",
    )


def _repeated(window_s: Range, min_s: float) -> Range:
    """Seconds of a window in which a training is repeated until `min_s` are over: half a training too long, usually."""
    low, mid, high = (end if end >= min_s else min_s + end / 2 for end in (window_s.low, window_s.mid, window_s.high))
    return Range(mid, min(low, mid), max(mid, high))


def _sum(first: Range, second: Range | None) -> Range:
    """The sum of two quantities whose errors go together."""
    if second is None:
        return first
    return Range(first.mid + second.mid, first.low + second.low, first.high + second.high)


def _total(ranges: Iterable[Range | None], sd: float) -> Range | None:
    """The sum of the known quantities of some runs.

    Args:
        ranges: of the runs.
        sd: standard deviation of the log of the sum.
    """
    known = [one for one in ranges if one is not None]
    if not known:
        return None
    whole = Range(*(math.fsum(values) for values in zip(*((one.mid, one.low, one.high) for one in known), strict=True)))
    mid = Range.of_log(math.log(whole.mid), sd)
    return Range(whole.mid, max(whole.low, mid.low), min(whole.high, mid.high))  # errors never more than go together


def _joules(predictions: Sequence[Prediction], sd: float) -> dict[str, Range]:
    """The sum of the known joules, by status; an estimate's own range is common to all runs."""
    sums: dict[str, Range] = {}
    for status in dict.fromkeys(one.energy_status for one in predictions if one.energy_status):
        ranges = [one.joules for one in predictions if one.energy_status == status]
        whole = _total(ranges, UNKNOWN_SD if status == "estimated" else sd)
        sums |= {status: whole} if whole else {}
    return sums


def _spread(with_joules: Sequence[Past]) -> tuple[float, float]:
    """Lower and upper end of estimated joules over their middle: the mean of the runs."""
    if not with_joules:
        return 1.0, 1.0
    low, high = (float(np.mean([row.spread[i] for row in with_joules])) for i in (0, 1))
    return low, high


class _Bases:
    """In words, what the prediction of each cell rests on.

    Args:
        past: the finished runs that it is made from.
        jobs: those that it is made for.
        name: of the quantity.

    Attributes:
        own: how many finished runs a cell has.
    """

    def __init__(self, past: Sequence[Past], jobs: Sequence[Job], name: str) -> None:
        self.own, self.name = Counter(row.job.cell for row in past), name
        self._nearest = _nearest({row.job.cell: row.job for row in past}, jobs)

    def words(self, job: Job) -> str:
        """What the prediction of a run rests on."""
        own = self.own.get(job.cell, 0)
        if own:
            return f"{own} finished run{'s' if own > 1 else ''} of the cell"
        if job.cell in self._nearest:
            num = f"{len(self.own)} finished cell{'s' if len(self.own) > 1 else ''}"
            return f"{num}, the nearest {self._nearest[job.cell]}"
        return job.before[self.name].basis if self.name in job.before else job.unknown


def _nearest(finished: Mapping[str, Job], jobs: Sequence[Job]) -> dict[str, str]:
    """For each cell without finished runs, the name of the one that differs least."""
    asked = {job.cell: job for job in jobs if job.cell not in finished}
    if not finished or not asked:
        return {}
    words = [words_of(job) for job in (*finished.values(), *asked.values())]
    codes = np.empty((len(words), len(SPREAD)))
    for column, axis in enumerate(SPREAD):
        numbers = {value: i for i, value in enumerate(dict.fromkeys(word[axis] for word in words))}
        codes[:, column] = [numbers[word[axis]] for word in words]
    weights, names = np.array(list(SPREAD.values())), [job.label for job in finished.values()]
    known = codes[: len(finished)]
    return {
        cell: names[int(np.argmin((known != code) @ weights))]
        for cell, code in zip(asked, codes[len(finished) :], strict=True)
    }


def wall_s(runs: Sequence[tuple[float, int]], slots: int) -> float:
    """Seconds that runs take on a machine, each as soon as enough slots are free, in their order.

    Args:
        runs: seconds and slots of each; boards, or cores.
        slots: of the machine; a run that needs more takes all.
    """
    free = [0.0] * max(slots, 1)  # when each slot is free
    for seconds, needed in runs:
        free.sort()
        count = min(max(needed, 1), len(free))
        end_s = free[count - 1] + seconds
        free[:count] = [end_s] * count
    return max(free)
