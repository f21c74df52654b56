"""Answers that are more than a body: JSON by its bytes, and the fast path of a write."""

import time
from email.utils import formatdate

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from megaphone.wire import json

JSON = "application/json"
OK = b'{"status":"OK"}'
DRAIN_ABOVE_BYTES = 65_536


def json_answer(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(body=body, status=status, content_type=JSON, headers=headers)


class WrittenAnswer(web.StreamResponse):
    """201 with the id of the event, as bytes that are ready to go.

    Building an answer header by header is a third of what a write costs, and a write is what
    happens most. So this one writes its few lines itself; `docs/architecture.md` has the figures.
    """

    _date_line = b""
    _date_of = 0

    def __init__(self, event_id: str) -> None:
        # Without the base class's, which prepares headers and cookies that are not used here.
        self._written = json.written(event_id)
        self._keeps_alive = False

    @property
    def keep_alive(self) -> bool:
        return self._keeps_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self._keeps_alive = request.keep_alive
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        transport.write(
            b"HTTP/1.1 201 Created\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: %d\r\n%b%b\r\n%b"
            % (
                len(self._written),
                self.date_line(),
                b"" if self._keeps_alive else b"Connection: close\r\n",
                self._written,
            )
        )
        if transport.get_write_buffer_size() > DRAIN_ABOVE_BYTES:
            await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: `prepare` has written all there is."""

    @classmethod
    def date_line(cls) -> bytes:
        now = int(time.time())
        if now != cls._date_of:
            cls._date_of = now
            cls._date_line = f"Date: {formatdate(now, usegmt=True)}\r\n".encode()
        return cls._date_line
