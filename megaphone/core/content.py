"""What an event may be made of: the rules for bodies, stream ids, event ids and request ids."""

import asyncio
import math
import random
import re
from collections.abc import Iterator
from itertools import accumulate

import msgspec

from megaphone.core.addresses import alphanumerics
from megaphone.core.pace import SLICE
from megaphone.errors import BadRequest, PayloadTooLarge, explain

EVENT_ID_LENGTH = 23
MAX_STREAM_ID_BYTES = 1_024
MAX_ID_LENGTH = 200
MAX_INDEX_DIGITS = 8
"""Of event ids and request ids that clients send."""
MAX_DEPTH = 127
"""Arrays and objects in each other. With the event around it that makes the 128 that serde_json
reads, the parser of existing clients: one deeper event would end their reads for good."""

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ID = re.compile(rf"[!-~]{{1,{MAX_ID_LENGTH}}}")
_LINE_BREAKS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")

# Possessive all of them: linear, and no memory.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_WHOLE_STRINGS = re.compile(rb'(?:[^"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+')
_IN_NUMBER = re.compile(rb"[0-9.eE+-]*+")
_NUMBER = re.compile(rb"([0-9]++)(?:\.[0-9]++)?+(?:[eE]([+-]?[0-9]++))?+")

_BRACKETS_TO_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: 1 and -1
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_TO_SHAPES = bytes(
    ord("0") if chr(byte).isdecimal() else ord("e") if chr(byte) in "eE" else byte
    for byte in range(256)
)
LARGE_DIGITS = 200
LARGE_EXPONENT_DIGITS = 3
_MANY_DIGITS = b"0" * LARGE_DIGITS
_LARGE_EXPONENTS = (b"e000", b"e+000")
"""One of these three is in every number from 1e299 on, once each digit is a 0 and each E an e."""
_LARGE_EXPONENT = re.compile(rb"[\[:,\s-][0-9.]++[eE]\+?[0-9]{3}")
"""The same with what comes before a number, so that few strings of hex digits look like it."""

SMALL_BYTES = 2_048
"""Up to here it costs less to decode a body than to look for large numbers in its text."""
_decode = msgspec.json.Decoder().decode
"""Refuses all that is not JSON, invalid UTF-8, and infinite numbers other than whole ones."""
_skip = msgspec.json.Decoder(msgspec.Raw).decode
"""Refuses all that is not JSON. It makes no objects, so that no body takes it long."""


def new_event_id() -> str:
    """Make an event id: unique for all practical purposes, but no secret, so from a fast source."""
    return alphanumerics(EVENT_ID_LENGTH, random.randbytes)


def checked_body(body: bytes, max_bytes: int) -> bytes:
    """Return a body as it travels: byte for byte as written, but for line breaks between tokens.

    Valid JSON has raw line breaks only between tokens, where a space means the same; and events
    are lines on the wire.

    Raises: PayloadTooLarge; BadRequest, when it is not strictly JSON (RFC 8259) in valid UTF-8,
        holds a number that is beyond every reader, or is nested more than `MAX_DEPTH` deep.
    """
    check_grammar(body, max_bytes)
    if needs_scan(body):
        for _ in scan(body):
            pass
    return in_one_line(body)


CHECKED_AT_ONCE = SLICE
"""The most bytes of a body that are checked without a turn for other tasks."""


async def accepted_body(body: bytes, max_bytes: int) -> bytes:
    """Return what `checked_body` does; while a large body is checked other tasks get their turn."""
    if len(body) <= CHECKED_AT_ONCE:
        return checked_body(body, max_bytes)
    check_grammar(body, max_bytes)
    await asyncio.sleep(0)
    if needs_scan(body):
        await asyncio.sleep(0)
        for _ in scan(body):
            await asyncio.sleep(0)
    return in_one_line(body)


def check_grammar(body: bytes, max_bytes: int) -> None:
    """Check all that is known without looking into strings and numbers. See `checked_body`."""
    if len(body) > max_bytes:
        raise PayloadTooLarge(f"the body has {len(body)} bytes; at most {max_bytes} are allowed")
    try:
        if len(body) <= SMALL_BYTES:
            _decode(body)
        else:
            _skip(body)
            if not body.isascii():
                body.decode()
    except RecursionError:
        raise too_deep() from None
    except UnicodeDecodeError:
        raise BadRequest("the body is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not JSON: {explain(error)}") from None


def needs_scan(body: bytes) -> bool:
    """Whether a body of known grammar may be too deep, or hold a number that is too large."""
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        return True
    if len(body) < LARGE_DIGITS:
        return False
    shapes = body.translate(_TO_SHAPES)
    if _MANY_DIGITS in shapes:
        return True
    if len(body) <= SMALL_BYTES or not any(exponent in shapes for exponent in _LARGE_EXPONENTS):
        return False
    return _LARGE_EXPONENT.search(b" " + body) is not None


