"""Take part in a run on several nodes: carry out this machine's share of it, in step with the other nodes.

The parent of the run (`launch.nodes`) or `joulesweep join` starts the agent; the parent tells it what to do and when.
If the parent or another node is gone, the agent ends its processes, lets go of its boards, and ends.
"""

# changes no number: when a node does what
from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joulesweep.core.errors import UserError
from joulesweep.core.outcome import as_json
from joulesweep.core.spec import from_mapping
from joulesweep.launch import lease, node, stage
from joulesweep.launch.link import Gone, Link, connect
from joulesweep.launch.node import Job, RunFailed

KEY = "JOULESWEEP_KEY"  # the variable with the run's key
WAIT_S = 600.0  # for the parent


def take_part(address: str, within_s: float = WAIT_S) -> int:
    """Carry out this machine's share of the run whose parent listens at an address. Returns the exit code.

    Raises:
        UserError: there is no such run, or the key is missing.
    """
    key = os.environ.get(KEY)
    if not key:
        raise UserError(f"{KEY} is not set; the first node prints the whole command")
    signal.signal(signal.SIGTERM, node.terminate)
    about = {"host": socket.gethostname(), "locks": str(lease.folder().resolve()), "pid": os.getpid()}
    link = connect(address, key, within_s, **about)
    try:
        return _work(link, _first(link, "job"))
    except Gone as gone:
        print(f"{gone}: this node ends too", file=sys.stderr, flush=True)
        return 1
    finally:
        link.close()


def _work(link: Link, told: Mapping[str, Any]) -> int:
    job = decoded(told["job"])
    job.work.mkdir(parents=True, exist_ok=True)

    def ensure_wanted() -> None:
        message = link.receive(0)
        if message is not None and "stop" in message:
            raise Gone(message["stop"])

    def meet(point: str) -> Mapping[str, Any]:
        link.send(at=point, port=_free_port())
        return _first(link, "go")

    try:
        allowed = node.pool(job.spec, job.exclusive, told["gpus"], told["pinned"])
        with stage.telling(job.work, lambda begun: None):  # so that who waits for the boards is told who holds them
            result = node.carry_out(job, allowed, ensure_wanted, meet)
    except UserError as error:
        answer: dict[str, object] = {"mistake": str(error)}
    except RunFailed as error:
        answer = {"failed": str(error)}
    else:
        answer = {"result": as_json(result)}
    finally:
        shutil.rmtree(job.work, ignore_errors=True)
    link.send(**answer)
    with contextlib.suppress(Gone):  # stay until the parent has what it needs
        _first(link, "stop")
    return 0 if "result" in answer else 1


def _free_port() -> int:
    """A port of this machine for its torchrun, if the others are to meet there."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _first(link: Link, word: str) -> Mapping[str, Any]:
    """The first message with a word; until then, tell the time to who asks for it.

    Raises:
        Gone: the run is over, or the parent is gone.
    """
    while True:
        message = link.receive(3600.0)
        if message is None:
            continue
        if "ping" in message:
            link.send(pong=message["ping"], wall_s=time.time())
        elif word in message:
            return message
        elif "stop" in message:
            raise Gone(message["stop"])


def encoded(job: Job) -> dict[str, object]:
    """A job as JSON."""
    values = {item.name: getattr(job, item.name) for item in dataclasses.fields(job)}
    values["evaluations"] = [str(path) for path in job.evaluations]
    return {name: str(value) if isinstance(value, Path) else as_json(value) for name, value in values.items()}


def decoded(values: Mapping[str, Any]) -> Job:
    """A job from its JSON."""
    paths = {name: Path(values[name]) for name in ("model_folder", "tokens", "folder")}
    return Job(
        **{
            **values,
            **paths,
            "log": Path(values["log"]) if values["log"] else None,
            "spec": from_mapping(values["spec"]),
            "evaluations": [Path(path) for path in values["evaluations"]],
        }
    )


def main() -> int:
    """Take part in the run whose address is on the command line."""
    try:
        return take_part(sys.argv[1])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
