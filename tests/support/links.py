"""Links: how clients and nodes reach a node, so that a test can cut what is between them.

A link has a port of its own that stays the same, as the address of a node does that is started
again. It passes everything on, both ways, whatever the amount.
"""

import asyncio
import socket
from contextlib import suppress

from tests.support.proxy import reset

PIECE_BYTES = 262_144


class Link:
    """A port that leads to another one while it is open."""

    def __init__(self, to_port: int = 0) -> None:
        self.to_port = to_port
        self.port = 0
        self._reserved: socket.socket | None = None
        """Keeps the port, so that nobody else is given it while the link is closed."""
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Take connections, on the port that it had before. Repeating it changes nothing."""
        if self._reserved is None:
            self._reserved = bound_to(0)
            self.port = self._reserved.getsockname()[1]
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, sock=bound_to(self.port))

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        for end in self._ends:
            reset(end)

    def close(self) -> None:
        """Reset every connection, and refuse new ones until `open`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    async def aclose(self) -> None:
        self.close()
        if self._reserved is not None:
            self._reserved.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def _connected(self, received: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._ends.add(client)
        task = asyncio.create_task(self._serve(received, client))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _serve(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        ends = [client]
        try:
            answers, node = await asyncio.open_connection("127.0.0.1", self.to_port)
            ends.append(node)
            self._ends.add(node)
            async with asyncio.TaskGroup() as group:
                group.create_task(pass_on(requests, node))
                group.create_task(pass_on(answers, client))
        except* OSError:
            for end in ends:
                reset(end)
        finally:
            for end in ends:
                self._ends.discard(end)
                end.close()


def bound_to(port: int) -> socket.socket:
    """Return a socket of its own on a port; to connect to one that does not listen is refused."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass on what comes, and its end. Raises: OSError, when either side is broken."""
    while data := await source.read(PIECE_BYTES):
        sink.write(data)
        await sink.drain()
    with suppress(OSError):
        if sink.can_write_eof():
            sink.write_eof()
