"""Processes can share a port that they have reserved, and leave it without losing a connection."""

import errno
import socket

import pytest

from megaphone.listen.sockets import (
    begin_no_connections,
    bind_shared,
    end_listening,
    listen_tcp,
    open_connections,
    reserve,
)
from megaphone.model import Endpoint

ANYWHERE = [Endpoint("127.0.0.1", 0), Endpoint("0.0.0.0", 0), Endpoint("::1", 0)]


def port_of(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


@pytest.mark.parametrize("endpoint", ANYWHERE, ids=str)
def test_a_reserved_port_is_for_those_who_share_it(endpoint: Endpoint) -> None:
    with reserve(endpoint) as reserved:
        taken = endpoint.with_port(port_of(reserved))
        with bind_shared(taken) as one, bind_shared(taken) as other:
            one.listen()
            other.listen()
            for refused in (listen_tcp, reserve):
                with pytest.raises(OSError, match="in use") as raised:
                    refused(taken)
                assert raised.value.errno == errno.EADDRINUSE


def test_a_reserved_port_is_taken_before_anybody_listens() -> None:
    with reserve(ANYWHERE[0]) as reserved:
        taken = ANYWHERE[0].with_port(port_of(reserved))
        for refused in (listen_tcp, reserve):
            with pytest.raises(OSError, match="in use"):
                refused(taken)


def test_a_port_where_others_listen_is_not_reserved() -> None:
    with listen_tcp(ANYWHERE[0]) as listening, pytest.raises(OSError, match="cannot listen on"):
        reserve(ANYWHERE[0].with_port(port_of(listening)))


def test_a_process_that_leaves_a_port_keeps_the_connections_that_have_begun() -> None:
    with listen_tcp(ANYWHERE[0]) as listening:
        port = port_of(listening)
        with socket.create_connection(("127.0.0.1", port)) as waiting:
            begin_no_connections(port)
            with socket.socket() as late:
                late.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    late.connect(("127.0.0.1", port))
            accepted, _ = listening.accept()
            with accepted:
                assert open_connections(port) == 1
                end_listening(port)
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port))
                waiting.sendall(b"hello")
                assert accepted.recv(100) == b"hello"
        assert open_connections(port) == 0
