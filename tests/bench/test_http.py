"""The clients of the benchmark: a wrong count would be a wrong figure."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bench.http import CREATED, OK, Connection, Read, get, is_whole
from bench.processes import BenchError

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Peer:
    """The server's end of a client's connection."""

    listener: socket.socket

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def accept(self) -> socket.socket:
        connection, _ = self.listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@pytest.fixture
def peer() -> Iterator[Peer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Peer(listener)


def test_events_are_counted_wherever_the_bytes_are_cut(peer: Peer) -> None:
    read = Read(peer.port, get("/read/x"))
    with peer.accept() as server:
        server.sendall(HEAD + b'8\r\n{"a":{}}')
        read.begin()
        assert read.count == 0
        for piece in (b"\n\r\n", b'8\r\n{"a":', b'{}}\n{"a":{}}\n', b'{"a":1}'):
            server.sendall(piece)
        server.sendall(b"\n\r\n")
        read.take(4)
        assert read.count == 4
        assert not read.has_more
    read.close()


def test_events_that_nobody_waited_for_are_noticed(peer: Peer) -> None:
    read = Read(peer.port, get("/read/x"))
    with peer.accept() as server:
        server.sendall(HEAD + b"{}\n{}\n")
        read.begin()
        read.take(1)
        assert read.has_more
    read.close()


def test_looking_for_events_does_not_wait(peer: Peer) -> None:
    read = Read(peer.port, get("/read/x"))
    with peer.accept() as server:
        server.sendall(HEAD)
        read.begin()
        assert read.take_what_came() == 0
    read.close()


def test_a_read_that_the_server_closes_is_an_error(peer: Peer) -> None:
    read = Read(peer.port, get("/read/x"))
    with peer.accept() as server:
        server.recv(1_000)
        server.sendall(HEAD)
        read.begin()
    with pytest.raises(BenchError, match="closed"):
        read.take(1)
    read.close()


def test_a_refused_read_is_an_error(peer: Peer) -> None:
    read = Read(peer.port, get("/read/x"))
    with peer.accept() as server:
        server.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")
        with pytest.raises(BenchError, match="404"):
            read.begin()
    read.close()


def test_an_answer_in_pieces_is_waited_for(peer: Peer) -> None:
    connection = Connection(peer.port)
    with peer.accept() as server:
        server.sendall(ANSWER)
        assert connection.answer(CREATED) == ANSWER
        for piece in (ANSWER[:5], ANSWER[5:-1], ANSWER[-1:]):
            server.sendall(piece)
        assert connection.answer(CREATED) == ANSWER
    connection.close()


def test_another_status_is_an_error(peer: Peer) -> None:
    connection = Connection(peer.port)
    with peer.accept() as server:
        server.sendall(ANSWER)
        with pytest.raises(BenchError, match="201"):
            connection.answer(OK)
    connection.close()


def test_an_answer_is_whole_with_its_body() -> None:
    assert is_whole(ANSWER)
    assert not is_whole(ANSWER[:-1])
    assert is_whole(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert not is_whole(b"HTTP/1.1 204 No Content\r\n")
