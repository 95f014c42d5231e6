"""Combine the results of a run's nodes into that of the run, as if they were one machine.

Joules stay a row per device, named after its node: `node1/gpu:0`. Where one node has no row of a kind of device that
another has, it gets one without a number, so that no sum of that kind is of fewer nodes than it seems. Times of
different nodes are never subtracted: their monotonic clocks have nothing in common. A window's length is the longest.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from joulesweep.core.outcome import (
    Conditions,
    DeviceEnergy,
    Environment,
    Epoch,
    EpochEnd,
    Flag,
    NodePart,
    Overhead,
    RankResult,
    Stopped,
    read_rank,
)
from joulesweep.launch.node import Measured, NodeResult
from joulesweep.launch.nodes import Member
from joulesweep.measure import measurement


def merged(members: Sequence[Member]) -> tuple[NodeResult, list[NodePart]]:
    """The result of the run, and the part of each node.

    Args:
        members: with results, as `nodes.carry_out` returns them.
    """
    results = [_named(decoded(member.answer["result"]), member.number) for member in members]
    parts = [_part(member, members[0], result, results[0]) for member, result in zip(members, results, strict=True)]
    first = results[0]
    if isinstance(first.ranks, Stopped):
        reason = f"{members[0].name}: {first.ranks.reason}"
        return replace(first, ranks=replace(first.ranks, reason=reason)), parts
    ranks = [result.ranks for result in results if isinstance(result.ranks, RankResult)]
    measured = [result.measured for result in results if result.measured is not None]
    environments = [result.environment for result in results]
    return NodeResult(
        started=min(result.started for result in results),
        environment=_environment(environments),
        ranks=_ranks(ranks),
        measured=_measured(measured, ranks, [member.name for member in members], environments),
    ), parts


def decoded(row: Mapping[str, Any]) -> NodeResult:
    """A node's result from its JSON."""
    from pydantic import TypeAdapter  # decodes nested types; imported only where there are several nodes

    ranks = read_rank(row["ranks"])
    assert isinstance(ranks, RankResult | Stopped)
    measured = None
    if row["measured"] is not None:
        epochs: list[EpochEnd] = [*TypeAdapter(list[Epoch]).validate_python(row["measured"]["epochs"])]
        measured = replace(TypeAdapter(Measured).validate_python({**row["measured"], "epochs": []}), epochs=epochs)
    environment = TypeAdapter(Environment).validate_python(row["environment"])
    return NodeResult(started=row["started"], environment=environment, ranks=ranks, measured=measured)


def device(number: int, name: str) -> str:
    """The name of a node's device in the run's record: `node1/gpu:0`."""
    return f"node{number}/{name}"


def _named(result: NodeResult, number: int) -> NodeResult:
    """A result whose devices are named after their node."""

    def named(rows: Iterable[Any]) -> list[Any]:
        return [replace(row, device=device(number, row.device)) for row in rows]

    cited = result.environment.certificates
    environment = replace(result.environment, certificates=None if cited is None else named(cited))
    seen = result.measured
    if seen is None:
        return replace(result, environment=environment)
    measured = Measured(
        energy=named(seen.energy),
        epochs=[replace(epoch, energy=named(epoch.energy)) for epoch in seen.epochs],
        conditions=replace(seen.conditions, boards=named(seen.conditions.boards)),
        flags=seen.flags,
        overhead=replace(seen.overhead, whole_run_energy=named(seen.overhead.whole_run_energy)),
        power=[{**row, "device": device(number, str(row["device"]))} for row in seen.power],
    )
    return replace(result, environment=environment, measured=measured)


def _part(member: Member, first_member: Member, result: NodeResult, first: NodeResult) -> NodePart:
    """What a record keeps of a node: its clock and the begin of its window are compared with the first node's."""
    seen, ranks = result.measured, result.ranks
    offset_s = member.clock_offset_s - first_member.clock_offset_s
    error_s = member.clock_error_s + first_member.clock_error_s if member is not first_member else 0.0
    lag_s = None
    if seen is not None and first.measured is not None:
        begins = (datetime.datetime.fromisoformat(m.conditions.window_begin) for m in (seen, first.measured))
        own, of_first = begins
        lag_s = (own - of_first).total_seconds() - offset_s
    return NodePart(
        node=member.number,
        environment=result.environment,
        conditions=seen.conditions if seen else None,
        flags=seen.flags if seen else [],
        total_window_s=ranks.total_window_s if isinstance(ranks, RankResult) else None,
        cpu_s=ranks.cpu_s if isinstance(ranks, RankResult) else None,
        clock_offset_s=offset_s,
        clock_error_s=error_s,
        window_lag_s=lag_s,
    )


def _environment(environments: Sequence[Environment]) -> Environment:
    """The first node's environment, with the boards and certificates of all."""
    cited = [one.certificates for one in environments]
    return replace(
        environments[0],
        gpus=[board for one in environments for board in one.gpus],
        certificates=None if None in cited else [row for rows in cited for row in rows or []],
    )


def _ranks(ranks: Sequence[RankResult]) -> RankResult:
    """The result of all processes; spans are the first node's, but for seconds that are lengths."""
    whole = measurement.merge_ranks(ranks)
    span = replace(
        ranks[0].span,
        meter_s=whole.span.meter_s,
        weights_s=whole.span.weights_s,
        clock_step_s=whole.span.clock_step_s,
    )
    return replace(whole, span=span)


