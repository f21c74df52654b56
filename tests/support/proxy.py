"""A TCP proxy before the broker. A test can cut its connections at any point of an answer."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 65_536
NO_LINGER = struct.pack("ii", 1, 0)
"""With this option, closing a socket sends RST instead of FIN."""


class Proxy:
    """Passes on everything in both directions, on any number of connections.

    `cuts` is a list of texts. When the broker has sent the first text, the proxy resets the
    connection of the client, and continues with the next text. It resets the connection of the
    broker too, unless `hides_cuts` is set: then it swallows what the broker still sends.
    """

    def __init__(self, to_port: int, cuts: Sequence[bytes], *, hides_cuts: bool) -> None:
        self.port = 0
        self.server: asyncio.Server | None = None
        self.cuts = list(cuts)
        self._to_port = to_port
        self._hides_cuts = hides_cuts
        self._clients: set[asyncio.StreamWriter] = set()

    async def connect(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Serve the connection of a client until it or that of the broker has ended."""
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
        """Return how many bytes of an answer to pass on before the cut; None if there is no cut."""
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
        """Accept no more connections, and reset all open ones."""
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
    """Run a proxy to a port of this machine. All its connections are closed at the end."""
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
