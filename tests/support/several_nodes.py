"""Machines that are one: agents on the loopback interface, each with its own fake boards and its own lock files."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fake_meters
import tiny_run
from patience import PATIENCE_S

KEY = "known to both"
#: Launches a run: folder, port (0 in a job of Slurm), what is changed of the tiny spec, seconds to wait for agents.
PARENT = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests/support")
import tiny_run
from joulesweep.core.errors import UserError
from joulesweep.launch import launcher, nodes
from joulesweep.launch.node import RunFailed
folder, changes, nodes.JOIN_S = Path(sys.argv[1]), json.loads(sys.argv[3]), float(sys.argv[4])
run = folder / "run"
try:
    launcher.launch(
        tiny_run.spec(**changes), "c0de", model_folder=folder / "model", tokens=folder / "tokens.safetensors",
        folder=run, log=run / "run.log", exclusive="node", with_snakemake=False,
        rendezvous=f"127.0.0.1:{sys.argv[2]}" if int(sys.argv[2]) else None,
    )
except (RunFailed, UserError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


SPREAD: dict[str, Any] = {"strategy": "ddp", "devices": 2, "nodes": 2, "gpus": [0]}
#: Takes the place of torchrun: starting two real ones and their ranks takes ten CPU-seconds.
STAND_IN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from joulesweep.core import processes
node = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--node-rank="))
work = Path(sys.argv[-1]).parent
def rank():
    command = [sys.executable, "-c", "import time; time.sleep(600)", str(work), "a rank"]
    return subprocess.Popen(command, preexec_fn=processes.die_with_parent)
print("works", flush=True)
exec(os.environ["INSTEAD"])
"""


class Machines:
    """Two machines with one fake board each, and a folder that they share."""

    def __init__(self, folder: Path, watts: tuple[float, ...] = (300.0, 170.0), tick_ms: int = 20) -> None:
        self.folder, self.watts = folder, watts
        self.assets = tiny_run.assets(folder)
        self.uuids, self.environs = [], []
        for number, draw in enumerate(watts):
            place = folder / f"machine{number}"
            place.mkdir()
            boards = fake_meters.Boards(place, [{"watts": draw, "tick_ms": tick_ms}])
            self.uuids.append(boards.boards[0]["uuid"])
            self.environs.append(
                boards.environment(
                    JOULESWEEP_LOCKS=str(place / "locks"),
                    XDG_CACHE_HOME=str(place / "cache"),
                    JOULESWEEP_KEY=KEY,
                    OMP_NUM_THREADS="1",
                    PYTHONPATH=str(tiny_run.REPOSITORY),
                )
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def parent(self, join_s: float = PATIENCE_S, **changes: Any) -> subprocess.Popen[str]:
        """The parent of a run, with the first machine's agent below it."""
        return _started(self.command(self.port, join_s, **changes), self.environs[0])

    def command(self, port: int = 0, join_s: float = PATIENCE_S, **changes: Any) -> list[str]:
        """What launches a run."""
        words = [str(self.folder), str(port), json.dumps({**SPREAD, **changes}), str(join_s)]
        return [sys.executable, "-c", PARENT, *words]

    def of_nodes(self) -> list[dict[str, str]]:
        """The variables that make the two machines of a process's environment."""
        return [
            {
                name: value
                for name, value in environ.items()
                if value != os.environ.get(name) and name != "JOULESWEEP_KEY"
            }
            for environ in self.environs
        ]

    def agent(self, number: int = 1, **environ: str) -> subprocess.Popen[str]:
        """The agent of another machine."""
        command = [sys.executable, "-m", "joulesweep.cli.main", "join", f"127.0.0.1:{self.port}"]
        return _started(command, {**self.environs[number], **environ})

    def instead_of_torchrun(self, *lines: str) -> None:
        """Let a few lines of Python stand for torchrun on both machines; they have `node`, `work` and `rank()`."""
        stand_in = self.folder / "stand_in" / "torch" / "distributed" / "run.py"
        stand_in.parent.mkdir(parents=True)
        stand_in.write_text(STAND_IN, encoding="utf-8")
        for package in (stand_in.parent, stand_in.parent.parent):
            (package / "__init__.py").touch()
        for environ in self.environs:
            environ["PYTHONPATH"] = os.pathsep.join([environ["PYTHONPATH"], str(stand_in.parents[2])])
            environ["INSTEAD"] = "\n".join(lines)

    @contextlib.contextmanager
    def both(self, **changes: Any) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
        """A run on both machines: its parent and the second agent; what is left of them ends with the block."""
        children = (self.parent(**changes), self.agent())
        try:
            yield children
        finally:
            for child in children:
                child.kill()
                child.communicate()


def _started(command: list[str], environ: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=tiny_run.REPOSITORY, env=dict(environ), stderr=subprocess.PIPE, text=True)