def scan(body: bytes) -> Iterator[None]:
    """Look for both in valid JSON, slice by slice: yields after each.

    Depth is counted in the text and not in the value, which has lost whatever a repeated key had
    first.
    """
    depth = 0
    for text in texts_outside_strings(body):
        steps = memoryview(text.translate(_BRACKETS_TO_STEPS, _ALL_BUT_BRACKETS)).cast("b")
        depths = list(accumulate(steps, initial=depth))
        if max(depths) > MAX_DEPTH:
            raise too_deep()
        depth = depths[-1]
        if has_infinite_number(text):
            raise BadRequest("the body is not JSON: number out of range")
        yield


def texts_outside_strings(body: bytes) -> Iterator[bytes]:
    """Yield what valid JSON holds outside its strings, in slices of the body. No number is cut."""
    start = 0
    while start < len(body):
        end = matched(_WHOLE_STRINGS, body, start, start + SLICE)
        if end == start:  # there is a string that goes beyond the slice
            yield b""
            for position in ends_in_string(body, start + 1):
                yield b""
                end = position
        else:
            end = matched(_IN_NUMBER, body, end, len(body))
            yield _STRING.sub(b"", body[start:end])
        start = end


def ends_in_string(body: bytes, start: int) -> Iterator[int]:
    """Go through a long string, slice by slice. Yields: where each ends; the last, behind it."""
    end = start
    while body[end : end + 1] != b'"':
        end = matched(_IN_STRING, body, end, end + SLICE)
        yield end
    yield end + 1


def matched(pattern: re.Pattern[bytes], body: bytes, start: int, stop: int) -> int:
    """Return where the match of a pattern ends that begins at `start`."""
    found = pattern.match(body, start, stop)
    assert found is not None
    return found.end()


def has_infinite_number(text: bytes) -> bool:
    """Whether a number is too large for 64-bit floats: readers that use them would refuse it.

    `text` is valid JSON without its strings.
    """
    shapes = text.translate(_TO_SHAPES)
    if not (_MANY_DIGITS in shapes or any(shape in shapes for shape in _LARGE_EXPONENTS)):
        return False
    return any(is_infinite(number) for number in _NUMBER.finditer(text))


def is_infinite(number: re.Match[bytes]) -> bool:
    whole, exponent = number.groups(b"")
    may_be_large = len(exponent) >= LARGE_EXPONENT_DIGITS or len(whole) >= LARGE_DIGITS
    return may_be_large and math.isinf(float(number[0]))


def in_one_line(body: bytes) -> bytes:
    if b"\n" in body or b"\r" in body:
        return body.translate(_LINE_BREAKS_TO_SPACES)
    return body


def too_deep() -> BadRequest:
    return BadRequest(f"the body is nested too deep: at most {MAX_DEPTH} levels are allowed")


def checked_stream_id(stream_id: str) -> str:
    """Return a stream id: the name of a stream within its channel.

    Raises: BadRequest, when it is empty, longer than 1,024 bytes of UTF-8, no Unicode text, or
        holds a control character.
    """
    if not stream_id:
        raise BadRequest("the stream id is empty: name a stream")
    try:
        size = len(stream_id.encode())
    except UnicodeEncodeError:
        raise BadRequest("the stream id is not Unicode text") from None
    if size > MAX_STREAM_ID_BYTES:
        raise BadRequest(
            f"the stream id has {size} bytes; at most {MAX_STREAM_ID_BYTES} are allowed"
        )
    if _CONTROL_CHARACTER.search(stream_id):
        raise BadRequest("the stream id holds a control character; none is allowed")
    return stream_id


def checked_key(text: str) -> str:
    """Return an idempotency key as another node remembers it: a request id, or one and an index.

    Raises: BadRequest.
    """
    request_id, _, index = text.partition(" ")
    checked_id("request id", request_id)
    if index and not (index.isascii() and index.isdecimal() and len(index) <= MAX_INDEX_DIGITS):
        raise BadRequest(
            f"after a request id there may be the index of an event in its batch,"
            f" with at most {MAX_INDEX_DIGITS} digits"
        )
    return text


def checked_id(what: str, text: str) -> str:
    """Return an event id or request id that a client sent; `what` names it in the error.

    Raises: BadRequest, when it is empty, longer than 200 characters, or not all of them are visible
        ASCII.
    """
    if not _ID.fullmatch(text):
        raise BadRequest(
            f"the {what} must be 1 to {MAX_ID_LENGTH} visible ASCII characters, no spaces"
        )
    return text
