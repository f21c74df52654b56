"""A gRPC call over a bare socket that never sends the end of its message.

It implements only the necessary part of HTTP/2 (RFC 9113): no flow control, and headers without
compression.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.support.raw_http import Broken, Connection, Node

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_HEADERS, ACK = 4, 1
HEAD_BYTES = 9


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def header(name: str, value: str) -> bytes:
    """Return a header as a literal without indexing (RFC 7541, 6.2.2)."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


@asynccontextmanager
async def unfinished_call(node: Node, method: str, size: int, sent: int) -> AsyncIterator[None]:
    """Call a method with a message of `size` bytes, and send only the first `sent` bytes.

    The context begins when these bytes are sent.
    """
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "megaphone",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    headers = b"".join(header(name, value) for name, value in fields.items())
    message = b"\0" + size.to_bytes(4, "big") + bytes(sent)
    connection = await Connection.open(Node(node.grpc_port, node.grpc_port))
    try:
        await connection.send(PREFACE + frame(SETTINGS))
        await connection.send(frame(HEADERS, headers, flags=END_HEADERS, stream=1))
        await connection.send(frame(DATA, message, stream=1))
        answering = asyncio.create_task(answer_pings(connection))
        try:
            yield
        finally:
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering
    finally:
        connection.close()


async def answer_pings(connection: Connection) -> None:
    """Answer the pings of the server, so that it sees a living client."""
    with suppress(Broken):
        while True:
            head = await connection.receive_exactly(HEAD_BYTES)
            payload = await connection.receive_exactly(int.from_bytes(head[:3], "big"))
            kind, flags = head[3], head[4]
            if kind == PING and not flags & ACK:
                await connection.send(frame(PING, payload, flags=ACK))
