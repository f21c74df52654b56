"""The access log: a line for each call of a client, or only for each that was refused.

There may be as many lines as calls. So they do not pass the logging of the standard library: each
is encoded at once, and the lines of a second go to the writer together. The writer never blocks,
and counts the lines that it has to drop.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec

from megaphone.core.access import Caller
from megaphone.core.traces import trace_id_of
from megaphone.model import agent_of, short_id
from megaphone.observe.calls import OK, OTHER
from megaphone.observe.logs import printable

FLUSH_S: Final = 1.0
"""How often the lines go to the writer."""
FLUSH_BYTES: Final = 65_536
"""From this size on, lines go to the writer at once."""
MESSAGE: Final = "call"


class LineOfCall(msgspec.Struct, omit_defaults=True):
    """One line of the log. A field that is empty does not appear in it."""

    ts: datetime
    level: str
    logger: str
    message: str
    face: str
    method: str
    code: str
    ms: float
    waited_ms: float | None = None
    caller: str = ""
    tenant: str = ""
    agent: str = ""
    channel: str = ""
    peer: str = ""
    trace_id: str = ""


class Writer(Protocol):
    """Where the lines go: see `megaphone.observe.logs.LineWriter`."""

    def write(self, line: bytes, count: int = 1) -> None:
        """Write some lines, or drop and count them. Returns at once."""


class AccessLog:
    """Collects the lines of this process. Belongs to one event loop."""

    def __init__(
        self,
        writer: Writer,
        channel_of: Callable[[str], bytes | None],
        *,
        only_errors: bool,
        as_text: bool,
    ) -> None:
        """`channel_of` returns the channel id of an address; None if it is no address of a channel
        of this node."""
        self.only_errors: Final = only_errors
        self._writer = writer
        self._channel_of = channel_of
        self._as_text = as_text
        self._encoder = msgspec.json.Encoder()
        self._lines = bytearray()
        self._count = 0

    def add(
        self,
        face: str,
        method: str,
        code: str,
        seconds: float,
        waited_s: float = 0.0,
        *,
        caller: Caller | None = None,
        address: str = "",
        peer: str = "",
        traceparent: str = "",
    ) -> None:
        """Add a line for a call that has ended, and whose writers have waited for places for
        `waited_s` besides. Probes and pages have a line only if they fail."""
        if code == OK and (self.only_errors or method == OTHER):
            return
        channel_id = self._channel_of(address) if address else None
        line = LineOfCall(
            datetime.now(UTC),
            "info",
            "megaphone.access",
            MESSAGE,
            face,
            method,
            code,
            round(1000 * seconds, 3),
            round(1000 * waited_s, 3) if waited_s else None,
            caller="" if caller is None else caller.name,
            tenant="" if caller is None else caller.tenant.name,
            agent="" if channel_id is None else agent_of(address),
            channel="" if channel_id is None else short_id(channel_id),
            peer=peer,
            trace_id=trace_id_of(traceparent),
        )
        self._lines += self._rendered(line)
        self._count += 1
        if len(self._lines) >= FLUSH_BYTES:
            self.flush()

    def _rendered(self, line: LineOfCall) -> bytes:
        if not self._as_text:
            return self._encoder.encode(line) + b"\n"
        said = msgspec.to_builtins(line)
        fields = [f"{name}={said[name]}" for name in said if name not in HEAD]
        text = "  ".join(map(printable, (MESSAGE, *fields)))
        return f"{line.ts.astimezone():%H:%M:%S} INFO    {text}\n".encode()

    def flush(self) -> None:
        """Give the lines to the writer."""
        if self._count:
            self._writer.write(bytes(self._lines), self._count)
            self._lines.clear()
            self._count = 0

    async def run(self) -> None:
        """Flush every second. Never returns, and flushes when it is cancelled."""
        try:
            while True:
                await asyncio.sleep(FLUSH_S)
                self.flush()
        finally:
            self.flush()


HEAD: Final = ("ts", "level", "logger", "message")
