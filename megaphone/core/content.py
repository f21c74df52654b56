"""The rules for the parts of an event: body, stream id, event id and idempotency key."""

import asyncio
import math
import random
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final

import msgspec

from megaphone.core.addresses import random_texts
from megaphone.core.pace import SLICE
from megaphone.errors import BadRequest, PayloadTooLarge, explain

EVENT_ID_LENGTH = 23
MAX_STREAM_ID_BYTES = 1_024
STREAM_IDS_REMEMBERED = 1_000
"""How many valid stream ids are not checked again, because most of them are used again."""
MAX_ID_LENGTH = 200
MAX_LABEL_LENGTH = 64
"""A shared store keeps a channel with a longer text in a form that needs far more memory."""
MAX_INDEX_DIGITS = 8
"""How many digits the index of an event in its batch may have, in a key from another node."""
MAX_DEPTH: Final = 127
"""How deep arrays and objects may be nested in a body. The event around the body makes 128 levels,
the most that serde_json reads. Existing clients use serde_json, and a deeper event would end each
of their reads for good."""

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ID = re.compile(rf"[!-~]{{1,{MAX_ID_LENGTH}}}")
_LABEL = re.compile(rf"[ -~]{{0,{MAX_LABEL_LENGTH}}}")
_LINE_BREAKS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")

# All quantifiers are possessive, so that a match takes linear time and constant memory.
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
"""After `_TO_SHAPES`, each number from 1e299 on contains one of these or `_MANY_DIGITS`."""
_LARGE_EXPONENT = re.compile(rb"[\[:,\s-][0-9.]++[eE]\+?[0-9]{3}")
"""A number with a large exponent, and the character before it. The character is part of the pattern
so that few strings of hexadecimal digits match."""

SMALL_BYTES: Final = 2_048
"""Up to this size it costs less to decode a body than to search its text for large numbers."""
_decode: Final = msgspec.json.Decoder().decode
"""Refuses a body that is not JSON or not UTF-8, or that has an infinite number which is not an
integer."""
_skip = msgspec.json.Decoder(msgspec.Raw).decode
"""Refuses a body that is not JSON. Makes no objects, so that it is fast for each body."""


_event_ids: Final[list[str]] = []
"""Ids for the next events, because it costs less to make many at once."""


def new_event_id() -> str:
    """Make an event id, unique for all practical purposes.

    An event id is not a secret. So its random bytes come from a fast source whose output an
    attacker could predict.
    """
    if not _event_ids:
        _event_ids.extend(random_texts(EVENT_ID_LENGTH, random.randbytes))
    return _event_ids.pop()


def new_event_ids(count: int) -> list[str]:
    """Make some event ids, as `new_event_id` does."""
    while len(_event_ids) < count:
        _event_ids.extend(random_texts(EVENT_ID_LENGTH, random.randbytes))
    first = len(_event_ids) - count
    ids = _event_ids[first:]
    del _event_ids[first:]
    return ids


def checked_body(body: bytes, max_bytes: int) -> bytes:
    """Check a body, and return it with a space in place of each line break.

    No other byte changes. The protocols send an event as one line, and valid JSON has raw line
    breaks only between tokens, where a space means the same.

    Raises: PayloadTooLarge; BadRequest, when the body is not strictly JSON (RFC 8259) in valid
        UTF-8, has a number too large for a 64-bit float, or is nested deeper than `MAX_DEPTH`.
    """
    check_grammar(body, max_bytes)
    if len(body) > MAX_DEPTH and needs_scan(body):  # a shorter one can be neither deep nor large
        for _ in scan(body):
            pass
    if b"\n" in body or b"\r" in body:
        return in_one_line(body)
    return body


def checked_bodies(bodies: list[bytes], max_bytes: int) -> list[bytes]:
    """Do the same as `checked_body` for some bodies. If all are simple, which is the rule, it takes
    less time to check them together."""
    if are_simple(bodies, max_bytes):
        return bodies
    return [checked_body(body, max_bytes) for body in bodies]


def are_simple(bodies: list[bytes], max_bytes: int) -> bool:
    """Return whether `checked_body` would certainly return each body as it is."""
    if not bodies:
        return True
    largest = max(map(len, bodies))
    if largest > min(max_bytes, SMALL_BYTES):
        return False
    text = b"".join(bodies)
    if b"\n" in text or b"\r" in text:
        return False
    if largest > MAX_DEPTH and text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        return False
    if largest >= LARGE_DIGITS and _MANY_DIGITS in text.translate(_TO_SHAPES):
        return False
    try:
        list(map(_decode, bodies))
    except (RecursionError, UnicodeDecodeError, msgspec.DecodeError):
        return False
    return True


