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

FORMAT, VERSION = "joulesweep-certificate", 1
FOLDER = Path("results/certificates")  # seen from where a run is started
HOST = "cpu:0"  # names the certificate of a host's CPU packages and their memory
HOLDS, FAILS, NOT_TRIED = "holds", "fails", "not tried"
VERDICTS = (HOLDS, FAILS, NOT_TRIED)
MALFORMED = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


def place(name: str, folder: Path = FOLDER, host: str | None = None) -> Path:
    """The file of a device's certificate.

    Args:
        name: a board's UUID, or `HOST`.
        folder: of all certificates.
        host: whose; this one unless given.
    """
    return folder / (host or socket.gethostname()) / f"{name}.json"


def digest(content: bytes) -> str:
    """What a certificate or its readings are cited by."""
    return hashlib.sha256(content).hexdigest()[:16]


def cited(boards: Sequence[Mapping[str, Any]], driver: str | None, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """What a record says of the certificates of a run's boards and of its host.

    Args:
        boards: each with its `device` and `uuid`.
        driver: the one that the run had.
        folder: of all certificates.

    Returns:
        Rows {device, name, digest, made, holds, fails, not_tried, reason}; the lists have the names of the promises.
        Without a certificate digest and lists are null, and there is a reason; where there is both, the certificate is
        of another driver.
    """
    named = [*((board["device"], board["uuid"]) for board in boards), (HOST, HOST)]
    return [_cited(device, name, None if name == HOST else driver, folder) for device, name in named]


def _cited(device: str, name: str, driver: str | None, folder: Path) -> dict[str, Any]:
    path, row = place(name, folder), {"device": device, "name": name}
    try:
        content = path.read_bytes()
        found = json.loads(content)
        if found["format"] != FORMAT or found["name"] != name:
            raise ValueError("another file")
        verdicts = {verdict: names(found, verdict) for verdict in VERDICTS}
        made, under = str(found["made"]), found["identity"].get("driver")
    except FileNotFoundError:
        return row | _none(f"no certificate: there is no {path}; joulesweep certify makes one")
    except (OSError, *MALFORMED):
        return row | _none(f"{path} is no certificate; joulesweep certify makes one")
    other = driver is not None and under != driver
    return row | {
        "digest": digest(content),
        "made": made,
        **{verdict.replace(" ", "_"): found_names for verdict, found_names in verdicts.items()},
        "reason": f"the certificate is of driver {under}, the run had {driver}" if other else None,
    }


def _none(reason: str) -> dict[str, Any]:
    return {**dict.fromkeys(("digest", "made", "holds", "fails", "not_tried")), "reason": reason}


def names(certificate: Mapping[str, Any], verdict: str) -> list[str]:
    """The promises of a certificate that have a verdict, each once."""
    return list(dict.fromkeys(str(row["promise"]) for row in certificate["promises"] if row["verdict"] == verdict))
