"""Events as text: for people on a terminal, and for programs in a pipe."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from datetime import UTC
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import msgspec

if TYPE_CHECKING:
    from megaphone_client import Event

COLOURS: Final = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
NOT_FOR_TERMINALS: Final = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
"""Control characters, and those that turn the direction of a text."""

Renderer = Callable[["Event[Any]", str | None], bytes]
"""Makes the text of an event, with its end, from the event and, if the command reads more than one
channel, the channel's label."""


class Output(StrEnum):
    """How events are printed."""

    AUTO = "auto"
    PRETTY = "pretty"
    NDJSON = "ndjson"
    RAW = "raw"
    SSE = "sse"


class Colour(StrEnum):
    """When text is coloured."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def renderer(output: Output, colour: Colour) -> Renderer:
    """Return the function that makes text of events."""
    if output is Output.AUTO:
        output = Output.PRETTY if sys.stdout.isatty() else Output.NDJSON
    if output is not Output.PRETTY:
        return RENDERERS[output]
    is_coloured = colour is Colour.ALWAYS or (
        colour is Colour.AUTO and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    )
    return lambda event, label: pretty(event, label, is_coloured)


def ndjson(event: "Event[Any]", label: str | None) -> bytes:
    """Return the line that the broker sends over HTTP; with a label also `channel`."""
    channel = b"" if label is None else b'"channel":%b,' % msgspec.json.encode(label)
    return b'{%b"sid":%b,"eid":%b,"ts":%b,"body":%b}\n' % (
        channel,
        msgspec.json.encode(event.stream),
        msgspec.json.encode(event.id),
        msgspec.json.encode(timestamp(event)),
        event.raw,
    )


def raw(event: "Event[Any]", label: str | None) -> bytes:
    """Return the body alone."""
    return event.raw + b"\n"


def sse(event: "Event[Any]", label: str | None) -> bytes:
    """Return a server-sent event, as the broker sends it."""
    line = ndjson(event, label).rstrip(b"\n")
    return b"id: %b\ndata: %b\n\n" % (event.id.encode(), line)


RENDERERS: Final[dict[Output, Renderer]] = {Output.NDJSON: ndjson, Output.RAW: raw, Output.SSE: sse}


def timestamp(event: "Event[Any]") -> str:
    return event.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def pretty(event: "Event[Any]", label: str | None, is_coloured: bool) -> bytes:
    """Return the local time, the stream and the body: on one line if the terminal is wide enough,
    otherwise with the body on lines of its own."""
    clock = f"{event.time.astimezone():%H:%M:%S.%f}"[:-3]
    names = printable(event.stream if label is None else f"{label} {event.stream}").ljust(12)
    body = printable(event.raw.decode())
    if len(f"{clock}  {names}  {body}") > shutil.get_terminal_size().columns:
        body = "\n" + printable(msgspec.json.format(event.raw, indent=2).decode())
    if is_coloured:
        clock = f"\x1b[2m{clock}\x1b[0m"
        names = f"\x1b[{colour_of(event.stream)}m{names}\x1b[0m"
    return f"{clock}  {names}  {body}\n".encode()


def colour_of(stream: str) -> int:
    """Return a colour that a stream keeps."""
    return COLOURS[crc32(stream.encode()) % len(COLOURS)]


def printable(text: str) -> str:
    """Return a text that does nothing to a terminal but appear on it."""
    return NOT_FOR_TERMINALS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
