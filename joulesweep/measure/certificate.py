"""Certificates of machines: where they lie, and how a run's record cites those of its boards and its host.

A certificate says what the joules of one device are worth, as `joulesweep certify` measured it. Its file has the name
of the device, a board's UUID or `cpu:0`, in a folder named like the host. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from joulesweep.core.outcome import Citation

FORMAT, VERSION = "joulesweep-certificate", 2
FOLDER = Path("results/certificates")  # seen from where a run is started
HOST = "cpu:0"  # names the certificate of a host's CPU packages and their memory
HOLDS, FAILS, NOT_TRIED = "holds", "fails", "not tried"
VERDICTS = (HOLDS, FAILS, NOT_TRIED)
BUDGET_S = 150.0  # in which everything is tried
MALFORMED = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


def place(name: str, folder: Path = FOLDER, host: str | None = None) -> Path:
    """The file of a device's certificate.

    Args:
        name: a board's UUID, or `HOST`.
        folder: of all certificates.
        host: whose; this one unless given.

    Raises:
        ValueError: name or host would lead to another folder.
    """
    parts = host or socket.gethostname(), name
    if any("/" in part or "\0" in part or part in (".", "..") for part in parts):
        raise ValueError(f"no name of a file: {parts}")
    return folder / parts[0] / f"{name}.json"


def judge(value: float, error: float, bound: float) -> str:
    """Whether a number is within a bound: with its error it holds, beyond without it fails; else nobody can tell.

    Args:
        value: the number, of which the size counts.
        error: of it.
        bound: of its size.
    """
    if abs(value) + error <= bound:
        return HOLDS
    return FAILS if abs(value) - error > bound else NOT_TRIED


def worst(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of rows {value, error, bound} the one that fails most, else that is undecided most, else is next to its bound."""

    def badness(row: Mapping[str, Any]) -> tuple[int, float]:
        found = judge(row["value"], row["error"], row["bound"])
        size = abs(row["value"]) + (-row["error"] if found == FAILS else row["error"])
        return (HOLDS, NOT_TRIED, FAILS).index(found), size / max(row["bound"], 1e-12)

    return max(rows, key=badness)


def digest(content: bytes) -> str:
    """What a certificate or its readings are cited by."""
    return hashlib.sha256(content).hexdigest()[:16]


def cited(
    boards: Mapping[str, str], driver: str | None, folder: Path = FOLDER, cpu_model: str | None = None
) -> list[Citation]:
    """What a record says of the certificates of a run's boards and of its host.

    Args:
        boards: UUIDs of the run's boards, by device.
        driver: the one that the run had.
        folder: of all certificates.
        cpu_model: of the run's host; None: not compared.

    Returns:
        The boards' and, last, the host's. Where there is both a certificate and a reason, it is of another driver or
        CPU, or was made in less time than it takes to try everything.
    """
    found = [_cited(device, uuid, {"driver": driver}, folder) for device, uuid in boards.items()]
    return [*found, _cited(HOST, HOST, {"cpu_model": cpu_model}, folder)]


def _cited(device: str, name: str, had: Mapping[str, str | None], folder: Path) -> Citation:
    path = place(name, folder)
    try:
        content = path.read_bytes()
        found = json.loads(content)
        if found["format"] != FORMAT or found["name"] != name:
            raise ValueError("another file")
        if found["version"] != VERSION:
            reason = f"{path} is of another version of joulesweep; joulesweep certify makes a new one"
            return Citation(device=device, name=name, reason=reason)
        return Citation(
            device=device,
            name=name,
            digest=digest(content),
            made=str(found["made"]),
            holds=names(found, HOLDS),
            fails=names(found, FAILS),
            not_tried=names(found, NOT_TRIED),
            reason=_weakened(found, had),
        )
    except FileNotFoundError:
        reason = f"no certificate: there is no {path}; joulesweep certify makes one"
    except (OSError, *MALFORMED):
        reason = f"{path} is no certificate; joulesweep certify makes one"
    return Citation(device=device, name=name, reason=reason)


def _weakened(certificate: Mapping[str, Any], had: Mapping[str, str | None]) -> str | None:
    """Why a certificate says less of a run than it does of its device."""
    doubts = [
        f"the certificate is of {key.replace('_', ' ')} {certificate['identity'].get(key)}, the run had {value}"
        for key, value in had.items()
        if value not in (None, certificate["identity"].get(key))
    ]
    budget_s = float(certificate["budget_s"])
    if budget_s < BUDGET_S:
        doubts.append(f"the certificate was made in {budget_s:.3g} of {BUDGET_S:g} s")
    return "; ".join(doubts) or None


def names(certificate: Mapping[str, Any], verdict: str) -> list[str]:
    """The promises of a certificate that have a verdict, each once; of another device than its own with its name."""
    rows = [row for row in certificate["promises"] if row["verdict"] == verdict]
    own = certificate["device"]
    named = (f"{row['promise']}{'' if row['device'] == own else ' of ' + row['device']}" for row in rows)
    return list(dict.fromkeys(named))
