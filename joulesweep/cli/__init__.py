"""The command `joulesweep`: one file per subcommand, discovered by name.

A subcommand is a module `joulesweep/cli/<command>.py` with

* `HELP`: what it does, in one line, as a plain string;
* `arguments(parser)`: adds its arguments to a parser;
* `work(args)`: does it, and returns the exit code;
* optionally `EXAMPLES`: command lines that `--help` shows, as a plain tuple of strings.

No other file needs an edit. Names and help are available without importing a subcommand.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from joulesweep.core.errors import UserError, brief_repr

CONFIG = Path("config/config.yaml")  # the default one, of the working directory
#: Exit codes of every subcommand.
EXIT_CODES = {0: "done", 1: "a run failed and left no record", 2: "your mistake: one line on stderr"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest option.

    Attributes:
        advice: how to give an argument that belongs elsewhere; `{}` is the argument.
    """

    advice: str | None = None

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")

    def unknown(self, word: str) -> UserError:
        """The error for an argument that is not known."""
        if self.advice:
            return UserError(f"unknown argument {word}; {self.advice.format(word)}")
        options = [option for action in self._actions for option in action.option_strings]
        kind = "option" if word.startswith("-") else "argument"
        return mistyped(kind, word.partition("=")[0], options, self.prog)


def mistyped(what: str, word: str, known: list[str], prog: str = "joulesweep") -> UserError:
    """The error for a word that is not known: `unknown command 'chek'; did you mean 'check'?`."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    rest = f"did you mean {near[0]!r}?" if near else f"{prog} --help lists all"
    return UserError(f"unknown {what} {brief_repr(word)}; {rest}")


def names() -> list[str]:
    """The names of all subcommands, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "main")


def about(name: str) -> str:
    """The help of a subcommand, read without importing it."""
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    named = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    return str(ast.literal_eval(named["HELP"]))


def load(name: str) -> ModuleType:
    """Import a subcommand's module."""
    return importlib.import_module(f"joulesweep.cli.{name}")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--configfile`, which defaults to the config of the working directory."""
    parser.add_argument("--configfile", type=Path, default=CONFIG, help=f"default: {CONFIG}")


def exit_codes() -> str:
    """The exit codes, a line each."""
    return "\n".join(["exit codes:", *(f"  {code}  {meaning}" for code, meaning in EXIT_CODES.items())])
