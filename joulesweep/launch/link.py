"""Messages between the parent of a run on several nodes and the agent on each: JSON, a line each, over TCP.

Before anything else both sides prove that they know the run's key: each answers a random challenge of the other (HMAC
with SHA-256). A process that ends closes its connection, so the other side hears of it at once; a machine or network
that is lost answers no probes of the kernel, and counts as gone after `LOST_S`.
"""

# changes no number: how the parts of a run hear of each other
from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from joulesweep.core.errors import UserError

LOST_S = 20
PROBE_S = 5  # between two of the kernel's probes of a silent connection
HANDSHAKE_S = 5.0  # who connects and says nothing for so long is somebody else
RETRY_S = 0.2
MOST_BYTES = 2**30  # of a message; the power trace of a long run is the largest
DIGEST = "sha256"


class Gone(Exception):  # noqa: N818 - says what happened
    """The other side closed the connection, or is lost."""


class Link:
    """One connection.

    Args:
        connection: the socket.

    Attributes:
        here, there: addresses of both ends.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._heard = bytearray()
        self._socket.settimeout(LOST_S)
        options = {socket.TCP_KEEPIDLE: PROBE_S, socket.TCP_KEEPINTVL: PROBE_S, socket.TCP_KEEPCNT: LOST_S // PROBE_S}
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_S * 1000)
        for option, value in options.items():
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
        self.here, self.there = str(connection.getsockname()[0]), str(connection.getpeername()[0])

    def fileno(self) -> int:
        """The descriptor, for `select`."""
        return self._socket.fileno()

    def send(self, **message: object) -> None:
        """Send a message.

        Raises:
            Gone: nobody takes it.
        """
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Gone(str(error)) from None

    def receive(self, within_s: float) -> Mapping[str, Any] | None:
        """The next message; None if none comes in time.

        Raises:
            Gone: there will be none.
        """
        until_s = time.monotonic() + within_s
        while (end := self._heard.find(b"\n")) < 0:
            if not select.select([self._socket], [], [], max(until_s - time.monotonic(), 0.0))[0]:
                return None
            try:
                part = self._socket.recv(2**20)
            except OSError as error:
                raise Gone(str(error)) from None
            if not part or len(self._heard) > MOST_BYTES:
                raise Gone("the other side is gone" if not part else "it sends too much")
            self._heard += part
        line, self._heard = self._heard[:end], self._heard[end + 1 :]
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        raise Gone("it sends what is no message")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _proof(key: str, challenge: object) -> str:
    return hmac.new(key.encode(), str(challenge).encode(), DIGEST).hexdigest()


def admit(connection: socket.socket, key: str) -> tuple[Link, Mapping[str, Any]] | None:
    """The link to an agent that just connected, and what it says of itself; None if it does not know the key."""
    link, challenge = Link(connection), secrets.token_hex(16)
    with contextlib.suppress(Gone):
        link.send(challenge=challenge)
        hello = link.receive(HANDSHAKE_S)
        if hello and hmac.compare_digest(str(hello.get("proof")), _proof(key, challenge)):
            link.send(proof=_proof(key, hello.get("challenge")))
            return link, hello
    link.close()
    return None


def connect(address: str, key: str, within_s: float, **about: object) -> Link:
    """The link to the parent of a run.

    Args:
        address: `host:port`.
        key: of the run.
        within_s: how long to try, since the parent may start later.
        about: what this agent says of itself.

    Raises:
        UserError: the address is none, nobody answers, or who answers does not know the key.
    """
    host, port = split(address)
    until_s = time.monotonic() + within_s
    while True:
        try:
            link = Link(socket.create_connection((host, port), timeout=LOST_S))
            break
        except OSError as error:
            if time.monotonic() > until_s:
                raise UserError(f"{address}: no run waits there ({error.strerror or error})") from None
            time.sleep(RETRY_S)
    challenge = secrets.token_hex(16)
    with contextlib.suppress(Gone):
        theirs = link.receive(HANDSHAKE_S) or {}
        link.send(proof=_proof(key, theirs.get("challenge")), challenge=challenge, **about)
        answer = link.receive(HANDSHAKE_S) or {}
        if hmac.compare_digest(str(answer.get("proof")), _proof(key, challenge)):
            return link
    link.close()
    raise UserError(f"{address}: what listens there does not know the run's key")


def split(address: str) -> tuple[str, int]:
    """Host and port of `host:port`.

    Raises:
        UserError: it is no such address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"rendezvous {address!r}: must be host:port, such as node1:29400")
    return host, int(port)
