"""Links between clients or nodes and a node, which a test can cut.

A link has its own port, which stays the same, like the address of a node that is restarted. It
passes on everything in both directions, in any amount.
"""

import asyncio
import socket
from contextlib import suppress

from tests.support.proxy import reset

PIECE_BYTES = 262_144


class Link:
    """A port that passes connections on to another port while the link is open."""

    def __init__(self, to_port: int = 0) -> None:
        self.to_port = to_port
        self.port = 0
        self._reserved: socket.socket | None = None
        """Reserves the port, so that nobody else gets it while the link is closed."""
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Accept connections on the same port as before. Repeating it changes nothing."""
        if self._reserved is None:
            self._reserved = bound_to(0)
            self.port = self._reserved.getsockname()[1]
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, sock=bound_to(self.port))

    def cut(self) -> None:
        """Reset every connection. New connections are accepted."""
        for end in self._ends:
            reset(end)

    def close(self) -> None:
        """Reset every connection, and refuse new connections until `open`."""
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

    async def pass_answers(
        self, answers: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        """Pass on what the node sends, and its end. Raises: OSError, if one of the sides breaks."""
        await pass_on(answers, client)

    async def _serve(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        ends = [client]
        try:
            answers, node = await asyncio.open_connection("127.0.0.1", self.to_port)
            ends.append(node)
            self._ends.add(node)
            async with asyncio.TaskGroup() as group:
                group.create_task(pass_on(requests, node))
                group.create_task(self.pass_answers(answers, client))
        except* OSError:
            for end in ends:
                reset(end)
        finally:
            for end in ends:
                self._ends.discard(end)
                end.close()


def bound_to(port: int) -> socket.socket:
    """Return a new socket on a port. Until it listens, connections to the port are refused."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass on data and the end of data. Raises: OSError, if one of the two sides breaks."""
    while data := await source.read(PIECE_BYTES):
        sink.write(data)
        await sink.drain()
    with suppress(OSError):
        if sink.can_write_eof():
            sink.write_eof()
