"""Validate a config and say what it has to run."""

from __future__ import annotations

import argparse
from pathlib import Path

from joulesweep.cli import add_config
from joulesweep.core.errors import UserError, mistaken
from joulesweep.core.files import read_json
from joulesweep.plan import config as config_module
from joulesweep.plan.config import SweepConfig
from joulesweep.plan.grid import expand, model_key, model_source
from joulesweep.plan.strict import Place

HELP = "validate a config and say how many cells and runs it has"
EXAMPLES = ("joulesweep check", "joulesweep check config/mine.yaml")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", nargs="?", type=Path, help="as --configfile")
    add_config(parser)


def work(args: argparse.Namespace) -> int:
    """Validate, and count.

    Raises:
        UserError: a line for each mistake.
    """
    path = args.file or args.configfile
    config, where = config_module.located(path)
    grid = expand(config, where)
    mistakes = _unfit(config, where)
    if mistakes:
        raise mistaken(mistakes)
    num_cells = len(grid.runs) // config.grid.repeats
    counts = [_many(num_cells, "cell"), _many(len(grid.runs), "run"), f"{_many(len(grid.excluded), 'cell')} excluded"]
    print(f"{path}: {', '.join(counts)}")
    for caution in config_module.cautions(config):
        print(caution)
    return 0


def _unfit(config: SweepConfig, where: Place) -> list[UserError]:
    """Tasks that a model of the grid cannot learn, as far as fetched models say it: nothing is fetched for this."""
    mistakes = []
    for name in config.grid.model:
        path = Path("resources/models", f"{model_key(name, model_source(config.models[name], config.datasets))}.json")
        try:
            fitness = read_json(path, "manifest of a model")["tasks"]
            reasons = {task: fitness[task]["reason"] for task in config.grid.task if task in fitness}
        except (UserError, LookupError, TypeError):
            continue
        mistakes += [
            where.refusal(f"model {name}: {reason}", "grid", "task", config.grid.task.index(task))
            for task, reason in reasons.items()
            if reason is not None
        ]
    return mistakes


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
