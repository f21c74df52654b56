"""What handlers read of a request."""

import asyncio
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs, web

from megaphone.core.budget import Budget
from megaphone.errors import BadRequest, PayloadTooLarge, TooSlow
from megaphone.rest.connection.answers import JSON
from megaphone.rest.inflation import Inflater, inflater_for, undecodable

BUDGET = web.AppKey("budget", Budget)
"""Where an application has the budget that unfinished bodies count against."""
BODY_TIMEOUT_S = 30.0
MAX_DIGITS = 9

T = TypeVar("T")


def part(name: str) -> str:
    """Return a variable part of a route: all there is up to the next slash.

    aiohttp's own leaves out braces, so that a path with one would lead nowhere.
    """
    return f"{{{name}:[^/]+}}"


def path_values(request: web.Request) -> list[str]:
    """Return the variable parts of the path, percent-decoded once.

    aiohttp's own decoding keeps `%80` as it is, so that two paths could mean the same text.

    Raises: BadRequest, when they are not UTF-8.
    """
    return [decoded(part) for part in request.rel_url.raw_path.split("/")[2:]]


def decoded(part: str) -> str:
    if "%" not in part:
        return part
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise BadRequest("the path is not percent-encoded UTF-8") from None


def is_json(request: web.Request) -> bool:
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    if content_type == JSON:
        return True
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))


def require_json(request: web.Request) -> None:
    if not is_json(request):
        raise BadRequest(f"the Content-Type must be {JSON}")


def wants_sse(request: web.Request) -> bool:
    accepted = request.headers.get("Accept", "")
    return "text/event-stream" in accepted and "application/x-ndjson" not in accepted


async def body_of(request: web.Request) -> bytes:
    """Return the body, inflated if it came compressed.

    Raises: PayloadTooLarge, before any of it is read if its headers say so; TooSlow; BadRequest,
        when it cannot be decoded.
    """
    encoding = request.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is None and request.content.is_eof():  # it came with its headers, as most do
        body = request.content.read_nowait()
        check_size(request, len(body))
        return body
    check_size(request, request.content_length or 0)
    inflater = None if encoding is None else inflater_for(encoding)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await ReceivedBody(request).receive(inflater)
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except web.RequestPayloadError:
        raise undecodable() from None


class ReceivedBody:
    """A body that is received chunk by chunk, so that one too large is refused at once.

    It counts against the budget of the node until it is complete.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._budget = request.app[BUDGET]
        self._clock = asyncio.get_running_loop().time
        self._pieces: list[bytes] = []
        self._size = 0

    async def receive(self, inflater: Inflater | None) -> bytes:
        """Raises: PayloadTooLarge; LimitExceeded, when there is no memory for it; BadRequest."""
        try:
            if inflater is None:
                async for chunk in self._request.content.iter_any():
                    self._add(chunk)
                    await asyncio.sleep(0)  # or what has come already would be parsed in one go
            else:
                await self._inflate(inflater)
            return b"".join(self._pieces)
        finally:
            self._budget.received(self._size)

    async def _inflate(self, inflater: Inflater) -> None:
        compressed = 0
        async for chunk in self._request.content.iter_any():
            compressed += len(chunk)
            check_size(self._request, compressed)
            for piece in inflater.pieces(chunk):
                self._add(piece)
                await asyncio.sleep(0)  # others get their turn
        inflater.finish()

    def _add(self, piece: bytes) -> None:
        check_size(self._request, self._size + len(piece))
        self._budget.receive(self._size, len(piece), self._clock())
        self._size += len(piece)
        self._pieces.append(piece)


def check_size(request: web.Request, size: int) -> None:
    """Raises: PayloadTooLarge, for more bytes than a body may have."""
    if size > request.client_max_size:
        raise PayloadTooLarge(
            f"the body is too large: at most {request.client_max_size} bytes are allowed"
        )


def whole_number(query: Mapping[str, str], name: str) -> int | None:
    """Return a number from the query; None when it is not there. Raises: BadRequest."""
    text = query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > MAX_DIGITS:
        raise BadRequest(f"`{name}` must be a whole number of at most {MAX_DIGITS} digits")
    return int(text)


def seconds_of_ms(query: Mapping[str, str], name: str) -> float | None:
    """Return seconds for milliseconds in the query. Raises: BadRequest."""
    milliseconds = whole_number(query, name)
    return None if milliseconds is None else milliseconds / 1000


def one_of(query: Mapping[str, str], name: str, choices: Mapping[str, T], *, default: T) -> T:
    """Return what a word in the query stands for. Raises: BadRequest, for another word."""
    word = query.get(name)
    if word is None:
        return default
    if word not in choices:
        raise BadRequest(f"`{name}` must be {' or '.join(choices)}")
    return choices[word]
