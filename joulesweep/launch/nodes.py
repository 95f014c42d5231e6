"""Launch a run on several nodes: an agent on each, which the parent leads from point to point until all have answered.

    agents    join ─ lease, one node after the other ─ settle ─ train (torchrun) ─ answer
    parent         ─ number them, compare clocks ─────────────────────────────── ─ combine

In a job of Slurm the parent starts the agents with `srun`, one on each node; by hand the user does, as the parent says.
Boards are leased in the order of the nodes' names, the same for all runs, and only then does a run hold several nodes'
boards: so no two runs wait for each other. If an agent or its node is gone, or a process of the run ended without a
result, the others are stopped: at once, or after `GRACE_S` in which another node may tell the reason.
"""

# changes no number: when a node does what
from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from joulesweep.core import processes
from joulesweep.core.errors import UserError
from joulesweep.launch import agent, link, stage
from joulesweep.launch.link import Gone, Link
from joulesweep.launch.node import Job, RunFailed
from joulesweep.measure import devices

JOIN_S = 600.0  # for the agents to come
GRACE_S = 5.0  # after a failure, for the reason that another node may have
BEYOND_S = 300.0  # past the time limit, which the agents enforce: then one of them hangs
POLL_S = 0.1
PINGS = 20
#: Slurm's variables that name the job; all others are those of the parent's own step, which nested steps must not get.
OF_JOB = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_SUBMIT_DIR", "SLURM_SUBMIT_HOST", "SLURM_CONF")


@dataclass(kw_only=True)
class Member:
    """A node that takes part.

    Attributes:
        link: to its agent.
        host: its name.
        locks: the folder of its lock files: with the host, what tells one machine from another.
        number: its place among the nodes, from 0.
        point: where its agent waits.
        port: a free one.
        address: at which other nodes reach it.
        clock_offset_s: how far its wall clock is ahead of the parent's.
        clock_error_s: largest error of that.
        answer: the last message of its agent.
    """

    link: Link
    host: str
    locks: str
    number: int = -1
    point: str = "join"
    port: int = 0
    address: str = ""
    clock_offset_s: float = 0.0
    clock_error_s: float = 0.0
    answer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`node 1 (gpu7)`."""
        return f"node {self.number} ({self.host})"


class _Over(Exception):  # noqa: N818 - says what happened
    """A node has answered with something else than a training's result, or is gone."""


def carry_out(
    job: Job,
    gpus: str | Sequence[int | str],
    pinned: bool,
    rendezvous: str | None,
    ensure_parent_alive: Callable[[], None],
) -> list[Member]:
    """Have a run carried out on its nodes. Returns those that have an answer with a result, in their order.

    If the run ended early with a result, that is the first one's.

    Args:
        job: what to do; its work folder is shared by the nodes.
        gpus: boards to choose from on each node, see `node.pool`.
        pinned: see `node.pool`.
        rendezvous: `host:port` to listen at, if the user starts the agents of the other nodes; None in a job of Slurm.
        ensure_parent_alive: called while waiting; raises if the run's parent has died.

    Raises:
        UserError: the run's input is at fault, on some node.
        RunFailed: a node was lost, or a process of the run ended without a result.
    """
    if rendezvous is None and "SLURM_JOB_ID" not in os.environ:
        one = "joulesweep run RUN --rendezvous HOST:PORT"
        raise UserError(f"the run needs {job.spec.nodes} nodes: in a job of Slurm, or started by hand with {one}")
    key = os.environ.get(agent.KEY) or secrets.token_hex(16)
    crew = _Crew(job, ensure_parent_alive)
    port = link.split(rendezvous)[1] if rendezvous else 0
    with _listening(port, job.spec.nodes) as listener:
        address = rendezvous or f"{socket.gethostname()}:{listener.getsockname()[1]}"
        try:
            crew.start(address, key, by_hand=rendezvous is not None)
            crew.gather(listener, key)
            crew.lead(gpus, pinned)
        except _Over:
            pass
        finally:
            crew.dismiss()
    return crew.results()


def _listening(port: int, number: int) -> socket.socket:
    try:
        return socket.create_server(("", port), backlog=number)
    except OSError as error:
        raise UserError(f"rendezvous: port {port}: {error.strerror}") from None


