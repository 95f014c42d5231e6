"""Say what a sweep will take before it runs: time, kWh, CO2e and cost, as ranges with their basis."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep import methods
from joulesweep.analyse import beliefs, past_runs, planning
from joulesweep.analyse.estimator import Job, Range
from joulesweep.analyse.past_runs import Machine
from joulesweep.axes import engine, optimizer, precision, strategy
from joulesweep.cli import add_config
from joulesweep.core import bounded
from joulesweep.core.errors import UserError, one_of
from joulesweep.core.files import MALFORMED
from joulesweep.core.quantities import digits, scaled
from joulesweep.core.spec import RunSpec
from joulesweep.measure import devices, machine, meters
from joulesweep.plan import config as config_module
from joulesweep.plan import staleness
from joulesweep.plan.config import SweepConfig
from joulesweep.plan.grid import expand, manifest
from joulesweep.reference import cpu_estimate
from joulesweep.reference.footprint import J_PER_KWH, footprint

HELP = "say what the runs to do will take: time, kWh, CO2e, cost"
EXAMPLES = (
    "joulesweep plan",
    "joulesweep plan --cells --configfile config/mine.yaml",
    "joulesweep plan --gpus 4 --machine node7    # runs that finished on node7 tell how long others take",
)
Record = dict[str, Any]  # as its file has it
JOULELESS = "no meter was seen to work on this machine yet, and energy.estimate is false"
ON_GPUS = "no run with measured joules finished yet, and the boards' power limit is not known here"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config(parser)
    parser.add_argument("--cells", action="store_true", help="a line for each cell")
    parser.add_argument("--json", action="store_true", help="as JSON, with every run")
    parser.add_argument("--cores", type=int, help="as Snakemake's; default: all of this machine")
    parser.add_argument("--gpus", type=int, help="boards that runs share; default: all of this machine")
    parser.add_argument(
        "--machine", help="host, processor or kind of board whose finished runs count; default: this one"
    )


def work(args: argparse.Namespace) -> int:
    """Plan, and print it."""
    for option in ("cores", "gpus"):
        number = getattr(args, option)
        if number is not None and number < 1:
            raise UserError(f"--{option}: must be 1 or more, got {number}")
    config = config_module.load(args.configfile)
    accelerator = machine.resolve_accelerator(config.hardware.accelerator)
    hardware = config.hardware.model_copy(update={"accelerator": accelerator})
    config = config.model_copy(update={"hardware": hardware, "measure": config.measure.resolved(accelerator)})
    made = _made(config, args)
    print(json.dumps(_as_json(made), indent=1, ensure_ascii=False) if args.json else _screen(made, args))
    return 0


@dataclass(frozen=True, kw_only=True)
class Made:
    """A plan with all that is said about it.

    Attributes:
        config: of the sweep.
        name: of the config file.
        plan: of the runs to do.
        done: finished runs that need no repetition, by status.
        num_stale: of the runs to do, those that older code measured.
        refused: label and reason of each cell that cannot run.
        wall: seconds with as many runs at once as the rules allow; None where unknown.
        together: how many that is, in words.
        machine: whose finished runs count.
        num_foreign: finished runs of other machines, which do not count.
    """

    config: SweepConfig
    name: str
    plan: planning.Plan
    done: Mapping[str, int]
    num_stale: int
    refused: Sequence[tuple[str, str]]
    wall: Range | None
    together: str
    machine: Machine
    num_foreign: int


def _made(config: SweepConfig, args: argparse.Namespace) -> Made:
    specs, grid = expand(config).runs, manifest(config)
    records = _records(Path("results", config.sweep, "runs"), specs)
    here = Machine(machine.cpu_model(), _kinds())
    target = here if args.machine is None else _named(list(records.values()), args.machine)
    usable = {run: row for run, row in records.items() if past_runs.is_of(row, target)}
    current = {run: row for run, row in records.items() if _is_current(row, specs[run])}
    refused = [(entry["label"], entry["reason"]) for entry in grid["excluded"]]
    refused += _unsupported(
        grid, {run: row["reason"] for run, row in current.items() if row["status"] == "unsupported"}
    )
    impossible = (
        {} if args.machine else {run: reason for run in specs if (reason := _impossible(specs[run], args.gpus))}
    )
    refused += _unsupported(grid, {run: reason for run, reason in impossible.items() if run not in records})
    asked = cpu_estimate.asked(config.energy.model_dump(mode="json"))
    facts = _facts(target, here, usable)
    jobs = {run: _job(run, spec, grid["runs"][run], config, asked, facts) for run, spec in specs.items()}
    to_do = [run for run in specs if run not in current and run not in impossible]
    past = [past_runs.of_record(jobs[run], row, asked) for run, row in _by_time(usable)]
    plan = planning.predict(past, [jobs[run] for run in to_do], _expected(config, asked))
    slots, together = _slots(config, args)
    wall = _wall(plan, {run: _needs(specs[run], config) for run in to_do}, slots)
    return Made(
        config=config,
        name=str(args.configfile),
        plan=plan,
        done=Counter(row["status"] for row in current.values() if row["status"] != "unsupported"),
        num_stale=len(records) - len(current),
        refused=list(dict.fromkeys(refused)),
        wall=wall,
        together=together,
        machine=target,
        num_foreign=len(records) - len(usable),
    )


def _records(folder: Path, specs: Mapping[str, RunSpec]) -> dict[str, Record]:
    """The records of the grid's runs; one that cannot be read is none: its run is to do."""
    records = {}
    for run in specs:
        try:
            row = json.loads((folder / run / "record.json").read_bytes())
            past_runs.check(row, run)
        except (OSError, *MALFORMED):
            continue
        records[run] = row
    return records


