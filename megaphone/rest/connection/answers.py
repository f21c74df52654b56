"""Answers: JSON, errors, long lists, streams, and the fast path of a write."""

import asyncio
from collections.abc import Iterator

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from megaphone.errors import MegaphoneError
from megaphone.rest.connection.answer_bytes import (
    CREATED_LINE,
    WHOLE_ANSWER_BYTES,
    internal_body,
    with_json,
)
from megaphone.wire import errors, json

JSON = "application/json"
OK = b'{"status":"OK"}'
DRAIN_ABOVE_BYTES = 65_536


class Nameless(web.StreamResponse):
    """An answer without the Server header, which aiohttp adds and no client needs."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        del self.headers[hdrs.SERVER]


class Answer(Nameless, web.Response):
    """An answer with all of its body."""


class StreamedAnswer(Nameless):
    """An answer whose body the handler writes piece by piece."""


def json_answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(body=body, status=status, content_type=JSON, headers=headers)


async def json_answer_in_pieces(
    request: web.Request, pieces: Iterator[bytes], status: int
) -> web.StreamResponse:
    """Answer with JSON in pieces. The first pieces of a long answer are sent before the last ones
    are made."""
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
        await asyncio.sleep(0)  # lets other tasks run even if the client takes every piece at once
        await response.write(piece)
    await response.write_eof()
    return response


# -- Errors


def error_answer(error: MegaphoneError) -> Answer:
    """Return the answer for an error that the client may see."""
    status = errors.row_of(error).http_status
    headers = errors.limit_headers(error)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(errors.whole_seconds(error.retry_after_s))
    if (challenge := errors.challenge_of(error)) is not None:
        headers["WWW-Authenticate"] = challenge
    return json_answer(json.error(error.code, str(error), status), status, headers)


def internal_answer(request: web.BaseRequest) -> Answer:
    """Return the answer for a failure of the broker itself.

    Raises: ConnectionResetError, if another answer to the request has begun. aiohttp then closes
        the connection, so that the client sees that the answer is incomplete.
    """
    if request.writer.output_size > 0:
        raise ConnectionResetError
    return json_answer(internal_body(), errors.INTERNAL_HTTP_STATUS)


class WrittenAnswer(web.StreamResponse):
    """201 with the id of the event, written to the connection as bytes.

    To build an answer header by header is a third of the cost of a write, and no call is more
    frequent than a write. So this answer writes its few lines itself.
    """

    def __init__(self, event_id: str) -> None:
        # The initializer of the base class is left out, because it prepares headers and cookies
        # that this answer does not use.
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
        closing = b"" if self._keeps_alive else b"Connection: close\r\n"
        transport.write(with_json(CREATED_LINE, self._written, closing))
        if transport.get_write_buffer_size() > DRAIN_ABOVE_BYTES:
            await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing, because `prepare` has written the whole answer."""