class _Crew:
    """The agents of a run, and the processes that the parent started for them."""

    def __init__(self, job: Job, ensure_parent_alive: Callable[[], None]) -> None:
        self.job, self.ensure_parent_alive = job, ensure_parent_alive
        self.members: list[Member] = []
        self.starter: subprocess.Popen[bytes] | None = None
        self._leasing = 0  # number of the node that is next to hold its boards

    def start(self, address: str, key: str, by_hand: bool) -> None:
        """Start the agents of all nodes with Slurm, or that of this one."""
        join = [sys.executable, "-m", "joulesweep.launch.agent", address]
        environ = {**os.environ, agent.KEY: key}
        if by_hand:
            others = self.job.spec.nodes - 1
            how = f"{agent.KEY}={key} joulesweep join {address}"
            number = f"{others} more node{'s' if others > 1 else ''}"
            print(f"waiting for {number}; on each: {how}", file=sys.stderr, flush=True)
        else:
            environ, join = _outside_of_steps(environ), [*srun(self.job), *join]
        self.starter = processes.start(join, environ, None)

    def gather(self, listener: socket.socket, key: str) -> None:
        """Wait for the agents, number the nodes and compare their clocks.

        Raises:
            UserError: two agents are on one machine.
            RunFailed: some did not come.
        """
        number, until_s = self.job.spec.nodes, time.monotonic() + JOIN_S
        stage.info("waits", waits_for=f"the agents of {number} nodes", whom=None)
        while len(self.members) < number:
            self._look_around()
            if time.monotonic() > until_s:
                raise RunFailed(f"{len(self.members)} of {number} nodes joined within {JOIN_S:g} s")
            if not select.select([listener], [], [], POLL_S)[0]:
                continue
            if (admitted := link.admit(listener.accept()[0], key)) is not None:
                at, about = admitted
                self.members.append(Member(link=at, host=str(about.get("host")), locks=str(about.get("locks"))))
        self.members.sort(key=lambda member: (member.host, member.locks))
        machines = [(member.host, member.locks) for member in self.members]
        if len(set(machines)) < number:
            raise UserError(f"two agents are on one machine, {max(machines, key=machines.count)[0]}: start one on each")
        for i, member in enumerate(self.members):
            member.number, member.address = i, self._address(member)
            self._compare_clocks(member)

    def _address(self, member: Member) -> str:
        """Where other nodes reach a node: its end of the link; if it is the parent's own machine, the parent's end."""
        if not member.link.there.startswith("127."):
            return member.link.there
        outside = (other.link.here for other in self.members if not other.link.here.startswith("127."))
        return next(outside, member.link.there)

    def _compare_clocks(self, member: Member) -> None:
        """Measure how far a node's wall clock is ahead: by the fastest of some questions; it errs by half its time."""
        best_s = float("inf")
        for i in range(PINGS):
            asked_s, wall_s = time.monotonic(), time.time()
            member.link.send(ping=i)
            answer = member.link.receive(link.LOST_S)
            took_s = time.monotonic() - asked_s
            if answer is None or "pong" not in answer:
                raise RunFailed(f"{member.name}: its agent does not answer")
            if took_s < best_s:
                best_s = took_s
                member.clock_offset_s, member.clock_error_s = answer["wall_s"] - (wall_s + took_s / 2), took_s / 2

    def lead(self, gpus: str | Sequence[int | str], pinned: bool) -> None:
        """Lead all agents through the run.

        Raises:
            _Over: a node ended otherwise than with a training's result.
            RunFailed: a node hangs.
        """
        for member in self.members:
            log = self.job.log
            if log is not None and member.number:
                log = log.with_name(f"{log.stem}-node{member.number}{log.suffix}")
            told = {**agent.encoded(self.job), "node": member.number, "log": log and str(log)}
            self._send(member, job=told, gpus=gpus, pinned=pinned)
        self._until(lambda member: member.point == "lease")
        for member in self.members:  # in this order, which is the same for all runs
            self._leasing = member.number
            stage.info("waits", waits_for=f"the boards of {member.name}", whom=None)
            self._send(member, go="lease")
            self._until(lambda other: other.point == "settle" or other.number > self._leasing)
        stage.info("settles")
        for member in self.members:
            self._send(member, go="settle")
        self._until(lambda member: member.point == "train")
        stage.info("trains")
        first = self.members[0].address, self.members[0].port
        for member in self.members:
            self._send(member, go="train", first=first, address=member.address)
        self._until(lambda member: bool(member.answer), self.job.spec.timeout_s + BEYOND_S)
        stage.info("writes")

    def _send(self, member: Member, **message: object) -> None:
        try:
            member.link.send(**message)
        except Gone as gone:
            self._lost(member, gone)

    def _until(self, is_there: Callable[[Member], bool], within_s: float = float("inf")) -> None:
        until_s = time.monotonic() + within_s
        while not all(is_there(member) for member in self.members):
            self._look_around()
            if time.monotonic() > until_s:
                late = ", ".join(member.name for member in self.members if not is_there(member))
                raise RunFailed(f"{late}: no answer, long after timeout_s = {self.job.spec.timeout_s:g} s")
            self._listen(POLL_S)
            if any(_ends(member.answer) for member in self.members):
                self._hear_reasons()
                raise _Over

    def _listen(self, within_s: float) -> None:
        """Take what agents say in some seconds."""
        open_ones = [member for member in self.members if "lost" not in member.answer]
        ready = select.select([member.link for member in open_ones], [], [], within_s)[0] if open_ones else []
        for member in open_ones:
            if member.link in ready:
                try:
                    self._take(member)
                except Gone as gone:
                    member.answer = member.answer or {"lost": str(gone)}

    def _take(self, member: Member) -> None:
        while (message := member.link.receive(0)) is not None:
            if "at" in message:
                member.point, member.port = message["at"], message["port"]
            else:
                member.answer = message

    def _lost(self, member: Member, gone: Gone) -> None:
        member.answer = member.answer or {"lost": str(gone)}
        self._hear_reasons()
        raise _Over

    def _hear_reasons(self) -> None:
        """Give the other nodes a moment to tell why the run ended, if that is not known."""
        until_s = time.monotonic() + GRACE_S
        while time.monotonic() < until_s and not any(_explains(member.answer) for member in self.members):
            if all(member.answer for member in self.members):
                return
            self._listen(POLL_S)

    def _look_around(self) -> None:
        """Look whether the run is wanted, and whether what started the agents still runs.

        Raises:
            RunFailed: the agents cannot come any more.
        """
        self.ensure_parent_alive()
        if self.starter is not None and self.starter.poll() is not None and len(self.members) < self.job.spec.nodes:
            raise RunFailed(f"the agents could not be started: exit code {self.starter.returncode}")

    def dismiss(self) -> None:
        """End all agents, and wait for those that this process started."""
        for member in self.members:
            with contextlib.suppress(Gone):
                member.link.send(stop="the run is over" if "result" in member.answer else "the run ended early")
        until_s = time.monotonic() + processes.KILL_S
        for member in self.members:  # until each has let go of its boards
            with contextlib.suppress(Gone):
                while time.monotonic() < until_s:
                    member.link.receive(POLL_S)
            member.link.close()
        if self.starter is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.starter.wait(max(until_s - time.monotonic(), POLL_S))
            processes.kill_group(self.starter)

    def results(self) -> list[Member]:
        """The members with a result; that of a run that ended early comes first.

        Raises:
            UserError: a node reported that the input is at fault.
            RunFailed: a node was lost, or left no result.
        """
        for member in self.members:
            if "mistake" in member.answer:
                raise UserError(f"{member.name}: {member.answer['mistake']}")
        answered = [member for member in self.members if "result" in member.answer]
        if any(_is_early(member.answer) for member in answered):
            return sorted(answered, key=lambda member: not _is_early(member.answer))
        for word, text in (("lost", "its agent is gone"), ("failed", "")):
            for member in self.members:
                if word in member.answer:
                    said = ": ".join(filter(None, [text, member.answer[word]]))
                    raise RunFailed(f"{member.name}: {said}")
        if len(answered) < self.job.spec.nodes:
            raise RunFailed("not every node left a result")
        return answered


