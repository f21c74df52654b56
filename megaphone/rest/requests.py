"""Reads what a request says: its path, its query, its headers, and its body within bounds."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs, web

from megaphone.core.budget import Budget
from megaphone.errors import BadRequest, PayloadTooLarge, TooSlow, UnsupportedMediaType
from megaphone.rest.connection.answers import JSON
from megaphone.rest.inflation import Inflater, inflater_for, undecodable
from megaphone.wire.decode import unknown

BUDGET = web.AppKey("budget", Budget)
"""The key under which an application holds the budget that incomplete bodies count against."""
BODY_TIMEOUT_S = 30.0
MAX_DIGITS = 9

T = TypeVar("T")
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


# -- The path


def segment(name: str) -> str:
    """Return a variable segment for the path of a route: everything up to the next slash.

    The variables of aiohttp exclude braces, so that no route would match a path with a brace.
    """
    return f"{{{name}:[^/]+}}"


def path_values(request: web.Request) -> list[str]:
    """Return the variable segments of the path, percent-decoded once.

    aiohttp decodes them too, but leaves `%80` as it is, so that two paths could mean the same text.

    Raises: BadRequest, if a segment is not UTF-8.
    """
    return [decoded(raw) for raw in request.rel_url.raw_path.split("/")[2:]]


def decoded(raw: str) -> str:
    if "%" not in raw:
        return raw
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise BadRequest("the path is not percent-encoded UTF-8") from None


# -- The query


def without_query(handler: Handler) -> Handler:
    """Return a handler that refuses a request with a query, for a call that takes no parameters."""

    async def checked(request: web.Request) -> web.StreamResponse:
        if request.rel_url.raw_query_string:
            check_parameters(request.query, ())
        return await handler(request)

    return checked


def check_parameters(query: Mapping[str, str], known: Sequence[str]) -> None:
    """Raises: BadRequest, if a query has a parameter that the call does not know."""
    for name in query:
        if name not in known:
            raise BadRequest(f"the query has {unknown('parameter', name, known)}")


def whole_number(query: Mapping[str, str], name: str) -> int | None:
    """Return a number from the query, or None if it is missing. Raises: BadRequest."""
    text = query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > MAX_DIGITS:
        raise BadRequest(f"`{name}` must be a whole number of at most {MAX_DIGITS} digits")
    return int(text)


def seconds_of_ms(query: Mapping[str, str], name: str) -> float | None:
    """Return in seconds a number of milliseconds from the query. Raises: BadRequest."""
    milliseconds = whole_number(query, name)
    return None if milliseconds is None else milliseconds / 1000


def choice(query: Mapping[str, str], name: str, choices: Mapping[str, T], *, default: T) -> T:
    """Return the value for a word in the query. Raises: BadRequest, for an unknown word."""
    word = query.get(name)
    if word is None:
        return default
    if word not in choices:
        raise BadRequest(f"`{name}` must be {' or '.join(choices)}")
    return choices[word]


# -- The body


def is_json(request: web.Request) -> bool:
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    if content_type == JSON:
        return True
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))


def require_json(request: web.Request) -> None:
    if not is_json(request):
        raise UnsupportedMediaType(f"the Content-Type must be {JSON}")


async def body_of(request: web.Request) -> bytes:
    """Return the body of a request, inflated if the client has compressed it.

    Raises: PayloadTooLarge, before the body is read if the Content-Length is too large already;
        TooSlow, if the body does not arrive within `BODY_TIMEOUT_S`; LimitExceeded, if there is no
        memory for the body; BadRequest, if the body cannot be inflated.
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
    """Receives a body chunk by chunk, so that a body that is too large is refused at once.

    The body counts against the budget of the node until it is complete.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._budget = request.app[BUDGET]
        self._clock = asyncio.get_running_loop().time
        self._pieces: list[bytes] = []
        self._size = 0

    async def receive(self, inflater: Inflater | None) -> bytes:
        """Return the whole body. Raises: PayloadTooLarge; LimitExceeded; BadRequest."""
        try:
            if inflater is None:
                async for chunk in self._request.content.iter_any():
                    self._add(chunk)
                    # Otherwise everything that has arrived already would be parsed at once.
                    await asyncio.sleep(0)
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
                await asyncio.sleep(0)  # lets other tasks run
        inflater.finish()

    def _add(self, piece: bytes) -> None:
        check_size(self._request, self._size + len(piece))
        self._budget.receive(self._size, len(piece), self._clock())
        self._size += len(piece)
        self._pieces.append(piece)


def check_size(request: web.Request, size: int) -> None:
    """Raises: PayloadTooLarge, if a body of this size is larger than the node allows."""
    if size > request.client_max_size:
        raise PayloadTooLarge(
            f"the body is too large: at most {request.client_max_size} bytes are allowed"
        )