def _by_time(records: Mapping[str, Record]) -> list[tuple[str, Record]]:
    return sorted(records.items(), key=lambda entry: str(entry[1]["finished"]))


def _named(records: Sequence[Mapping[str, Any]], name: str) -> Machine:
    """The machine of that name among those of the records.

    Raises:
        UserError: there is none, or there are several.
    """
    matches = past_runs.named(records, name)
    if len(matches) == 1:
        return matches[0]
    known = {past_runs.machine_of(row).name for row in records}
    if not known:
        raise UserError(f"--machine {name}: no run of this sweep has finished on any machine")
    if matches:
        raise UserError(f"--machine {name}: that is several: {', '.join(sorted(one.name for one in matches))}")
    raise UserError(f"--machine: {one_of('machine with finished runs', name, known)}")


def _is_current(row: Mapping[str, Any], spec: RunSpec) -> bool:
    """Whether a record counts as measured by today's code."""
    today = staleness.run_digest(spec)
    return today in {row["code_digest"], *(entry["code_digest"] for entry in row.get("accepted") or ())}


def _unsupported(grid: Mapping[str, Any], reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(grid["runs"][run]["label"], reason) for run, reason in reasons.items()]


def _boards() -> list[devices.Board]:
    """The boards of this machine; none where its driver does not answer."""
    return bounded.within(bounded.LIMIT_S, devices.boards)[0] or []


def _kinds() -> tuple[str, ...]:
    return tuple(sorted({board.name for board in _boards()}))


def _impossible(spec: RunSpec, num_gpus: int | None) -> str | None:
    """Why this machine cannot run a spec, as far as can be told without starting it; None where it can."""
    boards = _boards()
    if spec.accelerator == "cuda" and not boards and num_gpus is None:
        return None  # the runs are for another machine
    number = len(boards) if num_gpus is None else num_gpus
    return (
        strategy.unsupported_reason(spec.strategy, spec.devices, spec.accelerator, number, spec.nodes)
        or precision.unsupported_reason(spec.precision, spec.accelerator, None)
        or engine.unsupported_reason(spec.engine, spec.accelerator)
        or optimizer.unsupported_reason(spec.optimizer, spec.accelerator)
        or methods.unsupported_reason(spec.method, spec.accelerator)
    )


