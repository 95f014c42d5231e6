"""List the studies, explain one with what it will cost, run it, and print its answer."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from joulesweep.core import interrupts
from joulesweep.core.errors import UserError
from joulesweep.plan import config as config_module

HELP = "list the papers' open questions; explain one, run its sweep, print its answer"
EXAMPLES = (
    "joulesweep study",
    "joulesweep study proxy                      # the question, how it is answered, what that will take",
    "joulesweep study proxy --small --run        # offline, on any machine, in minutes",
    "joulesweep study proxy results/default      # the answer of another sweep",
)
FOLDER = Path("config/studies")  # of the working directory
WIDTH = 100  # characters of a line


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("name", nargs="?", help="of a study; default: list all")
    parser.add_argument("folder", nargs="?", type=Path, help="results/<sweep> that is to answer; default: the study's")
    parser.add_argument("--small", action="store_true", help="the offline twin, which any machine runs in minutes")
    parser.add_argument("--run", action="store_true", help="run its sweep; what is finished is kept")
    parser.add_argument("--cores", type=int, help="as Snakemake's; default: all of this machine")
    parser.add_argument("--gpus", type=int, help="boards that its runs share; default: what the machine has")
    parser.add_argument("--json", action="store_true", help="as JSON")


def work(args: argparse.Namespace) -> int:
    """List, explain, run or answer; 1 if the workflow failed."""
    from joulesweep import studies  # the tables, which --help does not need

    if args.name is None:
        if args.run or args.small or args.folder:
            raise UserError(f"name a study: {', '.join(studies.names())}")
        told = {name: studies.load(name).QUESTION for name in studies.names()}
        print(json.dumps(told, indent=1, ensure_ascii=False) if args.json else "\n".join(_list(told)))
        return 0
    study = studies.load(args.name)
    if args.folder:
        if args.run or args.small:
            raise UserError("--run and --small are for the study's own sweep, not for a folder")
        print(_answered(study, args.folder, args))
        return 0
    path = FOLDER / f"{args.name}{'-small' if args.small else ''}.yaml"
    folder = Path("results", config_module.load(path).sweep)
    if args.run and (code := _ran(_command(path, args))):
        return code
    if args.run or _has_tables(folder):
        print(_answered(study, folder, args))
    elif args.json:
        print(_as_json(study, None))
    if not args.run and not args.json:
        print(_explained(study, path, args), flush=True)
        _planned(path, args)
    return 0


def _list(told: dict[str, str]) -> Iterator[str]:
    width = max(map(len, told)) if told else 0
    for name, question in told.items():
        yield from textwrap.wrap(f"{name:<{width}}  {question}", WIDTH, subsequent_indent=" " * (width + 2))
    yield ""
    yield "joulesweep study NAME explains one; --run runs it, --small --run its offline twin"


def _explained(study: ModuleType, path: Path, args: argparse.Namespace) -> str:
    """The question, its source, how it is answered, and how to run it."""
    run = ["joulesweep", "study", args.name, *(["--small"] if args.small else []), "--run"]
    rows = {
        "Question": study.QUESTION,
        "Source": f"{study.SOURCE}.",
        "Protocol": study.PROTOCOL,
        "Config": f"{path}: {shlex.join(run)}, which is {shlex.join(_command(path, args))}",
    }
    wrapped = [
        textwrap.fill(f"{name:<10}{text}", WIDTH, subsequent_indent=" " * 10, break_on_hyphens=False)
        for name, text in rows.items()
    ]
    return "\n".join([*wrapped, ""])


def _planned(path: Path, args: argparse.Namespace) -> None:
    """Print what the runs that are left will take."""
    from joulesweep.cli import plan

    options = {"cells": False, "json": False, "cores": args.cores, "gpus": args.gpus, "machine": None}
    plan.work(argparse.Namespace(configfile=path, **options))


def _command(path: Path, args: argparse.Namespace) -> list[str]:
    """The command line of the workflow."""
    cores = str(args.cores or len(os.sched_getaffinity(0)))
    gpus = ["--resources", f"gpu={args.gpus}"] if args.gpus else []
    return ["snakemake", "--cores", cores, *gpus, "--quiet", "all", "--configfile", str(path)]


def _ran(command: list[str]) -> int:
    """Run a workflow to its end; return 0, 1, or what a shell returns of one that a signal ended."""
    with subprocess.Popen(command) as workflow:
        try:
            code = workflow.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the workflow too, which stops its runs and says what is lost
            workflow.wait()
            return interrupts.EXIT_CODE
    return 0 if code == 0 else 1 if code > 0 else 128 - code


def _has_tables(folder: Path) -> bool:
    return (folder / "tables" / "runs.parquet").exists()


def _answered(study: ModuleType, folder: Path, args: argparse.Namespace) -> str:
    """The answer of a sweep: its sentence and what else it shows."""
    from joulesweep.analyse import tables
    from joulesweep.report import ending

    answer = study.answer(tables.read(folder / "tables"), ending.config(folder))
    if args.json:
        return _as_json(study, dataclasses.asdict(answer))
    lines = [answer.sentence, *(f"- {text}" for text in answer.findings), f"{folder}/report.html has the numbers."]
    return "\n".join([*(textwrap.fill(line, WIDTH, break_on_hyphens=False) for line in lines), ""])


def _as_json(study: ModuleType, answer: dict[str, object] | None) -> str:
    told = {"question": study.QUESTION, "source": study.SOURCE, "protocol": study.PROTOCOL, "answer": answer}
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
