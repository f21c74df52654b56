"""Answers that are more than a body: JSON by its bytes, and the fast path of a write."""

import asyncio
import time
from collections.abc import Iterator
from email.utils import formatdate

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from megaphone.wire import json

JSON = "application/json"
OK = b'{"status":"OK"}'
DRAIN_ABOVE_BYTES = 65_536
WHOLE_ANSWER_BYTES = 65_536
"""A longer answer is sent in chunks, without a Content-Length."""


class Nameless(web.StreamResponse):
    """An answer that does not name the server, as aiohttp's do: nobody needs to know."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        del self.headers[hdrs.SERVER]


class Answer(Nameless, web.Response):
    """An answer with all of its body."""


class StreamedAnswer(Nameless):
    """An answer whose body is written piece by piece."""


def json_answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(body=body, status=status, content_type=JSON, headers=headers)


async def json_answer_in_pieces(
    request: web.Request, pieces: Iterator[bytes], status: int
) -> web.StreamResponse:
    """Answer with JSON that comes in pieces. One that is long is sent as it is made."""
    body = b""
    for piece in pieces:
        body += piece
        if len(body) > WHOLE_ANSWER_BYTES:
            return await streamed_answer(request, body, pieces, status)
    return json_answer(body, status)


async def streamed_answer(
    request: web.Request, begun: bytes, pieces: Iterator[bytes], status: int
) -> web.StreamResponse:
    response = StreamedAnswer(status=status, headers={"Content-Type": JSON})
    await response.prepare(request)
    await response.write(begun)
    for piece in pieces:
        await asyncio.sleep(0)  # others get their turn, also where the client takes all at once
        await response.write(piece)
    await response.write_eof()
    return response


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
