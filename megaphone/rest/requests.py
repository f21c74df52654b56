"""What handlers read of a request."""

import asyncio
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs, web

from megaphone.errors import BadRequest, PayloadTooLarge, TooSlow
from megaphone.rest.answers import JSON
from megaphone.rest.inflation import Inflater, inflater_for, undecodable

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
            return await received_body(request, inflater)
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except web.RequestPayloadError:
        raise undecodable() from None


async def received_body(request: web.Request, inflater: Inflater | None) -> bytes:
    """Return the body chunk by chunk as it comes, so that one too large is refused at once."""
    pieces: list[bytes] = []
    received = size = 0
    async for chunk in request.content.iter_any():
        received += len(chunk)
        check_size(request, received)
        if inflater is None:
            pieces.append(chunk)
            continue
        for piece in inflater.pieces(chunk):
            size += len(piece)
            check_size(request, size)
            pieces.append(piece)
            await asyncio.sleep(0)  # others get their turn
    if inflater is not None:
        inflater.finish()
    return b"".join(pieces)


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