def _facts(target: Machine, here: Machine, usable: Mapping[str, Mapping[str, Any]]) -> beliefs.Facts:
    """What is known of the machine: of another one, what its records tell."""
    if target != here:
        environment = next(iter(usable.values()))["environment"]
        board = next(((row["name"], row["memory_bytes"]) for row in environment["gpus"]), None)
        return beliefs.Facts(cpu_model=target.cpu_model, cpu_cores=environment["cpu_cores"], board=board)
    boards = _boards()
    limits = [bounded.within(bounded.LIMIT_S, lambda: meters.sensor(boards[0]).power_limit_w())[0]] if boards else []
    alike = boards and len({board.name for board in boards}) == 1
    return beliefs.Facts(
        cpu_model=here.cpu_model,
        cpu_cores=len(os.sched_getaffinity(0)),
        board=(boards[0].name, boards[0].memory_bytes) if alike else None,
        limit_w=limits[0] if alike else None,
    )


def _job(
    run: str,
    spec: RunSpec,
    entry: Mapping[str, Any],
    config: SweepConfig,
    asked: cpu_estimate.Asked,
    facts: beliefs.Facts,
) -> Job:
    counted = beliefs.work(spec, *beliefs.fetched(spec))
    unknown = "nothing finished yet; before models and texts are fetched, their work is not known"
    if counted:
        unknown = (
            f"nothing finished yet; resources/gpus.csv has no rate of {facts.board[0] if facts.board else 'the boards'}"
        )
    return beliefs.job(run, entry, spec, counted, facts, asked, unknown=unknown)


def _expected(config: SweepConfig, asked: cpu_estimate.Asked) -> planning.Expected:
    """Which joules runs will have before one finished."""
    if config.hardware.accelerator == "cuda":
        return planning.Expected(status="measured", reason=ON_GPUS)
    return planning.Expected(status="estimated" if asked.estimate else None, reason="" if asked.estimate else JOULELESS)


def _slots(config: SweepConfig, args: argparse.Namespace) -> tuple[int, str]:
    """How many slots the runs share, and what these are in words."""
    if config.measure.exclusive == "node":
        return 1, "one run at a time"
    if config.hardware.accelerator == "cuda":
        number = args.gpus or len(_boards()) or 1
        return number, f"on {number} GPU{'s' if number > 1 else ''}"
    number = args.cores or len(os.sched_getaffinity(0))
    return number, f"on {number} cores"


def _needs(spec: RunSpec, config: SweepConfig) -> int:
    """How many slots a run takes."""
    if config.measure.exclusive == "node":
        return 1
    return spec.devices * (1 if spec.accelerator == "cuda" else spec.threads_per_device)


def _wall(plan: planning.Plan, needs: Mapping[str, int], slots: int) -> Range | None:
    """Seconds until all runs with known seconds are done, with the relative range of their sum."""
    known = [(one.seconds.mid, needs[one.job.run]) for one in plan.predictions if one.seconds]
    if not known or plan.seconds is None:
        return None
    return plan.seconds.times(planning.wall_s(known, slots) / plan.seconds.mid)


def _screen(made: Made, args: argparse.Namespace) -> str:
    """The plan as lines of text."""
    plan, num = made.plan, len(made.plan.predictions)
    finished = ", ".join(f"{count} {status}" for status, count in made.done.items())
    done = f"{sum(made.done.values())} done" + (f" ({finished})" if set(made.done) - {"ok"} else "")
    stale = f", {made.num_stale} of them measured by other code than today's" if made.num_stale else ""
    lines = [f"{made.name}: {num} runs to do{stale}; {done}; {len(made.refused)} cells refused"]
    if num:
        lines += _totals(made)
        bases = Counter(one.basis for one in plan.predictions)
        lines += [
            "",
            "Basis of the time, by runs:",
            *(f"  {count:>5}  {basis}" for basis, count in bases.most_common(8)),
        ]
        lines += (
            [f"  {sum(bases.values()) - sum(n for _, n in bases.most_common(8)):>5}  others"] if len(bases) > 8 else []
        )
    if made.num_foreign:
        lines.append(
            f"{made.num_foreign} finished runs of other machines do not count; --machine NAME plans for theirs"
        )
    lines += [f"Refused: {label}: {reason}" for label, reason in made.refused]
    lines += config_module.cautions(made.config)
    if args.cells and num:
        lines += ["", *_cells(plan)]
    return "\n".join(lines)


