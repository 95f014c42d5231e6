"""Locate certificates of devices, and cite those of a run's boards and host in its record.

A certificate states how accurate the joules of one device are, as `joulesweep certify` measured it. Its file is named
after the device, a board's UUID or `cpu:0`, in a folder named after the host. Standard library only.
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
FOLDER = Path("results/certificates")  # relative to where a run is started
HOST = "cpu:0"  # names the certificate of a host's CPU packages and their memory
HOLDS, FAILS, NOT_TRIED = "holds", "fails", "not tried"
VERDICTS = (HOLDS, FAILS, NOT_TRIED)
BUDGET_S = 150.0  # enough to try everything
MALFORMED = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


def place(name: str, folder: Path = FOLDER, host: str | None = None) -> Path:
    """The path of a device's certificate.

    Args:
        name: a board's UUID, or `HOST`.
        folder: of all certificates.
        host: the host's name; None: this host.

    Raises:
        ValueError: name or host would lead to another folder.
    """
    parts = host or socket.gethostname(), name
    if any("/" in part or "\0" in part or part in (".", "..") for part in parts):
        raise ValueError(f"no name of a file: {parts}")
    return folder / parts[0] / f"{name}.json"


def judge(value: float, error: float, bound: float) -> str:
    """Verdict on a bound: it holds if value plus error is within, fails if value minus error is beyond; else unknown.

    Args:
        value: the number; its absolute value is compared.
        error: bound of its error.
        bound: of the absolute value.
    """
    if abs(value) + error <= bound:
        return HOLDS
    return FAILS if abs(value) - error > bound else NOT_TRIED


def worst(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The worst of rows {value, error, bound}: fails most, else is most undecided, else is nearest to its bound."""

    def badness(row: Mapping[str, Any]) -> tuple[int, float]:
        verdict = judge(row["value"], row["error"], row["bound"])
        size = abs(row["value"]) + (-row["error"] if verdict == FAILS else row["error"])
        return (HOLDS, NOT_TRIED, FAILS).index(verdict), size / max(row["bound"], 1e-12)

    return max(rows, key=badness)


def digest(content: bytes) -> str:
    """The digest that cites a certificate or its readings."""
    return hashlib.sha256(content).hexdigest()[:16]


def cited(
    boards: Mapping[str, str], driver: str | None, folder: Path = FOLDER, cpu_model: str | None = None
) -> list[Citation]:
    """Citations of the certificates of a run's boards and host, for its record.

    Args:
        boards: UUIDs of the run's boards, by device.
        driver: the run's driver version.
        folder: of all certificates.
        cpu_model: of the run's host; None: not compared.

    Returns:
        The boards' citations, then the host's. A citation with both a digest and a reason is of another driver or
        CPU, or was made in less time than is needed to try everything.
    """
    citations = [_cited(device, uuid, {"driver": driver}, folder) for device, uuid in boards.items()]
    return [*citations, _cited(HOST, HOST, {"cpu_model": cpu_model}, folder)]


def _cited(device: str, name: str, run_identity: Mapping[str, str | None], folder: Path) -> Citation:
    path = place(name, folder)
    try:
        content = path.read_bytes()
        certificate = json.loads(content)
        if certificate["format"] != FORMAT or certificate["name"] != name:
            raise ValueError("another file")
        if certificate["version"] != VERSION:
            reason = f"{path} is of another version of joulesweep; joulesweep certify makes a new one"
            return Citation(device=device, name=name, reason=reason)
        return Citation(
            device=device,
            name=name,
            digest=digest(content),
            made=str(certificate["made"]),
            holds=names(certificate, HOLDS),
            fails=names(certificate, FAILS),
            not_tried=names(certificate, NOT_TRIED),
            reason=_weakened(certificate, run_identity),
        )
    except FileNotFoundError:
        reason = f"no certificate: there is no {path}; joulesweep certify makes one"
    except (OSError, *MALFORMED):
        reason = f"{path} is no certificate; joulesweep certify makes one"
    return Citation(device=device, name=name, reason=reason)


def _weakened(certificate: Mapping[str, Any], run_identity: Mapping[str, str | None]) -> str | None:
    """Why a certificate applies to a run only in part; None if it applies fully."""
    doubts = [
        f"the certificate is of {key.replace('_', ' ')} {certificate['identity'].get(key)}, the run had {value}"
        for key, value in run_identity.items()
        if value not in (None, certificate["identity"].get(key))
    ]
    budget_s = float(certificate["budget_s"])
    if budget_s < BUDGET_S:
        doubts.append(f"the certificate was made in {budget_s:.3g} of {BUDGET_S:g} s")
    return "; ".join(doubts) or None


def names(certificate: Mapping[str, Any], verdict: str) -> list[str]:
    """The promises of a certificate with this verdict, without repeats; those of another device name it."""
    rows = [row for row in certificate["promises"] if row["verdict"] == verdict]
    own_device = certificate["device"]
    named = (f"{row['promise']}{'' if row['device'] == own_device else ' of ' + row['device']}" for row in rows)
    return list(dict.fromkeys(named))