def _is_early(answer: Mapping[str, Any]) -> bool:
    return bool(answer["result"]["ranks"]["status"] != "ok")


def _explains(answer: Mapping[str, Any]) -> bool:
    """Whether an answer says why the run ended."""
    return "mistake" in answer or ("result" in answer and _is_early(answer))


def _ends(answer: Mapping[str, Any]) -> bool:
    """Whether an answer ends the run on all nodes."""
    return "failed" in answer or "lost" in answer or _explains(answer)


def srun(job: Job) -> list[str]:
    """The command that starts an agent on each node of the Slurm job, beside the step that this process is."""
    spec = job.spec
    num_boards = devices.num_boards(spec, job.exclusive)
    options = {
        "nodes": spec.nodes,
        "ntasks": spec.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": spec.node_devices * spec.threads_per_device,
        **({"gpus-per-node": num_boards} if num_boards else {}),
        "export": "ALL",
        "input": "none",
    }
    return ["srun", "--overlap", *(f"--{name}={value}" for name, value in options.items())]


def _outside_of_steps(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for a new step of the job: without what Slurm told this process of its own step and boards."""
    visible = devices.exposing([])
    own = ("SLURM_", "SRUN_", "SBATCH_")
    return {
        name: value
        for name, value in environ.items()
        if (name in OF_JOB or not name.startswith(own)) and name not in visible
    }
