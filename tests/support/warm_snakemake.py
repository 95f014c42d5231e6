"""Snakemake in processes that are forked from one that has imported it: imports are two thirds of a dry run."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from patience import PATIENCE_S

#: What Snakemake imports on its way to a plan, and the Snakefile besides the package, which each checkout has.
IMPORTED = (
    "snakemake.cli",
    "snakemake.executors.dryrun",
    "snakemake.executors.local",
    "snakemake.persistence",
    "snakemake.profiles",
    "snakemake.report.html_reporter",
    "snakemake.scheduling.greedy",
    "snakemake.scheduling.milp",
    "snakemake.storage",
    "pandas",
    "pydantic",
    "smart_open",
    "yaml",
)
_servers: list[subprocess.Popen[str]] = []


def run(command: list[str], folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Do what the command `PYTHON -m snakemake …` does in a folder. It is killed when it hangs."""
    with tempfile.TemporaryDirectory() as outputs:
        paths = [Path(outputs, name) for name in ("stdout", "stderr")]
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps([command, str(folder), environ, *map(str, paths)]) + "\n")
        server.stdin.flush()
        code = server.stdout.readline()
        assert code, "the process that forks Snakemake has ended"
        texts = [path.read_text(encoding="utf-8") for path in paths]
    return subprocess.CompletedProcess(command, int(code), *texts)


def _server() -> subprocess.Popen[str]:
    """The process that forks: one for each of pytest's workers, which ends with it."""
    if _servers and _servers[0].poll() is not None:  # a test that ends all its children ended this one too
        _servers.clear()
    if not _servers:
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        server = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(server.communicate)  # the end of its input
        _servers.append(server)
    return _servers[0]


def main() -> None:
    """Carry out jobs, a line each, until the input ends: fork, wait, print the exit code."""
    del sys.path[0]  # this folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return _become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(command: list[str], folder: str, environ: dict[str, str], stdout: str, stderr: str) -> None:
    """Be the process that Python would have started."""
    for number, path in enumerate((os.devnull, stdout, stderr)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(int(PATIENCE_S))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.orig_argv[:] = command
    cli = importlib.import_module("snakemake.cli")
    sys.argv[:] = [str(Path(cli.__file__).with_name("__main__.py")), *command[3:]]
    sys.path.insert(0, folder)
    importlib.import_module("snakemake.workflow").Workflow._rundir = folder  # it was set when this was imported
    cli.main()


if __name__ == "__main__":
    main()