def work_of_all(bodies: Sequence[bytes]) -> int:
    """Return how much work it is to check some bodies, in addition to `EVENT_WORK` for each."""
    return sum([size for size in map(len, bodies) if size > MAX_DEPTH])


def work_of(body: bytes) -> int:
    """Return how much work it is to check a body, in addition to `EVENT_WORK`. A short one needs no
    scan."""
    size = len(body)
    return size if size > MAX_DEPTH else 0


CHECKED_AT_ONCE: Final = SLICE
"""The largest body, in bytes, that `accepted_body` checks without giving other tasks a turn."""


async def accepted_body(body: bytes, max_bytes: int) -> bytes:
    """Do the same as `checked_body`, but give other tasks turns while a large body is checked."""
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
    """Check the size and the grammar of a body, but not the depth and the size of numbers.

    Raises: as `checked_body`.
    """
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
    """Return whether valid JSON may be nested too deep or may have a number that is too large.

    This is a quick estimate; only `scan` knows for certain.
    """
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
    """Check the depth and the numbers of valid JSON in slices. Yields after each slice.

    The function counts depth in the text, because a decoded object has only the last value of a
    repeated key, and an earlier value may be nested deeper.

    Raises: BadRequest, when the body is nested too deep or has a number that is too large.
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
    """Yield the parts of valid JSON that are outside strings, in slices. Never splits a number."""
    start = 0
    while start < len(body):
        end = matched(_WHOLE_STRINGS, body, start, start + SLICE)
        if end == start:  # a string starts here, and is longer than a slice
            yield b""
            for position in ends_in_string(body, start + 1):
                yield b""
                end = position
        else:
            end = matched(_IN_NUMBER, body, end, len(body))
            yield _STRING.sub(b"", body[start:end])
        start = end


def ends_in_string(body: bytes, start: int) -> Iterator[int]:
    """Find the end of a long string in slices.

    Yields: the index at which each slice ends; at last, the index after the closing quote.
    """
    end = start
    while body[end : end + 1] != b'"':
        end = matched(_IN_STRING, body, end, end + SLICE)
        yield end
    yield end + 1


def matched(pattern: re.Pattern[bytes], body: bytes, start: int, stop: int) -> int:
    """Return the index at which the match that begins at `start` ends. There must be a match."""
    found = pattern.match(body, start, stop)
    assert found is not None
    return found.end()


def has_infinite_number(text: bytes) -> bool:
    """Return whether a text has a number that is too large for a 64-bit float.

    Readers that use such floats would refuse the number. `text` is valid JSON without its strings.
    """
    shapes = text.translate(_TO_SHAPES)
    if not (_MANY_DIGITS in shapes or any(shape in shapes for shape in _LARGE_EXPONENTS)):
        return False
    return any(is_infinite(number) for number in _NUMBER.finditer(text))


def is_infinite(number: re.Match[bytes]) -> bool:
    """Return whether a match of `_NUMBER` is too large for a 64-bit float."""
    whole, exponent = number.groups(b"")
    may_be_large = len(exponent) >= LARGE_EXPONENT_DIGITS or len(whole) >= LARGE_DIGITS
    return may_be_large and math.isinf(float(number[0]))


def in_one_line(body: bytes) -> bytes:
    """Return a body with a space in place of each line break."""
    if b"\n" in body or b"\r" in body:
        return body.translate(_LINE_BREAKS_TO_SPACES)
    return body


def too_deep() -> BadRequest:
    return BadRequest(f"the body is nested too deep: at most {MAX_DEPTH} levels are allowed")


@lru_cache(STREAM_IDS_REMEMBERED)
def checked_stream_id(stream_id: str) -> str:
    """Check and return a stream id, the name of a stream within its channel.

    Raises: BadRequest, when it is empty, longer than 1,024 bytes of UTF-8, not Unicode text, or
        contains a control character.
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


def checked_label(label: str) -> str:
    """Check and return the label of a channel. An empty one means that the channel has none.

    Raises: BadRequest, when it is longer than 64 characters, or has a character that is neither
        visible ASCII nor a space.
    """
    if not _LABEL.fullmatch(label):
        raise BadRequest(
            f"the label must be at most {MAX_LABEL_LENGTH} visible ASCII characters and spaces"
        )
    return label


def checked_key(text: str) -> str:
    """Check and return an idempotency key from another node.

    For a single event it is the key that the writer sent. For an event of a batch it is the key of
    the batch, a space, and the index of the event in the batch.

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
    """Check and return an event id or a request id that a client sent. The error names it `what`.

    Raises: BadRequest, when it is empty, longer than 200 characters, or has a character that is
        not visible ASCII.
    """
    if not _ID.fullmatch(text):
        raise BadRequest(
            f"the {what} must be 1 to {MAX_ID_LENGTH} visible ASCII characters, no spaces"
        )
    return text
