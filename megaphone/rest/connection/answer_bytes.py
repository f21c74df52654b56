"""Answers as bytes, for the lane and for the most frequent answer behind aiohttp.

They stand apart from `answers`, whose classes inherit from those of aiohttp, so that they can be
compiled.
"""

import time
from collections.abc import Iterator
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from megaphone.errors import MegaphoneError
from megaphone.wire import errors, json

WHOLE_ANSWER_BYTES = 65_536
"""A longer answer is sent in chunks, without a Content-Length."""
HEADS_REMEMBERED = 100
"""Most answers of a second have a status and a length that another one had before."""
OK_LINE: Final = b"HTTP/1.1 200 OK\r\n"
CREATED_LINE: Final = b"HTTP/1.1 201 Created\r\n"
INTERNAL_LINE = b"HTTP/1.1 500 Internal Server Error\r\n"


def internal_body() -> bytes:
    return json.error(errors.INTERNAL_CODE, errors.INTERNAL_MESSAGE, errors.INTERNAL_HTTP_STATUS)


def internal_error() -> bytes:
    """Return the answer for a failure of the broker itself, the last on its connection."""
    return with_json(INTERNAL_LINE, internal_body(), b"Connection: close\r\n")


def error_bytes(error: MegaphoneError) -> bytes:
    """Return the answer for an error that the client may see."""
    status = HTTPStatus(errors.row_of(error).http_status)
    more = b""
    if error.retry_after_s is not None:
        more = b"Retry-After: %d\r\n" % errors.whole_seconds(error.retry_after_s)
    line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    return with_json(line, json.error(error.code, str(error), status.value), more)


def refused_plain_text() -> bytes:
    """Return the answer, in plain text, for a client that does not speak TLS as it should. It is
    the last on its connection."""
    status = HTTPStatus.BAD_REQUEST
    body = json.error("BAD_REQUEST", "this port takes only TLS: call https://", status.value)
    line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    return with_json(line, body, b"Connection: close\r\n")


def pieces_of_answer(status_line: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield an answer with JSON that is made in pieces. A long one has chunks, and no length, so
    that its first pieces can be sent before the last ones are made."""
    body = b""
    for piece in pieces:
        body += piece
        if len(body) > WHOLE_ANSWER_BYTES:
            break
    else:
        yield with_json(status_line, body)
        return
    yield b"%bContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n%b\r\n" % (
        status_line,
        date_line(),
    )
    yield b"%x\r\n%b\r\n" % (len(body), body)
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def with_json(status_line: bytes, body: bytes, more: bytes = b"") -> bytes:
    """Return an answer with JSON. `more` are further headers, as lines."""
    return head_of_json(status_line, len(body), more) + body


def head_of_json(status_line: bytes, length: int, more: bytes = b"") -> bytes:
    """Return the head of an answer with JSON of some length."""
    return _head(status_line, length, int(time.time()), more)


@lru_cache(HEADS_REMEMBERED)
def _head(status_line: bytes, length: int, second: int, more: bytes) -> bytes:
    return b"%bContent-Type: application/json\r\nContent-Length: %d\r\n%b%b\r\n" % (
        status_line,
        length,
        date_line_of(second),
        more,
    )


def date_line() -> bytes:
    """Return the header Date, as a line."""
    return date_line_of(int(time.time()))


@lru_cache(1)
def date_line_of(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
