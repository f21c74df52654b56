"""What the supervisor and a worker say to each other, over a pair of sockets that only they have.

Each message is a line of JSON. When one side has gone, the other one reads the end.
"""

import asyncio
import socket
from typing import TypeAlias

import msgspec

from megaphone.settings import Settings

MAX_BYTES = 1 << 24


class Begin(msgspec.Struct, tag=True):
    """From the supervisor, the first message: serve."""

    settings: Settings
    number: int
    """Which of the workers it is, from 1."""
    http: int
    """The descriptor of the socket on which the worker listens for HTTP."""


class Leave(msgspec.Struct, tag=True):
    """From the supervisor: end without refusing anything, because another worker is there."""


class Stop(msgspec.Struct, tag=True):
    """From the supervisor: stop in order."""


class Measure(msgspec.Struct, tag=True):
    """From the supervisor: what are your metrics?"""


class AddAgent(msgspec.Struct, tag=True):
    """From a worker: let all other workers have this agent. From the supervisor: have it too."""

    name: str


class AgentAdded(msgspec.Struct, tag=True):
    """From either, the answer to `AddAgent`."""

    name: str
    error: str | None = None
    """Why somebody does not have the agent."""


class DropAgent(msgspec.Struct, tag=True):
    """From a worker: let no worker make new channels under this agent. From the supervisor: the
    same."""

    name: str


class Gathered(msgspec.Struct, tag=True):
    """From the supervisor, the answer to `Gather`: the metrics of all workers."""

    text: str


class Ready(msgspec.Struct, tag=True):
    """From a worker: it serves."""

    http_port: int
    grpc_port: int


class Failed(msgspec.Struct, tag=True):
    """From a worker, the last message: why it does not serve, in one line."""

    reason: str


class Measured(msgspec.Struct, tag=True):
    """From a worker, the answer to `Measure`, and before its end: its metrics."""

    text: str
    is_last: bool = False


class Gather(msgspec.Struct, tag=True):
    """From a worker: what are the metrics of all workers?"""


Message: TypeAlias = (
    Begin
    | Leave
    | Stop
    | Measure
    | Gathered
    | Ready
    | Failed
    | Measured
    | Gather
    | AddAgent
    | AgentAdded
    | DropAgent
)

DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    return msgspec.json.encode(message) + b"\n"


class Link:
    """One end of the connection between the supervisor and a worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, connected: socket.socket) -> "Link":
        """Return a link over a connected socket, which the link closes."""
        connected.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=connected, limit=MAX_BYTES))

    def send(self, message: Message) -> None:
        """Send a message. If the other side has gone, nothing happens."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def sent(self) -> None:
        """Wait until the messages are sent, or the other side has gone."""
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    async def receive(self) -> Message | None:
        """Return the next message; None when the other side has gone."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        return DECODER.decode(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        self._writer.close()


def first_message(connected: socket.socket) -> Message:
    """Wait for the first message, and leave what comes behind it. Raises: EOFError."""
    line = b""
    while not line.endswith(b"\n"):
        seen = connected.recv(65_536, socket.MSG_PEEK)
        if not seen:
            raise EOFError("the supervisor has gone")
        line += connected.recv(seen.find(b"\n") + 1 or len(seen))
    return DECODER.decode(line)
