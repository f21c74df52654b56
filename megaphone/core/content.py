"""What an event may be made of: the rules for bodies, stream ids, event ids and request ids."""

import math
import random
import re
from itertools import accumulate

import msgspec

from megaphone.core.addresses import alphanumerics
from megaphone.errors import BadRequest, PayloadTooLarge

EVENT_ID_LENGTH = 23
MAX_STREAM_ID_BYTES = 1_024
MAX_ID_LENGTH = 200
"""Of event ids and request ids that clients send."""
MAX_DEPTH = 127
"""Arrays and objects in each other. With the event around it that makes the 128 that serde_json
reads, the parser of existing clients: one deeper event would end their reads for good."""

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ID = re.compile(rf"[!-~]{{1,{MAX_ID_LENGTH}}}")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')  # possessive: linear, and no memory
_BRACKETS_TO_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: 1 and -1
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
LONG_INTEGER = b"0" * 309
"""As long as the largest 64-bit float is when it is written out; its digits do not matter."""
_DIGITS_TO_ZEROS = bytes(ord("0") if chr(byte).isdecimal() else ord(" ") for byte in range(256))
_NUMBER = re.compile(rb"[0-9]++(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+")
_LINE_BREAKS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")
_json = msgspec.json.Decoder()


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
    if len(body) > max_bytes:
        raise PayloadTooLarge(f"the body has {len(body)} bytes; at most {max_bytes} are allowed")
    try:
        _json.decode(body)
    except RecursionError:
        raise too_deep() from None
    except UnicodeDecodeError:
        raise BadRequest("the body is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not JSON: {explain(error)}") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and depth(body) > MAX_DEPTH:
        raise too_deep()
    if len(body) >= len(LONG_INTEGER) and has_infinite_integer(body):
        raise BadRequest("the body is not JSON: number out of range")
    if b"\n" in body or b"\r" in body:
        return body.translate(_LINE_BREAKS_TO_SPACES)
    return body


def explain(error: msgspec.MsgspecError) -> str:
    """Say what a decoder found wrong, as the second half of a sentence."""
    text = str(error).removeprefix("JSON is malformed: ")
    return text[:1].lower() + text[1:]


def too_deep() -> BadRequest:
    return BadRequest(f"the body is nested too deep: at most {MAX_DEPTH} levels are allowed")


def depth(body: bytes) -> int:
    """How many arrays and objects are in each other at the deepest point of valid JSON.

    Counted in the text and not in the value, which has lost whatever a repeated key had first.
    """
    brackets = _STRING.sub(b"", body).translate(_BRACKETS_TO_STEPS, _ALL_BUT_BRACKETS)
    return max(accumulate(memoryview(brackets).cast("b")), default=0)


def has_infinite_integer(body: bytes) -> bool:
    """Whether valid JSON holds an integer that is infinite to a reader with 64-bit floats.

    Such readers refuse it as they refuse 1e999; our decoder refuses only the latter.
    """
    if LONG_INTEGER not in body.translate(_DIGITS_TO_ZEROS):
        return False
    numbers = _NUMBER.finditer(_STRING.sub(b"", body))
    return any(math.isinf(float(number[0])) for number in numbers if number[0].isdigit())


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
