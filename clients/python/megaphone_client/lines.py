"""Lines of JSON, split and decoded: how events come over HTTP.

The splitter takes whatever pieces the network brings, copies each byte once, and has no limit on
the length of a line.
"""

from collections.abc import Sequence

import msgspec

from megaphone_client.errors import MegaphoneError, ProtocolError, error_of
from megaphone_client.events import Arrived
from megaphone_client.transport import Part, is_end_for_a_new_token


class Line(msgspec.Struct, gc=False):
    sid: str
    eid: str
    ts: str
    body: msgspec.Raw
    traceparent: str | None = None


class LineOfMany(msgspec.Struct, gc=False):
    """A line of a read of many channels: an event, or the begin or the end of one of them."""

    channel: int
    sid: str = ""
    eid: str = ""
    ts: str = ""
    body: msgspec.Raw = msgspec.Raw()
    traceparent: str | None = None
    begun: bool = False
    position: str | None = None
    recovered: bool | None = None
    done: bool = False
    code: str | None = None
    message: str = ""
    retry_after_s: float | None = msgspec.field(default=None, name="retryAfter")


decode_many = msgspec.json.Decoder(LineOfMany).decode_lines
decode_lines = msgspec.json.Decoder(Line).decode_lines
decode_line = msgspec.json.Decoder(Line).decode


class Splitter:
    """Gathers pieces until they are whole lines."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def whole_lines(self, piece: bytes) -> bytes:
        """Return the lines that are whole now. A line that stays cut is dropped with the splitter,
        because the broker sends its event again."""
        end = piece.rfind(b"\n") + 1
        if not end:
            self._parts.append(piece)
            return b""
        if not self._parts:
            whole = piece if end == len(piece) else piece[:end]
        else:
            self._parts.append(piece[:end])
            whole = b"".join(self._parts)
        self._parts = [piece[end:]] if end < len(piece) else []
        return whole


def events_of(lines: bytes) -> Sequence[Arrived]:
    """Return the events of whole lines. An empty line is a heartbeat.

    Raises: ProtocolError, if a line is no event. The error has its length, never its content.
    """
    try:
        return [
            (line.sid, line.eid, line.ts, bytes(line.body), line.traceparent)
            for line in decode_lines(lines)
        ]
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ProtocolError(f"a line of {length_of_bad(lines)} bytes is no event") from None


def length_of_bad(lines: bytes) -> int:
    """Return the length of the first line that is no event."""
    for line in lines.split(b"\n"):
        if line.strip():
            try:
                decode_line(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return len(line)
    return len(lines)


def parts_of(lines: bytes) -> Sequence[Part]:
    """Return what whole lines of a read of many channels say. Raises: ProtocolError."""
    parts: list[Part] = []
    try:
        for line in decode_many(lines):
            if line.begun:
                part = Part(line.channel, [], True, line.position, line.recovered)
            elif line.done:
                error = error_in(line)
                ended = None if is_end_for_a_new_token(error) else error
                part = Part(line.channel, is_done=True, error=ended)
            else:
                if not (parts and parts[-1].channel == line.channel and parts[-1].events):
                    parts.append(Part(line.channel))
                arrived = (line.sid, line.eid, line.ts, bytes(line.body), line.traceparent)
                parts[-1].events.append(arrived)
                continue
            parts.append(part)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ProtocolError(f"{len(lines)} bytes are no lines of channels") from None
    return parts


def error_in(line: LineOfMany) -> MegaphoneError | None:
    if line.code is None:
        return None
    return error_of(line.code, line.message, is_unavailable=True, retry_after_s=line.retry_after_s)
