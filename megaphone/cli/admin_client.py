"""Calls the admin API of a broker on its Unix socket.

It uses the HTTP client of the standard library, because importing aiohttp takes as long as the rest
of a command.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from typing import Final

import msgspec

from megaphone.listen.sockets import check_owner, check_peer

HOST = "megaphone"
"""HTTP requires a host. Any will do, because the socket decides which broker answers."""
ANSWERS_WITHIN_S = 30.0
"""How long the broker may take before each part of an answer."""
PIECE_BYTES: Final = 65_536


class CallFailed(Exception):
    """A call failed. The text is one line for the operator."""


class Refusal(msgspec.Struct):
    """The answer of a broker that refuses a call."""

    code: str
    message: str


class TrustingConnection(HTTPConnection):
    """Connects only to a broker of a trusted user."""

    def __init__(self, socket_path: str) -> None:
        super().__init__(HOST)
        self._socket_path = socket_path

    def connect(self) -> None:
        check_owner(self._socket_path, *trusted_users())
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWERS_WITHIN_S)
        self.sock.connect(self._socket_path)
        check_peer(self.sock, self._socket_path, *trusted_users())


def call(socket_path: str, method: str, route: str, body: object = None) -> bytes:
    """Return the body of the broker's answer. Raises: CallFailed."""
    with response_to(socket_path, method, route, body) as response:
        return response.read()


def follow(socket_path: str, method: str, route: str, body: object = None) -> Iterator[bytes]:
    """Make a call that takes long, and yield each line of its answer as it comes.

    Raises: CallFailed, also if the answer breaks off.
    """
    with response_to(socket_path, method, route, body) as response:
        for line in lines_of(response, socket_path):
            if is_refusal(line):
                raise CallFailed(refusal(response.status, line))
            yield line


def lines_of(response: HTTPResponse, socket_path: str) -> Iterator[bytes]:
    """Yield each line of an answer, with its end, as it comes. Raises: CallFailed."""
    rest = b""
    while piece := next_piece(response, socket_path):
        *lines, rest = (rest + piece).splitlines(keepends=True)
        if rest.endswith(b"\n"):
            lines.append(rest)
            rest = b""
        yield from lines
    if rest:
        yield rest


def next_piece(response: HTTPResponse, socket_path: str) -> bytes:
    """Return what comes next; nothing at the end. `readline` takes a broken answer for a whole one.

    Raises: CallFailed, if the answer breaks off.
    """
    try:
        return response.read1(PIECE_BYTES)
    except (IncompleteRead, ConnectionError):
        raise CallFailed(has_gone(socket_path)) from None


def has_gone(socket_path: str) -> str:
    return f"the broker at {socket_path} is not there any more"


@contextmanager
def response_to(socket_path: str, method: str, route: str, body: object) -> Iterator[HTTPResponse]:
    """Return a context with the response to a call. Raises: CallFailed, if it is an error, or if
    its connection fails within the context."""
    content = None if body is None else msgspec.json.encode(body)
    headers = {} if body is None else {"Content-Type": "application/json"}
    try:
        with closing(TrustingConnection(socket_path)) as connection:
            connection.request(method, route, content, headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise CallFailed(refusal(response.status, response.read()))
            yield response
    except TimeoutError:
        raise CallFailed(
            f"the broker at {socket_path} did not answer within {ANSWERS_WITHIN_S:g} s"
        ) from None
    except HTTPException as error:
        raise CallFailed(f"what is at {socket_path} does not answer as a broker: {error}") from None
    except OSError as error:
        raise CallFailed(cannot_connect(socket_path, error)) from None


def trusted_users() -> tuple[int, ...]:
    """Return this user and root, because root may use every socket anyway."""
    return os.geteuid(), 0


def is_refusal(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=Refusal)
    except msgspec.DecodeError:
        return False
    return True


def refusal(status: int, content: bytes) -> str:
    try:
        refused = msgspec.json.decode(content, type=Refusal)
    except msgspec.DecodeError:
        return f"the broker answers with the HTTP status {status}"
    return f"{refused.code}: {refused.message}"


def cannot_connect(socket_path: str, error: OSError) -> str:
    other = "--path names another socket"
    match error:
        case PermissionError():
            return f"permission denied for {socket_path}: only the owner of the broker may use it"
        case FileNotFoundError() | ConnectionRefusedError():
            return f"no broker serves at {socket_path}; {other}"
        case _:
            return f"cannot connect to {socket_path}: {error.strerror or error}; {other}"
