"""A TCP proxy before the broker, whose connections a test can cut where it wants."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 65_536
NO_LINGER = struct.pack("ii", 1, 0)
"""A socket that is closed with this tells its peer by RST, not by FIN."""


class Proxy:
    """Passes everything on, both ways, on any number of connections.

    `cuts` are texts: right after the first of them has come from the broker, the client's
    connection is reset; then the next one counts. The broker's connection is reset with it, unless
    the proxy `hides_cuts`: then what the broker goes on to send is swallowed.
    """

    def __init__(self, to_port: int, cuts: Sequence[bytes], *, hides_cuts: bool) -> None:
        self.port = 0
        self.server: asyncio.Server | None = None
        self.cuts = list(cuts)
        self._to_port = to_port
        self._hides_cuts = hides_cuts
        self._clients: set[asyncio.StreamWriter] = set()

    async def connect(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Serve a client's connection until it, or the broker's, has ended."""
        self._clients.add(client)
        writers = [client]
        directions: set[asyncio.Task[None]] = set()
        try:
            answers, broker = await asyncio.open_connection("127.0.0.1", self._to_port)
            writers.append(broker)
            directions = {
                asyncio.create_task(self._pass_answers_on(answers, client)),
                asyncio.create_task(self._pass_requests_on(reader, broker, client)),
            }
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(client)
            for direction in directions:
                direction.cancel()
            was_cut = client.is_closing()
            for writer in writers:
                reset(writer) if was_cut else writer.close()

    async def _pass_answers_on(
        self, answers: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        passed = b""
        with suppress(ConnectionError):
            while data := await answers.read(CHUNK_BYTES):
                if client.is_closing():
                    continue
                end = self._end_of_life(passed + data)
                client.write(data if end is None else data[: max(0, end - len(passed))])
                await client.drain()
                passed += data
                if end is not None:
                    reset(client)

    def _end_of_life(self, answer: bytes) -> int | None:
        """Return how much of an answer is passed on before its connection is cut, if it is."""
        if not self.cuts or (found := answer.find(self.cuts[0])) < 0:
            return None
        return found + len(self.cuts.pop(0))

    async def _pass_requests_on(
        self,
        requests: asyncio.StreamReader,
        broker: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        with suppress(ConnectionError):
            while data := await requests.read(CHUNK_BYTES):
                broker.write(data)
                await broker.drain()
        if self._hides_cuts and client.is_closing():
            await asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """Take no more connections, and reset those that are there."""
        assert self.server is not None
        self.server.close()
        self.cut()

    def cut(self) -> None:
        """Reset the connections of all clients."""
        for client in self._clients:
            reset(client)


def reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError):  # it is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    writer.transport.abort()


@asynccontextmanager
async def proxy_to(
    port: int, cuts: Sequence[bytes] = (), *, hides_cuts: bool = False
) -> AsyncIterator[Proxy]:
    """Run a proxy to a port of this machine; all of its connections end with it."""
    proxy = Proxy(port, cuts, hides_cuts=hides_cuts)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(proxy.connect(reader, client)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        proxy.server = server
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
