"""Messages arrive whole and in order, strangers are not heard, and a side that is gone is noticed."""

from __future__ import annotations

import socket
import threading

import pytest

from joulesweep.core.errors import UserError
from joulesweep.launch import link
from joulesweep.launch.link import Gone, Link


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def raw(listener) -> socket.socket:
    return socket.create_connection(listener.getsockname())


@pytest.fixture
def pair(listener):
    """A link, and the plain socket at its other end."""
    other = raw(listener)
    own = Link(listener.accept()[0])
    yield own, other
    own.close()
    other.close()


def test_messages_come_whole_and_in_order_however_they_are_cut(pair):
    own, other = pair
    text = '{"at": "lease", "name": "Zoë"}\n{"at": "settle"}\n'.encode()
    other.sendall(text[:7])
    assert own.receive(0.05) is None
    other.sendall(text[7:])
    assert [own.receive(5), own.receive(0)] == [{"at": "lease", "name": "Zoë"}, {"at": "settle"}]
    assert own.receive(0) is None


def test_a_large_message_arrives(listener):
    ends = []
    asked = threading.Thread(target=lambda: ends.append(link.connect(_address(listener), "key", 5.0, host="a")))
    asked.start()
    admitted, about = link.admit(listener.accept()[0], "key")
    asked.join()
    assert about["host"] == "a"
    rows = [{"t_s": i / 10, "device": "gpu:0"} for i in range(50_000)]
    sender = threading.Thread(target=lambda: ends[0].send(result=rows))
    sender.start()
    assert admitted.receive(30) == {"result": rows}
    sender.join()
    for end in (admitted, *ends):
        end.close()


@pytest.mark.parametrize("content", [b"", b"no JSON\n", b"[1]\n", b"\xff\xfe\n"])
def test_a_side_that_is_gone_or_speaks_otherwise_is_noticed(pair, content):
    own, other = pair
    other.sendall(content)
    other.close()
    with pytest.raises(Gone):
        own.receive(5)


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n\r\n", b'{"proof": "00", "challenge": "1"}\n', b"{}\n"])
def test_a_stranger_is_not_admitted(listener, content):
    with raw(listener) as stranger:
        stranger.sendall(content)
        assert link.admit(listener.accept()[0], "key") is None


def test_a_silent_stranger_does_not_keep_the_others_waiting(listener, monkeypatch):
    monkeypatch.setattr(link, "HANDSHAKE_S", 0.05)
    with raw(listener):
        assert link.admit(listener.accept()[0], "key") is None


@pytest.mark.parametrize("address", ["node1", "node1:", ":29400", "node1:high", "node1:70000"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UserError, match=r"must be host:port"):
        link.split(address)


def test_an_address_where_nobody_listens_is_told_in_one_line(listener):
    address = _address(listener)
    listener.close()
    with pytest.raises(UserError, match=f"^{address}: no run waits there "):
        link.connect(address, "key", 0.0)


def _address(listener) -> str:
    host, port = listener.getsockname()
    return f"{host}:{port}"
