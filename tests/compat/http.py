"""Plain HTTP calls, over TCP and over a Unix socket, whose answers are kept byte for byte."""

import http.client
import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 20.0
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str | None
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call_unix(
    path: Path, method: str, route: str, body: bytes | None = None, content_type: str | None = None
) -> Answer:
    return answer_of(UnixConnection(path), method, route, body, content_type)


def post(url: str, value: Any, token: str | None = None) -> Answer:
    """Post JSON over TCP, perhaps with a token."""
    address = urlsplit(url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT_S)
    more = {} if token is None else {"Authorization": f"Bearer {token}"}
    return answer_of(connection, "POST", address.path, json.dumps(value).encode(), JSON, more)


def answer_of(
    connection: http.client.HTTPConnection,
    method: str,
    route: str,
    body: bytes | None,
    content_type: str | None,
    more: Mapping[str, str] = {},
) -> Answer:
    headers = {**more} if content_type is None else {"Content-Type": content_type, **more}
    try:
        with suppress(BrokenPipeError):  # what needs no body may be answered before it is sent
            connection.request(method, route, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.getheader("Content-Type"), response.read())
    finally:
        connection.close()