def _measured(
    measured: Sequence[Measured],
    ranks: Sequence[RankResult],
    names: Sequence[str],
    environments: Sequence[Environment],
) -> Measured:
    return Measured(
        energy=_energy([part.energy for part in measured]),
        epochs=[_epoch(of_nodes) for of_nodes in zip(*(part.epochs for part in measured), strict=True)],
        conditions=_conditions([part.conditions for part in measured], names),
        flags=[*_flags([part.flags for part in measured], names), *_unlike(environments)],
        overhead=_overhead([part.overhead for part in measured]),
        power=[row for part in measured for row in part.power],
    )


def _energy(of_nodes: Sequence[Sequence[DeviceEnergy]]) -> list[DeviceEnergy]:
    """The rows of all nodes, and one without a number for each kind of device that only other nodes have."""
    kinds = dict.fromkeys(row.kind for rows in of_nodes for row in rows)
    rows: list[DeviceEnergy] = []
    for number, own in enumerate(of_nodes):
        rows += own
        rows += [_lacking(number, kind) for kind in kinds if kind not in {row.kind for row in own}]
    return rows


def _lacking(number: int, kind: str) -> DeviceEnergy:
    return DeviceEnergy(
        device=device(number, kind),
        kind=kind,
        uuid=None,
        total_energy_j=None,
        status="unavailable",
        method=None,
        reason="this node has no meter of this kind, and another node of the run has one",
        energy_j=None,
        tick_s=None,
        mean_power_w=None,
        power_ratio=None,
        idle_w=None,
        net_energy_j=None,
    )


def _epoch(of_nodes: Sequence[Epoch]) -> Epoch:
    """The first node's epoch, with CPU-seconds and joules of all nodes and the slowest one's clock."""
    return replace(
        of_nodes[0],
        cpu_s=sum(epoch.cpu_s for epoch in of_nodes),
        elapsed_s=max(epoch.elapsed_s for epoch in of_nodes),
        energy=[row for epoch in of_nodes for row in epoch.energy],
    )


def _all(values: Sequence[Any], combine: Any) -> Any:  # noqa: ANN401 - numbers, and a function of them
    """A combination of all values; None if one is unknown."""
    return None if None in values else combine(values)


def _conditions(of_nodes: Sequence[Conditions], names: Sequence[str]) -> Conditions:
    """The conditions of all nodes: the worst of each, and None where one node does not know."""
    first = of_nodes[0]
    unknown = {
        value: f"{name}: {reason}"
        for name, one in zip(names, of_nodes, strict=True)
        for value, reason in one.cpu_unknown.items()
    }
    rules = dict.fromkeys(one.settled_by for one in of_nodes if one.settled_by)
    waited = [one.cooldown_s for one in of_nodes if one.cooldown_s is not None]
    settled = [one.settled for one in of_nodes]
    return Conditions(
        cpu_share=_all([one.cpu_share for one in of_nodes], min),
        cpu_pressure_share=_all([one.cpu_pressure_share for one in of_nodes], max),
        cpu_wait_share=_all([one.cpu_wait_share for one in of_nodes], max),
        foreign_cpu_s=_all([one.foreign_cpu_s for one in of_nodes], sum),
        cpu_steal_s=_all([one.cpu_steal_s for one in of_nodes], sum),
        cpu_unknown=unknown,
        boards=[board for one in of_nodes for board in one.boards],
        cooldown_s=max(waited, default=None),
        settled=False if False in settled else None if None in settled else True,
        settled_by=" and ".join(rules) or None,
        idle_s=min(one.idle_s for one in of_nodes),
        exclusive=first.exclusive,
        window_begin=first.window_begin,
        window_end=first.window_end,
    )


def _flags(of_nodes: Sequence[Sequence[Flag]], names: Sequence[str]) -> list[Flag]:
    """The flags of all nodes, with the node's name; once without it where all nodes say the same."""
    shared = [flag for flag in of_nodes[0] if all(flag in flags for flags in of_nodes)]
    own = [
        replace(flag, text=f"{name}: {flag.text}")
        for name, flags in zip(names, of_nodes, strict=True)
        for flag in flags
        if flag not in shared
    ]
    return [*shared, *own]


def _unlike(environments: Sequence[Environment]) -> list[Flag]:
    """A flag if the nodes are not of one kind."""
    facts: dict[str, Sequence[str | None]] = {
        "processors": [one.cpu_model for one in environments],
        "memory": [f"{one.host_memory_bytes / 2**30:.0f} GiB" for one in environments],
        "boards": [", ".join(sorted({board.name for board in one.gpus})) for one in environments],
        "drivers": [one.driver for one in environments],
        "commits": [one.git_commit for one in environments],
        "versions": [str(sorted(one.versions.items())) for one in environments],
        "kernels": [one.platform for one in environments],
    }
    differ = [name for name, values in facts.items() if len(set(values)) > 1]
    return [Flag(flag="nodes_differ", text=f"the nodes have different {', '.join(differ)}")] if differ else []


def _overhead(of_nodes: Sequence[Overhead]) -> Overhead:
    return Overhead(
        meter_s=max(one.meter_s for one in of_nodes),
        weights_s=_all([one.weights_s for one in of_nodes], max),
        trace_cpu_s=_all([one.trace_cpu_s for one in of_nodes], sum),
        num_samples=min(one.num_samples for one in of_nodes),
        whole_run_s=_all([one.whole_run_s for one in of_nodes], max),
        whole_run_energy=[row for one in of_nodes for row in one.whole_run_energy],
    )
