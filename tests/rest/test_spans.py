"""The span of a batch whose client goes before it has the batch."""

import asyncio
import socket

from tests.parity.test_spans import CONTEXT, first, spans
from tests.support.faces import HttpFace
from tests.support.otlp import Collector

__all__ = ["first", "spans"]

RECEIVE_BYTES = 4_096
BODY = b'"' + b"x" * 900_000 + b'"'


async def test_a_batch_that_its_client_does_not_take_has_a_span_that_says_so(
    http: HttpFace, spans: Collector
) -> None:
    channel = await http.create()
    await http.traced(CONTEXT).write(channel.producer, "s", BODY)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    client.connect(("127.0.0.1", http.port))
    reader, writer = await asyncio.open_connection(sock=client, limit=RECEIVE_BYTES)
    writer.write(b"GET /read/%b HTTP/1.1\r\nHost: x\r\n\r\n" % channel.consumer.encode())
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(1)
    writer.transport.abort()
    await spans.has(sends=1, receives=1)
    [receive] = spans.named("receive")
    assert receive.error == receive.attributes["error.type"] == "BROKEN"
