"""Run a subcommand of `joulesweep`: find it by name, parse its arguments, word mistakes in one line."""

from __future__ import annotations

import argparse
import os
import sys

import joulesweep
from joulesweep import cli
from joulesweep.core import interrupts
from joulesweep.core.errors import UserError

USAGE = "usage: joulesweep COMMAND [--help] …"


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand. Returns its exit code; see `joulesweep.cli.EXIT_CODES`."""
    try:
        with interrupts.heeded():
            code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted; the same command does it from the start", file=sys.stderr)
        return interrupts.EXIT_CODE
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str]) -> int:
    if not words:
        print(overview(), flush=True)
        raise UserError("name a command")
    if words[0] in ("--help", "-h"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"joulesweep {joulesweep.__version__}")
        return 0
    return _subcommand(*words)


def _subcommand(name: str, *words: str) -> int:
    if name not in cli.names():
        what = "option" if name.startswith("-") else "command"
        known = ["--help", "--version"] if what == "option" else cli.names()
        raise cli.mistyped(what, name, known)
    command = parser(name)
    args, unknown = command.parse_known_args(words)
    if unknown:
        raise command.unknown(unknown[0])
    return int(cli.load(name).work(args))


def parser(name: str) -> cli.Parser:
    """The parser of a subcommand."""
    module = cli.load(name)
    examples = "\n".join(["examples:", *(f"  {line}" for line in getattr(module, "EXAMPLES", ()))])
    made = cli.Parser(
        prog=f"joulesweep {name}",
        description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
        epilog=f"{examples}\n\n{cli.exit_codes()}" if hasattr(module, "EXAMPLES") else cli.exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(made)
    return made


def overview() -> str:
    """The list of subcommands, a line each."""
    width = max(map(len, cli.names()))
    lines = [f"  {name:<{width}}  {cli.about(name)}" for name in cli.names()]
    head = [USAGE, "", "Energy-aware sweeps of language-model domain adaptation.", "", "commands:"]
    return "\n".join([*head, *lines, "", "options: --help, --version", "", cli.exit_codes()])


if __name__ == "__main__":
    sys.exit(main())