def _totals(made: Made) -> list[str]:
    """Time, kWh, emissions and cost, a line each."""
    plan, rows = made.plan, []
    unknown = f"; {plan.num_timeless} runs unknown" if plan.num_timeless else ""
    if made.wall is None:
        rows.append(("Time", f"unknown: {plan.predictions[0].basis}"))
    else:
        rows.append(("Time", f"{_shown(made.wall, 's')}, {made.together}{unknown}"))
    for status, joules in plan.joules.items():
        word = "" if status in ("measured", "integrated") else f", {status}"
        unknown = f"; {plan.num_powerless} runs unknown" if plan.num_powerless else ""
        kwh = f" = {digits(joules.mid / J_PER_KWH)} kWh"
        rows.append(("Energy", f"{_shown(joules, 'J')}{kwh}{word}{unknown}"))
        rows += [(name, f"{_shown(amount, unit)}{word}") for name, amount, unit in _footprints(made.config, joules)]
    if not plan.joules:
        rows.append(("Energy", f"unknown: {plan.predictions[0].energy_basis}"))
    note = "Ranges hold 90 of 100 such sums. Fetching and tokenising are not in them."
    return [*(f"{name:<8}{text}" for name, text in rows), note]


def _footprints(config: SweepConfig, joules: Range) -> list[tuple[str, Range, str]]:
    """Emissions and cost of joules, where the config has a factor or a price: name, amount, unit."""
    factors = footprint(config.energy.model_dump(mode="json"))
    if factors is None:
        return []
    amounts = [("CO2e", factors.co2e_g(1.0), "g"), ("Cost", factors.cost(1.0), factors.currency or "")]
    return [(name, joules.times(per_j), unit) for name, per_j, unit in amounts if per_j is not None]


def _shown(amount: Range, unit: str) -> str:
    (mid, low, high), name = scaled([amount.mid, amount.low, amount.high], unit)
    return f"{mid} {name} [{low}, {high}]"


def _cells(plan: planning.Plan) -> list[str]:
    """A line per cell: runs to do, seconds and joules of one run, and what they rest on."""
    by_cell: dict[str, list[planning.Prediction]] = {}
    for one in plan.predictions:
        by_cell.setdefault(one.job.cell, []).append(one)
    rows = [("Cell", "Runs", "A run takes", "Joules of a run", "Basis")]
    for predictions in by_cell.values():
        one = predictions[0]
        seconds = _shown(one.seconds, "s") if one.seconds else "unknown"
        joules = (
            _shown(one.joules, "J") + (" est." if one.energy_status == "estimated" else "") if one.joules else "unknown"
        )
        rows.append((one.job.label, str(len(predictions)), seconds, joules, one.basis))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  ".join([*(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]


def _as_json(made: Made) -> dict[str, Any]:
    """The plan as JSON: null where unknown, with the reason in `basis`."""
    plan, config = made.plan, made.config
    return {
        "format": "joulesweep-plan",
        "version": 1,
        "sweep": config.sweep,
        "machine": made.machine.name,
        "num_to_do": len(plan.predictions),
        "num_outdated": made.num_stale,
        "done": dict(made.done),
        "refused": [{"label": label, "reason": reason} for label, reason in made.refused],
        "wall_s": _range(made.wall),
        "together": made.together,
        "seconds": _range(plan.seconds),
        "num_timeless": plan.num_timeless,
        "num_powerless": plan.num_powerless,
        "joules": {
            status: {
                "energy_j": _range(joules),
                **{
                    f"{name.lower()}": {**(_range(amount) or {}), "unit": unit}
                    for name, amount, unit in _footprints(config, joules)
                },
            }
            for status, joules in plan.joules.items()
        },
        "runs": [
            {
                "run": one.job.run,
                "cell": one.job.cell,
                "label": one.job.label,
                "seconds": _range(one.seconds),
                "window_s": _range(one.window_s),
                "energy_j": _range(one.joules),
                "energy_status": one.energy_status,
                "num_own": one.num_own,
                "basis": one.basis,
                "energy_basis": one.energy_basis,
            }
            for one in plan.predictions
        ],
    }


def _range(amount: Range | None) -> dict[str, float] | None:
    return None if amount is None else {"mid": amount.mid, "low": amount.low, "high": amount.high}
